//! The object `throttle-group` as users see it: its properties, and which of them may be set when.

use std::rc::Rc;

use futures_util::FutureExt;
use futures_util::future::ready;
use millpond_drivers::filter::throttle::Limits;
use millpond_messages::qapi::{Object, QmpError};
use serde_json::Value;

use super::kind::{Effect, Kind, Site, UserObject, wrong_type};

/// All limits as an object. The properties that begin with `x-` are its members, without that.
const LIMITS: &str = "limits";

pub(super) const KIND: Kind = Kind {
    name: "throttle-group",
    parent: "object",
    properties: &[
        ("x-bps-write-max-length", "int"),
        ("x-iops-total-max-length", "int"),
        ("x-iops-size", "int"),
        (LIMITS, "ThrottleLimits"),
        ("x-bps-total", "int"),
        ("x-iops-read-max-length", "int"),
        ("x-bps-write", "int"),
        ("x-iops-write-max-length", "int"),
        ("x-bps-read-max", "int"),
        ("x-iops-read-max", "int"),
        ("x-bps-total-max", "int"),
        ("x-bps-read-max-length", "int"),
        ("x-iops-read", "int"),
        ("x-bps-read", "int"),
        ("x-bps-write-max", "int"),
        ("x-iops-total-max", "int"),
        ("x-iops-total", "int"),
        ("x-iops-write", "int"),
        ("x-bps-total-max-length", "int"),
        ("x-iops-write-max", "int"),
    ],
    help: None,
    is_single: false,
    make: |options| Ok(Rc::new(ThrottleGroup::from_options(options)?)),
};

/// A throttle group, as an object of the daemon.
#[derive(Clone, Debug)]
struct ThrottleGroup {
    /// The object's id, which its user chose.
    id: String,
    /// Its limits, which may be such as cannot hold together until the group is made.
    limits: Limits,
}

fn members() -> impl Iterator<Item = &'static str> {
    let names = KIND.properties.iter().map(|(name, _)| name);
    names.filter_map(|name| name.strip_prefix("x-"))
}

impl ThrottleGroup {
    /// Makes one from the checked arguments of `object-add`.
    ///
    /// # Errors
    /// A value is out of its range, or the limits given as an object cannot hold together.
    fn from_options(mut options: Object) -> Result<Self, QmpError> {
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
        together.map_or(Ok(group.clone()), |limits| group.with_limits(&limits))
    }

    /// All limits as an object.
    fn members(&self) -> Object {
        let value = |name: &str| self.limits.get(name).map(u64::cast_signed);
        members()
            .filter_map(|name| Some((name.to_owned(), value(name)?.into())))
            .collect()
    }

    /// The group with all limits changed that are given together: the others stay.
    ///
    /// # Errors
    /// A value does not fit, or the limits cannot hold together.
    fn with_limits(&self, value: &Value) -> Result<Self, QmpError> {
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

impl UserObject for ThrottleGroup {
    fn kind(&self) -> &'static str {
        KIND.name
    }

    fn id(&self) -> &str {
        &self.id
    }

    fn get(&self, property: &str) -> Option<Value> {
        if property == LIMITS {
            return Some(Value::Object(self.members()));
        }
        let limit = self.limits.get(property.strip_prefix("x-")?);
        limit.map(|limit| limit.cast_signed().into())
    }

    /// Only all limits together can be changed.
    fn with(&self, property: &str, value: &Value) -> Result<Rc<dyn UserObject>, QmpError> {
        if property != LIMITS {
            return Err(QmpError::generic("Property cannot be set after initialization"));
        }
        Ok(Rc::new(self.with_limits(value)?))
    }

    fn options(&self) -> Object {
        [(LIMITS.to_owned(), Value::Object(self.members()))]
            .into_iter()
            .collect()
    }

    fn begin<'a>(&'a self, site: &'a Site) -> Effect<'a> {
        let added = site.throttle_groups.add(&self.id, self.limits);
        ready(added.map_err(QmpError::from)).boxed_local()
    }

    fn change<'a>(&'a self, site: &'a Site) -> Effect<'a> {
        let group = site.throttle_groups.find(&self.id);
        let changed = group.map_or(Ok(()), |group| group.configure(self.limits));
        ready(changed.map_err(QmpError::from)).boxed_local()
    }

    fn end<'a>(&'a self, site: &'a Site) -> Effect<'a> {
        let removed = site.throttle_groups.remove(&self.id);
        ready(removed.map_err(QmpError::from)).boxed_local()
    }
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
