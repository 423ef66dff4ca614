//! Flags of a request and flags of an open.

use bitflags::bitflags;
use serde::{Deserialize, Serialize};

use super::permission::Permissions;

bitflags! {
    /// What a single request asks for besides its range and data.
    #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
    pub struct RequestFlags: u32 {
        /// Data read from a backing node is written into the node that was asked.
        const COPY_ON_READ = 1 << 0;
        /// The request writes zeroes and carries no data.
        const ZERO_WRITE = 1 << 1;
        /// A zero write may deallocate the range as long as it then reads as zeroes.
        const MAY_UNMAP = 1 << 2;
        /// The data is on stable storage when the request completes.
        const FUA = 1 << 3;
        /// The data is stored compressed.
        const WRITE_COMPRESSED = 1 << 4;
        /// The write leaves the contents that a reader sees as they are, so it needs only
        /// [`Permissions::WRITE_UNCHANGED`](crate::Permissions::WRITE_UNCHANGED).
        const WRITE_UNCHANGED = 1 << 5;
        /// The request waits for all overlapping ones, and later overlapping ones wait for it.
        const SERIALISING = 1 << 6;
        /// A zero write fails rather than writing buffers full of zeroes.
        const NO_FALLBACK = 1 << 7;
        /// A read made only for its side effect (copy-on-read or a warmer cache); its data is not looked at.
        const PREFETCH = 1 << 8;
        /// A serialising request fails at once where it would have to wait.
        const NO_WAIT = 1 << 9;
    }
}

bitflags! {
    /// How a node is opened.
    #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
    pub struct OpenFlags: u32 {
        /// Nobody else may write to the image or resize it while its opener holds it.
        const NO_SHARE = 1 << 0;
        /// The node may be written to.
        const RDWR = 1 << 1;
        /// The opener will resize.
        const RESIZE = 1 << 2;
        /// Open a temporary overlay over the image.
        const SNAPSHOT = 1 << 3;
        /// Delete the file after opening it.
        const TEMPORARY = 1 << 4;
        /// Bypass the host's page cache (`cache.direct=on`).
        const NOCACHE = 1 << 5;
        /// `aio=native`: Linux's older asynchronous I/O.
        const NATIVE_AIO = 1 << 6;
        /// Do not open the backing file.
        const NO_BACKING = 1 << 7;
        /// Flushes are answered without a flush (`cache.no-flush=on`).
        const NO_FLUSH = 1 << 8;
        /// Populate the image from its backing file on read.
        const COPY_ON_READ = 1 << 9;
        /// The image is inactive: another process owns it.
        const INACTIVE = 1 << 10;
        /// The opener only checks or repairs the image.
        const CHECK = 1 << 11;
        /// The node may be reopened read-write.
        const ALLOW_RDWR = 1 << 12;
        /// Pass discards down (`discard=unmap`).
        const UNMAP = 1 << 13;
        /// Open with a protocol driver, never a format.
        const PROTOCOL = 1 << 14;
        /// No guest data will be read or written, only metadata: nobody can take a permission to.
        const NO_IO = 1 << 15;
        /// Open read-only where read-write is refused (`auto-read-only=on`).
        const AUTO_RDONLY = 1 << 16;
        /// `aio=io_uring`: the iothread's own ring.
        const IO_URING = 1 << 17;
    }
}

impl OpenFlags {
    /// Whether the node is opened without the right to write.
    #[must_use]
    pub const fn is_read_only(self) -> bool {
        !self.contains(Self::RDWR)
    }

    /// Whether the node may be written to now: it has that right, and no other process has its image.
    #[must_use]
    pub const fn is_writable(self) -> bool {
        !self.is_read_only() && !self.contains(Self::INACTIVE)
    }

    /// Flags that no option stands for, and that a node keeps however it is reopened.
    pub const LASTING: Self = Self::TEMPORARY
        .union(Self::NATIVE_AIO)
        .union(Self::IO_URING)
        .union(Self::CHECK)
        .union(Self::NO_IO);

    /// What whoever opened an image with these flags takes, and shares with others.
    #[must_use]
    pub fn root_permissions(self) -> (Permissions, Permissions) {
        let mut taken = Permissions::empty();
        if !self.contains(Self::NO_IO) {
            taken |= Permissions::CONSISTENT_READ;
            taken.set(Permissions::WRITE, self.contains(Self::RDWR));
        }
        taken.set(Permissions::RESIZE, self.contains(Self::RESIZE));
        let shared = if self.contains(Self::NO_SHARE) {
            Permissions::CONSISTENT_READ | Permissions::WRITE_UNCHANGED
        } else {
            Permissions::all()
        };
        (taken, shared)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_inactive_node_is_not_writable_though_it_is_not_read_only() {
        for (flags, read_only, writable) in [
            (OpenFlags::empty(), true, false),
            (OpenFlags::RDWR, false, true),
            (OpenFlags::RDWR | OpenFlags::INACTIVE, false, false),
            (OpenFlags::INACTIVE, true, false),
        ] {
            assert_eq!(flags.is_read_only(), read_only, "{flags:?}");
            assert_eq!(flags.is_writable(), writable, "{flags:?}");
        }
    }

    #[test]
    fn flags_stand_for_what_an_opener_takes_and_shares() {
        let (read, write) = (Permissions::CONSISTENT_READ, Permissions::WRITE);
        let all = Permissions::all();
        assert_eq!(OpenFlags::empty().root_permissions(), (read, all));
        assert_eq!(OpenFlags::RDWR.root_permissions(), (read | write, all));
        assert_eq!(
            (OpenFlags::RDWR | OpenFlags::RESIZE).root_permissions(),
            (read | write | Permissions::RESIZE, all)
        );
        assert_eq!(
            (OpenFlags::NO_IO | OpenFlags::RDWR).root_permissions(),
            (Permissions::empty(), all)
        );
        let (_, shared) = OpenFlags::NO_SHARE.root_permissions();
        assert_eq!(shared, read | Permissions::WRITE_UNCHANGED);
    }
}
