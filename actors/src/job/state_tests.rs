//! The tables of states and verbs are QEMU's.

use super::Verb;
use super::state::{STATES, may_follow, name};

/// QEMU's table of verbs (`JobVerbTable` of its job.c): a line for each verb, a column for each state.
const VERBS: &[(&str, &str)] = &[
    //            U C R P Y S W D X E N
    ("cancel", "0 1 1 1 1 1 1 1 0 0 0"),
    ("pause", "0 1 1 1 1 1 0 0 0 0 0"),
    ("resume", "0 1 1 1 1 1 0 0 0 0 0"),
    ("set-speed", "0 1 1 1 1 1 0 0 0 0 0"),
    ("complete", "0 0 0 0 1 1 0 0 0 0 0"),
    ("finalize", "0 0 0 0 0 0 0 1 0 0 0"),
    ("dismiss", "0 0 0 0 0 0 0 0 0 1 0"),
    ("change", "0 1 1 1 1 1 0 0 0 0 0"),
];

/// QEMU's table of transitions: a line for each state, a column for each that may follow.
const TRANSITIONS: &[(&str, &str)] = &[
    //               U C R P Y S W D X E N
    ("undefined", "0 1 0 0 0 0 0 0 0 0 0"),
    ("created", "0 0 1 1 0 0 0 0 1 0 1"),
    ("running", "0 0 0 1 1 0 1 0 1 0 0"),
    ("paused", "0 0 1 0 0 0 0 0 0 0 0"),
    ("ready", "0 0 0 0 0 1 1 0 1 0 0"),
    ("standby", "0 0 0 0 1 0 0 0 0 0 0"),
    ("waiting", "0 0 0 0 0 0 0 1 1 0 0"),
    ("pending", "0 0 0 0 0 0 0 0 1 1 0"),
    ("aborting", "0 0 0 0 0 0 0 0 1 1 0"),
    ("concluded", "0 0 0 0 0 0 0 0 0 0 1"),
    ("null", "0 0 0 0 0 0 0 0 0 0 0"),
];

fn row(answers: impl Iterator<Item = bool>) -> String {
    let digits: Vec<_> = answers.map(|yes| if yes { "1" } else { "0" }).collect();
    digits.join(" ")
}

#[test]
fn every_verb_in_every_state_is_as_qemu_has_it() {
    let ours = Verb::ALL.map(|verb| {
        (
            verb.name(),
            row(STATES.map(|state| verb.is_allowed_in(state)).into_iter()),
        )
    });
    let ours: Vec<_> = ours.iter().map(|(name, row)| (*name, row.as_str())).collect();
    assert_eq!(ours, VERBS);
    for verb in Verb::ALL {
        for state in STATES {
            let refused = verb.check("j", state).err().map(|error| error.desc);
            let (in_state, verb_name) = (name(state), verb.name());
            let text = format!("Job 'j' in state '{in_state}' cannot accept command verb '{verb_name}'");
            assert_eq!(refused, (!verb.is_allowed_in(state)).then_some(text));
        }
    }
}

#[test]
fn every_pair_of_states_is_as_qemu_has_it() {
    let ours = STATES.map(|from| (name(from), row(STATES.map(|to| may_follow(from, to)).into_iter())));
    let ours: Vec<_> = ours.iter().map(|(name, row)| (*name, row.as_str())).collect();
    assert_eq!(ours, TRANSITIONS);
    for state in STATES {
        assert_eq!(serde_json::to_value(state).unwrap(), name(state));
    }
}
