//! The management interface's vocabulary: QMP's types, schema, JSON dialect and `key=value` options.
//!
//! Names, arguments, defaults and error texts are those of `qemu-storage-daemon` 10.0. One row
//! ([`schema`]) says what a thing is; introspection, validation and the Rust types are made of it.

mod define;
mod error;
mod identifier;
mod introspect;
mod row;
pub mod schema;
mod text;
mod validate;

pub use error::{ErrorClass, QmpError};
pub use identifier::{IDENTIFIER_HINT, check_identifier, is_identifier};
pub use introspect::introspect;
pub use schema::*;
pub use text::{
    Form, JsonStream, Options, SIZE_HINT, WriteError, bucket, in_qdict_order, is_size_out_of_range,
    parse_json, parse_size, push_string, signed as parse_signed, spread, take_pair, to_compact, to_pretty,
    to_text, unsigned as parse_unsigned,
};
pub use validate::Validator;

/// A JSON object that keeps its members in the order they were inserted.
pub type Object = serde_json::Map<String, serde_json::Value>;
