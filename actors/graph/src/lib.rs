//! The graph's policy: a plain synchronous struct that takes requests and events, and returns effects.
//!
//! It has no thread, no clock and does no I/O, so a test, a simulator or a model checker can drive it: the actor around
//! it only carries effects out. Mutations run one at a time in the order they came; drained sections begin and end, and
//! questions are answered, whatever mutation waits.
#![forbid(unsafe_code)]

mod change;
mod immediate;
mod notices;
mod open;
mod order;
mod query;
mod sections;
mod transaction;
mod value;
mod world;

use std::collections::{HashMap, HashSet, VecDeque};
use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use millpond_drivers::api::Registry;
use millpond_messages::global_state::{
    ChildOf, DrainScope, GraphReply, GraphRequest, IothreadOptions, Query,
};
use millpond_messages::{Error, ErrorKind, IoThreadId, Permissions, Result, RootId, Token};

use change::roots::Inactive;
use change::{
    activate, amend, backing_link, check, children, commit, create, delete, iothreads, links, reopen,
    replace, resize, roots, shutdown, snapshot,
};
use immediate::{cancel, debug};
use millpond_engine::node::Ticket;
use open::{image, tree};
use value::{blockers, chain};
use world::{State, World};

pub use notices::Announcement;
pub use order::{Address, Open, Order};
pub use sections::Cover;

/// Names a request, for its reply. Chosen by whoever asks; the policy only gives it back.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RequestId(pub u64);

/// Whether the backing files that images name are opened.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum ImplicitOpens {
    /// As QEMU does.
    #[default]
    Allow,
    /// Never: an image whose maker is not trusted must not choose which files are opened.
    Deny,
}

/// A reply of the policy: a root edge by its id.
pub type Reply = Result<GraphReply<RootId>>;

/// What the policy wants done.
pub enum Effect {
    /// Send an order. If it cannot be sent, it has ended with an error.
    Send {
        /// To whom.
        iothread: IoThreadId,
        /// Names the answer.
        ticket: Ticket,
        /// The order.
        order: Order,
    },
    /// Answer a request. Every request is answered exactly once.
    Reply {
        /// Which.
        id: RequestId,
        /// With what.
        result: Reply,
    },
    /// A root's user may do this from now on.
    RootPermissions {
        /// The root.
        root: RootId,
        /// What it may do.
        permissions: Permissions,
    },
    /// A root has ended.
    RootGone(RootId),
    /// Start an iothread, and tell of it by [`Event::Started`].
    StartIothread {
        /// Names the answer.
        ticket: Ticket,
        /// Its properties.
        options: IothreadOptions,
    },
    /// Change an iothread's polling.
    TuneIothread {
        /// Which.
        iothread: IoThreadId,
        /// Its properties.
        options: IothreadOptions,
    },
    /// Stop an iothread in which nothing is left.
    StopIothread(IoThreadId),
    /// Tell of [`Event::Alarm`] after this long.
    Alarm(Duration),
    /// Tell whoever listens.
    Announce(Announcement),
}

/// What the policy is told.
pub enum Event {
    /// By a node.
    Node(millpond_engine::node::Event),
    /// By whoever carries out effects: an iothread was started, with its thread's id on the host, or was not.
    Started(Ticket, Result<(IoThreadId, u32)>),
    /// The time of an [`Effect::Alarm`] is over.
    Alarm,
}

/// What runs: a mutation, a question, or work in the background.
type Procedure = Pin<Box<dyn Future<Output = Next>>>;

/// How a procedure ends.
enum Next {
    /// With a reply.
    Reply(Reply),
    /// With work that changes nothing in the graph, and that other mutations need not wait for.
    Background(Procedure),
    /// With a mutation to be run next.
    Mutation(Procedure),
    /// With why a request takes longer than it may.
    Late(Error),
}

/// A mutation that waits for its turn.
enum Queued {
    Request(GraphRequest),
    /// The rest of one that has been in the background. It runs even when everything has been closed.
    Rest(Procedure),
}

/// The policy.
pub struct Policy {
    world: World,
    queue: VecDeque<(RequestId, Queued)>,
    running: Option<(RequestId, Procedure)>,
    /// Questions, and work in the background: all go on side by side.
    questions: Vec<(RequestId, Procedure)>,
    /// Who waits for which section.
    waiting: HashMap<Token, RequestId>,
    /// The requests that close everything.
    closing: HashSet<RequestId>,
    /// Requests that must be answered by some time: how long they have, and until when.
    deadlines: Vec<(RequestId, Duration, Duration)>,
    /// Requests that took too long, and whether that was told.
    late: HashMap<RequestId, bool>,
}

impl Policy {
    /// A policy of an empty graph. `main` is the iothread in which nodes live by default, `thread` its host's id.
    #[must_use]
    pub fn new(registry: Registry, implicit: ImplicitOpens, main: IoThreadId, thread: u32) -> Self {
        Self {
            world: World::new(State::new(registry, implicit, main, thread)),
            queue: VecDeque::new(),
            running: None,
            questions: Vec::new(),
            waiting: HashMap::new(),
            closing: HashSet::new(),
            deadlines: Vec::new(),
            late: HashMap::new(),
        }
    }

    /// Takes a request. `now` is the time since any fixed moment.
    pub fn request(&mut self, id: RequestId, request: GraphRequest, now: Duration) -> Vec<Effect> {
        self.world.with(|state| state.now = now);
        match request {
            GraphRequest::Query(query) => self.questions.push((id, ask(&self.world, query))),
            // Not one of those that wait for their turn: what holds up the turns may be what is to be cancelled.
            GraphRequest::CancelInFlight { node_name } => {
                let world = self.world.clone();
                let cancelled =
                    async move { Next::Reply(cancel::cancel_in_flight(&world, &node_name).await) };
                self.questions.push((id, Box::pin(cancelled)));
            }
            GraphRequest::Debug { node_name, order } => {
                let world = self.world.clone();
                let procedure =
                    Box::pin(async move { Next::Reply(debug::debug(&world, &node_name, order).await) });
                self.questions.push((id, procedure));
            }
            GraphRequest::DrainBegin { scope, user } => self.drain_begin(id, &scope, user),
            GraphRequest::DrainEnd(token) => self.drain_end(id, token),
            GraphRequest::CloseAll { grace } => self.close_all(id, grace, now),
            mutation => self.queue.push_back((id, Queued::Request(mutation))),
        }
        self.drive()
    }

    /// Takes an event.
    pub fn event(&mut self, event: Event, now: Duration) -> Vec<Effect> {
        self.world.with(|state| {
            state.now = now;
            match event {
                Event::Node(millpond_engine::node::Event::Ended(ticket, outcome)) => {
                    state.ended(ticket, outcome)
                }
                Event::Node(millpond_engine::node::Event::Quiesced(node, token)) => {
                    state.sections.quiesced(&state.graph, node, token);
                }
                Event::Node(millpond_engine::node::Event::Noticed(node, posted)) => {
                    notices::noticed(state, node, &posted.notice);
                }
                // The actor makes a request of it, with an id of its own.
                Event::Node(millpond_engine::node::Event::Serialises(..)) => {}
                Event::Started(ticket, result) => state.started(ticket, result),
                Event::Alarm => {}
            }
        });
        self.tell_overdue(now);
        self.drive()
    }

    /// Goes on with everything that can go on.
    fn drive(&mut self) -> Vec<Effect> {
        loop {
            let mut progress = self.drive_mutation();
            progress |= self.drive_questions();
            progress |= self.tell_still();
            if !progress {
                return self.world.with(State::take_effects);
            }
        }
    }

    fn drive_mutation(&mut self) -> bool {
        if self.running.is_none() && !self.begin_mutation() {
            return false;
        }
        let Some((id, procedure)) = &mut self.running else {
            return true;
        };
        self.world.with(|state| state.waits_for_stillness = false);
        let (id, next) = (*id, poll(procedure));
        let Poll::Ready(next) = next else {
            return self.give_up(id);
        };
        self.running = None;
        self.go_on(id, next);
        true
    }

    /// Ends a mutation that only waits for others to be still while everything is being closed: that may be for ever. What it
    /// did is undone before anything is closed.
    fn give_up(&mut self, id: RequestId) -> bool {
        let waits = self
            .world
            .with(|state| state.waits_for_stillness && state.undoing == 0);
        if self.closing.is_empty() || self.closing.contains(&id) || !waits {
            return false;
        }
        self.running = None;
        self.reply(id, Err(closed()));
        true
    }

    /// Takes the next mutation from the queue; answers whether there was one.
    fn begin_mutation(&mut self) -> bool {
        let Some((id, queued)) = self.queue.pop_front() else {
            return false;
        };
        match queued {
            Queued::Rest(procedure) => self.running = Some((id, procedure)),
            Queued::Request(_) if self.world.with(|state| state.closed) => {
                self.reply(id, Err(closed()));
            }
            Queued::Request(request) => self.running = Some((id, mutate(&self.world, request))),
        }
        true
    }

    /// Closing overtakes all that has not begun, and ends what only waits for others to be still.
    fn close_all(&mut self, id: RequestId, grace: Option<Duration>, now: Duration) {
        self.world.with(|state| state.closed = true);
        self.closing.insert(id);
        for (waiting, queued) in std::mem::take(&mut self.queue) {
            match queued {
                Queued::Request(_) => self.reply(waiting, Err(closed())),
                rest @ Queued::Rest(_) => self.queue.push_back((waiting, rest)),
            }
        }
        self.queue
            .push_front((id, Queued::Rest(mutate_closing(&self.world))));
        if let Some(grace) = grace {
            let deadline = now.saturating_add(grace);
            self.deadlines.push((id, grace, deadline));
            self.world.with(|state| state.push(Effect::Alarm(grace)));
        }
    }

    /// Has requests whose time is over answered.
    fn tell_overdue(&mut self, now: Duration) {
        let (over, deadlines) = std::mem::take(&mut self.deadlines)
            .into_iter()
            .partition(|(_, _, deadline)| *deadline <= now);
        self.deadlines = deadlines;
        let over: Vec<(RequestId, Duration, Duration)> = over;
        for (id, grace, _) in over {
            self.late.insert(id, false);
            let world = self.world.clone();
            world.with(|state| state.push(Effect::Alarm(shutdown::REPORT)));
            let report = async move { Next::Late(shutdown::overdue(&world, grace).await) };
            self.questions.push((id, Box::pin(report)));
        }
    }

    fn drive_questions(&mut self) -> bool {
        let mut ended = Vec::new();
        self.questions
            .retain_mut(|(id, procedure)| match poll(procedure) {
                Poll::Ready(next) => {
                    ended.push((*id, next));
                    false
                }
                Poll::Pending => true,
            });
        let progress = !ended.is_empty();
        for (id, next) in ended {
            self.go_on(id, next);
        }
        progress
    }

    fn go_on(&mut self, id: RequestId, next: Next) {
        match next {
            Next::Reply(result) => {
                self.deadlines.retain(|(other, ..)| *other != id);
                let was_told = self.late.remove(&id).unwrap_or(false);
                if !was_told {
                    self.reply(id, result);
                }
            }
            Next::Late(error) => {
                // It may have ended meanwhile after all.
                if let Some(told) = self.late.get_mut(&id) {
                    *told = true;
                    self.reply(id, Err(error));
                }
            }
            Next::Background(procedure) => self.questions.push((id, procedure)),
            Next::Mutation(procedure) => self.queue.push_front((id, Queued::Rest(procedure))),
        }
    }

    fn tell_still(&mut self) -> bool {
        let still = self.world.with(|state| state.sections.newly_still());
        let mut progress = false;
        for token in still {
            if let Some(id) = self.waiting.remove(&token) {
                self.reply(id, Ok(GraphReply::Still(token)));
            }
            progress = true;
        }
        progress
    }

    fn reply(&self, id: RequestId, result: Reply) {
        self.world.with(|state| state.push(Effect::Reply { id, result }));
    }

    fn drain_begin(&mut self, id: RequestId, scope: &DrainScope, user: String) {
        let token = self.world.with(|state| {
            let cover = match scope {
                DrainScope::All => Cover::All,
                DrainScope::Node(name) => Cover::Nodes(vec![state.graph.find(name)?.id]),
                DrainScope::Parent(ChildOf::Node { node_name, child }) => {
                    Cover::Nodes(vec![links::parent_of(&state.graph, node_name, child)?])
                }
                DrainScope::Parent(ChildOf::Root(root)) => {
                    Cover::Nodes(vec![roots::node_of(&state.graph, *root)?])
                }
                DrainScope::Subtree(name) => Cover::Subtree(vec![state.graph.find(name)?.id]),
            };
            let token = state.sections.begin(&state.graph, cover, user, state.now);
            state.flush_sections();
            Ok(token)
        });
        match token {
            Ok(token) => {
                self.waiting.insert(token, id);
            }
            Err(error) => self.reply(id, Err(error)),
        }
    }

    /// When [`Policy::newly_slow`] will next have something to tell, if nothing happens before.
    #[must_use]
    pub fn slow_at(&self, patience: Duration) -> Option<Duration> {
        self.world.with(|state| state.sections.slow_at(patience))
    }

    /// The drained sections that have not become still within `patience`. Each is told of once.
    pub fn newly_slow(&mut self, patience: Duration, now: Duration) -> Vec<Token> {
        self.world.with(|state| state.sections.newly_slow(patience, now))
    }

    /// Nobody waits for a request's reply any more. A drained section that it began ends; anything else goes on.
    pub fn abandon(&mut self, id: RequestId, now: Duration) -> Vec<Effect> {
        self.world.with(|state| state.now = now);
        let begun = self
            .waiting
            .iter()
            .find(|(_, waiting)| **waiting == id)
            .map(|(token, _)| *token);
        if let Some(token) = begun {
            self.drain_end(id, token);
        }
        self.drive()
    }

    fn drain_end(&mut self, id: RequestId, token: Token) {
        let ended = self.world.with(|state| {
            let ended = state.sections.end(token);
            state.flush_sections();
            ended
        });
        // An abandoned section ends under the id of the request that began it: that is answered once, below.
        if let Some(waiting) = self.waiting.remove(&token).filter(|waiting| *waiting != id) {
            self.reply(
                waiting,
                Err(Error::new(ErrorKind::Closed, "The drained section was ended")),
            );
        }
        let result = if ended {
            Ok(GraphReply::Done)
        } else {
            Err(Error::new(
                ErrorKind::NotFound,
                format!("There is no drained section {token}"),
            ))
        };
        self.reply(id, result);
    }
}

/// Polls a procedure. Nothing in it waits for anything but the state, so there is no one to be woken.
fn poll(procedure: &mut Procedure) -> Poll<Next> {
    procedure.as_mut().poll(&mut Context::from_waker(Waker::noop()))
}

fn mutate(world: &World, request: GraphRequest) -> Procedure {
    let world = world.clone();
    Box::pin(async move {
        match request {
            GraphRequest::BlockdevCreate(options) => create::blockdev_create(&world, options).await,
            GraphRequest::Commit { node_name } => commit::commit(&world, &node_name).await,
            GraphRequest::Check { node_name, repair } => check::check(&world, &node_name, repair).await,
            request => Next::Reply(change(&world, request).await),
        }
    })
}

fn mutate_closing(world: &World) -> Procedure {
    let world = world.clone();
    Box::pin(async move {
        let closed = shutdown::close_all(&world).await;
        Next::Reply(closed.map(|()| GraphReply::Done))
    })
}

fn closed() -> Error {
    Error::new(ErrorKind::Closed, "The block layer is shutting down")
}

async fn change(world: &World, request: GraphRequest) -> Reply {
    match request {
        GraphRequest::Open(image) => return image::open(world, *image).await,
        GraphRequest::BlockdevAdd(options) => tree::blockdev_add(world, options).await?,
        GraphRequest::BlockdevDel { node_name } => delete::blockdev_del(world, &node_name).await?,
        GraphRequest::BlockdevReopen(list) => reopen::blockdev_reopen(world, list).await?,
        GraphRequest::ReopenKeeping(list) => reopen::reopen_keeping(world, list).await?,
        GraphRequest::SetReadOnly { node_name, read_only } => {
            reopen::set_read_only(world, &node_name, read_only).await?;
        }
        GraphRequest::SetActive { node_name, active } => {
            activate::set_active(world, node_name.as_deref(), active).await?;
        }
        GraphRequest::InvalidateCache { node_name } => activate::invalidate(world, &node_name).await?,
        GraphRequest::BlockdevSnapshot { node, overlay } => {
            snapshot::blockdev_snapshot(world, &node, &overlay).await?;
        }
        GraphRequest::AddChild { parent, node } => children::add_child(world, &parent, &node).await?,
        GraphRequest::DelChild { parent, child } => children::del_child(world, &parent, &child).await?,
        GraphRequest::Amend { node_name, options } => amend::amend(world, &node_name, options).await?,
        GraphRequest::Resize { node_name, size } => {
            resize::resize(world, &node_name, size, resize::How::default()).await?;
        }
        GraphRequest::Truncate {
            node_name,
            size,
            exact,
            preallocation,
            flags,
        } => {
            let how = resize::How {
                exact,
                preallocation,
                flags,
            };
            resize::resize(world, &node_name, size, how).await?;
        }
        GraphRequest::DeleteFile { node_name } => delete::delete_file(world, &node_name).await?,
        GraphRequest::Serialise(root) => roots::serialise(world, root).await?,
        GraphRequest::MoveNode { node_name, iothread } => {
            iothreads::move_node(world, &node_name, iothread.as_deref()).await?;
        }
        GraphRequest::SetIothread {
            node_name,
            iothread,
            force,
        } => {
            iothreads::set_iothread(world, &node_name, iothread.as_deref(), force).await?;
        }
        GraphRequest::AttachRoot(request) => return roots::attach(world, request, Inactive::Refused).await,
        GraphRequest::AttachRootInactive(request) => {
            return roots::attach(world, request, Inactive::Allowed).await;
        }
        GraphRequest::SetRootPermissions {
            root,
            permissions,
            shared,
        } => {
            roots::set_permissions(world, root, permissions, shared).await?;
        }
        GraphRequest::DetachRoot(root) => roots::detach(world, root).await?,
        GraphRequest::Append { node, new } => replace::append_node(world, &node, &new).await?,
        GraphRequest::ReplaceNode { from, to } => replace::replace_node(world, &from, &to).await?,
        GraphRequest::ReplaceChild { of, node } => replace::replace_child(world, of, &node).await?,
        GraphRequest::InsertNode { node, options } => replace::insert_node(world, &node, options).await?,
        GraphRequest::DropFilter { node_name } => replace::drop_filter(world, &node_name).await?,
        GraphRequest::SetBacking { node_name, backing } => {
            links::set_backing(world, &node_name, backing.as_deref()).await?;
        }
        GraphRequest::AttachChild { parent, child, node } => {
            links::attach_child(world, &parent, &child, &node).await?;
        }
        GraphRequest::DetachChild { parent, child } => links::detach_child(world, &parent, &child).await?,
        GraphRequest::ChangeBackingFile {
            device,
            image_node_name,
            backing_file,
        } => backing_link::change_backing_file(world, &device, &image_node_name, &backing_file).await?,
        GraphRequest::DropIntermediate {
            top,
            base,
            backing_file,
        } => backing_link::drop_intermediate(world, &top, &base, backing_file).await?,
        GraphRequest::MakeEmpty { node_name } => commit::make_empty(world, &node_name).await?,
        GraphRequest::FreezeChain { top, base, root } => {
            return chain::freeze(world, &top, base.as_deref(), root);
        }
        GraphRequest::UnfreezeChain(token) => chain::unfreeze(world, token)?,
        GraphRequest::OpBlock {
            node_name,
            operations,
            by,
        } => return blockers::block(world, &node_name, operations, by),
        GraphRequest::OpUnblock {
            token,
            node_name,
            operations,
        } => blockers::unblock(world, token, node_name.as_deref(), &operations)?,
        GraphRequest::CopyOnRead { node_name, on } => {
            let node = world.graph(|graph| graph.find(&node_name).map(|node| node.id))?;
            world.ask(node, Order::CopyOnRead { node, on }).done().await?;
        }
        GraphRequest::SetHistograms {
            node_name,
            histograms,
        } => {
            let node = world.graph(|graph| graph.find(&node_name).map(|node| node.id))?;
            world
                .ask(node, Order::SetHistograms { node, histograms })
                .done()
                .await?;
        }
        GraphRequest::FlushAll => shutdown::flush_all(world).await?,
        GraphRequest::AddIothread(options) => iothreads::add(world, options).await?,
        GraphRequest::DelIothread { id } => iothreads::delete(world, &id)?,
        GraphRequest::TuneIothread(options) => iothreads::tune(world, options)?,
        // Taken out before; answered all the same rather than trusted to be.
        GraphRequest::DrainBegin { .. }
        | GraphRequest::DrainEnd(_)
        | GraphRequest::CloseAll { .. }
        | GraphRequest::CancelInFlight { .. }
        | GraphRequest::Debug { .. }
        | GraphRequest::Query(_)
        | GraphRequest::Commit { .. }
        | GraphRequest::Check { .. }
        | GraphRequest::BlockdevCreate(_) => {
            return Err(Error::new(
                ErrorKind::InvalidArgument,
                "This request changes nothing",
            ));
        }
    }
    Ok(GraphReply::Done)
}

fn ask(world: &World, query: Query) -> Procedure {
    let world = world.clone();
    Box::pin(async move { Next::Reply(query::answer(&world, query).await) })
}

#[cfg(test)]
mod tests;
