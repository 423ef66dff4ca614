//! Which of a driver's options a reopen may change.

use millpond_messages::graph::Options;
use millpond_messages::{Error, ErrorKind, Result};
use serde_json::Value;

/// Checks that `new` differs from `old` only in the options named in `mutable`.
///
/// # Errors
/// Names the first option that is changed, or left out and so set back to its default, although it may not be.
pub fn check_unchanged(old: &Options, new: &Options, mutable: &[&str]) -> Result<()> {
    check_kept(old, new, mutable)?;
    let (old, new) = (flat(old, mutable), flat(new, mutable));
    if let Some((name, _)) = new
        .iter()
        .find(|(name, value)| old.iter().all(|(other, was)| (other, was) != (name, value)))
    {
        return Err(Error::new(
            ErrorKind::InvalidArgument,
            format!("Cannot change the option '{name}'"),
        ));
    }
    Ok(())
}

/// Checks that `new` leaves out nothing of `old` but what is named in `resettable`.
///
/// # Errors
/// Names the first option that would be set back to its default.
pub fn check_kept(old: &Options, new: &Options, resettable: &[&str]) -> Result<()> {
    let (old, new) = (flat(old, resettable), flat(new, resettable));
    let is_left_out = |name: &String| new.iter().all(|(other, _)| other != name);
    match old.iter().find(|(name, _)| is_left_out(name)) {
        None => Ok(()),
        Some((name, _)) => Err(Error::new(
            ErrorKind::InvalidArgument,
            format!("Option '{name}' cannot be reset to its default value"),
        )),
    }
}

/// Options by their flat names, `list.0.member`, those named in `but` left out.
fn flat<'a>(options: &'a Options, but: &[&str]) -> Vec<(String, &'a Value)> {
    let given = options.iter().filter(|(name, _)| !but.contains(&name.as_str()));
    let mut open: Vec<(String, &Value)> = given.map(|(name, value)| (name.clone(), value)).collect();
    open.reverse();
    let mut found = Vec::new();
    while let Some((name, value)) = open.pop() {
        let within: Vec<(String, &Value)> = match value {
            Value::Array(list) => {
                let numbered = list.iter().enumerate();
                numbered
                    .map(|(at, value)| (format!("{name}.{at}"), value))
                    .collect()
            }
            Value::Object(members) => {
                let named = members.iter();
                named
                    .map(|(member, value)| (format!("{name}.{member}"), value))
                    .collect()
            }
            _ => {
                found.push((name, value));
                continue;
            }
        };
        open.extend(within.into_iter().rev());
    }
    found
}

/// The error of a driver whose nodes cannot be reopened at all.
#[must_use]
pub fn not_supported(driver: &str, node: &str) -> Error {
    Error::new(
        ErrorKind::Unsupported,
        format!("Block format '{driver}' used by node '{node}' does not support reopening files"),
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn check(old: serde_json::Value, new: serde_json::Value) -> String {
        let (serde_json::Value::Object(old), serde_json::Value::Object(new)) = (old, new) else {
            panic!("options are objects")
        };
        check_unchanged(&old, &new, &["size"])
            .err()
            .map_or_else(String::new, |error| error.to_string())
    }

    #[test]
    fn only_mutable_options_may_change() {
        assert_eq!(
            check(
                json!({"size": 1, "aio": "threads"}),
                json!({"aio": "threads", "size": 2})
            ),
            ""
        );
        assert_eq!(check(json!({"size": 1}), json!({})), "");
        assert_eq!(
            check(json!({"aio": "threads"}), json!({"aio": "native"})),
            "Cannot change the option 'aio'"
        );
        assert_eq!(
            check(json!({}), json!({"aio": "native"})),
            "Cannot change the option 'aio'"
        );
        let rules = |event: &str, errno: u32| json!({"rules": [{"event": event, "errno": errno}]});
        assert_eq!(check(rules("a", 5), rules("a", 5)), "");
        assert_eq!(
            check(rules("a", 5), rules("a", 6)),
            "Cannot change the option 'rules.0.errno'"
        );
        assert_eq!(
            check(json!({"list": ["a", "b"]}), json!({"list": ["a"]})),
            "Option 'list.1' cannot be reset to its default value"
        );
        assert_eq!(
            check(json!({"aio": "threads"}), json!({})),
            "Option 'aio' cannot be reset to its default value"
        );
    }
}
