//! Some chunks of a disk, written down.

use serde::{Deserialize, Serialize};

use super::SavedError;
use crate::{ChunkSet, Range};

/// Some chunks of a disk: the first byte and the bytes of each run of them.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SavedChunks(pub Vec<(u64, u64)>);

impl SavedChunks {
    /// The chunks that are in a set.
    pub fn of(set: &ChunkSet) -> Self {
        let mut from = 0;
        let runs = std::iter::from_fn(|| {
            let run = set.next_run(from)?;
            from = run.end();
            Some((run.offset(), run.len()))
        });
        Self(runs.collect())
    }

    /// The same chunks, of `chunk` bytes each, of a disk of `len` bytes.
    ///
    /// # Errors
    /// No disk has them.
    pub fn set(&self, len: u64, chunk: u64) -> Result<ChunkSet, SavedError> {
        let impossible = || SavedError::Impossible("chunks that no disk has".to_owned());
        let mut set = ChunkSet::new(len, chunk).map_err(|_| impossible())?;
        for (offset, bytes) in &self.0 {
            set.insert(Range::new(*offset, *bytes).map_err(|_| impossible())?);
        }
        Ok(set)
    }
}
