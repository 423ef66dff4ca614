//! The device of a node's driver, behind its guard.

use millpond_messages::{
    BlockSizes, CopySource, Geometry, IoResult, MediumOrder, Range, ScsiAnswer, ScsiCommand,
};

use super::driver::Guarded;
use crate::api::{Answer, Device};

impl Device for Guarded {
    fn block_sizes(&self) -> Answer<'_, IoResult<BlockSizes>> {
        self.ask(|driver| driver.device().block_sizes())
    }

    fn geometry(&self) -> Answer<'_, IoResult<Geometry>> {
        self.ask(|driver| driver.device().geometry())
    }

    fn is_inserted(&self) -> Answer<'_, IoResult<bool>> {
        self.ask(|driver| driver.device().is_inserted())
    }

    fn change_medium(&self, order: MediumOrder) -> Answer<'_, IoResult<()>> {
        self.ask(|driver| driver.device().change_medium(order))
    }

    fn is_scsi_generic(&self) -> bool {
        self.run(|driver| driver.device().is_scsi_generic())
            .unwrap_or_default()
    }

    fn send_scsi(&self, command: ScsiCommand) -> Answer<'_, IoResult<ScsiAnswer>> {
        self.ask(|driver| driver.device().send_scsi(command))
    }

    fn copy_source(&self, range: Range) -> Option<CopySource> {
        self.run(|driver| driver.device().copy_source(range)).flatten()
    }

    fn copy_from(&self, source: CopySource, range: Range) -> Answer<'_, IoResult<u64>> {
        self.ask(|driver| driver.device().copy_from(source, range))
    }
}
