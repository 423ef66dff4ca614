//! Write-back of metadata that changed in memory.
use super::Qcow2;
use messages::IoResult;
impl Qcow2 {
    pub(super) async fn write_back(&self, _p: bool) -> IoResult<()> {
        Ok(())
    }
    pub(super) async fn make_table(&self, _i: u64) -> IoResult<()> {
        Err(messages::IoError::NotSupported)
    }
}
