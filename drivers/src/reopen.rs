//! Which of a driver's options a reopen may change.

use messages::global_state::Options;
use messages::{Error, ErrorKind, Result};

/// Checks that `new` differs from `old` only in the options named in `mutable`.
///
/// # Errors
/// Names the first option that is changed, or left out and so set back to its default, although it may not be.
pub fn check_unchanged(old: &Options, new: &Options, mutable: &[&str]) -> Result<()> {
    check_kept(old, new, mutable)?;
    let is_fixed = |name: &String| !mutable.contains(&name.as_str());
    if let Some((name, _)) = new
        .iter()
        .find(|(name, value)| is_fixed(name) && old.get(*name) != Some(value))
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
    let is_left_out = |name: &&String| !resettable.contains(&name.as_str()) && !new.contains_key(*name);
    match old.keys().find(is_left_out) {
        None => Ok(()),
        Some(name) => Err(Error::new(
            ErrorKind::InvalidArgument,
            format!("Option '{name}' cannot be reset to its default value"),
        )),
    }
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
        assert_eq!(
            check(json!({"aio": "threads"}), json!({})),
            "Option 'aio' cannot be reset to its default value"
        );
    }
}
