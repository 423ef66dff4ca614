//! Loads of metadata from the file, each shared by all that wait for it, and what happens when it is wrong.

use std::time::Duration;

use millpond_messages::{DebugEvent, FINDINGS, IoError, IoResult};

use crate::api::Notice;
use crate::format::qcow2::header::CORRUPT;
use crate::format::qcow2::image::Qcow2;
use crate::format::qcow2::layout::bytes::{Hex, table_from_be};
use crate::format::qcow2::layout::index::SliceKey;
use crate::format::qcow2::layout::space::HostOffset;
use crate::format::qcow2::state::Corruption;
use crate::format::qcow2::wait::{Held, Key};

/// Bytes of a table that are read at once where there is room for them: hardly more work than a slice alone is.
const READ_AHEAD: u64 = 16 << 10;

impl Qcow2 {
    /// Loads the L2 slice at `key`, an offset in the file.
    pub(crate) async fn load_slice(&self, key: SliceKey) -> IoResult<()> {
        let Some(_held) = self.waits.try_hold(Key::Slice(key)) else {
            self.waits.wait(Key::Slice(key)).await;
            return Ok(());
        };
        let geometry = self.state.borrow().geometry;
        let size = geometry.slice_size() as usize;
        // Nobody loads these meanwhile, changes them and pushes them out again: what is read stays what they are.
        let ahead = self.hold_slices_behind(key);
        self.file.raise(DebugEvent::L2Load).await;
        let bytes = match self.file.read_vec(key.offset(), size * (1 + ahead.len())).await {
            Err(_) if !ahead.is_empty() => self.file.read_vec(key.offset(), size).await?,
            read => read?,
        };
        let bytes = bytes.into_single();
        self.drop_unused();
        let mut slices = bytes
            .chunks_exact(size)
            .zip(std::iter::once(key).chain(key.behind(&geometry)));
        let wanted = slices.next();
        for (slice, key) in slices {
            let mut state = self.state.borrow_mut();
            if state.l2.room() > 1 {
                state.l2.insert(key.offset(), table_from_be(slice));
            }
        }
        // A write-back may need one of these itself.
        drop(ahead);
        while !self.make_slice_room() {
            self.write_back(true).await?;
        }
        if let Some((slice, key)) = wanted {
            let table = table_from_be(slice);
            self.state.borrow_mut().l2.insert(key.offset(), table);
        }
        Ok(())
    }

    /// Holds the slices of the same table behind the one at `key` that are read along with it: as there is room for them
    /// beside what is cached, since they push nothing out, and as they are not cached nor being loaded.
    fn hold_slices_behind(&self, key: SliceKey) -> Vec<Held<'_>> {
        let state = self.state.borrow();
        let geometry = &state.geometry;
        let end = key.offset() + READ_AHEAD;
        key.behind(geometry)
            .take_while(|next| next.offset() + geometry.slice_size() <= end)
            .take(state.l2.room().saturating_sub(1))
            .take_while(|next| !state.l2.has(next.offset()))
            .map_while(|next| self.waits.try_hold(Key::Slice(next)))
            .collect()
    }

    /// Drops tables that nobody used for the interval that the options give. A load is when that is looked at: a node that
    /// loads nothing does not grow either.
    fn drop_unused(&self) {
        let mut state = self.state.borrow_mut();
        let interval = Duration::from_secs(state.settings.clean_interval);
        let now = self.ring.now();
        if interval.is_zero() || now.saturating_duration_since(self.cleaned.get()) < interval {
            return;
        }
        self.cleaned.set(now);
        state.l2.clean();
        state.refblocks.clean();
    }

    fn make_slice_room(&self) -> bool {
        self.state.borrow_mut().l2.make_room()
    }

    /// Loads the refcount block of this number, which the refcount table has an entry for.
    pub(crate) async fn load_refblock(&self, index: u64) -> IoResult<()> {
        let Some(_held) = self.waits.try_hold(Key::Refblock(index)) else {
            self.waits.wait(Key::Refblock(index)).await;
            return Ok(());
        };
        let (offset, geometry) = {
            let state = self.state.borrow();
            (state.refblock_offset(index), state.geometry)
        };
        let Some(offset) = offset.filter(|offset| offset.is_aligned(&geometry)) else {
            let offset = offset.unwrap_or_default();
            let text = format!(
                "Refblock offset {offset:#x} unaligned (reftable index: {})",
                Hex(index)
            );
            return Err(self.found_corruption(text.into()).await);
        };
        self.file.raise(DebugEvent::RefblockLoad).await;
        let bytes = self
            .file
            .read_vec(offset, geometry.cluster_size() as usize)
            .await?
            .to_vec();
        // Without room it is kept all the same, since the write-back itself may be what needs it: whoever changes refcounts
        // sees to it that few blocks are dirty.
        let mut state = self.state.borrow_mut();
        state.refblocks.make_room();
        state.refblocks.insert(offset, bytes);
        Ok(())
    }

    /// Takes note of metadata that cannot be: a writable image is marked corrupt in the file and answers no request
    /// any more, a read-only one goes on as far as it can. Answers the error for the request that found it.
    pub(crate) async fn found_corruption(&self, corruption: Corruption) -> IoError {
        let text = &corruption.text;
        let marked = {
            let mut state = self.state.borrow_mut();
            let was_reported = std::mem::replace(&mut state.reported, true);
            if !state.writable || state.broken {
                if !was_reported {
                    tracing::error!(
                        target: FINDINGS,
                        "qcow2: Image is corrupt: {text}; further non-fatal corruption events will be suppressed"
                    );
                    state.notices.report(notice_of(&corruption, false));
                }
                return IoError::Corrupt;
            }
            tracing::error!(
                target: FINDINGS,
                "qcow2: Marking image as corrupt: {text}; further corruption events will be suppressed"
            );
            state.notices.report(notice_of(&corruption, true));
            state.broken = true;
            state.header.incompatible |= CORRUPT;
            state.header.version >= 3
        };
        if marked && let Err(error) = self.write_features().await {
            tracing::error!("qcow2: could not mark the image as corrupt: {error}");
        }
        IoError::Corrupt
    }
}

fn notice_of(corruption: &Corruption, fatal: bool) -> Notice {
    let (offset, size) = corruption.range.unzip();
    Notice::Corrupted {
        message: corruption.text.clone(),
        offset: offset.map(HostOffset::get),
        size,
        fatal,
    }
}
