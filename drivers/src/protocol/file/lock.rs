//! Locks on image files between processes, byte for byte as QEMU takes them.
//!
//! Every permission has two bytes: `100 + i` is locked by who takes permission `i`, `200 + i` by who does not let
//! others take it. All locks are shared ones, so that they never wait; whether they conflict is found out by asking
//! who else has a lock on the opposite byte. They belong to the open file description, so a descriptor's copies,
//! threads and iothreads share them, and they go with the last of them.

use std::io;
use std::os::fd::AsFd;

use millpond_messages::{Error, ErrorKind, Permissions, Result};

use millpond_ring::os::files::{LockByte, is_byte_locked, lock_byte};

/// The byte of the first permission taken.
const TAKEN_BASE: u16 = 100;
/// The byte of the first permission not shared.
const UNSHARED_BASE: u16 = 200;

/// The permissions in the order of their bytes, as messages name them.
const NAMES: [(Permissions, &str); 4] = [
    (Permissions::CONSISTENT_READ, "consistent read"),
    (Permissions::WRITE, "write"),
    (Permissions::WRITE_UNCHANGED, "write unchanged"),
    (Permissions::RESIZE, "resize"),
];

/// A set of locked bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Locks {
    taken: Permissions,
    unshared: Permissions,
}

impl Locks {
    /// The set without any byte.
    pub(super) const NONE: Self = Self {
        taken: Permissions::empty(),
        unshared: Permissions::empty(),
    };

    /// The set of every byte.
    pub(super) const ALL: Self = Self {
        taken: Permissions::all(),
        unshared: Permissions::all(),
    };

    /// The bytes for these permissions.
    pub(super) fn new(taken: Permissions, shared: Permissions) -> Self {
        Self {
            taken,
            unshared: Permissions::all() - shared,
        }
    }

    /// The bytes of both.
    pub(super) fn union(self, other: Self) -> Self {
        Self {
            taken: self.taken | other.taken,
            unshared: self.unshared | other.unshared,
        }
    }

    /// Whether all of `other`'s bytes are among these.
    pub(super) fn contains(self, other: Self) -> bool {
        self.taken.contains(other.taken) && self.unshared.contains(other.unshared)
    }

    fn bytes(self) -> impl Iterator<Item = u16> {
        let numbered = || (0u16..).zip(NAMES);
        let taken = numbered().filter(move |(_, (permission, _))| self.taken.contains(*permission));
        let unshared = numbered().filter(move |(_, (permission, _))| self.unshared.contains(*permission));
        taken
            .map(|(i, _)| TAKEN_BASE + i)
            .chain(unshared.map(|(i, _)| UNSHARED_BASE + i))
    }
}

/// Locks the bytes of `wanted` that are not in `held`. On an error some may be locked.
///
/// # Errors
/// The system call's: the file system has no locks, or no room for them.
pub(super) fn add(fd: impl AsFd, held: Locks, wanted: Locks) -> Result<()> {
    let held: Vec<u16> = held.bytes().collect();
    for byte in wanted.bytes().filter(|byte| !held.contains(byte)) {
        lock_byte(fd.as_fd(), byte, LockByte::Shared)
            .map_err(|error| Error::io(&format!("Failed to lock byte {byte}"), error.into()))?;
    }
    Ok(())
}

/// Gives back the bytes of `held` that are not in `wanted`. A failure is logged: the lock goes with the descriptor.
pub(super) fn trim(fd: impl AsFd, held: Locks, wanted: Locks) {
    let wanted: Vec<u16> = wanted.bytes().collect();
    for byte in held.bytes().filter(|byte| !wanted.contains(byte)) {
        if let Err(error) = lock_byte(fd.as_fd(), byte, LockByte::Unlock) {
            tracing::warn!("cannot unlock byte {byte} of an image file: {error}");
        }
    }
}

/// Gives everything back that a descriptor has locked. Closing it would not do at once: a child process that is being
/// started has a copy until it runs its program.
pub(super) fn give_back(fd: impl AsFd) {
    trim(fd, Locks::ALL, Locks::NONE);
}

/// Checks that nobody else has locks that conflict with `wanted`.
///
/// # Errors
/// Names the first permission in conflict; the source says which file to look at.
pub(super) fn check(fd: impl AsFd, wanted: Locks, filename: &str) -> Result<()> {
    for (i, (permission, name)) in (0u16..).zip(NAMES) {
        if wanted.taken.contains(permission) && is_conflict(is_byte_locked(fd.as_fd(), UNSHARED_BASE + i)) {
            return Err(conflict(format!("Failed to get \"{name}\" lock"), filename));
        }
        if wanted.unshared.contains(permission) && is_conflict(is_byte_locked(fd.as_fd(), TAKEN_BASE + i)) {
            return Err(conflict(
                format!("Failed to get shared \"{name}\" lock"),
                filename,
            ));
        }
    }
    Ok(())
}

/// A byte that cannot be asked about may be locked.
fn is_conflict(answer: io::Result<bool>) -> bool {
    answer.unwrap_or(true)
}

fn conflict(text: String, filename: &str) -> Error {
    let hint = format!("Is another process using the image [{filename}]?");
    Error::new(ErrorKind::Permission, text).with_hint(hint)
}

/// Whether the kernel has locks that belong to open file descriptions (Linux 3.15).
pub(super) fn is_available(fd: impl AsFd) -> bool {
    is_byte_locked(fd.as_fd(), TAKEN_BASE).is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::File;

    fn two_opens() -> (tempfile::NamedTempFile, File, File) {
        let file = tempfile::NamedTempFile::new().unwrap();
        let open = || File::options().read(true).write(true).open(file.path()).unwrap();
        let (a, b) = (open(), open());
        (file, a, b)
    }

    #[test]
    fn the_bytes_are_qemus() {
        let locks = Locks::new(
            Permissions::CONSISTENT_READ | Permissions::WRITE,
            Permissions::CONSISTENT_READ | Permissions::WRITE_UNCHANGED,
        );
        assert_eq!(locks.bytes().collect::<Vec<_>>(), [100, 101, 201, 203]);
    }

    #[test]
    fn a_writer_keeps_out_one_who_does_not_share_writing_and_names_why() {
        let (_file, a, b) = two_opens();
        let writer = Locks::new(Permissions::WRITE, Permissions::all());
        let reader = Locks::new(Permissions::CONSISTENT_READ, Permissions::CONSISTENT_READ);
        add(&a, Locks::NONE, writer).unwrap();
        check(&a, writer, "image").unwrap();
        let error = check(&b, reader, "image").unwrap_err();
        assert_eq!(error.to_string(), "Failed to get shared \"write\" lock");
        let hint = error.hint();
        assert_eq!(hint, Some("Is another process using the image [image]?"));

        trim(&a, writer, Locks::NONE);
        check(&b, reader, "image").unwrap();
        add(&b, Locks::NONE, reader).unwrap();
        assert_eq!(
            check(&a, writer, "image").unwrap_err().to_string(),
            "Failed to get \"write\" lock"
        );
    }

    #[test]
    fn trimming_keeps_what_is_still_wanted() {
        let (_file, a, b) = two_opens();
        let held = Locks::new(Permissions::WRITE | Permissions::RESIZE, Permissions::all());
        let wanted = Locks::new(Permissions::WRITE, Permissions::all());
        add(&a, Locks::NONE, held).unwrap();
        trim(&a, held, wanted);
        let unshare = |permission| Locks::new(Permissions::empty(), Permissions::all() - permission);
        assert!(check(&b, unshare(Permissions::WRITE), "").is_err());
        assert!(check(&b, unshare(Permissions::RESIZE), "").is_ok());
    }
}
