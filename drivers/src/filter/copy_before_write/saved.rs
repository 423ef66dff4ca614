//! The kept moment, written down: which chunks are left, and which can be asked for.

use std::time::Duration;

use millpond_messages::saved::{DriverRecord, Saved, SavedChunks, SavedError};
use millpond_messages::{IoError, RequestFlags};
use serde::{Deserialize, Serialize};

use super::CopyBeforeWrite;
use super::kept::{OnError, State};
use crate::api::SavesState;

/// The state of a `copy-before-write` node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct SavedMoment {
    /// Bytes of the disk.
    len: u64,
    /// Bytes of a chunk.
    chunk: u64,
    left: SavedChunks,
    readable: SavedChunks,
    /// A write that cannot keep its old data goes on, and the moment is lost.
    breaks_snapshot: bool,
    /// Seconds that a write waits; 0 for no limit.
    timeout: u64,
    is_lost: bool,
    /// What is copied is written compressed.
    compresses: bool,
    /// What was copied is discarded in the source.
    discards_source: bool,
}

impl Saved for SavedMoment {
    const KIND: &'static str = "driver/copy-before-write";
    const VERSION: u32 = 1;
}

impl SavedMoment {
    fn of(state: &State) -> Self {
        Self {
            len: state.left.len(),
            chunk: state.left.chunk(),
            left: SavedChunks::of(&state.left),
            readable: SavedChunks::of(&state.readable),
            breaks_snapshot: state.on_error == OnError::BreakSnapshot,
            timeout: state.timeout.map_or(0, |timeout| timeout.as_secs()),
            is_lost: state.lost.is_some(),
            compresses: state.write_flags.contains(RequestFlags::WRITE_COMPRESSED),
            discards_source: state.discards_source,
        }
    }

    fn state(&self) -> Result<State, SavedError> {
        Ok(State {
            left: self.left.set(self.len, self.chunk)?,
            readable: self.readable.set(self.len, self.chunk)?,
            on_error: match self.breaks_snapshot {
                true => OnError::BreakSnapshot,
                false => OnError::BreakGuestWrite,
            },
            timeout: (self.timeout > 0).then(|| Duration::from_secs(self.timeout)),
            lost: self.is_lost.then_some(IoError::Corrupt),
            line: None,
            write_flags: match self.compresses {
                true => RequestFlags::WRITE_COMPRESSED,
                false => RequestFlags::empty(),
            },
            discards_source: self.discards_source,
            copies_range: true,
        })
    }
}

impl SavesState for CopyBeforeWrite {
    fn save(&self) -> Result<DriverRecord, SavedError> {
        DriverRecord::of(&SavedMoment::of(&self.kept.state()))
    }

    fn restore(&self, record: &DriverRecord) -> Result<(), SavedError> {
        let saved: SavedMoment = record.state()?;
        let state = saved.state()?;
        let own = self.kept.state();
        if (state.left.len(), state.left.chunk()) != (own.left.len(), own.left.chunk()) {
            let text = "copy-before-write: the moment is one of another disk".to_owned();
            return Err(SavedError::Impossible(text));
        }
        self.kept.go_on(state);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn moment() -> SavedMoment {
        SavedMoment {
            len: 1 << 20,
            chunk: 65_536,
            left: SavedChunks(vec![(0, 65_536), (131_072, 917_504)]),
            readable: SavedChunks(vec![(0, 1 << 20)]),
            breaks_snapshot: true,
            timeout: 5,
            is_lost: false,
            compresses: true,
            discards_source: false,
        }
    }

    #[test]
    fn the_bytes_of_version_1_stay() {
        let record = DriverRecord::of(&moment()).unwrap();
        let expected = b"MILLPOND\x18driver/copy-before-write\x01\0\0\0\x27\0\0\0\
            \xfc\0\0\x10\0\xfc\0\0\x01\0\x02\0\xfc\0\0\x01\0\xfc\0\0\x02\0\xfc\0\0\x0e\0\x01\0\xfc\0\0\x10\0\x01\x05\0\x01\0";
        assert_eq!(record.bytes(), expected);
        assert_eq!(record.state::<SavedMoment>().unwrap(), moment());
    }

    #[test]
    fn a_moment_is_the_same_again_unless_it_is_impossible() {
        let state = moment().state().unwrap();
        assert_eq!(SavedMoment::of(&state), moment());
        let mut wrong = moment();
        wrong.left.0.push((u64::MAX, 2));
        assert!(wrong.state().is_err());
    }
}
