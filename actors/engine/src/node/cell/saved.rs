//! The state of a node's cell that outlives its requests, written down.

use millpond_messages::saved::{SavedCell, SavedZeroDetection};
use millpond_messages::{Error, ErrorKind, NodeId, Result};

use crate::node::cell::node::NodeCell;
use crate::node::order::outcome::{DetectZeroes, OrderOutcome};
use crate::node::table::NodeTable;

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

impl NodeTable {
    /// The statistics of some nodes.
    pub fn counted(&self, nodes: Vec<NodeId>) -> OrderOutcome {
        OrderOutcome::Statistics(self.of_cells(nodes, |cell, now| cell.counters().get(now)))
    }

    /// The saved state of some nodes.
    pub fn saved(&self, nodes: Vec<NodeId>) -> OrderOutcome {
        OrderOutcome::Saved(self.of_cells(nodes, NodeCell::saved))
    }

    /// What `look` finds at nodes; those that are not here are left out.
    fn of_cells<T>(&self, nodes: Vec<NodeId>, look: impl Fn(&NodeCell, u64) -> T) -> Vec<(NodeId, T)> {
        let now = self.local().look_at_time();
        let cells = nodes.into_iter().filter_map(|id| Some((id, self.node(id)?)));
        cells.map(|(id, cell)| (id, look(&cell, now))).collect()
    }
}

impl NodeCell {
    /// The cell's state at `now_ns`. Requests in flight are no part of it: a cell is saved while it is still.
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
            unflushed: self.durability().unflushed().is_some(),
            write_threshold: self.write_threshold().get(),
            sections: self.gate().holds(),
            bitmaps: self.bitmaps().saved(),
            statistics: self.counters().get(now_ns),
            driver: driver.map_err(|error| failed(&error))?,
        })
    }
}
