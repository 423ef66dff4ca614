//! What becomes of the writes that pass: they are marked as they end, or go to both ends.

use futures_util::future::join;
use millpond_messages::{IoResult, MirrorMode, Range, RequestFlags};
use millpond_ring::buffer::Buffers;

use super::copy::Mirror;
use crate::api::{PassThrough, Transfer, bytes_in};
use crate::replica::copies::{Use, copy_of};

/// The flags of a write that hold for both ends.
const BOTH: RequestFlags = RequestFlags::FUA;

impl Mirror {
    /// Whether a write that begins now is to go to both ends.
    fn goes_to_both(&self) -> bool {
        let line = self.line();
        !self.is_abandoned() && line.is_some_and(|line| line.mode() != MirrorMode::Background)
    }

    pub async fn write(
        &self,
        below: &PassThrough,
        offset: u64,
        buffers: Buffers,
        flags: RequestFlags,
    ) -> Transfer {
        let len = bytes_in(&buffers);
        let range = match Range::new(offset, len) {
            Ok(range) => range,
            Err(error) => return (Err(error.into()), buffers),
        };
        if self.goes_to_both()
            && let Some(copy) = copy_of(&buffers)
        {
            let alone = self.ranges.hold(offset, len, Use::Write).await;
            let to_target = async { self.target.write(offset, copy, flags & BOTH).await.0 };
            let to_source = below.write(offset, buffers, flags);
            let (written, (result, buffers)) = join(self.unless_abandoned(to_target), to_source).await;
            self.note(range, result, written);
            drop(alone);
            return (result, buffers);
        }
        let (result, buffers) = below.write(offset, buffers, flags).await;
        // One that has failed may have changed something all the same.
        self.written(range);
        (result, buffers)
    }

    pub async fn write_zeroes(&self, below: &PassThrough, range: Range, flags: RequestFlags) -> IoResult<()> {
        if !self.goes_to_both() {
            let result = below.write_zeroes(range, flags).await;
            self.written(range);
            return result;
        }
        let alone = self.ranges.hold(range.offset(), range.len(), Use::Write).await;
        let to_target = self
            .target
            .write_zeroes(range, (flags & BOTH) | self.zero_flags());
        let to_source = below.write_zeroes(range, flags);
        let (written, result) = join(self.unless_abandoned(to_target), to_source).await;
        self.note(range, result, written);
        drop(alone);
        result
    }

    /// What a range reads as once it is discarded is the source's own affair, so it is copied.
    pub async fn discard(&self, below: &PassThrough, range: Range) -> IoResult<()> {
        let result = below.discard(range).await;
        self.written(range);
        result
    }

    /// A write to both ends has ended: `written` is how it did on the target, if that was waited for.
    fn note(&self, range: Range, result: IoResult<()>, written: Option<IoResult<()>>) {
        match (result, written) {
            (Ok(()), Some(Ok(()))) => self.written_to_both(range),
            (_, written) => {
                self.written(range);
                if let (Some(Err(error)), Some(line)) = (written, self.line()) {
                    line.set_fault(error);
                }
            }
        }
    }
}
