//! What may be an id: of objects, character devices, exports and jobs.

use super::QmpError;

/// What identifiers are made of, for people at a command line.
pub const IDENTIFIER_HINT: &str =
    "Identifiers consist of letters, digits, '-', '.', '_', starting with a letter.";

/// Whether `id` may name an object: a letter, then letters, digits, `-`, `.` and `_`.
#[must_use]
pub fn is_identifier(id: &str) -> bool {
    id.starts_with(|c: char| c.is_ascii_alphabetic())
        && id
            .bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_'))
}

/// Checks the id that a user gives to something new.
///
/// # Errors
/// It is no identifier: QEMU's text, and its hint for people at a command line.
pub fn check_identifier(id: &str) -> Result<(), QmpError> {
    if is_identifier(id) {
        return Ok(());
    }
    Err(QmpError {
        hint: Some(IDENTIFIER_HINT.to_owned()),
        ..QmpError::generic("Parameter 'id' expects an identifier")
    })
}
