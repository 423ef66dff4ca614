//! Rules: what is done at which event in which state, and which errors are armed now.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::future::Future;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, Waker};

use millpond_messages::error::errno::ENOENT;
use millpond_messages::{DebugEvent, IoError, IoResult};

/// A kind of request that an error can be for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(super) enum IoType {
    Read,
    Write,
    WriteZeroes,
    Discard,
    Flush,
    BlockStatus,
}

/// An error to be injected.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Inject {
    /// The kind of requests that it fails; `None` for all but block status.
    pub iotype: Option<IoType>,
    /// The error, or none: then the request passes, and is spared the errors that are armed behind this one.
    pub error: Option<IoError>,
    /// It fails only requests that hold the byte at this offset.
    pub offset: Option<u64>,
    /// It fails one request, and then no more.
    pub once: bool,
    /// The request fails before it has waited for anything.
    pub immediately: bool,
}

impl Inject {
    fn is_for(&self, iotype: IoType, offset: u64, len: u64) -> bool {
        let kind = self
            .iotype
            .map_or(iotype != IoType::BlockStatus, |wanted| wanted == iotype);
        let place = |at: u64| at >= offset && at - offset < len;
        kind && self.offset.is_none_or(place)
    }
}

/// What a rule does.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Action {
    /// Requests fail from now on.
    Inject(Inject),
    /// The node changes to this state.
    SetState(i64),
    /// The next request that reaches the event is held under this tag.
    Suspend(String),
}

/// A rule: when it applies, and what it does.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Rule {
    pub event: DebugEvent,
    /// The state in which it holds; 0 is any.
    pub state: i64,
    pub action: Action,
}

/// How a request is to fail.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Failure {
    pub error: IoError,
    pub immediately: bool,
}

/// The rules of a node, and where it is in them.
#[derive(Debug)]
pub(super) struct Rules {
    rules: BTreeMap<u64, Rule>,
    next: u64,
    state: i64,
    /// The errors that the last event with any has armed, in the order of the rules.
    armed: Vec<u64>,
    held: BTreeMap<u64, Held>,
}

#[derive(Debug)]
struct Held {
    tag: String,
    waker: Option<Waker>,
}

impl Rules {
    /// Rules in the order in which they were given. The first state is 1.
    pub fn new(given: Vec<Rule>) -> Self {
        let mut rules = Self {
            rules: BTreeMap::new(),
            next: 0,
            state: 1,
            armed: Vec::new(),
            held: BTreeMap::new(),
        };
        for rule in given {
            rules.add(rule);
        }
        rules
    }

    /// All parts but the held requests: the rules by number, the number of the next, the state, and which are armed.
    pub fn parts(&self) -> (&BTreeMap<u64, Rule>, u64, i64, &[u64]) {
        (&self.rules, self.next, self.state, &self.armed)
    }

    /// Rules with these parts, holding nothing.
    pub fn of_parts(rules: BTreeMap<u64, Rule>, next: u64, state: i64, armed: Vec<u64>) -> Self {
        Self {
            rules,
            next,
            state,
            armed,
            held: BTreeMap::new(),
        }
    }

    fn add(&mut self, rule: Rule) {
        self.rules.insert(self.next, rule);
        self.next += 1;
    }

    /// Has the next request that reaches an event held.
    pub fn hold_at(&mut self, event: DebugEvent, tag: &str) {
        self.add(Rule {
            event,
            state: 0,
            action: Action::Suspend(tag.to_owned()),
        });
    }

    /// Forgets what would hold requests under a tag, and lets go of those that are held.
    pub fn forget(&mut self, tag: &str) -> IoResult<()> {
        let before = self.rules.len() + self.held.len();
        self.rules
            .retain(|_, rule| !matches!(&rule.action, Action::Suspend(other) if other == tag));
        while self.let_go(tag).is_ok() {}
        if self.rules.len() + self.held.len() == before {
            return Err(IoError::Os(ENOENT));
        }
        Ok(())
    }

    /// Lets go of the request that was held last under a tag.
    pub fn let_go(&mut self, tag: &str) -> IoResult<()> {
        let last = self.held.iter().rev().find(|(_, held)| held.tag == tag);
        let held = last.map(|(key, _)| *key).and_then(|key| self.held.remove(&key));
        let held = held.ok_or(IoError::Os(ENOENT))?;
        if let Some(waker) = held.waker {
            waker.wake();
        }
        Ok(())
    }

    /// Whether a request is held under a tag.
    pub fn is_held(&self, tag: &str) -> bool {
        self.held.values().any(|held| held.tag == tag)
    }

    /// How a request fails, if it does.
    pub fn check(&mut self, iotype: IoType, offset: u64, len: u64) -> Option<Failure> {
        let found = self
            .armed
            .iter()
            .find_map(|key| match self.rules.get(key).map(|rule| &rule.action) {
                Some(Action::Inject(inject)) if inject.is_for(iotype, offset, len) => {
                    Some((*key, inject.clone()))
                }
                _ => None,
            });
        let (key, inject) = found?;
        let error = inject.error?;
        if inject.once {
            self.rules.remove(&key);
            self.armed.retain(|other| *other != key);
        }
        Some(Failure {
            error,
            immediately: inject.immediately,
        })
    }

    /// Carries out the rules for an event. Of several new states the first rule's is taken; where a request is held, it is
    /// taken once the request is let go.
    pub fn happens(this: &Rc<RefCell<Self>>, event: DebugEvent) -> Option<Suspension> {
        let mut rules = this.borrow_mut();
        let (mut armed, mut holds) = (Vec::new(), Vec::new());
        let mut next_state = None;
        let now = rules.state;
        let hit = rules
            .rules
            .iter()
            .filter(|(_, rule)| rule.event == event && (rule.state == 0 || rule.state == now));
        for (key, rule) in hit {
            match &rule.action {
                Action::Inject(_) => armed.push(*key),
                Action::SetState(state) => next_state = next_state.or(Some(*state)),
                Action::Suspend(tag) => holds.push((*key, tag.clone())),
            }
        }
        if !armed.is_empty() {
            rules.armed = armed;
        }
        let next_state = next_state.unwrap_or(now);
        if holds.is_empty() {
            rules.state = next_state;
            return None;
        }
        for (key, tag) in &holds {
            // A rule holds one request: the rule goes, and its number stands for the request.
            rules.rules.remove(key);
            let tag = tag.clone();
            rules.held.insert(*key, Held { tag, waker: None });
        }
        Some(Suspension {
            rules: Rc::clone(this),
            holds: holds.into_iter().map(|(key, _)| key).collect(),
            next_state,
        })
    }
}

/// A request that is held: ready once it was let go.
pub(super) struct Suspension {
    rules: Rc<RefCell<Rules>>,
    holds: Vec<u64>,
    next_state: i64,
}

impl Future for Suspension {
    type Output = ();

    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<()> {
        let mut rules = self.rules.borrow_mut();
        for key in &self.holds {
            if let Some(held) = rules.held.get_mut(key) {
                held.waker = Some(context.waker().clone());
                return Poll::Pending;
            }
        }
        rules.state = self.next_state;
        Poll::Ready(())
    }
}

impl Drop for Suspension {
    fn drop(&mut self) {
        let mut rules = self.rules.borrow_mut();
        for key in &self.holds {
            rules.held.remove(key);
        }
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt;

    use super::*;
    use DebugEvent::{L2Load, ReadAio, WriteAio};

    const EIO: IoError = IoError::Os(millpond_messages::error::errno::EIO);

    fn inject(event: DebugEvent, state: i64) -> Rule {
        Rule {
            event,
            state,
            action: Action::Inject(Inject {
                iotype: None,
                error: Some(EIO),
                offset: None,
                once: false,
                immediately: true,
            }),
        }
    }

    fn with(mut rule: Rule, change: impl FnOnce(&mut Inject)) -> Rule {
        if let Action::Inject(inject) = &mut rule.action {
            change(inject);
        }
        rule
    }

    fn set_state(event: DebugEvent, state: i64, new: i64) -> Rule {
        Rule {
            event,
            state,
            action: Action::SetState(new),
        }
    }

    fn rules(given: Vec<Rule>) -> Rc<RefCell<Rules>> {
        Rc::new(RefCell::new(Rules::new(given)))
    }

    fn fails(rules: &Rc<RefCell<Rules>>, iotype: IoType) -> bool {
        rules.borrow_mut().check(iotype, 0, 512).is_some()
    }

    #[test]
    fn an_error_is_armed_by_its_event_and_stays() {
        let rules = rules(vec![inject(ReadAio, 0)]);
        assert!(!fails(&rules, IoType::Read));
        assert!(Rules::happens(&rules, ReadAio).is_none());
        assert!(fails(&rules, IoType::Read) && fails(&rules, IoType::Flush));
        assert!(!fails(&rules, IoType::BlockStatus));
        Rules::happens(&rules, WriteAio);
        assert!(
            fails(&rules, IoType::Read),
            "an event without errors disarms nothing"
        );
    }

    #[test]
    fn an_error_of_one_kind_of_request_spares_the_others() {
        let status = with(inject(ReadAio, 0), |inject| {
            inject.iotype = Some(IoType::BlockStatus)
        });
        let rules = rules(vec![status]);
        Rules::happens(&rules, ReadAio);
        assert!(fails(&rules, IoType::BlockStatus) && !fails(&rules, IoType::Read));
    }

    #[test]
    fn an_error_at_an_offset_is_for_what_holds_that_byte() {
        let at = with(inject(ReadAio, 0), |inject| inject.offset = Some(1024));
        let rules = rules(vec![at]);
        Rules::happens(&rules, ReadAio);
        let check = |offset, len| {
            let failure = rules.borrow_mut().check(IoType::Write, offset, len);
            failure.is_some()
        };
        assert!(check(1024, 1) && check(0, 1025) && check(1000, 100));
        assert!(!check(0, 1024) && !check(1025, 100) && !check(1024, 0));
    }

    #[test]
    fn an_error_that_happens_once_is_gone_afterwards() {
        let once = with(inject(ReadAio, 0), |inject| inject.once = true);
        let rules = rules(vec![once]);
        Rules::happens(&rules, ReadAio);
        assert!(fails(&rules, IoType::Read) && !fails(&rules, IoType::Read));
        Rules::happens(&rules, ReadAio);
        assert!(!fails(&rules, IoType::Read));
    }

    #[test]
    fn rules_hold_in_their_state_and_an_event_is_seen_in_the_state_before_it() {
        let rules = rules(vec![
            set_state(L2Load, 1, 2),
            set_state(L2Load, 2, 3),
            set_state(L2Load, 1, 9),
            inject(L2Load, 3),
        ]);
        Rules::happens(&rules, L2Load);
        assert_eq!(rules.borrow().state, 2, "the first rule that wants another state");
        Rules::happens(&rules, L2Load);
        assert!(!fails(&rules, IoType::Read));
        Rules::happens(&rules, L2Load);
        assert!(fails(&rules, IoType::Read));
    }

    #[test]
    fn a_rule_without_an_error_spares_what_it_is_for() {
        let spare = with(inject(ReadAio, 0), |inject| {
            (inject.error, inject.iotype) = (None, Some(IoType::Flush));
        });
        let rules = rules(vec![spare, inject(ReadAio, 0)]);
        Rules::happens(&rules, ReadAio);
        assert!(!fails(&rules, IoType::Flush) && fails(&rules, IoType::Read));
    }

    #[test]
    fn a_breakpoint_holds_one_request_until_it_is_resumed_by_its_tag() {
        let rules = rules(vec![set_state(WriteAio, 0, 5)]);
        rules.borrow_mut().hold_at(WriteAio, "A");
        assert!(!rules.borrow().is_held("A"));
        let mut held = Rules::happens(&rules, WriteAio).expect("the first one is held");
        assert!(
            Rules::happens(&rules, WriteAio).is_none(),
            "a breakpoint holds one"
        );
        assert!(rules.borrow().is_held("A") && (&mut held).now_or_never().is_none());
        assert_eq!(rules.borrow_mut().let_go("B"), Err(IoError::Os(ENOENT)));
        assert_eq!(rules.borrow_mut().let_go("A"), Ok(()));
        assert_eq!((&mut held).now_or_never(), Some(()));
        assert!(!rules.borrow().is_held("A"));
        assert_eq!(rules.borrow().state, 5);
    }

    #[test]
    fn removing_a_breakpoint_lets_go_of_all_that_it_holds() {
        let rules = rules(Vec::new());
        for event in [WriteAio, ReadAio, L2Load] {
            rules.borrow_mut().hold_at(event, "A");
        }
        let mut held: Vec<Suspension> = [WriteAio, ReadAio]
            .into_iter()
            .filter_map(|event| Rules::happens(&rules, event))
            .collect();
        assert_eq!(held.len(), 2);
        assert_eq!(rules.borrow_mut().forget("A"), Ok(()));
        assert!(held.iter_mut().all(|held| held.now_or_never().is_some()));
        assert!(
            Rules::happens(&rules, L2Load).is_none(),
            "what had held nothing is gone as well"
        );
        assert_eq!(rules.borrow_mut().forget("A"), Err(IoError::Os(ENOENT)));
    }

    #[test]
    fn a_held_request_that_is_given_up_is_held_no_more() {
        let rules = rules(Vec::new());
        rules.borrow_mut().hold_at(WriteAio, "A");
        drop(Rules::happens(&rules, WriteAio));
        assert!(!rules.borrow().is_held("A"));
    }
}
