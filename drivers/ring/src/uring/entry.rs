//! Submission queue entries: what the kernel is told of an operation, and the memory that it is told of.

use std::os::fd::{AsRawFd, RawFd};
use std::ptr;

use io_uring::types::FsyncFlags;
use io_uring::{opcode, squeue, types};

use super::Uring;
use crate::buffer::Buffers;
use crate::op::{Op, SlotId};
use crate::sys;

/// Memory that the kernel reads while an operation with several buffers runs; its address must not change.
pub(super) struct Gather {
    parts: Vec<libc::iovec>,
    message: libc::msghdr,
}

impl Default for Gather {
    fn default() -> Self {
        // SAFETY: a message header of zeroes is one without address, buffers and control data.
        let message = unsafe { std::mem::zeroed() };
        Self {
            parts: Vec::new(),
            message,
        }
    }
}

impl Uring {
    /// Lays the buffers out where they stay until the slot's completion.
    fn gather(&mut self, id: SlotId, bufs: &mut Buffers, skip: usize) -> &mut Gather {
        let mut gather = self.spare.pop().unwrap_or_default();
        gather.parts.clear();
        gather.parts.extend(sys::parts(bufs, skip));
        let index = id.index as usize;
        if index >= self.held.len() {
            self.held.resize_with(index + 1, || None);
        }
        self.held[index].insert(gather)
    }

    /// The entry for an operation that the kernel runs.
    #[inline]
    pub(super) fn entry(&mut self, id: SlotId, op: &mut Op) -> squeue::Entry {
        match op {
            Op::Read { fd, bufs, offset, .. } => self.read(id, fd.as_raw_fd(), bufs, *offset),
            Op::Write {
                fd,
                bufs,
                offset,
                fua,
                ..
            } => self.write(id, fd.as_raw_fd(), bufs, *offset, *fua),
            Op::Sync { fd, datasync, .. } => {
                let flags = if *datasync {
                    FsyncFlags::DATASYNC
                } else {
                    FsyncFlags::empty()
                };
                opcode::Fsync::new(types::Fd(fd.as_raw_fd())).flags(flags).build()
            }
            Op::Fallocate {
                fd,
                mode,
                offset,
                len,
                ..
            } => opcode::Fallocate::new(types::Fd(fd.as_raw_fd()), *len)
                .offset(*offset)
                .mode(*mode)
                .build(),
            Op::Recv {
                fd,
                buf,
                received,
                all,
            } => {
                let rest = buf.get_mut(*received..).unwrap_or_default();
                let len = rest.len().min(sys::MOST_BYTES) as u32;
                let flags = if *all { libc::MSG_WAITALL } else { 0 };
                opcode::Recv::new(types::Fd(fd.as_raw_fd()), rest.as_mut_ptr(), len)
                    .flags(flags)
                    .build()
            }
            Op::Send { fd, bufs, sent } => self.send(id, fd.as_raw_fd(), bufs, *sent),
            Op::Accept { fd } => {
                let accept = opcode::Accept::new(types::Fd(fd.as_raw_fd()), ptr::null_mut(), ptr::null_mut());
                accept.flags(libc::SOCK_CLOEXEC).build()
            }
            Op::Connect { fd, addr, .. } => {
                opcode::Connect::new(types::Fd(fd.as_raw_fd()), addr.as_ptr().cast(), addr.addr_len()).build()
            }
            Op::Poll { fd, events } => opcode::PollAdd::new(types::Fd(fd.as_raw_fd()), *events).build(),
            Op::Blocking(_) => unreachable!("jobs go to the pool"),
        }
    }

    /// The place in the kernel's table of a range that an entry is made for.
    #[inline]
    fn registered(&mut self, address: *const u8, len: u32) -> Option<u16> {
        if self.regions.is_empty() {
            return None;
        }
        let place = self.regions.find(address, len as usize)?;
        self.fixed += 1;
        Some(place)
    }

    #[inline]
    fn read(&mut self, id: SlotId, fd: RawFd, bufs: &mut Buffers, offset: u64) -> squeue::Entry {
        let fd = types::Fd(fd);
        if let Some((address, len)) = single(bufs, 0) {
            if let Some(place) = self.registered(address, len) {
                return opcode::ReadFixed::new(fd, address, len, place)
                    .offset(sys::position(offset))
                    .build();
            }
            return opcode::Read::new(fd, address, len)
                .offset(sys::position(offset))
                .build();
        }
        let parts = &self.gather(id, bufs, 0).parts;
        opcode::Readv::new(fd, parts.as_ptr(), parts.len() as u32)
            .offset(sys::position(offset))
            .build()
    }

    #[inline]
    fn write(&mut self, id: SlotId, fd: RawFd, bufs: &mut Buffers, offset: u64, fua: bool) -> squeue::Entry {
        let fd = types::Fd(fd);
        let flags = if fua { libc::RWF_DSYNC } else { 0 };
        if let Some((address, len)) = single(bufs, 0) {
            if let Some(place) = self.registered(address, len) {
                return opcode::WriteFixed::new(fd, address, len, place)
                    .offset(sys::position(offset))
                    .rw_flags(flags)
                    .build();
            }
            return opcode::Write::new(fd, address, len)
                .offset(sys::position(offset))
                .rw_flags(flags)
                .build();
        }
        let parts = &self.gather(id, bufs, 0).parts;
        opcode::Writev::new(fd, parts.as_ptr(), parts.len() as u32)
            .offset(sys::position(offset))
            .rw_flags(flags)
            .build()
    }

    #[inline]
    fn send(&mut self, id: SlotId, fd: RawFd, bufs: &mut Buffers, sent: usize) -> squeue::Entry {
        let fd = types::Fd(fd);
        // The kernel itself goes on after a short send of a stream; older ones ignore the flag.
        let flags = libc::MSG_NOSIGNAL | libc::MSG_WAITALL;
        if let Some((address, len)) = single(bufs, sent) {
            return opcode::Send::new(fd, address, len).flags(flags).build();
        }
        let gather = self.gather(id, bufs, sent);
        gather.message.msg_iov = gather.parts.as_mut_ptr();
        gather.message.msg_iovlen = gather.parts.len();
        opcode::SendMsg::new(fd, &raw const gather.message)
            .flags(flags as u32)
            .build()
    }
}

/// The one buffer that holds all bytes from the `skip`th on, if one does.
#[inline]
fn single(bufs: &mut Buffers, skip: usize) -> Option<(*mut u8, u32)> {
    let count = bufs.count();
    let buffer = bufs.iter_mut().next().filter(|_| count == 1)?;
    let rest = buffer.get_mut(skip..)?;
    Some((rest.as_mut_ptr(), rest.len().min(sys::MOST_BYTES) as u32))
}
