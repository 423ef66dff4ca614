//! Reads JSON as QEMU's monitor does: leniently, as a stream, and recovering after errors.
//!
//! Differences from the standard: strings may also stand in single quotes, and a whole number too large
//! for 64 bits becomes a double. A value may be spread over any number of pieces. After an error the text
//! is skipped up to the next bracket, colon, comma or line end, so that a client finds its way back; what
//! one value may take is bounded.

mod lexer;
mod parse;
mod stream;

pub use stream::JsonStream;

use crate::qapi::QmpError;
use serde_json::Value;

/// The one value in `text`.
///
/// # Errors
/// There is none, more than one, or it is malformed.
pub fn parse_json(text: &str) -> Result<Value, QmpError> {
    let mut stream = JsonStream::default();
    let mut values = stream.feed(text.as_bytes());
    values.extend(stream.finish());
    let mut values = values.into_iter();
    match (values.next(), values.next()) {
        (Some(Ok(_)), Some(_)) => Err(QmpError::generic("Expecting at most one JSON value")),
        (Some(first), _) => first.map_err(QmpError::generic),
        (None, _) => Err(QmpError::generic("Expecting a JSON value")),
    }
}
