//! Roles: what a child is to its parent.

use bitflags::bitflags;
use serde::{Deserialize, Serialize};

bitflags! {
    /// What a child node is to the parent that holds the edge.
    #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
    pub struct Role: u8 {
        /// Guest data is stored here.
        const DATA = 1 << 0;
        /// The parent's own metadata is stored here.
        const METADATA = 1 << 1;
        /// The parent is a filter, and this is what it filters: same data at the same offsets.
        const FILTERED = 1 << 2;
        /// What the parent has not allocated is read from here.
        const COW = 1 << 3;
        /// The child that stands for the parent when one must be chosen.
        const PRIMARY = 1 << 4;
        /// A format's file: data, metadata and primary.
        const IMAGE = Self::DATA.bits() | Self::METADATA.bits() | Self::PRIMARY.bits();
    }
}

/// A combination of roles that cannot be.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum RoleError {
    /// A filtered child carries the parent's data by definition, so it is neither its storage nor its backing.
    #[error("a filtered child is neither data, metadata nor copy-on-write storage")]
    FilteredWithStorage,
    /// What is read through cannot also be written to.
    #[error("a copy-on-write child is not the parent's own storage")]
    CowWithStorage,
    /// Of some roles there is one child at most.
    #[error("no more than one child can be {0}")]
    Twice(&'static str),
}

impl Role {
    /// Holds the exclusions between roles: FILTERED excludes DATA, METADATA and COW; COW excludes DATA, METADATA and
    /// PRIMARY.
    ///
    /// # Errors
    /// Says which exclusion is broken.
    pub fn check(self) -> Result<Self, RoleError> {
        if self.contains(Self::FILTERED) && self.intersects(Self::DATA | Self::METADATA | Self::COW) {
            return Err(RoleError::FilteredWithStorage);
        }
        if self.contains(Self::COW) && self.intersects(Self::DATA | Self::METADATA | Self::PRIMARY) {
            return Err(RoleError::CowWithStorage);
        }
        Ok(self)
    }

    /// Holds what must be true of all children of a node together: each role is possible, and at most one child is the
    /// filtered one, at most one the copy-on-write one, and at most one the primary one.
    ///
    /// # Errors
    /// Says what is broken.
    pub fn check_children(roles: impl IntoIterator<Item = Self>) -> Result<(), RoleError> {
        let mut taken = Self::empty();
        for role in roles {
            role.check()?;
            for (single, name) in [
                (Self::FILTERED, "filtered"),
                (Self::COW, "copy-on-write"),
                (Self::PRIMARY, "primary"),
            ] {
                if role.intersects(single) && taken.intersects(single) {
                    return Err(RoleError::Twice(name));
                }
            }
            taken |= role;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn roles_exclude_each_other() {
        assert!(Role::IMAGE.check().is_ok());
        assert!((Role::FILTERED | Role::PRIMARY).check().is_ok());
        assert!(Role::COW.check().is_ok());
        assert_eq!(
            (Role::FILTERED | Role::DATA).check(),
            Err(RoleError::FilteredWithStorage)
        );
        assert_eq!(
            (Role::COW | Role::PRIMARY).check(),
            Err(RoleError::CowWithStorage)
        );
        assert_eq!(
            (Role::COW | Role::METADATA).check(),
            Err(RoleError::CowWithStorage)
        );
    }

    #[test]
    fn some_roles_have_one_child_at_most() {
        assert_eq!(Role::check_children([Role::IMAGE, Role::COW, Role::DATA]), Ok(()));
        for role in [Role::FILTERED, Role::COW, Role::PRIMARY] {
            let twice = Role::check_children([role, Role::METADATA, role]);
            assert!(matches!(twice, Err(RoleError::Twice(_))), "{role:?}");
        }
        let impossible = Role::check_children([Role::DATA, Role::FILTERED | Role::DATA]);
        assert_eq!(impossible, Err(RoleError::FilteredWithStorage));
    }
}
