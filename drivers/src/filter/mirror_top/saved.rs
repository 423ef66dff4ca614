//! What is left of a mirror, written down.

use millpond_messages::saved::{DriverRecord, Saved, SavedChunks, SavedError};
use serde::{Deserialize, Serialize};

use super::MirrorTop;
use super::copy::ZEROES_MOST;
use crate::api::SavesState;
use crate::replica::left::Left;

/// The state of a `mirror_top` node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct SavedMirror {
    /// Bytes of the disk.
    len: u64,
    /// Bytes of a chunk.
    chunk: u64,
    /// The most that is copied by one pair of requests, in bytes.
    piece: u64,
    left: SavedChunks,
}

impl Saved for SavedMirror {
    const KIND: &'static str = "driver/mirror_top";
    const VERSION: u32 = 1;
}

impl SavesState for MirrorTop {
    fn save(&self) -> Result<DriverRecord, SavedError> {
        let left = self.mirror.state().left;
        DriverRecord::of(&SavedMirror {
            len: left.chunks().len(),
            chunk: left.chunks().chunk(),
            piece: left.piece(),
            left: SavedChunks::of(left.chunks()),
        })
    }

    fn restore(&self, record: &DriverRecord) -> Result<(), SavedError> {
        let saved: SavedMirror = record.state()?;
        let chunks = saved.left.set(saved.len, saved.chunk)?;
        let own = self.mirror.state().left;
        if (saved.len, saved.chunk) != (own.chunks().len(), own.chunks().chunk()) {
            let text = "mirror_top: what is left is of another disk".to_owned();
            return Err(SavedError::Impossible(text));
        }
        let left = Left::new(chunks, saved.piece).with_zeroes_most(ZEROES_MOST);
        self.mirror.go_on(left);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_bytes_of_version_1_stay() {
        let saved = SavedMirror {
            len: 1 << 20,
            chunk: 65_536,
            piece: 1 << 20,
            left: SavedChunks(vec![(0, 65_536)]),
        };
        let record = DriverRecord::of(&saved).unwrap();
        let expected = b"MILLPOND\x11driver/mirror_top\x01\0\0\0\x16\0\0\0\
            \xfc\0\0\x10\0\xfc\0\0\x01\0\xfc\0\0\x10\0\x01\0\xfc\0\0\x01\0";
        assert_eq!(record.bytes(), expected);
        assert_eq!(record.state::<SavedMirror>().unwrap(), saved);
    }
}
