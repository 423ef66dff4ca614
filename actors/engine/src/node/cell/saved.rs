//! What a node's cell keeps that outlives its requests.

use millpond_messages::saved::{SavedCell, SavedZeroDetection};
use millpond_messages::{Error, ErrorKind, Result};

use crate::node::cell::node::NodeCell;
use crate::node::order::mail::DetectZeroes;

impl From<DetectZeroes> for SavedZeroDetection {
    fn from(option: DetectZeroes) -> Self {
        match option {
            DetectZeroes::Off => Self::Off,
            DetectZeroes::On => Self::On,
            DetectZeroes::Unmap => Self::Unmap,
        }
    }
}

impl From<SavedZeroDetection> for DetectZeroes {
    fn from(saved: SavedZeroDetection) -> Self {
        match saved {
            SavedZeroDetection::Off => Self::Off,
            SavedZeroDetection::On => Self::On,
            SavedZeroDetection::Unmap => Self::Unmap,
        }
    }
}

impl NodeCell {
    /// The cell at `now_ns`. What is in flight is not in it: a cell is saved while it is still.
    ///
    /// # Errors
    /// The driver is broken or gone, or its state cannot be encoded.
    pub fn saved(&self, now_ns: u64) -> Result<SavedCell> {
        let failed = |reason: &dyn std::fmt::Display| {
            let text = format!("The state of node '{}' cannot be saved: {reason}", self.name());
            Error::new(ErrorKind::Unsupported, text)
        };
        let driver = self.driver().map_err(|error| failed(&error))?;
        let driver = driver.saved_state().map(|state| state.save()).transpose();
        Ok(SavedCell {
            flags: self.flags(),
            detect_zeroes: self.settings().detect_zeroes.into(),
            probed: self.settings().probed,
            size: self.size(),
            copy_on_read: self.copy_on_read(),
            unflushed: self.unflushed().is_some(),
            sections: self.gate().holds(),
            statistics: self.counters().get(now_ns),
            driver: driver.map_err(|error| failed(&error))?,
        })
    }
}
