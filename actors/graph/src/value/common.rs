//! The options that every node takes whatever its driver, and how children inherit them.

use millpond_drivers::api::DriverKind;
use millpond_engine::node::{DetectZeroes, NodeSettings};
use millpond_messages::{DiscardMode, Error, ErrorKind, OpenFlags, Result, Role};

/// The options common to all nodes, as they hold for one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Common {
    /// The option `read-only`: nothing is written.
    pub read_only: bool,
    /// The option `auto-read-only`: read-only where it must be.
    pub auto_read_only: bool,
    /// The option `cache.direct`: past the page cache.
    pub direct: bool,
    /// The option `cache.no-flush`: flushes do nothing.
    pub no_flush: bool,
    /// The option `force-share`: no permission is kept from others.
    pub force_share: bool,
    /// The option `discard`: whether discards reach the storage.
    pub discard: DiscardMode,
    /// The option `detect-zeroes`: what becomes of written zeroes.
    pub detect_zeroes: DetectZeroes,
    /// The option `active=off`: the storage is left to others.
    pub inactive: bool,
    /// `copy-on-read`, which QMP does not offer for nodes: an embedder's and a drive's option.
    pub copy_on_read: bool,
    /// Flags that no option stands for.
    pub extra: OpenFlags,
}

/// Whether a driver is a format: neither a protocol nor a filter.
pub fn is_format(kind: &dyn DriverKind) -> bool {
    !kind.is_protocol() && !kind.is_filter()
}

impl Common {
    /// What flags stand for.
    pub fn of_flags(flags: OpenFlags) -> Self {
        let top = OpenFlags::ALLOW_RDWR | OpenFlags::NO_BACKING | OpenFlags::INACTIVE;
        Self {
            read_only: flags.is_read_only(),
            auto_read_only: flags.contains(OpenFlags::AUTO_RDONLY),
            direct: flags.contains(OpenFlags::NOCACHE),
            no_flush: flags.contains(OpenFlags::NO_FLUSH),
            discard: if flags.contains(OpenFlags::UNMAP) {
                DiscardMode::Unmap
            } else {
                DiscardMode::Ignore
            },
            inactive: flags.contains(OpenFlags::INACTIVE),
            copy_on_read: flags.contains(OpenFlags::COPY_ON_READ),
            extra: flags & (OpenFlags::LASTING | top),
            ..Self::default()
        }
    }

    /// The open flags that these options mean for a node of this driver.
    pub fn flags(self, kind: &dyn DriverKind) -> OpenFlags {
        let mut flags = self.extra & !OpenFlags::INACTIVE;
        flags.set(OpenFlags::RDWR, !self.read_only);
        flags.set(OpenFlags::AUTO_RDONLY, self.auto_read_only);
        flags.set(OpenFlags::NOCACHE, self.direct);
        flags.set(OpenFlags::NO_FLUSH, self.no_flush);
        flags.set(OpenFlags::UNMAP, self.discard == DiscardMode::Unmap);
        flags.set(OpenFlags::INACTIVE, self.inactive);
        flags.set(OpenFlags::COPY_ON_READ, self.copy_on_read);
        flags.set(OpenFlags::PROTOCOL, kind.is_protocol());
        flags
    }

    /// What the node cell is told.
    pub fn settings(self, probed: bool) -> NodeSettings {
        NodeSettings {
            detect_zeroes: self.detect_zeroes,
            probed,
        }
    }

    /// What a child of this role starts from when its own options do not say.
    pub fn inherited(self, parent: &dyn DriverKind, role: Role) -> Self {
        self.inherited_from(is_format(parent), role)
    }

    /// The same, below a format that is not known yet.
    pub fn inherited_from_format(self, role: Role) -> Self {
        self.inherited_from(true, role)
    }

    fn inherited_from(self, is_format: bool, role: Role) -> Self {
        let is_cow = role.contains(Role::COW);
        let mut extra = self.extra & !OpenFlags::NO_BACKING;
        if role.contains(Role::METADATA) {
            extra.remove(OpenFlags::NO_IO);
        }
        if is_cow {
            extra.remove(OpenFlags::TEMPORARY);
        }
        Self {
            read_only: is_cow || self.read_only,
            auto_read_only: !is_cow && self.auto_read_only,
            direct: self.direct,
            no_flush: self.no_flush,
            force_share: self.force_share,
            // A format sends flushes and discards with care, so what is below it need not hold them back again.
            discard: if is_format && !is_cow {
                DiscardMode::Unmap
            } else {
                self.discard
            },
            detect_zeroes: DetectZeroes::Off,
            inactive: self.inactive,
            copy_on_read: false,
            extra,
        }
    }
}

/// The common options that were given for a node, as opposed to inherited.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct GivenOptions {
    /// The option `read-only`, if it is given.
    pub read_only: Option<bool>,
    /// The option `auto-read-only`, if it is given.
    pub auto_read_only: Option<bool>,
    /// The option `cache.direct`, if it is given.
    pub direct: Option<bool>,
    /// The option `cache.no-flush`, if it is given.
    pub no_flush: Option<bool>,
    /// The option `force-share`, if it is given.
    pub force_share: Option<bool>,
    /// The option `discard`, if it is given.
    pub discard: Option<DiscardMode>,
    /// The option `detect-zeroes`, if it is given.
    pub detect_zeroes: Option<DetectZeroes>,
    /// The option `active`, if it is given.
    pub active: Option<bool>,
    /// The option `copy-on-read`, if it is given.
    pub copy_on_read: Option<bool>,
}

impl GivenOptions {
    /// The same with this `force-share`.
    #[must_use]
    pub fn with_force_share(self, force_share: Option<bool>) -> Self {
        Self { force_share, ..self }
    }

    /// The same, with what was given before where nothing is now.
    #[must_use]
    pub fn or(self, old: Self) -> Self {
        Self {
            read_only: self.read_only.or(old.read_only),
            auto_read_only: self.auto_read_only.or(old.auto_read_only),
            direct: self.direct.or(old.direct),
            no_flush: self.no_flush.or(old.no_flush),
            force_share: self.force_share.or(old.force_share),
            discard: self.discard.or(old.discard),
            detect_zeroes: self.detect_zeroes.or(old.detect_zeroes),
            active: self.active.or(old.active),
            copy_on_read: self.copy_on_read.or(old.copy_on_read),
        }
    }

    /// The same with this `read-only`.
    #[must_use]
    pub fn with_read_only(self, read_only: bool) -> Self {
        Self {
            read_only: Some(read_only),
            ..self
        }
    }

    /// The options that hold: what is not given comes from `base`.
    ///
    /// # Errors
    /// They contradict each other.
    pub fn over(self, base: Common) -> Result<Common> {
        let mut common = Common {
            read_only: self.read_only.unwrap_or(base.read_only),
            auto_read_only: self.auto_read_only.unwrap_or(base.auto_read_only),
            direct: self.direct.unwrap_or(base.direct),
            no_flush: self.no_flush.unwrap_or(base.no_flush),
            force_share: self.force_share.unwrap_or(base.force_share),
            discard: self.discard.unwrap_or(base.discard),
            detect_zeroes: self.detect_zeroes.unwrap_or(base.detect_zeroes),
            inactive: self.active.map_or(base.inactive, |active| !active),
            copy_on_read: self.copy_on_read.unwrap_or(base.copy_on_read),
            extra: base.extra,
        };
        if !common.read_only {
            // What was writable once may be made so again.
            common.extra |= OpenFlags::ALLOW_RDWR;
        }
        check(common)?;
        Ok(common)
    }
}

/// Rules between the common options.
fn check(common: Common) -> Result<()> {
    if common.detect_zeroes == DetectZeroes::Unmap && common.discard != DiscardMode::Unmap {
        return Err(Error::new(
            ErrorKind::InvalidArgument,
            "setting detect-zeroes to unmap is not allowed without setting discard operation to unmap",
        ));
    }
    if common.force_share && !common.read_only {
        return Err(Error::new(
            ErrorKind::InvalidArgument,
            "force-share=on can only be used with read-only images",
        ));
    }
    Ok(())
}
