//! Zero writes and discards: by `fallocate`, and by an ioctl for discards of devices.

use std::io;
use std::os::fd::AsFd;

use millpond_messages::{IoError, IoResult, Range, RequestFlags};

use super::node::{Caps, File};
use super::open::Kind;
use millpond_ring::os::files;

const PUNCH: i32 = libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE;

/// How an attempt ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Tried {
    Done,
    /// Never possible here: not to be tried again.
    Unsupported,
    /// Not possible for this range (some file systems want whole blocks) or at this moment.
    Refused,
    Failed(IoError),
}

impl Tried {
    fn new(result: io::Result<()>) -> Self {
        let Err(error) = result else { return Self::Done };
        match error.raw_os_error() {
            Some(libc::EOPNOTSUPP | libc::ENOSYS | libc::ENODEV | libc::ENOTTY) => Self::Unsupported,
            Some(libc::EINVAL | libc::EBUSY) => Self::Refused,
            _ => Self::Failed(error.into()),
        }
    }
}

impl File {
    /// Makes a range read as zeroes, without writing them.
    pub(super) async fn zero(&self, range: Range, flags: RequestFlags) -> IoResult<()> {
        self.known_data.forget();
        let zeroed = self.zero_somehow(range, flags).await;
        self.known_data.forget();
        zeroed?;
        if flags.contains(RequestFlags::FUA) {
            self.sync().await
        } else {
            Ok(())
        }
    }

    async fn zero_somehow(&self, range: Range, flags: RequestFlags) -> IoResult<()> {
        let kind = self.kind();
        if flags.contains(RequestFlags::MAY_UNMAP) && self.may_unmap() && self.punch(range).await? {
            return self.extend(kind, range.end()).await;
        }
        if self.zero_range(kind, range, flags).await? {
            return Ok(());
        }
        if kind != Kind::Regular {
            return Err(IoError::NotSupported);
        }
        // A hole reads as zeroes as well, and is filled with space again since nobody allowed to give it up.
        if self.punch(range).await? && self.allocate(range).await? {
            return Ok(());
        }
        // What is new at the end of a file is zero.
        if range.offset() >= self.end().await? && self.allocate(range).await? {
            return Ok(());
        }
        Err(IoError::NotSupported)
    }

    /// Zeroes a range that stays allocated; false if it must be done otherwise.
    async fn zero_range(&self, kind: Kind, range: Range, flags: RequestFlags) -> IoResult<bool> {
        // For a device the kernel writes zeroes itself if need be, which is what the flag forbids.
        let forbidden = kind != Kind::Regular && flags.contains(RequestFlags::NO_FALLBACK);
        if !self.caps.get().zero_range || forbidden {
            return Ok(false);
        }
        let keep = if kind == Kind::Regular {
            0
        } else {
            libc::FALLOC_FL_KEEP_SIZE
        };
        let tried = self.fallocate(libc::FALLOC_FL_ZERO_RANGE | keep, range).await;
        self.learn(tried, |caps| caps.zero_range = false)
    }

    /// Deallocates a range, which then reads as zeroes; false if it must be done otherwise.
    async fn punch(&self, range: Range) -> IoResult<bool> {
        if !self.caps.get().punch_hole {
            return Ok(false);
        }
        let tried = self.fallocate(PUNCH, range).await;
        self.learn(tried, |caps| caps.punch_hole = false)
    }

    /// Reserves space for what is not allocated in a range, making the file longer if it must.
    async fn allocate(&self, range: Range) -> IoResult<bool> {
        if !self.caps.get().allocate {
            return Ok(false);
        }
        let tried = self.fallocate(0, range).await;
        self.learn(tried, |caps| caps.allocate = false)
    }

    /// A punched hole never makes a file longer: its last byte is allocated instead, which cannot undo what another
    /// request writes behind it at the same time.
    async fn extend(&self, kind: Kind, end: u64) -> IoResult<()> {
        if kind != Kind::Regular || self.end().await? >= end {
            return Ok(());
        }
        let last = Range::between(end.saturating_sub(1), end);
        if self.allocate(last).await? {
            Ok(())
        } else {
            Err(IoError::NotSupported)
        }
    }

    async fn fallocate(&self, mode: i32, range: Range) -> Tried {
        loop {
            let allocating = self.ops.borrow().all.fallocate(mode, range.offset(), range.len());
            match allocating.await {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                result => return Tried::new(result),
            }
        }
    }

    /// Whether an attempt did it; one that never can is remembered by `forget`.
    fn learn(&self, tried: Tried, forget: impl FnOnce(&mut Caps)) -> IoResult<bool> {
        match tried {
            Tried::Done => Ok(true),
            Tried::Refused => Ok(false),
            Tried::Failed(error) => Err(error),
            Tried::Unsupported => {
                let mut caps = self.caps.get();
                forget(&mut caps);
                self.caps.set(caps);
                Ok(false)
            }
        }
    }

    /// Gives the space of a range back.
    pub(super) async fn forget(&self, range: Range) -> IoResult<()> {
        if !self.may_unmap() || !self.caps.get().punch_hole {
            return Err(IoError::NotSupported);
        }
        self.known_data.forget();
        let tried = match self.kind() {
            Kind::Regular => self.fallocate(PUNCH, range).await,
            Kind::Character => Tried::Unsupported,
            Kind::Block => {
                let fd = self.fd();
                Tried::new(
                    self.ring
                        .blocking(move || files::discard_device(fd.as_fd(), range.offset(), range.len()))
                        .await,
                )
            }
        };
        self.known_data.forget();
        match tried {
            Tried::Refused => Err(IoError::Invalid),
            other if self.learn(other, |caps| caps.punch_hole = false)? => Ok(()),
            _ => Err(IoError::NotSupported),
        }
    }
}
