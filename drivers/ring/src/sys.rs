//! System calls in the form that backends share: raw buffers in, a count or a negative error number out.

use std::os::fd::AsRawFd;

use crate::buffer::Buffers;

use super::op::Fd;

/// The most buffers one call takes (`UIO_MAXIOV`); what does not fit makes the call stop short.
pub(super) const MOST_PARTS: usize = 1024;

/// The most bytes the kernel moves in one call; what is more makes it stop short.
pub(super) const MOST_BYTES: usize = 0x7fff_f000;

/// The buffers' bytes from the `skip`th on, as the kernel takes them.
pub(super) fn parts(bufs: &mut Buffers, mut skip: usize) -> impl Iterator<Item = libc::iovec> {
    bufs.iter_mut()
        .filter_map(move |buffer| {
            let from = skip.min(buffer.len());
            skip -= from;
            let len = buffer.len() - from;
            (len > 0).then(|| libc::iovec {
                iov_base: buffer[from..].as_mut_ptr().cast(),
                iov_len: len,
            })
        })
        .take(MOST_PARTS)
}

/// What a call returned, or the error number it left.
fn result(returned: isize) -> i32 {
    match i32::try_from(returned) {
        Ok(count) if count >= 0 => count,
        _ => -std::io::Error::last_os_error()
            .raw_os_error()
            .unwrap_or(libc::EIO),
    }
}

/// Calls until no signal interrupts.
fn retry(mut call: impl FnMut() -> isize) -> i32 {
    loop {
        match result(call()) {
            interrupted if interrupted == -libc::EINTR => {}
            result => return result,
        }
    }
}

/// A result without a count.
pub(super) fn unit(result: rustix::io::Result<()>) -> i32 {
    result.map_or_else(|error| -error.raw_os_error(), |()| 0)
}

/// A result with a count.
pub(super) fn count(result: rustix::io::Result<usize>) -> i32 {
    result.map_or_else(
        |error| -error.raw_os_error(),
        |count| i32::try_from(count).unwrap_or(i32::MAX),
    )
}

/// An offset as submission entries take it; the largest means "the file's position" there, which is never meant.
#[inline]
pub(super) fn position(offset: u64) -> u64 {
    offset.min(i64::MAX as u64)
}

/// An offset as the kernel takes it; too large a one becomes one that it refuses.
fn signed(offset: u64) -> i64 {
    i64::try_from(offset).unwrap_or(-1)
}

/// Reads by one call of `preadv(2)`.
pub(super) fn preadv(fd: &Fd, parts: &[libc::iovec], offset: u64) -> i32 {
    // SAFETY: the caller's slot owns the buffers that `parts` describes, and `parts` itself outlives the call.
    retry(|| unsafe { libc::preadv(fd.as_raw_fd(), parts.as_ptr(), parts.len() as i32, signed(offset)) })
}

/// `pwritev2(2)`, with `RWF_DSYNC` for `fua`.
pub(super) fn pwritev(fd: &Fd, parts: &[libc::iovec], offset: u64, fua: bool) -> i32 {
    let (fd, count, offset) = (fd.as_raw_fd(), parts.len() as i32, signed(offset));
    if !fua {
        // SAFETY: as for `preadv`.
        return retry(|| unsafe { libc::pwritev(fd, parts.as_ptr(), count, offset) });
    }
    // SAFETY: as for `preadv`.
    retry(|| unsafe { libc::pwritev2(fd, parts.as_ptr(), count, offset, libc::RWF_DSYNC) })
}

/// Changes space by one call of `fallocate(2)`.
pub(super) fn fallocate(fd: &Fd, mode: i32, offset: u64, len: u64) -> i32 {
    // SAFETY: no memory is passed.
    retry(|| unsafe { libc::fallocate(fd.as_raw_fd(), mode, signed(offset), signed(len)) } as isize)
}
