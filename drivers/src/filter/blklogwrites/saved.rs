//! How far a log has grown: its superblock may not say so yet.

use millpond_messages::saved::{DriverRecord, Saved, SavedError};
use serde::{Deserialize, Serialize};

use super::Blklogwrites;
use super::log::Progress;
use crate::api::SavesState;

/// The state of a `blklogwrites` node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct SavedLog {
    /// Bytes of a sector of the log.
    sector: u32,
    /// The superblock is written whenever so many entries came.
    interval: u64,
    /// The sector where the next entry goes.
    next: u64,
    /// How many entries there are.
    entries: u64,
}

impl Saved for SavedLog {
    const KIND: &'static str = "driver/blklogwrites";
    const VERSION: u32 = 1;
}

impl SavesState for Blklogwrites {
    fn save(&self) -> Result<DriverRecord, SavedError> {
        let (sector, interval, next, entries) = self.log.progress().numbers();
        DriverRecord::of(&SavedLog {
            sector,
            interval,
            next,
            entries,
        })
    }

    fn restore(&self, record: &DriverRecord) -> Result<(), SavedError> {
        let SavedLog {
            sector,
            interval,
            next,
            entries,
        } = record.state()?;
        let progress = Progress::of_numbers(sector, interval, next, entries);
        let wrong = || SavedError::Impossible("blklogwrites: no log can have grown like that".to_owned());
        self.log.go_on(progress.ok_or_else(wrong)?);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_bytes_of_version_1_stay() {
        let state = SavedLog {
            sector: 512,
            interval: 4096,
            next: 9,
            entries: 3,
        };
        let record = DriverRecord::of(&state).unwrap();
        assert_eq!(
            record.bytes(),
            b"MILLPOND\x13driver/blklogwrites\x01\0\0\0\x08\0\0\0\xfb\0\x02\xfb\0\x10\x09\x03"
        );
        assert_eq!(record.state::<SavedLog>().unwrap(), state);
    }

    #[test]
    fn progress_is_the_same_again_unless_it_is_impossible() {
        let numbers = (512, 4096, 9, 3);
        let progress = Progress::of_numbers(512, 4096, 9, 3).unwrap();
        assert_eq!(progress.numbers(), numbers);
        for (sector, interval, next) in [(513, 1, 1), (512, 0, 1), (512, 1, 0)] {
            assert!(Progress::of_numbers(sector, interval, next, 0).is_none());
        }
    }
}
