//! What QOM shows of objects; an iothread's properties are [`IothreadOptions`](crate::graph::IothreadOptions).

use serde::{Deserialize, Serialize};
use serde_json::Value;

/// One entry of the replies of `qom-list` and `qom-list-properties`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct ObjectPropertyInfo {
    /// The name of the property.
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
    /// The name of the type.
    pub name: String,
    /// It has no objects of its own.
    #[serde(default, rename = "abstract", skip_serializing_if = "Option::is_none")]
    pub is_abstract: Option<bool>,
    /// The type it is derived from.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub parent: Option<String>,
}
