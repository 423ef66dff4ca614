//! Where a node is in its rules: the state, and the rules that are left. Nothing is held while a node is still.

use std::collections::BTreeMap;

use millpond_messages::saved::{DriverRecord, Saved, SavedError};
use millpond_messages::{DebugEvent, IoError};
use serde::{Deserialize, Serialize};

use super::Blkdebug;
use super::rules::{Action, Inject, IoType, Rule, Rules};
use crate::api::SavesState;

/// The most rules that a record may have.
const MAX_RULES: usize = 1 << 16;

/// The state of a `blkdebug` node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct SavedRules {
    /// The state on which rules depend.
    state: i64,
    /// The number of the next rule.
    next: u64,
    /// The rules that are left, by number.
    rules: Vec<(u64, SavedRule)>,
    /// The rules whose errors are armed, in their order.
    armed: Vec<u64>,
}

/// A rule: when it applies, and what it does.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct SavedRule {
    /// The name of the event.
    event: String,
    /// The state in which it holds; 0 is any.
    state: i64,
    action: SavedAction,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
enum SavedAction {
    Inject {
        /// Which requests it is for, by their place in the list of kinds.
        iotype: Option<u8>,
        errno: Option<i32>,
        offset: Option<u64>,
        once: bool,
        immediately: bool,
    },
    SetState(i64),
    Suspend(String),
}

impl Saved for SavedRules {
    const KIND: &'static str = "driver/blkdebug";
    const VERSION: u32 = 1;
}

/// The kinds of requests, by the numbers that records have for them.
const KINDS: [IoType; 6] = [
    IoType::Read,
    IoType::Write,
    IoType::WriteZeroes,
    IoType::Discard,
    IoType::Flush,
    IoType::BlockStatus,
];

impl SavedRule {
    fn of(rule: &Rule) -> Self {
        let number = |kind: IoType| KINDS.iter().position(|other| *other == kind);
        let action = match &rule.action {
            Action::Inject(inject) => SavedAction::Inject {
                iotype: inject
                    .iotype
                    .and_then(number)
                    .and_then(|at| u8::try_from(at).ok()),
                errno: inject.error.map(IoError::errno),
                offset: inject.offset,
                once: inject.once,
                immediately: inject.immediately,
            },
            Action::SetState(state) => SavedAction::SetState(*state),
            Action::Suspend(tag) => SavedAction::Suspend(tag.clone()),
        };
        Self {
            event: rule.event.name().to_owned(),
            state: rule.state,
            action,
        }
    }

    fn rule(self) -> Option<Rule> {
        let action = match self.action {
            SavedAction::Inject {
                iotype,
                errno,
                offset,
                once,
                immediately,
            } => Action::Inject(Inject {
                iotype: match iotype {
                    Some(number) => Some(*KINDS.get(usize::from(number))?),
                    None => None,
                },
                error: errno.map(IoError::from_errno),
                offset,
                once,
                immediately,
            }),
            SavedAction::SetState(state) => Action::SetState(state),
            SavedAction::Suspend(tag) => Action::Suspend(tag),
        };
        Some(Rule {
            event: DebugEvent::from_name(&self.event)?,
            state: self.state,
            action,
        })
    }
}

impl SavedRules {
    fn of(rules: &Rules) -> Self {
        let (all, next, state, armed) = rules.parts();
        Self {
            state,
            next,
            rules: all
                .iter()
                .map(|(number, rule)| (*number, SavedRule::of(rule)))
                .collect(),
            armed: armed.to_vec(),
        }
    }

    fn rules(self) -> Option<Rules> {
        let known = |number: u64| number < self.next;
        let sound = self.rules.len() <= MAX_RULES
            && self.rules.iter().all(|(number, _)| known(*number))
            && self.armed.iter().all(|number| known(*number));
        if !sound {
            return None;
        }
        let rules = self.rules.into_iter();
        let rules: Option<BTreeMap<u64, Rule>> =
            rules.map(|(number, rule)| Some((number, rule.rule()?))).collect();
        Some(Rules::of_parts(rules?, self.next, self.state, self.armed))
    }
}

impl SavesState for Blkdebug {
    fn save(&self) -> Result<DriverRecord, SavedError> {
        DriverRecord::of(&SavedRules::of(&self.rules.borrow()))
    }

    fn restore(&self, record: &DriverRecord) -> Result<(), SavedError> {
        let rules = record.state::<SavedRules>()?.rules();
        let wrong = || SavedError::Impossible("blkdebug: there can be no such rules".to_owned());
        self.rules.replace(rules.ok_or_else(wrong)?);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample() -> Rules {
        let inject = Inject {
            iotype: Some(IoType::Write),
            error: Some(IoError::Os(5)),
            offset: Some(512),
            once: true,
            immediately: false,
        };
        let actions = [
            Action::Inject(inject),
            Action::SetState(2),
            Action::Suspend("A".to_owned()),
        ];
        let rules = actions.map(|action| Rule {
            event: DebugEvent::PwritevZero,
            state: 1,
            action,
        });
        Rules::of_parts((0..).zip(rules).collect(), 3, 1, vec![0])
    }

    #[test]
    fn rules_are_the_same_again_and_the_bytes_of_version_1_stay() {
        let record = DriverRecord::of(&SavedRules::of(&sample())).unwrap();
        let again = record.state::<SavedRules>().unwrap().rules().unwrap();
        assert_eq!(DriverRecord::of(&SavedRules::of(&again)).unwrap(), record);
        let mut expected = b"MILLPOND\x0fdriver/blkdebug\x01\0\0\0\x42\0\0\0\x02\x03\x03".to_vec();
        expected.extend_from_slice(b"\x00\x0cpwritev_zero\x02\x00\x01\x01\x01\x0a\x01\xfb\x00\x02\x01\x00");
        expected.extend_from_slice(b"\x01\x0cpwritev_zero\x02\x01\x04");
        expected.extend_from_slice(b"\x02\x0cpwritev_zero\x02\x02\x01A");
        expected.extend_from_slice(b"\x01\x00");
        assert_eq!(record.bytes(), expected);
    }

    #[test]
    fn rules_that_cannot_be_are_refused() {
        let sound = SavedRules::of(&sample());
        let mut unknown = sound.clone();
        unknown.rules[0].1.event = "no_such_event".to_owned();
        let mut beyond = sound.clone();
        beyond.armed = vec![3];
        assert!(unknown.rules().is_none() && beyond.rules().is_none());
        assert!(sound.rules().is_some());
    }
}
