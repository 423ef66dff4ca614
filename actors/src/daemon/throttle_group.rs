//! The object `throttle-group` as users see it: its properties, and which of them may be set when.

use millpond_drivers::filter::throttle::Limits;
use millpond_messages::qapi::{Object, QmpError};
use serde_json::Value;

/// The name of the object's type.
pub const THROTTLE_GROUP: &str = "throttle-group";

/// All limits as an object.
pub const LIMITS: &str = "limits";

/// Properties in the order in which they are listed. Without `x-`, those other than [`LIMITS`] are its members.
pub const PROPERTIES: &[&str] = &[
    "x-bps-write-max-length",
    "x-iops-total-max-length",
    "x-iops-size",
    LIMITS,
    "x-bps-total",
    "x-iops-read-max-length",
    "x-bps-write",
    "x-iops-write-max-length",
    "x-bps-read-max",
    "x-iops-read-max",
    "x-bps-total-max",
    "x-bps-read-max-length",
    "x-iops-read",
    "x-bps-read",
    "x-bps-write-max",
    "x-iops-total-max",
    "x-iops-total",
    "x-iops-write",
    "x-bps-total-max-length",
    "x-iops-write-max",
];

/// A throttle group, as an object of the daemon.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ThrottleGroup {
    /// The object's id, which its user chose.
    pub id: String,
    /// Its limits, which may be such as cannot hold together until the group is made.
    pub limits: Limits,
}

fn members() -> impl Iterator<Item = &'static str> {
    PROPERTIES.iter().filter_map(|name| name.strip_prefix("x-"))
}

impl ThrottleGroup {
    /// Makes one from the checked arguments of `object-add`.
    ///
    /// # Errors
    /// A value is out of its range, or the limits given as an object cannot hold together.
    pub fn from_options(mut options: Object) -> Result<Self, QmpError> {
        let id = options.shift_remove("id");
        let id = id.as_ref().and_then(Value::as_str).unwrap_or_default();
        let together = options.shift_remove(LIMITS);
        let mut group = Self {
            id: id.to_owned(),
            limits: Limits::default(),
        };
        for (name, value) in &options {
            group.limits = with_single(group.limits, name, value)?;
        }
        together.map_or(Ok(group.clone()), |limits| group.with(LIMITS, &limits))
    }

    /// A property's value; `None` if it has no such.
    pub fn get(&self, property: &str) -> Option<Value> {
        let value = |name: &str| self.limits.get(name).map(u64::cast_signed);
        if property == LIMITS {
            let all = members().filter_map(|name| Some((name.to_owned(), value(name)?.into())));
            return Some(Value::Object(all.collect()));
        }
        value(property.strip_prefix("x-")?).map(Value::from)
    }

    /// The group with a property changed. Only all limits together can be: those that are not given stay.
    ///
    /// # Errors
    /// It cannot be changed, or the value does not fit.
    pub fn with(&self, property: &str, value: &Value) -> Result<Self, QmpError> {
        if property != LIMITS {
            return Err(QmpError::generic("Property cannot be set after initialization"));
        }
        let Value::Object(given) = value else {
            return Err(wrong_type(LIMITS, "object"));
        };
        if let Some(name) = given.keys().find(|name| !members().any(|known| known == *name)) {
            return Err(QmpError::generic(format!(
                "Parameter 'limits.{name}' is unexpected"
            )));
        }
        let mut limits = self.limits;
        for (name, value) in given {
            let value = value
                .as_i64()
                .ok_or_else(|| wrong_type(&format!("limits.{name}"), "integer"))?;
            if name.ends_with("-length") && value > i64::from(u32::MAX) {
                let text = format!("{name} value must be in the range [0, {}]", u32::MAX);
                return Err(QmpError::generic(text));
            }
            // A negative value is far out of range; who checks the range says so.
            limits = limits.with(name, value.cast_unsigned());
        }
        limits.check()?;
        Ok(Self {
            id: self.id.clone(),
            limits,
        })
    }
}

fn wrong_type(name: &str, expected: &str) -> QmpError {
    let text = format!("Invalid parameter type for '{name}', expected: {expected}");
    QmpError::generic(text)
}

/// The limits with one changed that has a property of its own.
fn with_single(limits: Limits, property: &str, value: &Value) -> Result<Limits, QmpError> {
    let value = value.as_i64().ok_or_else(|| wrong_type(property, "integer"))?;
    if value < 0 {
        return Err(QmpError::generic("Property values cannot be negative"));
    }
    if property.ends_with("-length") && value > i64::from(u32::MAX) {
        // The blank that is missing is missing in QEMU's text.
        let text = format!("{property} value must be in therange [0, {}]", u32::MAX);
        return Err(QmpError::generic(text));
    }
    let name = property.strip_prefix("x-").unwrap_or(property);
    Ok(limits.with(name, value.cast_unsigned()))
}
