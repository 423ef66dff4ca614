//! State of a driver that outlives its requests, written down and read again.

use millpond_messages::saved::{DriverRecord, SavedError};

/// What a driver keeps that nobody could find again from its options and its files: see
/// [`Lifecycle::saved_state`](super::Lifecycle::saved_state).
///
/// Its state is a type of its own that implements [`Saved`](millpond_messages::saved::Saved), under the kind
/// `driver/NAME`. What an image lacks is no such state: a driver is written back before its state is used elsewhere.
pub trait SavesState {
    /// The state, as it is now. The node is still.
    ///
    /// # Errors
    /// It cannot be encoded.
    fn save(&self) -> Result<DriverRecord, SavedError>;

    /// Goes on where another driver of this kind was, which had the same options. Nothing has passed the node yet.
    ///
    /// # Errors
    /// The record is of something else, of another version, or says what cannot be; the driver is as it was then.
    fn restore(&self, record: &DriverRecord) -> Result<(), SavedError>;
}
