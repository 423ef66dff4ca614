//! The file in which the requests of a device are noted while they are in flight. It is where QEMU has it, and of its form.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use millpond_ring::os::vduse::DeviceName;
use rustix::fs::{FallocateFlags, OFlags, fallocate};
use rustix::io::Errno;
use rustix::process::geteuid;

use crate::export::virtio::in_flight::{self, Area, InFlight, InFlightError, Stamps};
use crate::export::virtio::vring::MAX_QUEUE_SIZE;

/// The file of a device.
pub(super) fn path(name: &DeviceName) -> PathBuf {
    std::env::temp_dir().join(format!("vduse-blk-{}", name.as_str()))
}

/// Opens the file of a device with so many queues. Of a new device nothing is in flight, whatever the file says.
///
/// # Errors
/// It is not a file of this user alone, or there is no room for it.
pub(super) fn open(path: &Path, queues: u16, is_new: bool) -> Result<InFlight, InFlightError> {
    let area = Area {
        offset: 0,
        len: in_flight::len(queues, MAX_QUEUE_SIZE),
        queues,
        queue_size: MAX_QUEUE_SIZE,
    };
    let file = open_file(path)?;
    if is_new {
        file.set_len(0)?;
    }
    if file.metadata()?.len() < area.len {
        file.set_len(area.len)?;
    }
    // Where there is no room now, there must be none later: then a request would be in flight.
    match fallocate(&file, FallocateFlags::empty(), 0, area.len) {
        Ok(()) | Err(Errno::OPNOTSUPP) => {}
        Err(error) => return Err(io::Error::from(error).into()),
    }
    InFlight::new(file.into(), &area, Stamps::None)
}

/// Opens a file in a folder where anybody may have put something of that name.
fn open_file(path: &Path) -> io::Result<File> {
    let flags = OFlags::NOFOLLOW | OFlags::NONBLOCK;
    let mut options = OpenOptions::new();
    options.read(true).write(true).create(true).mode(0o600);
    // The flags of the system are small numbers.
    let file = options.custom_flags(flags.bits() as i32).open(path)?;
    let facts = file.metadata()?;
    let is_ours = facts.is_file() && facts.uid() == geteuid().as_raw() && facts.nlink() == 1;
    if !is_ours || facts.mode() & 0o022 != 0 {
        let text = format!("{} is not a file of this user alone", path.display());
        return Err(io::Error::other(text));
    }
    Ok(file)
}
