//! The file or device of the host that a protocol driver stands for.

use millpond_messages::{BlockSizes, CopySource, Geometry, IoError, IoResult, Range};

use super::answer::Answer;
use super::nothing::Nothing;

/// What the host's file or device can do beside storing bytes, see [`Driver::device`](super::Driver::device).
pub trait Device {
    /// The sizes of the sectors of the device that the node is; `NotSupported` where it is none.
    fn block_sizes(&self) -> Answer<'_, IoResult<BlockSizes>> {
        Answer::ready(Err(IoError::NotSupported))
    }

    /// The geometry of the disk that the node is; `NotSupported` where it has none.
    fn geometry(&self) -> Answer<'_, IoResult<Geometry>> {
        Answer::ready(Err(IoError::NotSupported))
    }

    /// Where a range lies in a file of the host, for an offloaded copy out of it.
    fn copy_source(&self, _range: Range) -> Option<CopySource> {
        None
    }

    /// Copies from a file of the host to a range without a buffer; answers how many bytes were copied.
    fn copy_from(&self, _source: CopySource, _range: Range) -> Answer<'_, IoResult<u64>> {
        Answer::ready(Err(IoError::NotSupported))
    }
}

impl Device for Nothing {}
