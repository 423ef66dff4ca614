//! Permissions: what a parent takes on a node, and what it lets other parents take.

use bitflags::bitflags;
use serde::{Deserialize, Serialize};

use super::role::Role;

bitflags! {
    /// A set of permissions on a node.
    #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
    pub struct Permissions: u8 {
        /// Reads return what a user of the image should see: what was written through this node is read back.
        const CONSISTENT_READ = 1 << 0;
        /// Writing data that changes content.
        const WRITE = 1 << 1;
        /// Writes that do not change what a reader sees.
        const WRITE_UNCHANGED = 1 << 2;
        /// Changing the node's length.
        const RESIZE = 1 << 3;
    }
}

/// QAPI's name of each permission, in the order in which QEMU lists them.
const NAMES: [(Permissions, &str); 4] = [
    (Permissions::CONSISTENT_READ, "consistent-read"),
    (Permissions::WRITE, "write"),
    (Permissions::WRITE_UNCHANGED, "write-unchanged"),
    (Permissions::RESIZE, "resize"),
];

impl Permissions {
    /// What a guest device shares and a filter passes on by default.
    pub const DEFAULT_PASSTHROUGH: Self = Self::all();

    /// QAPI's names of the permissions in this set.
    pub fn qapi_names(self) -> impl Iterator<Item = &'static str> {
        NAMES
            .into_iter()
            .filter(move |(flag, _)| self.contains(*flag))
            .map(|(_, name)| name)
    }

    /// The names joined by `", "`; `"none"` for the empty set.
    #[must_use]
    pub fn names(self) -> String {
        if self.is_empty() {
            return "none".to_owned();
        }
        self.qapi_names().collect::<Vec<_>>().join(", ")
    }

    /// The same in words, as messages to people show them.
    #[must_use]
    pub fn in_words(self) -> String {
        self.names().replace('-', " ")
    }

    /// The permission with this QAPI name.
    #[must_use]
    pub fn from_qapi_name(name: &str) -> Option<Self> {
        NAMES
            .into_iter()
            .find(|(_, known)| *known == name)
            .map(|(flag, _)| flag)
    }
}

/// What an edge of `role` takes on its child and shares there, when its parent is itself used with the cumulative
/// permissions `taken` and `shared`.
///
/// `writable` says whether the parent was opened read-write and is active, which a format needs to know because it
/// writes metadata of its own accord. `force_share` lets an inspection of an image in use share everything.
#[must_use]
pub fn child_permissions(
    role: Role,
    taken: Permissions,
    shared: Permissions,
    writable: bool,
    force_share: bool,
) -> (Permissions, Permissions) {
    let (mut perm, mut share) = if role.contains(Role::FILTERED) {
        (taken, shared)
    } else if role.contains(Role::COW) {
        cow_permissions(taken, shared)
    } else {
        storage_permissions(role, taken, shared, writable)
    };
    if !writable && role.intersects(Role::DATA | Role::METADATA) {
        perm.remove(Permissions::WRITE | Permissions::WRITE_UNCHANGED | Permissions::RESIZE);
    }
    if force_share {
        share = Permissions::all();
    }
    (perm, share)
}

/// A backing node is only read, and nobody may change what the overlay relies on, unless the overlay's own users
/// share writing with whoever does.
fn cow_permissions(taken: Permissions, shared: Permissions) -> (Permissions, Permissions) {
    let perm = taken & Permissions::CONSISTENT_READ;
    let mut share = Permissions::CONSISTENT_READ | Permissions::WRITE_UNCHANGED;
    if shared.contains(Permissions::WRITE) {
        share |= Permissions::WRITE | Permissions::RESIZE;
    }
    (perm, share)
}

/// Data follows the parent's users; metadata is the parent's own: it must be read consistently, grows as needed and
/// tolerates no other writer.
fn storage_permissions(
    role: Role,
    taken: Permissions,
    shared: Permissions,
    writable: bool,
) -> (Permissions, Permissions) {
    let mut perm = taken;
    let mut share = shared;
    if role.contains(Role::METADATA) {
        perm |= Permissions::CONSISTENT_READ;
        if writable {
            perm |= Permissions::WRITE | Permissions::RESIZE;
        }
        share.remove(Permissions::WRITE | Permissions::RESIZE);
    }
    if role.contains(Role::DATA) {
        if perm.intersects(Permissions::WRITE | Permissions::WRITE_UNCHANGED) {
            perm |= Permissions::WRITE;
        }
        if perm.contains(Permissions::WRITE) {
            perm |= Permissions::RESIZE;
        }
        share.remove(Permissions::RESIZE);
    }
    (perm, share)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn permission_names_round_trip_through_qapi() {
        for flag in Permissions::all().iter() {
            let name = flag.qapi_names().next().unwrap();
            assert_eq!(Permissions::from_qapi_name(name), Some(flag));
        }
        assert_eq!(Permissions::from_qapi_name("graph-mod"), None);
        assert_eq!(
            (Permissions::WRITE | Permissions::RESIZE).names(),
            "write, resize"
        );
        assert_eq!(Permissions::empty().names(), "none");
        let both = Permissions::CONSISTENT_READ | Permissions::WRITE_UNCHANGED;
        assert_eq!(both.in_words(), "consistent read, write unchanged");
    }

    #[test]
    fn an_image_file_grows_and_tolerates_no_other_writer() {
        let (perm, share) = child_permissions(
            Role::IMAGE,
            Permissions::CONSISTENT_READ,
            Permissions::all(),
            true,
            false,
        );
        assert!(perm.contains(Permissions::WRITE | Permissions::RESIZE | Permissions::CONSISTENT_READ));
        assert!(!share.intersects(Permissions::WRITE | Permissions::RESIZE));
    }

    #[test]
    fn a_read_only_image_takes_no_write_permission() {
        let (perm, _) = child_permissions(
            Role::IMAGE,
            Permissions::CONSISTENT_READ,
            Permissions::all(),
            false,
            false,
        );
        assert_eq!(perm, Permissions::CONSISTENT_READ);
    }

    #[test]
    fn a_backing_node_is_only_read() {
        let (perm, share) = child_permissions(
            Role::COW,
            Permissions::CONSISTENT_READ | Permissions::WRITE,
            Permissions::CONSISTENT_READ | Permissions::RESIZE,
            true,
            false,
        );
        assert_eq!(perm, Permissions::CONSISTENT_READ);
        assert_eq!(share, Permissions::CONSISTENT_READ | Permissions::WRITE_UNCHANGED);
    }

    #[test]
    fn a_backing_node_may_be_changed_by_others_where_the_overlays_users_let_them_write() {
        let (_, share) = child_permissions(
            Role::COW,
            Permissions::CONSISTENT_READ,
            Permissions::CONSISTENT_READ | Permissions::WRITE,
            true,
            false,
        );
        assert_eq!(share, Permissions::all());
    }

    #[test]
    fn storage_of_a_node_that_is_not_writable_is_only_read_whatever_its_users_take() {
        for role in [Role::DATA, Role::METADATA, Role::IMAGE] {
            let (perm, _) = child_permissions(role, Permissions::all(), Permissions::all(), false, false);
            assert_eq!(perm, Permissions::CONSISTENT_READ, "{role:?}");
        }
    }

    #[test]
    fn metadata_is_read_and_written_even_if_nobody_uses_the_node() {
        let taken = |writable| {
            child_permissions(
                Role::METADATA,
                Permissions::empty(),
                Permissions::all(),
                writable,
                false,
            )
            .0
        };
        let always = Permissions::CONSISTENT_READ;
        assert_eq!(taken(true), always | Permissions::WRITE | Permissions::RESIZE);
        assert_eq!(taken(false), always);
    }

    #[test]
    fn data_that_is_written_in_any_way_is_allocated_by_writing_and_growing() {
        for user in [Permissions::WRITE, Permissions::WRITE_UNCHANGED] {
            let (perm, share) = child_permissions(Role::DATA, user, Permissions::all(), true, false);
            assert_eq!(perm, user | Permissions::WRITE | Permissions::RESIZE);
            assert_eq!(share, Permissions::all() - Permissions::RESIZE);
        }
        let (perm, _) = child_permissions(
            Role::DATA,
            Permissions::CONSISTENT_READ,
            Permissions::all(),
            true,
            false,
        );
        assert_eq!(perm, Permissions::CONSISTENT_READ);
    }
}
