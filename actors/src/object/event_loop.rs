//! What iothreads and the main loop have in common: numbers that tune an event loop.

use millpond_messages::qapi::{Object, QmpError};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value;

use super::kind::wrong_type;

/// The type that both are derived from.
pub(super) const PARENT: &str = "event-loop-base";

/// An event loop's numbers from the checked arguments of `object-add`.
///
/// # Errors
/// One of them is out of its range.
pub(super) fn from_options<T: DeserializeOwned>(options: Object) -> Result<T, QmpError> {
    for (name, value) in &options {
        if let Some(value) = value.as_i64() {
            check_range(name, value)?;
        }
    }
    serde_json::from_value(Value::Object(options)).map_err(|error| QmpError::generic(error.to_string()))
}

/// Its members as `object-add` would have them, the id among them.
pub(super) fn members(of: &impl Serialize) -> Object {
    match serde_json::to_value(of) {
        Ok(Value::Object(members)) => members,
        // Both are structs of numbers and texts.
        _ => Object::new(),
    }
}

/// The same with a number changed.
///
/// # Errors
/// It is no number, or out of its range.
pub(super) fn with<T: Serialize + DeserializeOwned>(
    of: &T,
    property: &str,
    value: &Value,
) -> Result<T, QmpError> {
    let Some(number) = value.as_i64() else {
        return Err(wrong_type(property, "integer"));
    };
    check_range(property, number)?;
    let mut changed = members(of);
    changed.insert(property.to_owned(), number.into());
    from_options(changed)
}

/// Checks how many threads a pool keeps and may have.
///
/// # Errors
/// The bounds contradict each other.
pub(super) fn check_pool(least: i64, most: i64) -> Result<(), QmpError> {
    if most == 0 || least > most {
        return Err(QmpError::generic("bad thread-pool-min/thread-pool-max values"));
    }
    Ok(())
}

fn check_range(property: &str, value: i64) -> Result<(), QmpError> {
    if value < 0 {
        let text = format!("{property} value must be in range [0, {}]", i64::MAX);
        return Err(QmpError::generic(text));
    }
    Ok(())
}
