//! Limits that some places are beyond: by how much is written down, and may only shrink.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::fs;
use std::path::PathBuf;

use super::source::repository;

fn path() -> PathBuf {
    repository().join("tests/tests/tidy/exceptions.txt")
}

/// The exceptions to a rule: how far each place is beyond its limit.
fn exceptions(rule: &str) -> BTreeMap<String, usize> {
    let text = fs::read_to_string(path()).expect("the exceptions can be read");
    let lines = text.lines().filter(|line| !line.starts_with('#'));
    let fields = lines.filter_map(|line| line.strip_prefix(rule)?.strip_prefix(' '));
    fields
        .map(|field| {
            let (value, place) = field
                .split_once(' ')
                .expect("an exception is: rule, value, place");
            (
                place.to_owned(),
                value.parse().expect("an exception's value is a number"),
            )
        })
        .collect()
}

fn shrink(rule: &str, found: &BTreeMap<String, usize>) {
    let text = fs::read_to_string(path()).expect("the exceptions can be read");
    let mut kept = String::new();
    for line in text.lines() {
        let Some(field) = line.strip_prefix(rule).and_then(|rest| rest.strip_prefix(' ')) else {
            kept += line;
            kept.push('\n');
            continue;
        };
        let (value, place) = field
            .split_once(' ')
            .expect("an exception is: rule, value, place");
        let value: usize = value.parse().expect("an exception's value is a number");
        if let Some(now) = found.get(place) {
            writeln!(kept, "{rule} {} {place}", value.min(*now)).expect("a text can be added to");
        }
    }
    fs::write(path(), kept).expect("the exceptions can be written");
}

/// Holds what is beyond a limit against the exceptions. `mend` says what to do about a place that is new or has grown.
pub fn hold(rule: &str, found: &BTreeMap<String, usize>, mend: &str) {
    if std::env::var_os("MILLPOND_TIDY").is_some_and(|wish| wish == "shrink") {
        shrink(rule, found);
    }
    let known = exceptions(rule);
    let mut wrong = String::new();
    for (place, value) in found {
        match known.get(place) {
            Some(allowed) if value == allowed => {}
            Some(allowed) if value < allowed => writeln!(
                wrong,
                "{place}: {value}, no longer {allowed}: MILLPOND_TIDY=shrink takes it down in exceptions.txt"
            )
            .expect("a text can be added to"),
            Some(allowed) => {
                writeln!(wrong, "{place}: {value}, was {allowed}: {mend}").expect("a text can be added to");
            }
            None => writeln!(wrong, "{place}: {value}: {mend}").expect("a text can be added to"),
        }
    }
    for place in known.keys().filter(|place| !found.contains_key(*place)) {
        writeln!(
            wrong,
            "{place} keeps the rule now: MILLPOND_TIDY=shrink takes it out of exceptions.txt"
        )
        .expect("a text can be added to");
    }
    assert!(wrong.is_empty(), "{rule}:\n{wrong}");
}
