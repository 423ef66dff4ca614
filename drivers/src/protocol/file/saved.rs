//! The state of a file that a later daemon needs: whether an earlier flush failed. The descriptor and its locks are handed
//! over, or opened and taken anew.

use millpond_messages::IoError;
use millpond_messages::saved::{DriverRecord, Saved, SavedError};
use serde::{Deserialize, Serialize};

use super::node::File;
use crate::api::SavesState;

/// The state of a `file` or `host_device` node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct SavedFile {
    /// The errno of a flush that failed: no later one may succeed.
    flush_errno: Option<i32>,
}

impl Saved for SavedFile {
    const KIND: &'static str = "driver/file";
    const VERSION: u32 = 1;
}

impl SavesState for File {
    fn save(&self) -> Result<DriverRecord, SavedError> {
        DriverRecord::of(&SavedFile {
            flush_errno: self.flush_error.get().map(IoError::errno),
        })
    }

    fn restore(&self, record: &DriverRecord) -> Result<(), SavedError> {
        let SavedFile { flush_errno } = record.state()?;
        self.flush_error.set(flush_errno.map(IoError::from_errno));
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_bytes_of_version_1_stay() {
        let state = SavedFile { flush_errno: Some(5) };
        let record = DriverRecord::of(&state).unwrap();
        assert_eq!(
            record.bytes(),
            b"MILLPOND\x0bdriver/file\x01\0\0\0\x02\0\0\0\x01\x0a"
        );
        assert_eq!(record.state::<SavedFile>().unwrap(), state);
    }
}
