//! Iothreads with nodes, ordered about as the graph actor would.

use std::cell::Cell;
use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use crossbeam_channel::{Receiver, unbounded};
use futures_channel::oneshot;
use millpond_drivers::api::DriverKind;
use millpond_engine::iothread::{IoThread, IoThreadConfig, Local};
use millpond_engine::node::{
    Client, Event, IothreadOrder, Mail, NodeAddress, NodeOrder, NodeSettings, OpenOrder, Order, OrderId,
    OrderOutcome, RootHandle, Wiring, serve,
};
use millpond_messages::io::OperationKind;
use millpond_messages::{NodeId, OpenFlags, Permissions, RootId, Token};
use millpond_ring::buffer::{Buffer, Buffers};

use super::driver::{Control, Held, Shape, Step, TestKind};

/// Far beyond what any step takes: reaching it is a failure, never a way to wait.
const DEADLINE: Duration = Duration::from_secs(20);

pub struct World {
    pub iothreads: Vec<IoThread<Mail>>,
    pub control: Arc<Control>,
    pub held: Receiver<Held>,
    events: Receiver<Event>,
    pub quiesced: std::cell::RefCell<Vec<(NodeId, Token)>>,
    serialises: std::cell::RefCell<Vec<(NodeId, RootId)>>,
    next: Cell<u64>,
}

impl World {
    pub fn new(iothreads: usize) -> Self {
        let (tell, events) = unbounded();
        let start = |index: usize| {
            let tell = tell.clone();
            let config = IoThreadConfig {
                name: format!("test-{index}"),
                ..IoThreadConfig::default()
            };
            let sink: millpond_engine::node::EventSink = Arc::new(move |event| drop(tell.send(event)));
            IoThread::start(config, move |local| serve(local, sink)).unwrap()
        };
        let (control, held) = Control::new();
        Self {
            iothreads: (0..iothreads).map(start).collect(),
            control,
            held,
            events,
            quiesced: std::cell::RefCell::default(),
            serialises: std::cell::RefCell::default(),
            next: Cell::new(1),
        }
    }

    fn fresh(&self) -> u64 {
        self.next.replace(self.next.get() + 1)
    }

    pub fn send(&self, iothread: usize, order: Order) -> OrderId {
        let order_id = OrderId(self.fresh());
        assert!(
            self.iothreads[iothread]
                .send(Mail::Control { order_id, order })
                .is_ok()
        );
        order_id
    }

    pub fn order(&self, iothread: usize, order: Order) -> OrderOutcome {
        let order_id = self.send(iothread, order);
        loop {
            match self.events.recv_timeout(DEADLINE).expect("an order is answered") {
                Event::Ended(ended, outcome) if ended == order_id => return outcome,
                Event::Ended(..) | Event::Noticed(..) => {}
                Event::Serialises(node, root) => self.serialises.borrow_mut().push((node, root)),
                Event::Quiesced(node, token) => self.quiesced.borrow_mut().push((node, token)),
            }
        }
    }

    pub fn done(&self, iothread: usize, order: Order) {
        match self.order(iothread, order) {
            OrderOutcome::Done(result) => result.unwrap(),
            OrderOutcome::Opened(result) => drop(result.unwrap()),
            _ => panic!("another answer than was asked for"),
        }
    }

    pub fn quiesce(&self, iothread: usize, node: NodeId) -> Token {
        let token = Token(self.fresh());
        self.send(
            iothread,
            NodeOrder::Quiesce {
                token,
                after: Vec::new(),
            }
            .at(node),
        );
        token
    }

    /// Whether the node has answered by the time it has carried out another order.
    pub fn is_quiesced(&self, iothread: usize, node: NodeId, token: Token) -> bool {
        drop(self.order(iothread, NodeOrder::Pending.at(node)));
        self.quiesced.borrow().contains(&(node, token))
    }

    /// How often the node has answered for a section so far.
    pub fn times_quiesced(&self, iothread: usize, node: NodeId, token: Token) -> usize {
        drop(self.order(iothread, NodeOrder::Pending.at(node)));
        let quiesced = self.quiesced.borrow();
        quiesced.iter().filter(|answer| **answer == (node, token)).count()
    }

    pub fn await_quiesced(&self, node: NodeId, token: Token) {
        while !self.quiesced.borrow().contains(&(node, token)) {
            match self.events.recv_timeout(DEADLINE).expect("the drain ends") {
                Event::Quiesced(node, token) => self.quiesced.borrow_mut().push((node, token)),
                Event::Serialises(node, root) => self.serialises.borrow_mut().push((node, root)),
                Event::Ended(..) | Event::Noticed(..) => {}
            }
        }
    }

    /// Has a node note what it has in flight for the root edge that asked for it, as the graph actor does: while the node is
    /// still. Answers whether one had asked.
    pub fn serialise(&self, iothread: usize) -> bool {
        // What was sent before has been seen to when another order has been carried out.
        drop(self.order(iothread, Order::Iothread(IothreadOrder::Counters)));
        let Some((node, root)) = self.serialises.borrow_mut().pop() else {
            return false;
        };
        let token = self.quiesce(iothread, node);
        self.await_quiesced(node, token);
        self.done(iothread, NodeOrder::Serialise { root }.at(node));
        self.send(iothread, NodeOrder::Resume(token).at(node));
        true
    }

    pub fn open(
        &self,
        iothread: usize,
        kind: Arc<dyn DriverKind>,
        children: Vec<Option<NodeAddress>>,
    ) -> NodeId {
        self.open_with(iothread, kind, millpond_messages::graph::Options::new(), children)
    }

    pub fn open_with(
        &self,
        iothread: usize,
        kind: Arc<dyn DriverKind>,
        options: millpond_messages::graph::Options,
        children: Vec<Option<NodeAddress>>,
    ) -> NodeId {
        let node = NodeId(self.fresh());
        self.done(
            iothread,
            Order::Wiring(Wiring::Open(Box::new(OpenOrder {
                node,
                name: format!("node{}", node.0),
                kind,
                options,
                flags: OpenFlags::RDWR | OpenFlags::UNMAP,
                settings: NodeSettings::default(),
                children,
            }))),
        );
        node
    }

    pub fn kind(&self, shape: Shape, size: usize) -> Arc<dyn DriverKind> {
        Arc::new(TestKind {
            shape,
            size,
            controls: HashMap::new(),
            control: Arc::clone(&self.control),
        })
    }

    pub fn memory(&self, iothread: usize, size: usize) -> NodeId {
        self.open(iothread, self.kind(Shape::Memory, size), Vec::new())
    }

    pub fn filter(&self, iothread: usize, below: NodeAddress) -> NodeId {
        self.open(iothread, self.kind(Shape::Filter, 0), vec![Some(below)])
    }

    pub fn address(&self, iothread: usize, node: NodeId) -> NodeAddress {
        NodeAddress {
            node,
            iothread: self.iothreads[iothread].clone(),
        }
    }

    pub fn client(&self, iothread: usize, node: NodeId) -> Client {
        self.client_with(iothread, node, Permissions::all(), false)
    }

    pub fn client_with(
        &self,
        iothread: usize,
        node: NodeId,
        permissions: Permissions,
        writethrough: bool,
    ) -> Client {
        let home = self.iothreads[iothread].clone();
        let root = RootHandle::new(RootId(self.fresh()), permissions, writethrough, home);
        let client = Client::new(&root);
        self.done(iothread, Order::Wiring(Wiring::AttachRoot { root, node }));
        client
    }

    /// The driver has been told to stop its background work; sending tells it that it has stopped.
    pub fn next_stop(&self) -> oneshot::Sender<()> {
        let held = self
            .held
            .recv_timeout(DEADLINE)
            .expect("the driver is told to stop its work");
        assert_eq!(held.step, Step::Quiesce);
        held.go
    }

    /// Runs a task on an iothread; its result comes over the channel.
    pub fn task<T: Send + 'static, F: Future<Output = T> + 'static>(
        &self,
        iothread: usize,
        make: impl FnOnce() -> F + Send + 'static,
    ) -> Receiver<T> {
        let (tell, result) = unbounded();
        let job = Mail::Run(Box::new(move || {
            let future = make();
            Local::current().unwrap().spawn(async move {
                drop(tell.send(future.await));
            });
        }));
        assert!(self.iothreads[iothread].send(job).is_ok());
        result
    }

    /// Waits until an iothread has done all that was sent to it before, and what that woke.
    pub fn settle(&self, iothread: usize) {
        for _ in 0..3 {
            answer(&self.task(iothread, || async {}));
        }
    }

    /// Does something while the iothread looks at nothing.
    pub fn while_busy<T>(&self, iothread: usize, act: impl FnOnce() -> T) -> T {
        let (go, wait) = crossbeam_channel::bounded::<()>(1);
        let busy = Mail::Run(Box::new(move || wait.recv().unwrap()));
        assert!(self.iothreads[iothread].send(busy).is_ok());
        let done = act();
        go.send(()).unwrap();
        done
    }

    pub fn hold(&self, hold: bool) {
        self.control.hold.store(hold, Ordering::SeqCst);
    }

    pub fn next_held(&self) -> Held {
        self.held
            .recv_timeout(DEADLINE)
            .expect("a transfer reaches the driver")
    }

    pub fn let_go(&self, kind: OperationKind) -> u64 {
        let held = self.next_held();
        assert_eq!(held.step, Step::Request(kind));
        held.go.send(()).unwrap();
        held.offset
    }
}

impl Drop for World {
    fn drop(&mut self) {
        for iothread in &self.iothreads {
            iothread.stop();
        }
        for iothread in &self.iothreads {
            iothread.join();
        }
    }
}

/// What a task or a client on another thread answers.
pub fn answer<T>(result: &Receiver<T>) -> T {
    result.recv_timeout(DEADLINE).expect("an answer comes")
}

pub fn bytes(fill: u8, len: usize) -> Buffers {
    Buffers::from(Buffer::from_slice(&vec![fill; len]))
}
