//! The state of a driver, in the driver's own words.

use serde::{Deserialize, Serialize};

use super::{Saved, SavedError, load, save};

/// A record of a driver's own kind, whose version is the driver's matter.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DriverRecord(Vec<u8>);

impl DriverRecord {
    /// The record of a driver's state.
    ///
    /// # Errors
    /// It cannot be encoded.
    pub fn of<T: Saved>(state: &T) -> Result<Self, SavedError> {
        save(state).map(Self)
    }

    /// The state in it.
    ///
    /// # Errors
    /// It is of another driver, or of another version.
    pub fn state<T: Saved>(&self) -> Result<T, SavedError> {
        load(&self.0)
    }

    /// The bytes of the record.
    #[must_use]
    pub fn bytes(&self) -> &[u8] {
        &self.0
    }
}
