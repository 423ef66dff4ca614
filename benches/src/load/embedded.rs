//! The load on a node of this process, through the library that other programs embed.
//!
//! Each request in flight is a task that takes the next request as soon as its last was answered. The tasks of a
//! connection share its work, and run on a thread of the client or on the iothread where the node lives.

use std::cell::{Cell, RefCell};
use std::future::{Future, poll_fn};
use std::pin::Pin;
use std::rc::Rc;
use std::sync::{Arc, mpsc};
use std::task::{Context, Poll, Wake, Waker};
use std::thread::Thread;
use std::time::Instant;

use futures_executor::block_on;
use futures_util::Stream;
use futures_util::stream::FuturesUnordered;
use millpond::embed::{BlockLayer, BlockLayerConfig};
use millpond::graph::GraphHandle;
use millpond::iothread::Local;
use millpond::node::{Client, HomeClient};
use millpond_messages::graph::{Options, RootRequest, RootUser};
use millpond_messages::io::Operation;
use millpond_messages::{Permissions, Range, RequestFlags};
use millpond_ring::Ring;
use millpond_ring::buffer::Buffers;
use serde_json::Value;

use super::generate::Ask;
use super::spec::{Kind, Spec};
use super::workload::{Next, Part, Request, Workload};
use crate::Outcome;

/// The name of a node that its options give none.
const NODE_NAME: &str = "disk";

/// The longest sleep for the time of a request, in nanoseconds: the load may be ended meanwhile.
const LONGEST_NAP: u64 = 50_000_000;

/// A block layer in this process, with the node that is loaded.
pub(super) struct Layer {
    layer: BlockLayer,
    node: String,
}

impl std::fmt::Debug for Layer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Layer")
            .field("node", &self.node)
            .finish_non_exhaustive()
    }
}

impl Layer {
    /// Starts a block layer and opens a node with these options.
    pub fn start(options: &Options, spec: &Spec) -> Outcome<Layer> {
        let mut options = options.clone();
        let node = options
            .entry("node-name")
            .or_insert_with(|| Value::from(NODE_NAME))
            .as_str()
            .ok_or("node-name is a string")?
            .to_owned();
        if !spec.mix.items().any(Kind::changes) {
            options.entry("read-only").or_insert(Value::Bool(true));
        }
        let layer = block_on(BlockLayer::start(BlockLayerConfig::default()))?;
        let layer = Layer { layer, node };
        block_on(layer.graph().add_node(options)).map_err(|error| error.to_string())?;
        Ok(layer)
    }

    /// The graph.
    pub fn graph(&self) -> &GraphHandle {
        self.layer.graph()
    }

    /// A further user of the node, and the node's length in bytes.
    pub fn open(&self, spec: &Spec) -> Outcome<(Opened, u64)> {
        let mut permissions = Permissions::CONSISTENT_READ;
        if spec.mix.items().any(Kind::changes) {
            permissions |= Permissions::WRITE;
        }
        let request = RootRequest {
            node: self.node.clone(),
            user: RootUser::Embedder("load".to_owned()),
            permissions,
            shared: Permissions::all(),
            iothread: None,
            iothread_required: false,
            writethrough: false,
        };
        let client = block_on(self.graph().attach(request)).map_err(|error| error.to_string())?;
        let size = block_on(client.length()).map_err(|error| error.to_string())?;
        Ok((Opened(client), size))
    }

    /// Closes the node and ends the threads.
    pub fn end(self) -> Outcome<()> {
        Ok(block_on(self.layer.shut_down()).map_err(|error| error.to_string())?)
    }
}

/// A user of the node.
pub(super) struct Opened(Client);

impl std::fmt::Debug for Opened {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Opened").finish_non_exhaustive()
    }
}

impl Opened {
    /// Works until the load is over.
    pub fn run(self, spec: &Spec, workload: Workload) -> Outcome<Part> {
        if spec.home {
            self.run_at_home(spec, workload)
        } else {
            self.run_here(spec, workload)
        }
    }

    fn run_here(self, spec: &Spec, workload: Workload) -> Outcome<Part> {
        rustix::thread::set_current_timer_slack(std::num::NonZeroU64::new(1))?;
        let alarm = Rc::new(Cell::new(None));
        let desk = Rc::new(Desk::new(workload, Alarm::Thread(Rc::clone(&alarm))));
        let tasks: FuturesUnordered<_> = (0..spec.depth).map(|_| work(&desk, &self.0)).collect();
        drive(tasks, &alarm);
        Desk::end(desk)
    }

    fn run_at_home(self, spec: &Spec, workload: Workload) -> Outcome<Part> {
        let (tell, told) = mpsc::channel();
        let (client, depth) = (self.0.clone(), spec.depth);
        let sent = self.0.run_at_home(move || {
            let Some(local) = Local::current() else { return };
            let desk = Rc::new(Desk::new(workload, Alarm::Ring(local.ring().clone())));
            let client = client.here();
            for _ in 0..depth {
                let (desk, client, tell) = (Rc::clone(&desk), client.clone(), tell.clone());
                local.spawn(async move {
                    work(&desk, &client).await;
                    // The last to end has the only hold on the work. That nobody waits means that the load was given up.
                    if Rc::strong_count(&desk) == 1 {
                        let _ = tell.send(Desk::end(desk));
                    }
                });
            }
        });
        if !sent {
            return Err("the node's iothread has ended".into());
        }
        told.recv().map_err(|_| "the node's iothread has ended")?
    }
}

/// Either kind of client.
trait Sender {
    fn send(
        &self,
        operation: Operation<Buffers>,
    ) -> impl Future<Output = millpond_messages::io::Outcome<Buffers>>;
}

impl Sender for Client {
    fn send(
        &self,
        operation: Operation<Buffers>,
    ) -> impl Future<Output = millpond_messages::io::Outcome<Buffers>> {
        self.request(operation)
    }
}

impl Sender for HomeClient {
    fn send(
        &self,
        operation: Operation<Buffers>,
    ) -> impl Future<Output = millpond_messages::io::Outcome<Buffers>> {
        self.request(operation)
    }
}

/// Where the tasks of a connection get their work.
struct Desk {
    workload: RefCell<Workload>,
    /// Tasks that found nothing to do, each with a flag that says that it was called.
    waiting: RefCell<Vec<(Rc<Cell<bool>>, Waker)>>,
    /// Whether a task sleeps until the next request is due: one is enough.
    asleep: Cell<bool>,
    alarm: Alarm,
    failure: RefCell<Option<String>>,
}

impl Desk {
    fn new(workload: Workload, alarm: Alarm) -> Desk {
        Desk {
            workload: RefCell::new(workload),
            waiting: RefCell::default(),
            asleep: Cell::new(false),
            alarm,
            failure: RefCell::default(),
        }
    }

    fn end(desk: Rc<Desk>) -> Outcome<Part> {
        let desk = Rc::into_inner(desk).ok_or("a task goes on after its end")?;
        match desk.failure.into_inner() {
            Some(failure) => Err(failure.into()),
            None => desk.workload.into_inner().finish(),
        }
    }

    fn now(&self) -> u64 {
        self.workload.borrow().control().now()
    }

    /// Has one of those that found nothing to do look again.
    fn call_next(&self) {
        let waiting = self.waiting.borrow_mut().pop();
        if let Some((called, waker)) = waiting {
            called.set(true);
            waker.wake();
        }
    }

    /// Waits until something has changed.
    async fn wait(&self) {
        let called = Rc::new(Cell::new(false));
        let mut begun = false;
        poll_fn(|context| {
            if called.get() {
                return Poll::Ready(());
            }
            // A task may be polled though nobody has called it: it is in the list once.
            if !std::mem::replace(&mut begun, true) {
                let waiting = (Rc::clone(&called), context.waker().clone());
                self.waiting.borrow_mut().push(waiting);
            }
            Poll::Pending
        })
        .await;
    }

    /// The next request; none when there are no more.
    async fn next(&self) -> Option<Request> {
        loop {
            let now = self.now();
            let next = self.workload.borrow_mut().next(now);
            match next {
                Next::Request(request) => {
                    self.call_next();
                    return Some(request);
                }
                Next::Ended => {
                    self.call_next();
                    return None;
                }
                Next::At(time) if !self.asleep.get() => {
                    self.asleep.set(true);
                    let time = time.min(now + LONGEST_NAP);
                    let instant = self.workload.borrow().control().instant(time);
                    self.alarm.until(instant.unwrap_or_else(Instant::now)).await;
                    self.asleep.set(false);
                }
                Next::At(_) | Next::Blocked => self.wait().await,
            }
        }
    }

    fn fail(&self, what: &str, ask: &Ask, error: &dyn std::fmt::Display) {
        let text = format!(
            "a {} of {} bytes at {} {what}: {error}",
            ask.kind, ask.len, ask.offset
        );
        self.failure.borrow_mut().get_or_insert(text);
        self.workload.borrow().control().fail();
    }

    /// Takes the end of a request in, and gives back the buffers that the next one of its kind and length may use.
    fn answered(
        &self,
        request: &Request,
        outcome: millpond_messages::io::Outcome<Buffers>,
    ) -> Option<Buffers> {
        let mut workload = self.workload.borrow_mut();
        let now = workload.control().now();
        let (result, buffers) = outcome.into_parts();
        let mut checked = Ok(());
        if let (Ok(()), Kind::Read, Some(buffers)) = (&result, request.ask.kind, &buffers) {
            let mut offset = request.ask.offset;
            for buffer in buffers {
                checked = checked.and_then(|()| workload.received(offset, buffer));
                offset += buffer.len() as u64;
            }
        }
        let noted = workload.answered(request, now);
        drop(workload);
        if let Err(error) = result {
            self.fail("failed", &request.ask, &error);
        }
        if let Err(error) = checked.and(noted) {
            self.failure.borrow_mut().get_or_insert(error.to_string());
            self.workload.borrow().control().fail();
        }
        buffers
    }
}

/// Sends one request after the other until there are no more.
async fn work(desk: &Desk, client: &impl Sender) {
    let mut kept: Option<(Ask, Buffers)> = None;
    while let Some(request) = desk.next().await {
        let operation = operation(desk, &request, kept.take());
        let outcome = client.send(operation).await;
        kept = desk
            .answered(&request, outcome)
            .map(|buffers| (request.ask, buffers));
        desk.call_next();
    }
}

/// A request as the library has it. Buffers of an earlier one are used again where they fit.
fn operation(desk: &Desk, request: &Request, kept: Option<(Ask, Buffers)>) -> Operation<Buffers> {
    let Ask { kind, offset, len } = request.ask;
    let flags = RequestFlags::empty();
    // Buffers may come back in pieces.
    let kept = kept
        .filter(|(ask, buffers)| (ask.kind, ask.len, 1) == (kind, len, buffers.count()))
        .map(|(_, buffers)| buffers);
    match kind {
        Kind::Read => Operation::Read {
            offset,
            buffers: kept.unwrap_or_else(|| Buffers::alloc(len as usize)),
            flags,
        },
        Kind::Write => {
            let fresh = kept.is_none();
            let mut buffers = kept.unwrap_or_else(|| Buffers::alloc(len as usize));
            let workload = desk.workload.borrow();
            for buffer in buffers.iter_mut() {
                if workload.verifies() {
                    workload.fill(request, buffer);
                } else if fresh {
                    // Data that no driver takes for zeroes.
                    buffer.fill(0x5a);
                }
            }
            Operation::Write {
                offset,
                buffers,
                flags,
            }
        }
        Kind::Zero => Operation::WriteZeroes {
            range: Range::new(offset, len.into()).expect("a part of the disk"),
            flags: RequestFlags::MAY_UNMAP,
        },
        Kind::Trim => Operation::Discard {
            range: Range::new(offset, len.into()).expect("a part of the disk"),
        },
        Kind::Flush => Operation::Flush,
    }
}

/// The time for which a task of this thread sleeps, and the task.
type ThreadAlarm = Rc<Cell<Option<(Instant, Waker)>>>;

/// What wakes a task at a time: one task sleeps at once.
enum Alarm {
    Ring(Ring),
    Thread(ThreadAlarm),
}

impl Alarm {
    async fn until(&self, time: Instant) {
        match self {
            Alarm::Ring(ring) => ring.sleep_until(time).await,
            Alarm::Thread(alarm) => {
                poll_fn(|context| {
                    if Instant::now() >= time {
                        return Poll::Ready(());
                    }
                    alarm.set(Some((time, context.waker().clone())));
                    Poll::Pending
                })
                .await;
            }
        }
    }
}

/// Wakes a thread that waits for its tasks.
struct Unpark(Thread);

impl Wake for Unpark {
    fn wake(self: Arc<Self>) {
        self.0.unpark();
    }
}

/// Runs tasks on this thread until all have ended.
fn drive(mut tasks: FuturesUnordered<impl Future<Output = ()>>, alarm: &ThreadAlarm) {
    let waker = Waker::from(Arc::new(Unpark(std::thread::current())));
    let mut context = Context::from_waker(&waker);
    loop {
        match Pin::new(&mut tasks).poll_next(&mut context) {
            Poll::Ready(None) => return,
            Poll::Ready(Some(())) => continue,
            Poll::Pending => {}
        }
        let Some((time, task)) = alarm.take() else {
            std::thread::park();
            continue;
        };
        let left = time.saturating_duration_since(Instant::now());
        if left.is_zero() {
            task.wake();
        } else {
            alarm.set(Some((time, task)));
            std::thread::park_timeout(left);
        }
    }
}
