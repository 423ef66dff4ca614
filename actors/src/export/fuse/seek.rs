//! Where data and holes begin.

use millpond_messages::io::Operation;
use millpond_messages::{Range, StatusFlags};
use rustix::io::Errno;

use super::answer::Session;
use super::reply::told;

/// What is looked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Wanted {
    Data,
    Hole,
}

/// The kernel's numbers of what `lseek(2)` looks for.
const SEEK_DATA: u32 = libc::SEEK_DATA.cast_unsigned();
/// The same for a hole.
const SEEK_HOLE: u32 = libc::SEEK_HOLE.cast_unsigned();

impl Session {
    /// Where the next data or hole begins, from `offset` on. There is a hole behind the end.
    pub(super) async fn seek(&self, offset: u64, whence: u32) -> Result<u64, Errno> {
        let wanted = match whence {
            SEEK_DATA => Wanted::Data,
            SEEK_HOLE => Wanted::Hole,
            _ => return Err(Errno::INVAL),
        };
        let end = self.length().await?;
        let mut at = offset;
        while at < end {
            let operation = Operation::Map {
                range: Range::new(at, end - at).map_err(|_| Errno::NXIO)?,
                want_zero: true,
                whole_chain: true,
            };
            let extents = self.client.request(operation).await.into_map().map_err(told)?;
            for extent in &extents {
                let is_data = extent.flags.contains(StatusFlags::DATA);
                if is_data == (wanted == Wanted::Data) {
                    return Ok(at);
                }
                // An extent ends in the range that was asked for.
                at += extent.len;
            }
            if extents.iter().all(|extent| extent.len == 0) {
                return Err(Errno::NXIO);
            }
        }
        match wanted {
            Wanted::Hole if at == end => Ok(end),
            _ => Err(Errno::NXIO),
        }
    }
}
