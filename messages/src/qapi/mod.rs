//! The management interface's vocabulary: QMP's types, schema, JSON dialect and `key=value` options.
//!
//! Names, arguments, defaults and error texts are those of `qemu-storage-daemon` 10.0. One table
//! ([`schema`]) says what exists; introspection and validation are both read from it. What passed
//! validation is turned into the serde types of [`types`].

mod error;
mod event;
mod identifier;
mod json;
mod keyval;
mod number;
mod order;
pub mod schema;
pub mod types;
mod validate;
mod write;

pub use error::{ErrorClass, QmpError};
pub use event::{Event, IoOperation, JobEnd, QuorumOperation, TimedEvent};
pub use identifier::{IDENTIFIER_HINT, check_identifier, is_identifier};
pub use json::{JsonStream, parse_json};
pub use keyval::{Options, take_value};
pub use number::parse_size;
pub use order::{bucket, in_qdict_order};
pub use types::*;
pub use validate::{Form, Validator};
pub use write::{to_compact, to_pretty};

/// A JSON object that keeps its members in the order they were inserted.
pub type Object = serde_json::Map<String, serde_json::Value>;
