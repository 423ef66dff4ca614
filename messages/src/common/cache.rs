//! Cache modes by the names that image tools use.

use serde::{Deserialize, Serialize};

use super::aio::DiscardMode;
use super::flags::OpenFlags;

/// The three booleans behind a cache mode's name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct CacheMode {
    /// Bypass the host's page cache.
    #[serde(default)]
    pub direct: bool,
    /// Flushes are answered without a flush (`cache.no-flush`).
    #[serde(default)]
    pub no_flush: bool,
    /// Every write is stable when it completes.
    #[serde(skip)]
    pub writethrough: bool,
}

/// A name that is none of the modes.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ParseCacheError {
    /// No such cache mode.
    #[error("invalid cache option: {0}")]
    Cache(String),
    /// No such discard mode.
    #[error("Invalid discard option: {0}")]
    Discard(String),
}

impl CacheMode {
    /// The open flags for this mode. Writethrough is a matter of the user's root edge, not of the node.
    #[must_use]
    pub fn open_flags(self) -> OpenFlags {
        let mut flags = OpenFlags::empty();
        flags.set(OpenFlags::NOCACHE, self.direct);
        flags.set(OpenFlags::NO_FLUSH, self.no_flush);
        flags
    }
}

/// `none` (or `off`), `directsync`, `writeback`, `unsafe`, `writethrough`.
///
/// # Errors
/// Any other name.
pub fn parse_cache_mode(mode: &str) -> Result<CacheMode, ParseCacheError> {
    let (direct, no_flush, writethrough) = match mode {
        "none" | "off" => (true, false, false),
        "directsync" => (true, false, true),
        "writeback" => (false, false, false),
        "unsafe" => (false, true, false),
        "writethrough" => (false, false, true),
        other => return Err(ParseCacheError::Cache(other.to_owned())),
    };
    Ok(CacheMode {
        direct,
        no_flush,
        writethrough,
    })
}

/// `off` or `ignore`, `on` or `unmap`.
///
/// # Errors
/// Any other name.
pub fn parse_discard_flags(mode: &str) -> Result<DiscardMode, ParseCacheError> {
    match mode {
        "off" | "ignore" => Ok(DiscardMode::Ignore),
        "on" | "unmap" => Ok(DiscardMode::Unmap),
        other => Err(ParseCacheError::Discard(other.to_owned())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cache_modes_mean_what_qemu_means() {
        let (direct, no_flush) = (OpenFlags::NOCACHE, OpenFlags::NO_FLUSH);
        for (name, flags, writethrough) in [
            ("none", direct, false),
            ("off", direct, false),
            ("directsync", direct, true),
            ("writeback", OpenFlags::empty(), false),
            ("unsafe", no_flush, false),
            ("writethrough", OpenFlags::empty(), true),
        ] {
            let mode = parse_cache_mode(name).unwrap();
            assert_eq!(mode.direct, flags == direct, "{name}");
            assert_eq!(mode.no_flush, flags == no_flush, "{name}");
            assert_eq!(mode.writethrough, writethrough, "{name}");
            assert_eq!(mode.open_flags(), flags, "{name}");
        }
        for name in ["sometimes", "", "NONE", "on"] {
            let refused = parse_cache_mode(name).unwrap_err();
            assert_eq!(refused.to_string(), format!("invalid cache option: {name}"));
        }
    }

    #[test]
    fn discard_modes_have_two_names_each() {
        for (name, mode) in [
            ("ignore", DiscardMode::Ignore),
            ("off", DiscardMode::Ignore),
            ("unmap", DiscardMode::Unmap),
            ("on", DiscardMode::Unmap),
        ] {
            assert_eq!(parse_discard_flags(name), Ok(mode), "{name}");
        }
        for name in ["", "none", "punch"] {
            let refused = parse_discard_flags(name).unwrap_err();
            assert_eq!(refused.to_string(), format!("Invalid discard option: {name}"));
        }
    }
}
