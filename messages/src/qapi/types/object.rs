//! User objects and what QOM shows of them.

use serde::{Deserialize, Serialize};
use serde_json::Value;

/// The properties of an iothread that can be given or changed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct IothreadProperties {
    /// Longest busy wait before sleeping, in nanoseconds; 0 for none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub poll_max_ns: Option<i64>,
    /// By what the wait is multiplied when it was too short; 0 for the default.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub poll_grow: Option<i64>,
    /// By what the wait is divided when it was too long; 0 makes it zero.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub poll_shrink: Option<i64>,
    /// Most requests submitted at once, 0 for the default.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub aio_max_batch: Option<i64>,
    /// Least number of helper threads.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub thread_pool_min: Option<i64>,
    /// Most helper threads.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub thread_pool_max: Option<i64>,
}

/// The arguments of `object-add`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct ObjectOptions {
    /// The object's id.
    pub id: String,
    /// Its type and the properties of that type.
    #[serde(flatten)]
    pub kind: ObjectKind,
}

/// The types of object a user can make.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "qom-type", rename_all = "kebab-case")]
pub enum ObjectKind {
    /// A thread that runs nodes.
    Iothread(IothreadProperties),
    /// The tuning of the main loop.
    MainLoop(IothreadProperties),
}

/// The arguments of `object-del`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ObjectDel {
    /// The object.
    pub id: String,
}

/// One entry of the replies of `qom-list` and `qom-list-properties`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct ObjectPropertyInfo {
    /// The property's name.
    pub name: String,
    /// Its type; `child<TYPE>` for an object below this one.
    #[serde(rename = "type")]
    pub kind: String,
    /// What it is for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub description: Option<String>,
    /// Its value if none is set.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub default_value: Option<Value>,
}

/// One entry of the reply of `qom-list-types`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ObjectTypeInfo {
    /// The type's name.
    pub name: String,
    /// It has no objects of its own.
    #[serde(default, rename = "abstract", skip_serializing_if = "Option::is_none")]
    pub is_abstract: Option<bool>,
    /// The type it is derived from.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub parent: Option<String>,
}
