//! Delay rules on the control thread: what users ask of the graph and what they are answered, held for a while.

use std::time::Duration;

use actix::{AsyncContext, Context};
use futures_channel::oneshot;
use millpond_messages::Result;
use millpond_messages::graph::GraphReply;
use tokio::time::Instant;

use super::actor::Graph;
use super::handle::GraphHandle;
use super::inbox::{Incoming, ReplySender};
use millpond_engine::delay::{Chaos, End, Hop, Lanes, Pair, kind};
use millpond_engine::iothread::IoThread;
use millpond_engine::node::{Client, Mail};

/// What delay rules hold back here.
enum Held {
    In(Incoming),
    Out(ReplySender, Result<GraphReply<Client>>),
}

/// The rules in force, and what they hold here.
#[derive(Default)]
pub(super) struct Delay {
    chaos: Option<Chaos>,
    lanes: Option<Lanes<Held>>,
    /// When the timer that runs will end.
    timer: Option<Instant>,
}

impl Delay {
    /// The rules in force.
    pub(super) fn rules(&self) -> Option<Chaos> {
        self.chaos.clone()
    }
}

const fn hop(from: End, to: End, kind: &'static millpond_engine::delay::Kind) -> Hop<'static> {
    Hop {
        pair: Pair { from, to },
        kind,
        node: "",
    }
}

/// Has an iothread put rules in force; `done` is dropped when it has.
pub(super) fn put_in_force(iothread: &IoThread<Mail>, chaos: Option<Chaos>, done: oneshot::Sender<()>) {
    // One that has ended holds nothing.
    drop(iothread.send(Mail::Chaos(chaos, done)));
}

impl Graph {
    /// Puts rules in force, here and on all iothreads. What was held goes out at once, in order.
    pub(super) fn set_chaos(&mut self, chaos: Option<Chaos>, done: oneshot::Sender<()>) {
        match &chaos {
            Some(chaos) => {
                let delays = chaos.rules();
                tracing::warn!(
                    seed = delays.seed,
                    rules = delays.list.len(),
                    "messages are held back by a policy"
                );
            }
            None if self.delay.chaos.is_some() => tracing::info!("messages are held back no more"),
            None => {}
        }
        while let Some(held) = self.next_delayed(|lanes, now| lanes.close_and_pop(now)) {
            self.deliver(held);
        }
        let now = Instant::now().into_std();
        self.delay.lanes = chaos.clone().map(|chaos| Lanes::new(chaos, None, now));
        self.delay.chaos.clone_from(&chaos);
        let iothreads = self.handles.iothreads.values().chain(&self.retired);
        let answers: Vec<oneshot::Receiver<()>> = iothreads
            .map(|iothread| {
                let (done, answer) = oneshot::channel();
                put_in_force(iothread, chaos.clone(), done);
                answer
            })
            .collect();
        actix_rt::spawn(async move {
            for answer in answers {
                // They are dropped, not sent to.
                answer.await.unwrap_or(());
            }
            drop(done);
        });
    }

    /// Holds what a user asks, if a rule says so. What comes back is to be seen to now.
    pub(super) fn hold_incoming(&mut self, incoming: Incoming) -> Option<Incoming> {
        let Some(lanes) = &mut self.delay.lanes else {
            return Some(incoming);
        };
        match incoming {
            Incoming::Request(..) | Incoming::Abandoned(_) | Incoming::Listen(_) | Incoming::Memory(_) => {
                let now = Instant::now().into_std();
                match lanes.pass(
                    &hop(End::User, End::Graph, kind::COMMAND),
                    now,
                    Held::In(incoming),
                )? {
                    Held::In(incoming) => Some(incoming),
                    Held::Out(..) => None,
                }
            }
            // What iothreads report was held there.
            Incoming::Event(_)
            | Incoming::Chaos(..)
            | Incoming::Flight(..)
            | Incoming::Started(..)
            | Incoming::Alarm
            | Incoming::Names => Some(incoming),
        }
    }

    /// Holds an answer to a user.
    pub(super) fn hold_answer(
        &mut self,
        reply: ReplySender,
        result: Result<GraphReply<Client>>,
    ) -> Option<(ReplySender, Result<GraphReply<Client>>)> {
        let Some(lanes) = &mut self.delay.lanes else {
            return Some((reply, result));
        };
        let now = Instant::now().into_std();
        match lanes.pass(
            &hop(End::Graph, End::User, kind::ANSWER),
            now,
            Held::Out(reply, result),
        )? {
            Held::Out(reply, result) => Some((reply, result)),
            Held::In(_) => None,
        }
    }

    fn next_delayed(
        &mut self,
        next: impl FnOnce(&mut Lanes<Held>, std::time::Instant) -> Option<Held>,
    ) -> Option<Held> {
        next(self.delay.lanes.as_mut()?, Instant::now().into_std())
    }

    fn deliver(&mut self, held: Held) {
        match held {
            Held::In(incoming) => self.receive(incoming),
            Held::Out(reply, result) => self.answer(reply, result),
        }
    }

    /// Sees to it that a timer runs for what is due next.
    pub(super) fn watch_delayed(&mut self, context: &mut Context<Self>) {
        let due = self
            .delay
            .lanes
            .as_ref()
            .and_then(Lanes::next_due)
            .map(Instant::from_std);
        let Some(due) = due.filter(|due| self.delay.timer.is_none_or(|timer| *due < timer)) else {
            return;
        };
        self.delay.timer = Some(due);
        let left = due
            .saturating_duration_since(Instant::now())
            .max(Duration::from_nanos(1));
        context.run_later(left, move |graph, context| {
            // One that was set for something due earlier has taken this one's place.
            if graph.delay.timer == Some(due) {
                graph.delay.timer = None;
            }
            while let Some(held) = graph.next_delayed(Lanes::pop_due) {
                graph.deliver(held);
            }
            graph.watch_delayed(context);
            graph.watch(context);
        });
    }
}

impl GraphHandle {
    /// Puts delay rules in force, or none, from what is asked next on. What those before held goes out at once, in
    /// order. It is on its way when this returns; the future ends when every iothread has it.
    pub fn set_chaos(&self, chaos: Option<Chaos>) -> impl Future<Output = ()> + Send + 'static {
        let (done, all) = oneshot::channel();
        self.post(Incoming::Chaos(chaos, done));
        async move {
            // It is dropped, not sent to: at the latest with the actor, which then holds nothing.
            all.await.unwrap_or(());
        }
    }
}
