//! The file or device of the host that a protocol driver stands for.

use millpond_messages::{
    BlockSizes, CopySource, Geometry, IoError, IoResult, MediumOrder, Range, ScsiAnswer, ScsiCommand,
};

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

    /// Whether its medium is there; `NotSupported` where none can be taken out.
    fn is_inserted(&self) -> Answer<'_, IoResult<bool>> {
        Answer::ready(Err(IoError::NotSupported))
    }

    /// Does something to its medium; `NotSupported` where none can be taken out.
    fn change_medium(&self, _order: MediumOrder) -> Answer<'_, IoResult<()>> {
        Answer::ready(Err(IoError::NotSupported))
    }

    /// Whether it takes SCSI commands and nothing else.
    fn is_scsi_generic(&self) -> bool {
        false
    }

    /// Sends it a SCSI command; `NotSupported` where it takes none.
    fn send_scsi(&self, _command: ScsiCommand) -> Answer<'_, IoResult<ScsiAnswer>> {
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
