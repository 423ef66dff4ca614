//! The state of an open image that a later daemon needs besides the image itself.

use millpond_messages::saved::{DriverRecord, Saved, SavedError};
use serde::{Deserialize, Serialize};

use super::driver::Vdi;
use crate::api::SavesState;

/// The state of a `vdi` node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct SavedVdi {
    /// The table in memory differs from the file: the image must be written back before anybody else opens it.
    unwritten: bool,
}

impl Saved for SavedVdi {
    const KIND: &'static str = "driver/vdi";
    const VERSION: u32 = 1;
}

impl SavesState for Vdi {
    fn save(&self) -> Result<DriverRecord, SavedError> {
        let unwritten = self.blocks().is_changed();
        DriverRecord::of(&SavedVdi { unwritten })
    }

    fn restore(&self, record: &DriverRecord) -> Result<(), SavedError> {
        let saved: SavedVdi = record.state()?;
        if saved.unwritten {
            let text = "vdi: the image was not written back before its state was saved".to_owned();
            return Err(SavedError::Impossible(text));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_bytes_of_version_1_stay() {
        let state = SavedVdi { unwritten: true };
        let record = DriverRecord::of(&state).unwrap();
        assert_eq!(record.bytes(), b"MILLPOND\x0adriver/vdi\x01\0\0\0\x01\0\0\0\x01");
        assert_eq!(record.state::<SavedVdi>().unwrap(), state);
    }
}
