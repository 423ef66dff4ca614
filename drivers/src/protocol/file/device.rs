//! Facts about host devices that a guest's device may want to repeat.

use std::os::fd::AsFd;

use millpond_messages::{BlockSizes, Geometry, IoError, IoResult, SECTOR_SIZE};
use rustix::fs::{SeekFrom, ioctl_blkpbszget, ioctl_blksszget, seek};

use super::open::errno;
use millpond_ring::os::files;

/// The sizes of a block device's sectors.
///
/// # Errors
/// `NotSupported` for anything else than a block device.
pub fn probe_blocksizes(fd: impl AsFd) -> IoResult<BlockSizes> {
    let logical = ioctl_blksszget(&fd).map_err(|_| IoError::NotSupported)?;
    let physical = ioctl_blkpbszget(&fd).map_err(|_| IoError::NotSupported)?;
    Ok(BlockSizes { physical, logical })
}

/// The geometry of a disk that has one. The cylinders are counted from its length.
///
/// # Errors
/// `NotSupported` for anything else than such a disk.
pub fn probe_geometry(fd: impl AsFd) -> IoResult<Geometry> {
    let told = files::geometry(fd.as_fd()).map_err(|_| IoError::NotSupported)?;
    let sectors = seek(&fd, SeekFrom::End(0)).map_err(errno)? / SECTOR_SIZE;
    let cylinder = u64::from(told.heads) * u64::from(told.sectors);
    let cylinders = sectors.checked_div(cylinder).ok_or(IoError::NotSupported)?;
    Ok(Geometry {
        cylinders: u32::try_from(cylinders).unwrap_or(u32::MAX),
        ..told
    })
}
