//! The state of an open image that a later daemon needs besides the image itself.

use millpond_messages::saved::{DriverRecord, Saved, SavedError};
use serde::{Deserialize, Serialize};

use super::image::Qcow2;
use crate::api::SavesState;

/// The state of a `qcow2` node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct SavedQcow2 {
    /// Tables in memory differ from the file: the image must be written back before anybody else opens it.
    unwritten: bool,
    /// The image was readied for changes.
    active: bool,
    /// Corruption was found, and reported.
    reported: bool,
    /// Corruption made the image unusable.
    broken: bool,
    /// Whether clusters may be allocated without being used, if that was found out.
    preallocated: Option<bool>,
}

impl Saved for SavedQcow2 {
    const KIND: &'static str = "driver/qcow2";
    const VERSION: u32 = 1;
}

impl SavesState for Qcow2 {
    fn save(&self) -> Result<DriverRecord, SavedError> {
        let state = self.state.borrow();
        if state.shows.is_some() {
            let text = "qcow2: a snapshot is shown, which no saved state tells of".to_owned();
            return Err(SavedError::Impossible(text));
        }
        DriverRecord::of(&SavedQcow2 {
            unwritten: state.is_dirty() || state.refcounts_dirty(),
            active: state.active,
            reported: state.reported,
            broken: state.broken,
            preallocated: state.preallocated,
        })
    }

    fn restore(&self, record: &DriverRecord) -> Result<(), SavedError> {
        let saved: SavedQcow2 = record.state()?;
        if saved.unwritten && !saved.broken {
            let text = "qcow2: the image was not written back before its state was saved".to_owned();
            return Err(SavedError::Impossible(text));
        }
        let mut state = self.state.borrow_mut();
        state.active = saved.active && state.writable;
        state.reported = saved.reported;
        state.broken = saved.broken;
        state.preallocated = saved.preallocated;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_bytes_of_version_1_stay() {
        let state = SavedQcow2 {
            unwritten: false,
            active: true,
            reported: true,
            broken: false,
            preallocated: Some(true),
        };
        let record = DriverRecord::of(&state).unwrap();
        assert_eq!(
            record.bytes(),
            b"MILLPOND\x0cdriver/qcow2\x01\0\0\0\x06\0\0\0\0\x01\x01\0\x01\x01"
        );
        assert_eq!(record.state::<SavedQcow2>().unwrap(), state);
    }
}
