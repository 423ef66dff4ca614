//! Groups: limits that several nodes share, on whatever iothreads they are.
//!
//! All that the members share is one immutable value, which is exchanged for its successor by compare-and-swap. For each
//! direction it holds a queue of waiting members, with one request of each, so that they take turns however much each has
//! to do. The member in front goes as soon as the buckets let it, and wakes the next.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;
use std::task::Waker;
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use futures_util::task::AtomicWaker;
use millpond_messages::{Error, ErrorKind, Result};

use super::buckets::Buckets;
use super::limits::{Direction, Limits};
use crate::by_id::ById;

/// The waker of a waiting request, by which the members before it wake it.
#[derive(Debug, Default)]
pub(super) struct Waiter(AtomicWaker);

impl Waiter {
    pub(super) fn register(&self, waker: &Waker) {
        self.0.register(waker);
    }

    pub(super) fn wake(&self) {
        self.0.wake();
    }
}

/// What all members of a group share.
#[derive(Debug, Clone, Default)]
struct State {
    buckets: Buckets,
    /// The waiting requests for each direction. A member is in each queue once at most, which bounds them.
    queues: [Vec<Arc<Waiter>>; 2],
    members: usize,
    /// Whether the group is being removed, so that nobody may join any more.
    closed: bool,
}

impl State {
    fn queue(&self, direction: Direction) -> &Vec<Arc<Waiter>> {
        &self.queues[direction.index()]
    }

    fn queue_mut(&mut self, direction: Direction) -> &mut Vec<Arc<Waiter>> {
        &mut self.queues[direction.index()]
    }
}

/// The answer to a request that wants to go ahead.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Admission {
    /// The request may go, and is counted.
    Go,
    /// The request may ask again after so long. Others may be before it by then, so that it has to wait longer.
    After(Duration),
    /// Others are before the request: it is woken when it is its turn.
    Queued,
}

/// A group of nodes that share limits.
#[derive(Debug, Default)]
pub struct Group {
    state: ArcSwap<State>,
}

impl Group {
    fn new(limits: Limits) -> Self {
        Self {
            state: ArcSwap::from_pointee(State {
                buckets: Buckets::new(limits),
                ..State::default()
            }),
        }
    }

    /// Exchanges the state for what `next` makes of it; leaves it where that makes nothing of it.
    fn exchange<T>(&self, mut next: impl FnMut(&State) -> (Option<State>, T)) -> T {
        loop {
            let current = self.state.load();
            let (changed, answer) = next(&current);
            let Some(changed) = changed else {
                return answer;
            };
            let found = self.state.compare_and_swap(&current, Arc::new(changed));
            if Arc::ptr_eq(&found, &current) {
                return answer;
            }
        }
    }

    /// The limits that are in force.
    #[must_use]
    pub fn limits(&self) -> Limits {
        *self.state.load().buckets.limits()
    }

    /// Whether anything is limited in a direction.
    pub(super) fn is_limited(&self, direction: Direction) -> bool {
        self.state.load().buckets.limits().any(direction)
    }

    /// Changes the limits. The buckets are empty then, and requests that wait look again.
    ///
    /// # Errors
    /// The limits cannot hold together.
    pub fn configure(&self, limits: Limits) -> Result<()> {
        limits.check()?;
        let waiting = self.exchange(|state| {
            let changed = State {
                buckets: Buckets::new(limits),
                ..state.clone()
            };
            let waiting = state.queues.concat();
            (Some(changed), waiting)
        });
        waiting.iter().for_each(|waiter| waiter.wake());
        Ok(())
    }

    /// Whether a request may go ahead at `now`. Who may not is in the queue afterwards, if it can be woken.
    pub(super) fn admit(
        &self,
        who: Option<&Arc<Waiter>>,
        direction: Direction,
        bytes: u64,
        now: Instant,
    ) -> Admission {
        let (admission, next) = self.exchange(|state| {
            let is_me = |waiter: &Arc<Waiter>| who.is_some_and(|me| Arc::ptr_eq(me, waiter));
            let queue = state.queue(direction);
            let is_first = queue.first().is_none_or(is_me);
            let queued = queue.iter().any(is_me);
            let mut changed = state.clone();
            changed.buckets.leak(now);
            let wait = changed.buckets.wait(direction);
            if is_first && wait.is_zero() {
                changed.buckets.fill(direction, bytes);
                changed.queue_mut(direction).retain(|waiter| !is_me(waiter));
                let next = changed.queue(direction).first().cloned();
                return (Some(changed), (Admission::Go, next));
            }
            let admission = if is_first {
                Admission::After(wait)
            } else {
                Admission::Queued
            };
            let joins = who.filter(|_| !queued).map(|me| {
                changed.queue_mut(direction).push(Arc::clone(me));
                changed
            });
            (joins, (admission, None))
        });
        if let Some(next) = next {
            next.wake();
        }
        admission
    }

    /// A request goes ahead whatever the buckets say, and is counted.
    pub(super) fn force(&self, direction: Direction, bytes: u64, now: Instant) {
        self.exchange(|state| {
            let mut changed = state.clone();
            changed.buckets.leak(now);
            changed.buckets.fill(direction, bytes);
            (Some(changed), ())
        });
    }

    /// Takes a request out of the queue.
    pub(super) fn leave(&self, who: &Arc<Waiter>, direction: Direction) {
        let next = self.exchange(|state| {
            let is_me = |waiter: &Arc<Waiter>| Arc::ptr_eq(who, waiter);
            if !state.queue(direction).iter().any(is_me) {
                return (None, None);
            }
            let mut changed = state.clone();
            changed.queue_mut(direction).retain(|waiter| !is_me(waiter));
            let next = changed.queue(direction).first().cloned();
            (Some(changed), next)
        });
        if let Some(next) = next {
            next.wake();
        }
    }

    fn join(&self) -> bool {
        self.exchange(|state| {
            let joined = (!state.closed).then(|| State {
                members: state.members.saturating_add(1),
                ..state.clone()
            });
            let may = joined.is_some();
            (joined, may)
        })
    }

    fn part(&self) {
        self.exchange(|state| {
            let parted = State {
                members: state.members.saturating_sub(1),
                ..state.clone()
            };
            (Some(parted), ())
        });
    }

    /// The buckets as they are.
    pub(super) fn buckets(&self) -> Buckets {
        self.state.load().buckets.clone()
    }

    /// Goes on with these buckets; requests that wait look again.
    pub(super) fn set_buckets(&self, buckets: &Buckets) {
        let waiting = self.exchange(|state| {
            let changed = State {
                buckets: buckets.clone(),
                ..state.clone()
            };
            let waiting = state.queues.concat();
            (Some(changed), waiting)
        });
        waiting.iter().for_each(|waiter| waiter.wake());
    }

    /// Lets nobody join any more, unless it has members.
    fn close(&self) -> bool {
        self.exchange(|state| {
            let closed = (state.members == 0).then(|| State {
                closed: true,
                ..state.clone()
            });
            let may = closed.is_some();
            (closed, may)
        })
    }
}

/// A node's share in a group, which cannot be removed meanwhile.
#[derive(Debug)]
pub(super) struct Member(Arc<Group>);

impl Member {
    pub(super) fn group(&self) -> &Group {
        &self.0
    }
}

impl Drop for Member {
    fn drop(&mut self) {
        self.0.part();
    }
}

/// Groups by name. Clones are the same: the drivers look them up, and whoever embeds them makes them.
#[derive(Clone, Default)]
pub struct Groups(ById<Group>);

impl fmt::Debug for Groups {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_tuple("Groups").field(&self.0.all()).finish()
    }
}

impl Groups {
    /// All groups, by name.
    pub(super) fn all(&self) -> Arc<BTreeMap<String, Arc<Group>>> {
        self.0.all()
    }

    /// The group called `name`.
    #[must_use]
    pub fn find(&self, name: &str) -> Option<Arc<Group>> {
        self.0.find(name)
    }

    /// Makes a group.
    ///
    /// # Errors
    /// The limits cannot hold together, or there is a group of that name.
    pub fn add(&self, name: &str, limits: Limits) -> Result<()> {
        limits.check()?;
        let group = Arc::new(Group::new(limits));
        let before = self.0.change(|groups| {
            groups
                .entry(name.to_owned())
                .or_insert_with(|| Arc::clone(&group));
        });
        if before.contains_key(name) {
            let text = format!("Throttle group '{name}' exists already");
            return Err(Error::new(ErrorKind::Exists, text));
        }
        Ok(())
    }

    /// Removes a group.
    ///
    /// # Errors
    /// There is none of that name, or nodes are in it.
    pub fn remove(&self, name: &str) -> Result<()> {
        let group = self.find(name).ok_or_else(|| missing(name))?;
        if !group.close() {
            let text = format!("object '{name}' is in use, can not be deleted");
            return Err(Error::new(ErrorKind::InUse, text));
        }
        // Somebody else may have removed it meanwhile, and made another.
        self.0
            .change(|groups| groups.retain(|_, other| !Arc::ptr_eq(other, &group)));
        Ok(())
    }

    /// Makes a node a member.
    pub(super) fn join(&self, name: &str) -> Result<Member> {
        self.find(name)
            .filter(|group| group.join())
            .map(Member)
            .ok_or_else(|| missing(name))
    }
}

fn missing(name: &str) -> Error {
    Error::new(
        ErrorKind::NotFound,
        format!("Throttle group '{name}' does not exist"),
    )
}
