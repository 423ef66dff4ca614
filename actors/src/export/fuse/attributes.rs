//! The mode and the owner of the file that an export is, and who may change them.

use rustix::io::Errno;
use rustix::process::{getgid, getuid};

use super::wire::{Changed, SetAttributes};

/// The bit that says that a file is a regular one.
const REGULAR: u32 = 0o100_000;
/// The permission bits, with those of set-uid, set-gid and sticky files.
const PERMISSIONS: u32 = 0o7777;
/// What others than the owner may do.
const OF_OTHERS: u32 = 0o077;
/// The bits that let anybody write.
const WRITE: u32 = 0o222;

/// What an export allows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Rules {
    /// Its data can be written.
    pub(super) writable: bool,
    /// A write past the end makes it longer.
    pub(super) growable: bool,
    /// Other users than that of the daemon can open it.
    pub(super) allow_other: bool,
}

/// The mode and the owner of a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Ownership {
    /// With the bits that say that the file is a regular one.
    pub(super) mode: u32,
    pub(super) uid: u32,
    pub(super) gid: u32,
}

impl Ownership {
    /// What a new export has: it is its daemon's alone.
    pub(super) fn new(rules: Rules) -> Self {
        let mode = if rules.writable { 0o600 } else { 0o400 };
        Self {
            mode: REGULAR | mode,
            uid: getuid().as_raw(),
            gid: getgid().as_raw(),
        }
    }

    /// What it is after a change.
    ///
    /// # Errors
    /// The export does not allow that, and nothing has changed: `EOPNOTSUPP` for what cannot be set, `EPERM` to open to
    /// others what they cannot reach, `EROFS` to make writable what is not, `EACCES` to change the length of that.
    pub(super) fn after(self, set: &SetAttributes, rules: Rules) -> Result<Self, Errno> {
        let changed = set.changed - (Changed::BY_HANDLE | Changed::BY_OWNER);
        let mut allowed = Changed::SIZE | Changed::MODE;
        if rules.allow_other {
            allowed |= Changed::UID | Changed::GID;
        }
        if !allowed.contains(changed) {
            return Err(Errno::OPNOTSUPP);
        }
        let mut after = self;
        if changed.contains(Changed::MODE) {
            if !rules.allow_other && set.mode & OF_OTHERS != 0 {
                return Err(Errno::PERM);
            }
            if !rules.writable && set.mode & WRITE != 0 {
                return Err(Errno::ROFS);
            }
            after.mode = REGULAR | (set.mode & PERMISSIONS);
        }
        if changed.contains(Changed::SIZE) && !rules.writable {
            return Err(Errno::ACCESS);
        }
        if changed.contains(Changed::UID) {
            after.uid = set.uid;
        }
        if changed.contains(Changed::GID) {
            after.gid = set.gid;
        }
        Ok(after)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const RULES: Rules = Rules {
        writable: true,
        growable: false,
        allow_other: true,
    };

    fn set(changed: Changed, mode: u32) -> SetAttributes {
        SetAttributes {
            changed,
            size: 0,
            mode,
            uid: 7,
            gid: 8,
        }
    }

    #[test]
    fn others_get_nothing_where_they_cannot_come() {
        let alone = Rules {
            allow_other: false,
            ..RULES
        };
        let file = Ownership::new(RULES);
        let opened = file.after(&set(Changed::MODE, 0o100_640), RULES).unwrap();
        assert_eq!(opened.mode, 0o100_640);
        assert_eq!(file.after(&set(Changed::MODE, 0o640), alone), Err(Errno::PERM));
        assert_eq!(file.after(&set(Changed::UID, 0), alone), Err(Errno::OPNOTSUPP));
        let given = file.after(&set(Changed::UID | Changed::GID, 0), RULES).unwrap();
        assert_eq!((given.uid, given.gid, given.mode), (7, 8, file.mode));
    }

    #[test]
    fn what_is_read_only_stays_so() {
        let rules = Rules {
            writable: false,
            ..RULES
        };
        let file = Ownership::new(rules);
        assert_eq!(file.mode, 0o100_400);
        assert_eq!(file.after(&set(Changed::MODE, 0o600), rules), Err(Errno::ROFS));
        assert_eq!(file.after(&set(Changed::SIZE, 0), rules), Err(Errno::ACCESS));
        assert_eq!(file.after(&set(Changed::MODE, 0), rules).unwrap().mode, 0o100_000);
        let times = Changed::from_bits_retain(1 << 4 | 1 << 5);
        assert_eq!(file.after(&set(times, 0), RULES), Err(Errno::OPNOTSUPP));
    }
}
