//! Changes of a node in two steps: a prepared change takes effect when it is committed, and is forgotten when it is
//! aborted.

use millpond_drivers::api::Exchanged;
use millpond_messages::{OpenFlags, Result};

use super::node::NodeCell;
use super::prepared::PutAside;
use crate::node::order::outcome::NodeSettings;

impl NodeCell {
    /// Remembers the node-level part of a reopen until it is committed.
    pub fn prepare_reopen(&self, settings: NodeSettings, flags: OpenFlags) {
        self.prepared.reopening.set(Some((settings, flags)));
    }

    /// Puts the prepared part of a reopen into effect.
    ///
    /// # Errors
    /// As [`NodeCell::refresh`].
    pub fn commit_reopen(&self) -> Result<()> {
        if let Some((settings, flags)) = self.prepared.reopening.take() {
            self.settings.set(settings);
            self.flags.set(flags);
        }
        self.refresh()
    }

    /// Forgets the prepared part of a reopen.
    pub fn abort_reopen(&self) {
        self.prepared.reopening.set(None);
    }

    /// Notes that the driver goes on with other data behind the edges, of this length.
    ///
    /// # Errors
    /// As [`NodeCell::refresh`]. The old data can be put back in either case.
    pub fn exchange(&self, driver: Exchanged, size: u64) -> Result<()> {
        let before = self.size.get();
        self.prepared.exchanged.replace(Some(Box::new(PutAside {
            driver,
            size: before,
            bitmaps: (size != before).then(|| self.bitmaps().all()),
            highest_write: self.counters.highest_write(),
        })));
        self.counters.set_highest_write(0);
        // Whatever was written to the other data before is not known to be durable.
        self.mark_unflushed();
        self.set_size(size);
        self.refresh()
    }

    /// Commits an exchange: what was put aside of the old data is forgotten.
    pub fn commit_exchange(&self) {
        self.prepared.exchanged.take();
    }

    /// Aborts an exchange: the old data is behind the edges again.
    pub fn abort_exchange(&self) {
        if let Some(aside) = self.prepared.exchanged.take() {
            aside.driver.put_back();
            self.set_size(aside.size);
            if let Some(bitmaps) = aside.bitmaps {
                self.bitmaps().restore(bitmaps);
            }
            self.counters.set_highest_write(aside.highest_write);
        }
        // The driver answered the same question about the old data before, so this is not expected to fail.
        if let Err(error) = self.refresh() {
            tracing::warn!(node = self.name(), %error, "a node goes by other limits than its driver's");
        }
    }
}
