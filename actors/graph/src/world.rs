//! What procedures of the policy do with the state that they share.
//!
//! A mutation is an async function over a [`World`], polled by the [`Policy`](crate::Policy) alone: its states are those
//! of the function, it waits for nothing but answers to orders and stillness of sections, and it borrows the state only
//! between two waits.

use std::cell::RefCell;
use std::future::Future;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll};

use millpond_engine::node::{OpenFacts, OrderId, OrderOutcome};
use millpond_messages::graph::IothreadOptions;
use millpond_messages::{ChunkSet, Error, ErrorKind, IoThreadId, NodeId, Permissions, Result, RootId, Token};

use crate::effect::Effect;
use crate::order::{self, AtNode, Order};
use crate::sections::Cover;
use crate::state::PolicyState;
use crate::undo::Log;
use crate::value::graph::Graph;

fn gone() -> Error {
    Error::new(ErrorKind::Closed, "The node is gone")
}

/// The state, shared by the procedures that run on it. Single-threaded.
#[derive(Clone)]
pub struct World(Rc<RefCell<PolicyState>>);

impl World {
    /// A world of this state.
    pub fn new(state: PolicyState) -> Self {
        Self(Rc::new(RefCell::new(state)))
    }

    /// Looks at or changes the state. `act` must not call back into the world.
    pub fn with<T>(&self, act: impl FnOnce(&mut PolicyState) -> T) -> T {
        act(&mut self.0.borrow_mut())
    }

    /// Looks at or changes the graph.
    pub fn graph<T>(&self, act: impl FnOnce(&mut Graph) -> T) -> T {
        self.with(|state| act(&mut state.graph))
    }

    /// Sends an order; the answer is a future. The order is on its way even if the future is dropped.
    pub fn ask(&self, node: NodeId, order: impl AtNode) -> Answered {
        let order = order.at(node);
        self.expecting(|state| {
            if state.graph.node(node).is_none() {
                return Err(gone());
            }
            let what = order::what(&order);
            let order_id = state.send(node, order);
            state.under_way.extend(what.map(|what| (order_id, (node, what))));
            Ok(order_id)
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
    pub fn ask_iothread(&self, iothread: IoThreadId, order: impl Into<Order>) -> Answered {
        self.expecting(|state| Ok(state.send_to(iothread, order)))
    }

    fn expecting(&self, send: impl FnOnce(&mut PolicyState) -> Result<OrderId>) -> Answered {
        self.with(|state| match send(state) {
            Ok(order_id) => {
                state.answers.insert(order_id, None);
                #[cfg(test)]
                state.past.push("asks".to_owned());
                Answered {
                    world: self.clone(),
                    order_id,
                    failed: None,
                }
            }
            Err(error) => Answered {
                world: self.clone(),
                order_id: OrderId(0),
                failed: Some(error),
            },
        })
    }

    /// Sends an order whose answer nobody waits for.
    pub fn send(&self, node: NodeId, order: impl AtNode) {
        self.with(|state| state.send(node, order));
    }

    /// Has an iothread started, and waits for it.
    pub fn start_iothread(&self, options: IothreadOptions) -> Started {
        self.with(|state| {
            let order_id = state.order_id();
            state.starts.insert(order_id, None);
            state.push(Effect::StartIothread { order_id, options });
            Started {
                world: self.clone(),
                order_id,
            }
        })
    }

    /// Changes what a root's handle lets its user do.
    pub fn set_root_permissions(&self, root: RootId, permissions: Permissions) {
        self.with(|state| state.push(Effect::RootPermissions { root, permissions }));
    }

    /// Begins a section of a procedure and waits until it is still.
    pub async fn drain(&self, cover: Cover, user: &str) -> Token {
        let token = self.begin_drain(cover, user);
        self.until_still(token).await;
        token
    }

    /// Begins a section of a procedure.
    pub fn begin_drain(&self, cover: Cover, user: &str) -> Token {
        self.with(|state| {
            let token = state
                .sections
                .begin(&state.graph, cover, user.to_owned(), state.now);
            state.flush_sections();
            token
        })
    }

    /// Waits until a section is still.
    pub async fn until_still(&self, token: Token) {
        self.until(|state| {
            state
                .sections
                .get(token)
                .is_none_or(crate::sections::Section::is_still)
        })
        .await;
    }

    /// Ends a section, and resumes its nodes.
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
    pub async fn until(&self, mut holds: impl FnMut(&mut PolicyState) -> bool) {
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

    /// Sees to what is left of a change that holds already. It is given up where all is being closed and it waits for
    /// stillness, which may never come; the change itself is not, so it is answered as what it is: done.
    pub async fn unless_closing<T>(&self, rest: impl Future<Output = T>) -> Option<T> {
        let mut rest = std::pin::pin!(rest);
        let ended = std::future::poll_fn(|context| match rest.as_mut().poll(context) {
            Poll::Ready(ended) => Poll::Ready(Some(ended)),
            Poll::Pending => self.with(|state| {
                state.settles = true;
                let waits = state.waits_for_stillness && state.undoing == 0;
                if state.closed && waits {
                    Poll::Ready(None)
                } else {
                    Poll::Pending
                }
            }),
        })
        .await;
        self.with(|state| state.settles = false);
        ended
    }
}

/// The answer to an order.
#[must_use = "the order is sent, but its outcome is unknown until this is awaited"]
pub struct Answered {
    world: World,
    order_id: OrderId,
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

    /// The answer to a question about what is dirty, or to a change of that.
    pub async fn bits(self) -> Result<Box<ChunkSet>> {
        match self.await {
            OrderOutcome::Bits(result) => result,
            OrderOutcome::Done(Err(error)) => Err(error),
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
        let order_id = self.order_id;
        self.world
            .with(|state| match state.answers.get_mut(&order_id).map(Option::take) {
                Some(Some(outcome)) => {
                    #[cfg(test)]
                    state.past.push(crate::state::print(&outcome));
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
            state.answers.remove(&self.order_id);
        }
    }
}

/// The start of an iothread.
#[must_use = "an iothread is started only to be used"]
pub struct Started {
    world: World,
    order_id: OrderId,
}

impl Future for Started {
    type Output = Result<(IoThreadId, u32)>;

    fn poll(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Self::Output> {
        self.world.with(
            |state| match state.starts.get_mut(&self.order_id).map(Option::take) {
                Some(Some(result)) => {
                    state.starts.remove(&self.order_id);
                    Poll::Ready(result)
                }
                Some(None) => Poll::Pending,
                None => Poll::Ready(Err(unexpected())),
            },
        )
    }
}
