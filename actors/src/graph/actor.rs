//! The actix actor around the policy. It decides nothing.

use std::collections::{HashMap, VecDeque};
use std::io;
use std::sync::Arc;
use std::time::Duration;

use actix::{Actor, AsyncContext, Context, Handler, Message, ResponseFuture, StreamHandler};
use futures_channel::{mpsc, oneshot};
use futures_executor::block_on;
use millpond_drivers::api::Registry;
use millpond_messages::graph::{GraphReply, IothreadOptions, ListDrains, Request, Serialise};
use millpond_messages::handshake::PendingDrain;
use millpond_messages::{Error, ErrorKind, IoThreadId, Result, Token};
use tokio::time::Instant;

use crate::flight::collect;

use super::addresses::Handles;
use super::asked::give_back;
use super::change_log::ChangeLog;
use super::delay::{self, Delay};
use super::handle::GraphHandle;
use super::inbox::{Fresh, Incoming, ReplySender, closed};
use super::iothreads::{IothreadFactory, poll_params};
use super::mailbox::{Receiver, mailbox};
use super::memory::Memory;
use super::names::NameRegistry;
use millpond_engine::iothread::IoThread;
use millpond_engine::node::{self, Client, EventSink, Mail, OrderId, OrderOutcome};
use millpond_graph::{Announcement, Effect, ImplicitOpens, Policy, PolicyEvent, Reply, RequestId};

/// How long a drained section may take to become still before the log names what it waits for.
const PATIENCE: Duration = Duration::from_secs(1);

/// What a graph is started with.
pub struct GraphConfig {
    /// The drivers that nodes may have.
    pub registry: Registry,
    /// Whether backing files that images name are opened.
    pub implicit: ImplicitOpens,
    /// Where iothreads come from. The main one is the first that it is asked for.
    pub iothreads: IothreadFactory,
    /// The main iothread's properties.
    pub main: IothreadOptions,
}

/// Any request to the graph actor, as a message of actix; the result is the request's answer.
#[derive(Debug)]
pub struct GraphMessage<R>(
    /// What the graph is asked to do.
    pub R,
);

impl<R: Request> Message for GraphMessage<R> {
    type Result = Result<R::Answer<Client>>;
}

/// The graph actor: the policy, and the handles that it decides about.
pub struct Graph {
    policy: Policy,
    pub(super) handles: Handles,
    replies: HashMap<RequestId, ReplySender>,
    listeners: Vec<mpsc::Sender<Announcement>>,
    iothreads: IothreadFactory,
    memory: Memory,
    /// Deleted iothreads that a client may still be sending to.
    pub(super) retired: Vec<IoThread<Mail>>,
    events: EventSink,
    incoming: Option<Receiver<Incoming>>,
    handle: GraphHandle,
    begun: Instant,
    /// A timer for drains that are slow is running.
    watching: bool,
    pub(super) delay: Delay,
    changes: ChangeLog,
    names: NameRegistry,
}

impl Graph {
    /// Starts the actor on the current actix arbiter, and its main iothread.
    ///
    /// # Errors
    /// The main iothread cannot be started.
    pub fn start(mut config: GraphConfig) -> io::Result<(actix::Addr<Self>, GraphHandle)> {
        let (sender, incoming) = mailbox()?;
        let inbox = sender.clone();
        // The graph may be gone while its iothreads end.
        let events: EventSink = Arc::new(move |event| {
            inbox.send_with_others(Incoming::Event(event));
        });
        // There is no graph yet that somebody could ask: this may wait for the thread.
        let (main, thread) = block_on((config.iothreads)(&config.main, Arc::clone(&events)))?;
        let names = NameRegistry::default();
        let handle = GraphHandle::new(sender, names.names());
        let mut handles = Handles::default();
        let policy = Policy::new(config.registry, config.implicit, main.id(), thread);
        handles.iothreads.insert(main.id(), main);
        let graph = Self {
            policy,
            handles,
            replies: HashMap::new(),
            listeners: Vec::new(),
            iothreads: config.iothreads,
            memory: Memory::default(),
            retired: Vec::new(),
            events,
            incoming: Some(incoming),
            handle: handle.clone(),
            begun: Instant::now(),
            watching: false,
            delay: Delay::default(),
            changes: ChangeLog::default(),
            names,
        };
        Ok((Actor::start(graph), handle))
    }

    pub(super) fn receive(&mut self, incoming: Incoming) {
        let now = self.begun.elapsed();
        let effects = match incoming {
            Incoming::Request(id, request, reply) => {
                self.handles.flight.asked(id.0);
                self.changes.asked(id, &request);
                if let Some(reply) = reply {
                    self.replies.insert(id, reply);
                }
                self.policy.request(id, request, now)
            }
            Incoming::Abandoned(id) => self.policy.abandon(id, now),
            Incoming::Listen(listener) => {
                self.listeners.push(listener);
                Vec::new()
            }
            Incoming::Memory(change) => {
                let iothreads = self.handles.iothreads.values().chain(&self.retired);
                self.memory.change(change, iothreads);
                Vec::new()
            }
            Incoming::Flight(reason, done) => {
                self.write_flight(reason, done);
                Vec::new()
            }
            Incoming::Chaos(chaos, done) => {
                self.set_chaos(chaos, done);
                Vec::new()
            }
            Incoming::Event(node::Event::Serialises(_, root)) => {
                // Nobody waits for the reply: what was asked for is seen by the root edge, which goes on then.
                let id = self.handle.next_id();
                self.policy.request(id, Serialise(root), now)
            }
            Incoming::Event(event) => {
                self.handles.flight.heard(&event);
                self.policy.event(PolicyEvent::Node(event), now)
            }
            Incoming::Started(order_id, started) => {
                let started = started.and_then(|started| self.take_on(started));
                self.policy.event(PolicyEvent::Started(order_id, started), now)
            }
            Incoming::Alarm => self.policy.event(PolicyEvent::Alarm, now),
            Incoming::Names => Vec::new(),
        };
        self.carry_out(effects);
    }

    /// Gathers the flight record, beside what else is to be done.
    fn write_flight(&self, reason: String, done: oneshot::Sender<Vec<u8>>) {
        let iothreads = self.handles.iothreads.values().cloned().collect();
        actix_rt::spawn(async move {
            // Whoever asked may have gone.
            drop(done.send(collect(&reason, iothreads).await));
        });
    }

    /// Looks again when a drain may have become slow.
    pub(super) fn watch(&mut self, context: &mut Context<Self>) {
        if self.watching {
            return;
        }
        if let Some(slow_at) = self.policy.slow_at(PATIENCE) {
            self.watching = true;
            let left = slow_at.saturating_sub(self.begun.elapsed());
            context.run_later(left, |graph, context| {
                graph.watching = false;
                let slow = graph.policy.newly_slow(PATIENCE, graph.begun.elapsed());
                if !slow.is_empty() {
                    actix_rt::spawn(warn_of(slow, graph.handle.clone()));
                }
                graph.watch(context);
            });
        }
    }

    fn carry_out(&mut self, effects: Vec<Effect>) {
        // A queue, since an effect that fails at once is an event with effects of its own.
        let mut queue = VecDeque::from(effects);
        while let Some(effect) = queue.pop_front() {
            let event = match effect {
                Effect::Send {
                    iothread,
                    order_id,
                    order,
                } => {
                    let sent = self.handles.send(iothread, order_id, order);
                    let failed = |error| node::Event::Ended(order_id, OrderOutcome::Done(Err(error)));
                    sent.err().map(|error| PolicyEvent::Node(failed(error)))
                }
                Effect::StartIothread { order_id, options } => {
                    self.start_iothread(order_id, options);
                    None
                }
                Effect::Reply { id, result } => {
                    self.names.reply(id, result);
                    None
                }
                other => {
                    self.note(other);
                    None
                }
            };
            if let Some(event) = event {
                let now = self.begun.elapsed();
                queue.extend(self.policy.event(event, now));
            }
        }
        self.handles.wake();
        while let Some((id, result)) = self.names.next_reply() {
            self.reply(id, result);
        }
        self.try_names_again();
    }

    /// Has names that a reader is in the way of written in another turn.
    fn try_names_again(&self) {
        if self.names.is_behind() {
            let handle = self.handle.clone();
            actix_rt::spawn(async move {
                tokio::task::yield_now().await;
                handle.post(Incoming::Names);
            });
        }
    }

    fn note(&mut self, effect: Effect) {
        match effect {
            Effect::RootPermissions { root, permissions } => {
                if let Some(root) = self.handles.roots.get(&root) {
                    root.set_permissions(permissions);
                }
            }
            Effect::NodeFound { node, name, driver } => self.names.add(node, name, driver),
            Effect::NodeGone(name) => self.names.remove(name),
            Effect::RootGone(root) => {
                self.handles.roots.remove(&root);
            }
            Effect::RootServes { root, iothreads } => self.handles.set_threads(root, &iothreads),
            Effect::TuneIothread { iothread, options } => {
                if let Some(iothread) = self.handles.iothreads.get(&iothread) {
                    iothread.set_poll(poll_params(&options));
                }
            }
            Effect::StopIothread(iothread) => {
                if let Some(iothread) = self.handles.iothreads.remove(&iothread) {
                    iothread.retire();
                    self.retired.retain(|other| !other.has_ended());
                    self.retired.push(iothread);
                }
            }
            Effect::Announce(announcement) => self.announce(&announcement),
            Effect::Alarm(after) => {
                let handle = self.handle.clone();
                actix_rt::spawn(async move {
                    actix_rt::time::sleep(after).await;
                    handle.post(Incoming::Alarm);
                });
            }
            Effect::Send { .. } | Effect::StartIothread { .. } | Effect::Reply { .. } => {}
        }
    }

    fn announce(&mut self, announcement: &Announcement) {
        self.listeners
            .retain_mut(|listener| match listener.try_send(announcement.clone()) {
                Err(error) if error.is_full() => {
                    tracing::warn!(?announcement, "an announcement is lost: a listener does not read");
                    true
                }
                sent => sent.is_ok(),
            });
    }

    /// Starts an iothread without waiting for it: its thread says when it runs.
    fn start_iothread(&mut self, order_id: OrderId, options: IothreadOptions) {
        let starting = (self.iothreads)(&options, Arc::clone(&self.events));
        let handle = self.handle.clone();
        actix_rt::spawn(async move {
            let started = starting.await.map_err(|error| {
                let context = format!("Could not start iothread '{}': {error}", options.id);
                Error::caused_by(ErrorKind::Io(io_error(&error)), context, error)
            });
            let started = started.map(|started| Fresh(Some(started)));
            handle.post(Incoming::Started(order_id, started));
        });
    }

    /// Takes on an iothread that runs.
    fn take_on(&mut self, mut fresh: Fresh) -> Result<(IoThreadId, u32)> {
        let (iothread, thread) = fresh.0.take().ok_or_else(closed)?;
        self.memory.tell_all(&iothread);
        if let Some(chaos) = self.delay.rules() {
            let (done, _) = oneshot::channel();
            delay::put_in_force(&iothread, Some(chaos), done);
        }
        let id = iothread.id();
        self.handles.iothreads.insert(id, iothread);
        Ok((id, thread))
    }

    fn reply(&mut self, id: RequestId, result: Reply) {
        self.handles.flight.replied(id.0);
        self.changes.answered(id, &result);
        let result = result.and_then(|reply| self.with_handles(reply));
        let Some(reply) = self.replies.remove(&id) else {
            return;
        };
        if let Some((reply, result)) = self.hold_answer(reply, result) {
            self.answer(reply, result);
        }
    }

    pub(super) fn answer(&self, reply: ReplySender, result: Result<GraphReply<Client>>) {
        // Whoever asked may have gone.
        if let Err(Ok(reply)) = reply.send(result) {
            give_back(&self.handle, &reply);
        }
    }

    fn with_handles(&self, reply: GraphReply<millpond_messages::RootId>) -> Result<GraphReply<Client>> {
        reply.try_map_root(|root| {
            let handle = self.handles.roots.get(&root).ok_or_else(closed)?;
            Ok(Client::new(handle))
        })
    }
}

/// Names in the log what slow drains wait for, of those that still wait.
async fn warn_of(slow: Vec<Token>, graph: GraphHandle) {
    let Ok(drains) = graph.ask(ListDrains).await else {
        return;
    };
    for drain in drains.iter().filter(|drain| slow.contains(&Token(drain.token))) {
        let seconds = drain.age_ns / 1_000_000_000;
        tracing::warn!(
            user = drain.user,
            seconds,
            waiting_for = waited_for(drain),
            "a drain takes long"
        );
    }
}

/// The nodes that a drain waits for, each with its oldest request.
fn waited_for(drain: &PendingDrain) -> String {
    let nodes = drain
        .waiting_for
        .iter()
        .map(|node| match node.requests.is_empty() {
            true => format!("{node} (background work)"),
            false => node.to_string(),
        });
    nodes.collect::<Vec<_>>().join("; ")
}

fn io_error(error: &io::Error) -> millpond_messages::IoError {
    millpond_messages::IoError::from_errno(
        error
            .raw_os_error()
            .unwrap_or(millpond_messages::error::errno::EIO),
    )
}

impl Actor for Graph {
    type Context = Context<Self>;

    fn started(&mut self, context: &mut Self::Context) {
        if let Some(incoming) = self.incoming.take() {
            context.add_stream(incoming);
        }
    }
}

impl Drop for Graph {
    // Not when the actor stops: a system that ends drops its actors without telling them.
    fn drop(&mut self) {
        for iothread in self.handles.iothreads.values().chain(&self.retired) {
            iothread.stop();
        }
    }
}

impl StreamHandler<Incoming> for Graph {
    fn handle(&mut self, incoming: Incoming, context: &mut Self::Context) {
        if let Some(incoming) = self.hold_incoming(incoming) {
            self.receive(incoming);
        }
        self.watch_delayed(context);
        self.watch(context);
    }
}

impl<R: Request + 'static> Handler<GraphMessage<R>> for Graph {
    type Result = ResponseFuture<Result<R::Answer<Client>>>;

    fn handle(&mut self, GraphMessage(request): GraphMessage<R>, _: &mut Self::Context) -> Self::Result {
        // It takes its place in the queue now, not when the answer is first waited for.
        Box::pin(self.handle.ask(request))
    }
}
