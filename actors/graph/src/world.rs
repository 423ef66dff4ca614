//! What all procedures of the policy share: the graph, the sections, and the orders on their way.
//!
//! A mutation is an async function over a [`World`], polled by the [`Policy`](crate::Policy) alone: its states are those
//! of the function, it waits for nothing but answers to orders and stillness of sections, and it borrows the state only
//! between two waits.

use std::cell::RefCell;
use std::collections::{BTreeMap, HashMap};
use std::future::Future;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll};
use std::time::Duration;

use millpond_drivers::api::Registry;
use millpond_engine::node::{OpenFacts, OrderOutcome, Ticket};
use millpond_messages::global_state::IothreadOptions;
use millpond_messages::{Error, ErrorKind, IoThreadId, NodeId, Permissions, Result, RootId, Token};

use crate::order::{Address, Order};
use crate::sections::{Cover, Sections};
use crate::transaction::Log;
use crate::value::graph::Graph;
use crate::{Effect, ImplicitOpens};

/// An iothread that nodes can live in.
#[derive(Debug, Clone)]
pub struct IothreadEntry {
    /// Its properties; `None` for the main one.
    pub options: Option<IothreadOptions>,
    /// The host's id of the thread.
    pub thread: u32,
}

/// The state behind a [`World`].
pub struct State {
    /// The graph.
    pub graph: Graph,
    /// Drained sections.
    pub sections: Sections,
    /// The drivers there are.
    pub registry: Registry,
    /// Whether names stored in images are opened.
    pub implicit: ImplicitOpens,
    /// Iothreads.
    pub iothreads: BTreeMap<IoThreadId, IothreadEntry>,
    /// The main iothread.
    pub main: IoThreadId,
    /// The time of the request or event that is being handled.
    pub now: Duration,
    /// Everything was closed, or is being closed: only questions are answered.
    pub closed: bool,
    /// The procedure that was polled last waits for drained sections and has no order under way.
    pub waits_for_stillness: bool,
    /// Transactions being undone.
    pub undoing: u32,
    /// What procedures that were given up have left behind.
    pub abandoned: Vec<Log>,
    effects: Vec<Effect>,
    /// Orders somebody waits for, with their answers.
    answers: HashMap<Ticket, Option<OrderOutcome>>,
    /// The nodes at which orders on their way have work done.
    works: HashMap<Ticket, Vec<NodeId>>,
    /// Orders to nodes that have not been answered, by what they do.
    under_way: BTreeMap<Ticket, (NodeId, &'static str)>,
    /// Iothreads being started.
    starts: HashMap<Ticket, Option<Result<(IoThreadId, u32)>>>,
    last_ticket: u64,
    /// What procedures have asked and heard. A model checker cannot look into them, but they go by nothing else.
    #[cfg(test)]
    pub past: Vec<String>,
}

impl State {
    /// A state without nodes.
    pub fn new(registry: Registry, implicit: ImplicitOpens, main: IoThreadId, thread: u32) -> Self {
        Self {
            graph: Graph::default(),
            sections: Sections::default(),
            registry,
            implicit,
            iothreads: BTreeMap::from([(
                main,
                IothreadEntry {
                    options: None,
                    thread,
                },
            )]),
            main,
            now: Duration::ZERO,
            closed: false,
            waits_for_stillness: false,
            undoing: 0,
            abandoned: Vec::new(),
            effects: Vec::new(),
            answers: HashMap::new(),
            works: HashMap::new(),
            under_way: BTreeMap::new(),
            starts: HashMap::new(),
            last_ticket: 0,
            #[cfg(test)]
            past: Vec::new(),
        }
    }

    fn ticket(&mut self) -> Ticket {
        self.last_ticket += 1;
        Ticket(self.last_ticket)
    }

    /// Adds an effect.
    pub fn push(&mut self, effect: Effect) {
        self.effects.push(effect);
    }

    /// All effects so far, those of the sections included.
    pub fn take_effects(&mut self) -> Vec<Effect> {
        self.flush_sections();
        std::mem::take(&mut self.effects)
    }

    /// Sends what the sections want sent.
    pub fn flush_sections(&mut self) {
        for (node, order) in self.sections.take_orders() {
            // The gate of a node that is closing goes with it.
            if self.graph.node(node).is_some_and(|node| !node.closing) {
                self.send(node, order);
            }
        }
    }

    /// Sends an order to a node, or keeps it until the node has arrived where it is going. An order to a node that is
    /// gone is dropped.
    pub fn send(&mut self, node: NodeId, order: Order) -> Ticket {
        let ticket = self.ticket();
        if self.graph.node(node).is_some() {
            self.note_work(ticket, &order);
        }
        let Some(entry) = self.graph.node_mut(node) else {
            return ticket;
        };
        if entry.moving {
            entry.deferred.push((ticket, order));
        } else {
            let iothread = entry.iothread;
            self.effects.push(Effect::Send {
                iothread,
                ticket,
                order,
            });
        }
        ticket
    }

    /// Sends an order to an iothread, whatever node it concerns.
    pub fn send_to(&mut self, iothread: IoThreadId, order: Order) -> Ticket {
        let ticket = self.ticket();
        self.effects.push(Effect::Send {
            iothread,
            ticket,
            order,
        });
        ticket
    }

    /// Sends what was kept while the node moved.
    pub fn arrived(&mut self, node: NodeId) {
        let Some(entry) = self.graph.node_mut(node) else {
            return;
        };
        entry.moving = false;
        let iothread = entry.iothread;
        for (ticket, order) in std::mem::take(&mut entry.deferred) {
            self.effects.push(Effect::Send {
                iothread,
                ticket,
                order,
            });
        }
    }

    fn note_work(&mut self, ticket: Ticket, order: &Order) {
        let nodes = order.works_at();
        if nodes.is_empty() {
            return;
        }
        for node in &nodes {
            if let Some(node) = self.graph.node_mut(*node) {
                node.working += 1;
            }
        }
        self.works.insert(ticket, nodes);
    }

    /// Begins work of the graph actor's own at a node, unless a drained section covers it.
    pub fn begin_work(&mut self, node: NodeId) -> bool {
        if self.sections.cover(node) {
            return false;
        }
        if let Some(node) = self.graph.node_mut(node) {
            node.working += 1;
        }
        true
    }

    /// As [`State::begin_work`], for work that goes on inside a section of its own.
    pub fn begin_work_within(&mut self, node: NodeId, section: Token) -> bool {
        if self.sections.cover_beside(node, section) {
            return false;
        }
        if let Some(node) = self.graph.node_mut(node) {
            node.working += 1;
        }
        true
    }

    /// Ends it: sections that waited for it go on.
    pub fn end_work(&mut self, node: NodeId) {
        if let Some(entry) = self.graph.node_mut(node) {
            entry.working = entry.working.saturating_sub(1);
        }
        self.sections.ask(&self.graph, node);
        self.flush_sections();
    }

    /// The address of a node.
    pub fn address(&self, node: NodeId) -> Option<Address> {
        self.graph.node(node).map(|entry| Address {
            node,
            iothread: entry.iothread,
        })
    }

    /// The orders that nodes have not answered: each node's name, and what it was to do.
    pub fn under_way(&self) -> Vec<(String, &'static str)> {
        let orders = self.under_way.values();
        orders
            .filter_map(|(node, what)| Some((self.graph.node(*node)?.name.clone(), *what)))
            .collect()
    }

    /// An order was carried out.
    pub fn ended(&mut self, ticket: Ticket, outcome: OrderOutcome) {
        for node in self.works.remove(&ticket).into_iter().flatten() {
            self.end_work(node);
        }
        self.under_way.remove(&ticket);
        if let Some(answer) = self.answers.get_mut(&ticket) {
            *answer = Some(outcome);
        }
    }

    /// An iothread runs, or does not.
    pub fn started(&mut self, ticket: Ticket, result: Result<(IoThreadId, u32)>) {
        if let Some(answer) = self.starts.get_mut(&ticket) {
            *answer = Some(result);
        }
    }

    /// The iothread with this name.
    pub fn iothread_named(&self, name: &str) -> Option<IoThreadId> {
        let named = |entry: &IothreadEntry| entry.options.as_ref().is_some_and(|options| options.id == name);
        self.iothreads
            .iter()
            .find(|(_, entry)| named(entry))
            .map(|(id, _)| *id)
    }
}

#[cfg(test)]
impl State {
    /// The orders somebody waits for, with the answers that have come.
    pub fn awaited(&self) -> Vec<(Ticket, Option<String>)> {
        let answers = self.answers.iter();
        let mut awaited: Vec<_> = answers
            .map(|(ticket, answer)| (*ticket, answer.as_ref().map(print)))
            .collect();
        awaited.sort_unstable();
        awaited
    }
}

#[cfg(test)]
fn print(outcome: &OrderOutcome) -> String {
    match outcome {
        OrderOutcome::Done(result) => format!("{result:?}"),
        OrderOutcome::Opened(result) => format!("{result:?}"),
        OrderOutcome::Described(result) => format!("{result:?}"),
        OrderOutcome::DescribedMany(described) => format!("{described:?}"),
        OrderOutcome::Pending(requests) => format!("{requests:?}"),
        OrderOutcome::Head(result) => format!("{result:?}"),
        OrderOutcome::Statistics(statistics) => format!("{statistics:?}"),
        OrderOutcome::Counters(counters) => format!("{counters:?}"),
        OrderOutcome::Debugged(result) => format!("{result:?}"),
        OrderOutcome::Named(result) => format!("{result:?}"),
        OrderOutcome::Checked(result) => format!("{result:?}"),
        OrderOutcome::RealPaths(paths) => format!("{paths:?}"),
    }
}

fn gone() -> Error {
    Error::new(ErrorKind::Closed, "The node is gone")
}

/// The state, shared by the procedures that run on it. Single-threaded.
#[derive(Clone)]
pub struct World(Rc<RefCell<State>>);

impl World {
    /// A world of this state.
    pub fn new(state: State) -> Self {
        Self(Rc::new(RefCell::new(state)))
    }

    /// Looks at or changes the state. `act` must not call back into the world.
    pub fn with<T>(&self, act: impl FnOnce(&mut State) -> T) -> T {
        act(&mut self.0.borrow_mut())
    }

    /// Looks at or changes the graph.
    pub fn graph<T>(&self, act: impl FnOnce(&mut Graph) -> T) -> T {
        self.with(|state| act(&mut state.graph))
    }

    /// Sends an order; the answer is a future. The order is on its way even if the future is dropped.
    pub fn ask(&self, node: NodeId, order: Order) -> Answered {
        self.expecting(|state| {
            if state.graph.node(node).is_none() {
                return Err(gone());
            }
            let what = order.what();
            let ticket = state.send(node, order);
            state.under_way.extend(what.map(|what| (ticket, (node, what))));
            Ok(ticket)
        })
    }

    /// Takes over what a procedure that was given up has done.
    pub fn abandon(&self, log: Log) {
        // Dropped inside of a borrow only when the whole state goes, and then nothing is left to be undone.
        if let Ok(mut state) = self.0.try_borrow_mut() {
            state.abandoned.push(log);
        }
    }

    /// Sends an order to an iothread.
    pub fn ask_iothread(&self, iothread: IoThreadId, order: Order) -> Answered {
        self.expecting(|state| Ok(state.send_to(iothread, order)))
    }

    fn expecting(&self, send: impl FnOnce(&mut State) -> Result<Ticket>) -> Answered {
        self.with(|state| match send(state) {
            Ok(ticket) => {
                state.answers.insert(ticket, None);
                #[cfg(test)]
                state.past.push("asks".to_owned());
                Answered {
                    world: self.clone(),
                    ticket,
                    failed: None,
                }
            }
            Err(error) => Answered {
                world: self.clone(),
                ticket: Ticket(0),
                failed: Some(error),
            },
        })
    }

    /// Sends an order that is not answered.
    pub fn tell(&self, node: NodeId, order: Order) {
        self.with(|state| state.send(node, order));
    }

    /// Starts an iothread.
    pub fn start_iothread(&self, options: IothreadOptions) -> Started {
        self.with(|state| {
            let ticket = state.ticket();
            state.starts.insert(ticket, None);
            state.push(Effect::StartIothread { ticket, options });
            Started {
                world: self.clone(),
                ticket,
            }
        })
    }

    /// Changes what a root's handle lets its user do.
    pub fn set_root_permissions(&self, root: RootId, permissions: Permissions) {
        self.with(|state| state.push(Effect::RootPermissions { root, permissions }));
    }

    /// Begins a section of a procedure and waits until it is still.
    pub async fn drain(&self, cover: Cover, user: &str) -> Token {
        let token = self.with(|state| {
            let token = state
                .sections
                .begin(&state.graph, cover, user.to_owned(), state.now);
            state.flush_sections();
            token
        });
        self.until(|state| {
            state
                .sections
                .get(token)
                .is_none_or(crate::sections::Section::is_still)
        })
        .await;
        token
    }

    /// Ends a section.
    pub fn undrain(&self, token: Token) {
        self.with(|state| {
            state.sections.end(token);
            state.flush_sections();
        });
    }

    /// Waits until an edge from `parent` to `child` may exist: all that sections in force would cover with it is quiet.
    pub async fn may_link(&self, parent: NodeId, child: NodeId) {
        self.until(|state| {
            let quiet = state.sections.grow(&state.graph, parent, child);
            state.flush_sections();
            quiet
        })
        .await;
    }

    /// Waits until sections that cover everything have a new node quiet.
    pub async fn settle_new(&self, node: NodeId) {
        self.until(|state| {
            let quiet = state.sections.cover_new(&state.graph, node);
            state.flush_sections();
            quiet
        })
        .await;
    }

    /// Waits until a condition holds. It is looked at whenever something has happened.
    pub async fn until(&self, mut holds: impl FnMut(&mut State) -> bool) {
        std::future::poll_fn(|_| {
            let holds = self.with(&mut holds);
            self.with(|state| state.waits_for_stillness = !holds);
            if holds {
                #[cfg(test)]
                self.with(|state| state.past.push("waited".to_owned()));
                Poll::Ready(())
            } else {
                Poll::Pending
            }
        })
        .await;
    }
}

/// The answer to an order.
#[must_use = "the order is sent, but its outcome is unknown until this is awaited"]
pub struct Answered {
    world: World,
    ticket: Ticket,
    failed: Option<Error>,
}

impl Answered {
    /// The answer to an order that is answered by `Done`.
    pub async fn done(self) -> Result<()> {
        match self.await {
            OrderOutcome::Done(result) => result,
            _ => Err(unexpected()),
        }
    }

    /// The answer to an open or reopen.
    pub async fn opened(self) -> Result<OpenFacts> {
        match self.await {
            OrderOutcome::Opened(result) => result,
            OrderOutcome::Done(Err(error)) => Err(error),
            _ => Err(unexpected()),
        }
    }
}

fn unexpected() -> Error {
    Error::new(ErrorKind::Closed, "The iothread gave no answer")
}

impl Future for Answered {
    type Output = OrderOutcome;

    fn poll(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<OrderOutcome> {
        if let Some(error) = self.failed.take() {
            return Poll::Ready(OrderOutcome::Done(Err(error)));
        }
        let ticket = self.ticket;
        self.world
            .with(|state| match state.answers.get_mut(&ticket).map(Option::take) {
                Some(Some(outcome)) => {
                    #[cfg(test)]
                    state.past.push(print(&outcome));
                    Poll::Ready(outcome)
                }
                Some(None) => Poll::Pending,
                None => Poll::Ready(OrderOutcome::Done(Err(unexpected()))),
            })
    }
}

impl Drop for Answered {
    fn drop(&mut self) {
        // Dropped inside of a borrow only when the whole state goes, and then nobody waits for answers.
        if let Ok(mut state) = self.world.0.try_borrow_mut() {
            state.answers.remove(&self.ticket);
        }
    }
}

/// The start of an iothread.
#[must_use = "an iothread is started only to be used"]
pub struct Started {
    world: World,
    ticket: Ticket,
}

impl Future for Started {
    type Output = Result<(IoThreadId, u32)>;

    fn poll(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Self::Output> {
        self.world.with(
            |state| match state.starts.get_mut(&self.ticket).map(Option::take) {
                Some(Some(result)) => {
                    state.starts.remove(&self.ticket);
                    Poll::Ready(result)
                }
                Some(None) => Poll::Pending,
                None => Poll::Ready(Err(unexpected())),
            },
        )
    }
}
