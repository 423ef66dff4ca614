//! Nodes on two iothreads without a graph: what sends them orders waits for the answers.

use std::future::Future;
use std::sync::Arc;

use millpond::iothread::{IoThread, IoThreadConfig, Local, PollParams};
use millpond::node::{
    Client, Event, Mail, NodeAddress, NodeOrder, NodeSettings, OpenOrder, Order, OrderId, OrderOutcome,
    RootHandle, Wiring, serve,
};
use millpond_drivers::api::DriverKind;
use millpond_messages::graph::Options;
use millpond_messages::{NodeId, OpenFlags, Permissions, RootId, Token};

/// How long an iothread of these looks for work before it sleeps, where a bench wants it awake.
pub const AWAKE: PollParams = PollParams {
    max_ns: 10_000_000,
    grow: 0,
    shrink: 0,
};

/// One that sleeps as soon as it has nothing to do.
pub const ASLEEP: PollParams = PollParams {
    max_ns: 0,
    grow: 0,
    shrink: 0,
};

/// Two iothreads and what lives there. They sleep when they have nothing to do, until told otherwise.
pub struct World {
    pub near: IoThread<Mail>,
    pub far: IoThread<Mail>,
    events: crossbeam_channel::Receiver<Event>,
    last: u64,
}

impl World {
    pub fn new() -> Self {
        let (tell, events) = crossbeam_channel::unbounded();
        let processors = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
        let start = |name: &str, number: usize| {
            let tell = tell.clone();
            let config = IoThreadConfig {
                name: name.to_owned(),
                poll: ASLEEP,
                // Two that look for work without sleeping would otherwise be put on one processor at times, where each
                // waits for the other's time to be over.
                cpus: Some(vec![number % processors]),
                ..IoThreadConfig::default()
            };
            let sink: millpond::node::EventSink = Arc::new(move |event| drop(tell.send(event)));
            IoThread::start(config, move |local| serve(local, sink)).expect("an iothread starts")
        };
        Self {
            near: start("near", 0),
            far: start("far", 1),
            events,
            last: 0,
        }
    }

    fn next(&mut self) -> u64 {
        self.last += 1;
        self.last
    }

    /// Sends an order and waits for what is told next.
    pub fn order(&mut self, iothread: &IoThread<Mail>, order: Order) -> Event {
        self.tell(iothread, order);
        self.events.recv().expect("the iothread lives")
    }

    /// Sends an order that is not answered.
    pub fn tell(&mut self, iothread: &IoThread<Mail>, order: Order) {
        let order_id = OrderId(self.next());
        assert!(iothread.send(Mail::Control { order_id, order }).is_ok());
    }

    /// Opens a node of a driver that is built in, over `file` if it has a child.
    pub fn open(
        &mut self,
        iothread: &IoThread<Mail>,
        driver: &str,
        file: Option<&NodeAddress>,
    ) -> NodeAddress {
        self.open_with(iothread, driver, serde_json::json!({}), file)
    }

    /// The same with options of the driver's own.
    pub fn open_with(
        &mut self,
        iothread: &IoThread<Mail>,
        driver: &str,
        options: serde_json::Value,
        file: Option<&NodeAddress>,
    ) -> NodeAddress {
        let kind = Arc::clone(
            millpond_drivers::builtin::builtin()
                .find(driver)
                .expect("a driver that is built in"),
        );
        let serde_json::Value::Object(options) = options else {
            panic!("not an object: {options}")
        };
        self.open_kind(iothread, kind, options, file.cloned())
    }

    /// Opens a node of any driver.
    pub fn open_kind(
        &mut self,
        iothread: &IoThread<Mail>,
        kind: Arc<dyn DriverKind>,
        options: Options,
        file: Option<NodeAddress>,
    ) -> NodeAddress {
        let node = NodeId(self.next());
        let order = OpenOrder {
            node,
            name: format!("{}-{}", kind.name(), node.0),
            kind,
            options,
            flags: OpenFlags::RDWR | OpenFlags::UNMAP,
            settings: NodeSettings::default(),
            children: file.into_iter().map(Some).collect(),
        };
        let event = self.order(iothread, Order::Wiring(Wiring::Open(Box::new(order))));
        if let Event::Ended(_, OrderOutcome::Opened(Err(error))) = event {
            panic!("a node does not open: {error}");
        }
        NodeAddress {
            node,
            iothread: iothread.clone(),
        }
    }

    /// So many nodes of one driver on top of each other; the topmost, or `bottom` for none.
    pub fn chain(&mut self, driver: &str, length: usize, bottom: &NodeAddress) -> NodeAddress {
        (0..length).fold(bottom.clone(), |below, _| {
            let home = below.iothread.clone();
            self.open(&home, driver, Some(&below))
        })
    }

    /// A user of a node.
    pub fn client(&mut self, node: &NodeAddress) -> Client {
        let id = RootId(self.next());
        let root = RootHandle::new(id, Permissions::all(), false, node.iothread.clone());
        let client = Client::new(&root);
        let node_id = node.node;
        self.order(
            &node.iothread,
            Order::Wiring(Wiring::AttachRoot { root, node: node_id }),
        );
        client
    }

    /// Begins a drained section, and waits until the node is still.
    pub fn quiesce(&mut self, node: &NodeAddress) -> Token {
        let token = Token(self.next());
        self.order(
            &node.iothread,
            NodeOrder::Quiesce {
                token,
                after: Vec::new(),
            }
            .at(node.node),
        );
        token
    }

    /// Ends a drained section.
    pub fn resume(&mut self, node: &NodeAddress, token: Token) {
        self.tell(&node.iothread, NodeOrder::Resume(token).at(node.node));
    }
}

impl Drop for World {
    fn drop(&mut self) {
        for iothread in [&self.near, &self.far] {
            iothread.stop();
            iothread.join();
        }
    }
}

/// Runs a task on an iothread, and waits for what it gives.
pub fn on<T, F, Task>(iothread: &IoThread<Mail>, task: F) -> T
where
    T: Send + 'static,
    F: FnOnce() -> Task + Send + 'static,
    Task: Future<Output = T> + 'static,
{
    let (done, awaited) = crossbeam_channel::bounded(1);
    let job = move || {
        let local = Local::current().expect("mail is read on an iothread");
        let task = task();
        local.spawn(async move {
            done.send(task.await).expect("the bench waits for it");
        });
    };
    assert!(iothread.send(Mail::Run(Box::new(job))).is_ok());
    awaited.recv().expect("the task ends")
}
