//! The policy: requests and events in, effects out.

use std::collections::{HashMap, HashSet, VecDeque};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use millpond_drivers::api::Registry;
use millpond_messages::graph::{
    CloseAll, DrainBegin, DrainEnd, DrainScope, GraphReply, GraphRequest, Immediate, Mutation, Query,
};
use millpond_messages::{Error, ErrorKind, IoThreadId, Token};

use crate::change::{self, iothreads, shutdown};
use crate::effect::{Effect, ImplicitOpens, PolicyEvent, Reply, RequestId};
use crate::immediate::{cancel, debug, drain};
use crate::procedure::{Next, Procedure};
use crate::state::PolicyState;
use crate::world::World;
use crate::{notices, query};

/// A mutation that waits for its turn.
pub(crate) enum Queued {
    Request(Mutation),
    /// The rest of one that has been in the background. It runs even when everything has been closed.
    Rest(Procedure),
}

/// The policy. The model checker among the tests looks at all of it.
pub struct Policy {
    pub(crate) world: World,
    pub(crate) queue: VecDeque<(RequestId, Queued)>,
    pub(crate) running: Option<(RequestId, Procedure)>,
    /// Questions, and work in the background: all go on side by side.
    pub(crate) questions: Vec<(RequestId, Procedure)>,
    /// Who waits for which section.
    pub(crate) waiting: HashMap<Token, RequestId>,
    /// The requests that close everything.
    pub(crate) closing: HashSet<RequestId>,
    /// Requests that must be answered by some time: how long they have, and until when.
    pub(crate) deadlines: Vec<(RequestId, Duration, Duration)>,
    /// Requests that took too long, and whether that was told.
    pub(crate) late: HashMap<RequestId, bool>,
}

impl Policy {
    /// A policy of an empty graph. `main` is the iothread in which nodes live by default, `thread` its host's id.
    #[must_use]
    pub fn new(registry: Registry, implicit: ImplicitOpens, main: IoThreadId, thread: u32) -> Self {
        Self {
            world: World::new(PolicyState::new(registry, implicit, main, thread)),
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
    pub fn request(&mut self, id: RequestId, request: impl Into<GraphRequest>, now: Duration) -> Vec<Effect> {
        self.world.with(|state| state.now = now);
        match request.into() {
            GraphRequest::Mutation(mutation) => self.queue.push_back((id, Queued::Request(mutation))),
            GraphRequest::Immediate(immediate) => self.begin_at_once(id, immediate, now),
            GraphRequest::Query(query) => self.questions.push((id, ask(&self.world, query))),
        }
        self.drive()
    }

    /// What holds up the turns of mutations may be what is to be cancelled, let go, or ended here.
    fn begin_at_once(&mut self, id: RequestId, immediate: Immediate, now: Duration) {
        let world = self.world.clone();
        match immediate {
            Immediate::DrainBegin(DrainBegin { scope, user }) => self.drain_begin(id, &scope, user),
            Immediate::DrainEnd(DrainEnd(token)) => self.drain_end(id, token),
            Immediate::CloseAll(CloseAll { grace }) => self.close_all(id, grace, now),
            Immediate::ServeOn(request) => {
                let done = async move { Next::Reply(iothreads::serve_on(&world, request)) };
                self.questions.push((id, Box::pin(done)));
            }
            Immediate::CancelInFlight(request) => {
                let done = async move { Next::Reply(cancel::cancel_in_flight(&world, &request).await) };
                self.questions.push((id, Box::pin(done)));
            }
            Immediate::DebugNode(request) => {
                let done = async move { Next::Reply(debug::debug(&world, request).await) };
                self.questions.push((id, Box::pin(done)));
            }
            Immediate::IsSuspended(request) => {
                let told = async move { Next::Reply(debug::is_suspended(&world, request).await) };
                self.questions.push((id, Box::pin(told)));
            }
        }
    }

    /// Takes an event, and tells what is to be done.
    pub fn event(&mut self, event: PolicyEvent, now: Duration) -> Vec<Effect> {
        self.world.with(|state| {
            state.now = now;
            match event {
                PolicyEvent::Node(millpond_engine::node::Event::Ended(order_id, outcome)) => {
                    state.ended(order_id, outcome)
                }
                PolicyEvent::Node(millpond_engine::node::Event::Quiesced(node, token)) => {
                    state.sections.quiesced(&state.graph, node, token);
                }
                PolicyEvent::Node(millpond_engine::node::Event::Noticed(node, posted)) => {
                    notices::noticed(state, node, &posted.notice);
                }
                // The actor makes a request of it, with an id of its own.
                PolicyEvent::Node(millpond_engine::node::Event::Serialises(..)) => {}
                PolicyEvent::Started(order_id, result) => state.started(order_id, result),
                PolicyEvent::Alarm => {}
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
                return self.world.with(PolicyState::take_effects);
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
            .with(|state| state.waits_for_stillness && state.undoing == 0 && !state.settles);
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
            Queued::Request(request) => self.running = Some((id, change::procedure(&self.world, request))),
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
            let cover = drain::cover(&state.graph, scope)?;
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

fn ask(world: &World, query: Query) -> Procedure {
    let world = world.clone();
    Box::pin(async move { Next::Reply(query::answer(&world, query).await) })
}

fn closed() -> Error {
    Error::new(ErrorKind::Closed, "The block layer is shutting down")
}

fn mutate_closing(world: &World) -> Procedure {
    let world = world.clone();
    Box::pin(async move {
        let closed = shutdown::close_all(&world).await;
        Next::Reply(closed.map(|()| GraphReply::Done))
    })
}
