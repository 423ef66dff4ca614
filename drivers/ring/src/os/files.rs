//! System calls on files that no safe wrapper offers: OFD locks and block device ioctls.

use std::ffi::{c_int, c_ulong};
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};

use millpond_messages::Geometry;
use rustix::ioctl::{Getter, Setter, ioctl, opcode};

/// What to do with a byte's lock.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LockByte {
    /// Lock it, sharing it with others that do the same.
    Shared,
    /// Give the lock back.
    Unlock,
}

fn byte_range(kind: c_int, byte: u16) -> libc::flock {
    libc::flock {
        l_type: kind as libc::c_short,
        l_whence: libc::SEEK_SET as libc::c_short,
        l_start: byte.into(),
        l_len: 1,
        l_pid: 0,
    }
}

/// Sets or gives back the lock that the open file description behind `fd` has on a byte. Does not wait.
pub fn lock_byte(fd: BorrowedFd<'_>, byte: u16, lock: LockByte) -> io::Result<()> {
    let kind = match lock {
        LockByte::Shared => libc::F_RDLCK,
        LockByte::Unlock => libc::F_UNLCK,
    };
    let range = byte_range(kind, byte);
    // SAFETY: the descriptor is open, and the kernel only reads the `flock`, which outlives the call.
    let result = unsafe { libc::fcntl(fd.as_raw_fd(), libc::F_OFD_SETLK, &raw const range) };
    if result == -1 {
        Err(io::Error::last_os_error())
    } else {
        Ok(())
    }
}

/// Whether another open file description has a lock of any kind on a byte.
pub fn is_byte_locked(fd: BorrowedFd<'_>, byte: u16) -> io::Result<bool> {
    let mut range = byte_range(libc::F_WRLCK, byte);
    // SAFETY: the descriptor is open, and the kernel reads and writes the `flock`, which outlives the call.
    let result = unsafe { libc::fcntl(fd.as_raw_fd(), libc::F_OFD_GETLK, &raw mut range) };
    if result == -1 {
        return Err(io::Error::last_os_error());
    }
    Ok(c_int::from(range.l_type) != libc::F_UNLCK)
}

/// The number of the ioctl `BLKROGET`.
const READ_ONLY: rustix::ioctl::Opcode = opcode::none(0x12, 94);
/// The number of the ioctl `BLKDISCARD`.
const DISCARD: rustix::ioctl::Opcode = opcode::none(0x12, 119);
/// The number of the ioctl `HDIO_GETGEO`.
const GET_GEOMETRY: rustix::ioctl::Opcode = opcode::none(0x03, 0x01);
/// The number of the ioctl `FS_IOC_FSGETXATTR`.
const GET_ATTRIBUTES: rustix::ioctl::Opcode = opcode::read::<Attributes>(b'X', 31);
/// The number of the ioctl `FS_IOC_FSSETXATTR`.
const SET_ATTRIBUTES: rustix::ioctl::Opcode = opcode::write::<Attributes>(b'X', 32);
/// `FS_XFLAG_EXTSIZE`: the hint in [`Attributes`] counts.
const HAS_EXTENT_SIZE: u32 = 1 << 11;

/// The kernel's `struct fsxattr`.
#[derive(Debug, Clone, Copy)]
#[repr(C)]
struct Attributes {
    flags: u32,
    extent_size: u32,
    extents: u32,
    project: u32,
    cow_extent_size: u32,
    padding: [u8; 8],
}

const _: () = assert!(
    size_of::<Attributes>() == 28,
    "fsxattr has 28 bytes: its size is part of the ioctl's number"
);

/// The kernel's `struct hd_geometry`.
#[derive(Debug, Clone, Copy)]
#[repr(C)]
struct HdGeometry {
    heads: u8,
    sectors: u8,
    cylinders: u16,
    start: c_ulong,
}

/// Whether a block device refuses writes.
pub fn is_read_only_device(fd: BorrowedFd<'_>) -> io::Result<bool> {
    // SAFETY: BLKROGET stores one int.
    let get = unsafe { Getter::<READ_ONLY, c_int>::new() };
    // SAFETY: the request is what the line above says, and a device without it fails with ENOTTY.
    Ok(unsafe { ioctl(fd, get) }? != 0)
}

/// Forgets a range of a block device; `offset` and `len` in bytes, multiples of its logical block.
pub fn discard_device(fd: BorrowedFd<'_>, offset: u64, len: u64) -> io::Result<()> {
    // SAFETY: BLKDISCARD reads two 64-bit numbers.
    let set = unsafe { Setter::<DISCARD, [u64; 2]>::new([offset, len]) };
    // SAFETY: the request is what the line above says; it changes no memory of ours.
    Ok(unsafe { ioctl(fd, set) }?)
}

/// A disk's geometry as its driver tells it; the number of cylinders may be cut off at 65535.
pub fn geometry(fd: BorrowedFd<'_>) -> io::Result<Geometry> {
    // SAFETY: HDIO_GETGEO stores one `struct hd_geometry`.
    let get = unsafe { Getter::<GET_GEOMETRY, HdGeometry>::new() };
    // SAFETY: the request is what the line above says, and a device without it fails with ENOTTY.
    let found = unsafe { ioctl(fd, get) }?;
    Ok(Geometry {
        heads: found.heads.into(),
        sectors: found.sectors.into(),
        cylinders: found.cylinders.into(),
    })
}

fn attributes(fd: BorrowedFd<'_>) -> io::Result<Attributes> {
    // SAFETY: FS_IOC_FSGETXATTR stores one `struct fsxattr`.
    let get = unsafe { Getter::<GET_ATTRIBUTES, Attributes>::new() };
    // SAFETY: the request is what the line above says, and a file system without it fails with ENOTTY.
    Ok(unsafe { ioctl(fd, get) }?)
}

/// The size in bytes that the file system is asked to give new extents; 0 if none is.
pub fn extent_size_hint(fd: impl AsFd) -> io::Result<u32> {
    Ok(attributes(fd.as_fd())?.extent_size)
}

/// Asks the file system to give new extents a size, in bytes.
pub fn set_extent_size_hint(fd: impl AsFd, bytes: u32) -> io::Result<()> {
    let mut attributes = attributes(fd.as_fd())?;
    attributes.flags |= HAS_EXTENT_SIZE;
    attributes.extent_size = bytes;
    // SAFETY: FS_IOC_FSSETXATTR reads one `struct fsxattr`.
    let set = unsafe { Setter::<SET_ATTRIBUTES, Attributes>::new(attributes) };
    // SAFETY: the request is what the line above says; it changes no memory of ours.
    Ok(unsafe { ioctl(fd.as_fd(), set) }?)
}
