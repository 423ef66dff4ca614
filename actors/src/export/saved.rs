//! What exports write down of themselves, for a later daemon that takes this one over.

use std::cell::RefCell;
use std::rc::Rc;

use millpond_messages::saved::SavedOptions;
use millpond_messages::{Error, ErrorKind, Result};
use millpond_ring::Fd;
use serde::Serialize;
use serde_json::Value;

/// Descriptors that are handed over with what is written down, which names them by their places here. Clones are the same
/// list.
#[derive(Debug, Clone, Default)]
pub(crate) struct Descriptors(Rc<RefCell<Vec<Fd>>>);

impl Descriptors {
    /// Puts a descriptor at the end, and answers its place.
    pub(super) fn add(&self, descriptor: Fd) -> u32 {
        let mut list = self.0.borrow_mut();
        list.push(descriptor);
        // A process has fewer descriptors than that.
        u32::try_from(list.len() - 1).unwrap_or(u32::MAX)
    }

    /// All that were put there.
    pub(crate) fn take(&self) -> Vec<Fd> {
        self.0.take()
    }
}

/// The options of something, as QAPI has them.
///
/// # Errors
/// They are no object, which those of QAPI are.
pub(super) fn options(of: &impl Serialize) -> Result<SavedOptions> {
    match serde_json::to_value(of) {
        Ok(Value::Object(options)) => Ok(SavedOptions::of(&options)),
        _ => Err(Error::new(
            ErrorKind::Unsupported,
            "Options cannot be written down",
        )),
    }
}
