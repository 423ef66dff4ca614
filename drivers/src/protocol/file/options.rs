//! The options of `file` and `host_device`, and what may be said about them before anything is opened.

use std::borrow::Cow;

use millpond_messages::graph::Options;
use millpond_messages::path::path_has_protocol;
use millpond_messages::{Error, ErrorKind, OpenFlags, Result};

use crate::api::parse_options;
use millpond_ring::AioMode;

/// The options that a reopen may change: those that only matter when an image changes hands between processes.
pub(super) const MUTABLE: [&str; 2] = ["drop-cache", "x-check-cache-dropped"];
/// Those of them that a reopen may leave out.
pub(super) const RESETTABLE: [&str; 1] = ["x-check-cache-dropped"];

/// Whether to keep other processes away by locks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum Locking {
    /// Where the kernel can.
    #[default]
    Auto,
    /// Locks are taken, or opening fails.
    On,
    /// Locks are not taken at all.
    Off,
}

/// The options as QAPI's `BlockdevOptionsFile` has them.
#[derive(Debug, Clone, serde::Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub(super) struct FileOptions {
    /// The path. A relative one starts at the working directory.
    pub(super) filename: String,
    pr_manager: Option<String>,
    #[serde(default)]
    pub(super) locking: Locking,
    aio: Option<millpond_messages::AioMode>,
    /// How many requests to hand to the kernel at once. Checked and otherwise ignored: a ring hands over all that one
    /// turn of the iothread brought, whichever file it is for.
    #[serde(rename = "aio-max-batch")]
    _aio_max_batch: Option<serde_json::Number>,
    /// Drop the page cache when another process takes the image over. Migration is not served, so neither this nor the
    /// next is acted on.
    #[serde(rename = "drop-cache")]
    _drop_cache: Option<bool>,
    #[serde(rename = "x-check-cache-dropped")]
    _check_cache_dropped: Option<bool>,
}

impl FileOptions {
    /// Reads and checks the options of a node opened with `flags`.
    ///
    /// # Errors
    /// Names the option that is wrong, in QEMU's words.
    pub(super) fn new(driver: &str, options: &Options, flags: OpenFlags) -> Result<Self> {
        let mut parsed: Self = parse_options(options.clone())?;
        if parsed.filename.is_empty() {
            let text = format!("The '{driver}' block driver requires a file name");
            return Err(Error::new(ErrorKind::InvalidArgument, text));
        }
        if let Some(manager) = &parsed.pr_manager {
            let text = format!("Persistent reservation managers are not supported: pr-manager={manager}");
            return Err(Error::new(ErrorKind::Unsupported, text));
        }
        if parsed.aio.is_none() && flags.contains(OpenFlags::NATIVE_AIO) {
            parsed.aio = Some(millpond_messages::AioMode::Native);
        } else if parsed.aio.is_none() && flags.contains(OpenFlags::IO_URING) {
            parsed.aio = Some(millpond_messages::AioMode::IoUring);
        }
        check_native(parsed.aio, flags)?;
        Ok(parsed)
    }

    /// How requests are to run. QEMU's default is a pool of threads; here it is whatever the ring runs on, since a
    /// user sees no difference but the speed. Who asks for threads gets them.
    pub(super) fn aio(&self) -> AioMode {
        match self.aio {
            Some(millpond_messages::AioMode::Threads) => AioMode::Threads,
            Some(millpond_messages::AioMode::Native) => AioMode::Native,
            Some(millpond_messages::AioMode::IoUring) | None => AioMode::IoUring,
        }
    }
}

fn check_native(aio: Option<millpond_messages::AioMode>, flags: OpenFlags) -> Result<()> {
    if aio == Some(millpond_messages::AioMode::Native) && !flags.contains(OpenFlags::NOCACHE) {
        let text = "aio=native was specified, but it requires cache.direct=on, which was not specified.";
        return Err(Error::new(ErrorKind::InvalidArgument, text));
    }
    Ok(())
}

/// The path in a filename as a command line gives it: without the prefix that names the driver. What is left may look as if it
/// had a prefix, and is told from that by where it is.
#[must_use]
pub fn strip_protocol<'a>(driver: &str, filename: &'a str) -> Cow<'a, str> {
    let rest = filename.strip_prefix(driver);
    match rest.and_then(|rest| rest.strip_prefix(':')) {
        None => filename.into(),
        Some(path) if path_has_protocol(path) => format!("./{path}").into(),
        Some(path) => path.into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn parse(options: serde_json::Value, flags: OpenFlags) -> Result<FileOptions> {
        let serde_json::Value::Object(options) = options else {
            panic!("options are an object")
        };
        FileOptions::new("file", &options, flags)
    }

    #[test]
    fn wrong_options_are_named() {
        let text = |options| parse(options, OpenFlags::RDWR).unwrap_err().to_string();
        assert_eq!(text(json!({})), "Parameter 'filename' is missing");
        assert_eq!(
            text(json!({"filename": ""})),
            "The 'file' block driver requires a file name"
        );
        assert_eq!(
            text(json!({"filename": "x", "colour": 1})),
            "Parameter 'colour' is unexpected"
        );
        assert!(text(json!({"filename": "x", "pr-manager": "p"})).ends_with("pr-manager=p"));
        assert_eq!(
            text(json!({"filename": "x", "aio": "native"})),
            "aio=native was specified, but it requires cache.direct=on, which was not specified."
        );
    }

    #[test]
    fn threads_run_only_for_who_asks() {
        let aio = |options| parse(options, OpenFlags::NOCACHE).unwrap().aio();
        assert_eq!(aio(json!({"filename": "x"})), AioMode::IoUring);
        assert_eq!(aio(json!({"filename": "x", "aio": "threads"})), AioMode::Threads);
        assert_eq!(aio(json!({"filename": "x", "aio": "native"})), AioMode::Native);
        assert_eq!(aio(json!({"filename": "x", "aio": "io_uring"})), AioMode::IoUring);
        assert!(parse(json!({"filename": "x", "aio": "posix"}), OpenFlags::NOCACHE).is_err());
    }

    #[test]
    fn flags_stand_for_the_option_where_it_is_not_given() {
        let aio = |options, flags| parse(options, OpenFlags::NOCACHE | flags).unwrap().aio;
        let (plain, threads) = (
            || json!({"filename": "x"}),
            json!({"filename": "x", "aio": "threads"}),
        );
        assert_eq!(aio(plain(), OpenFlags::empty()), None);
        assert_eq!(
            aio(plain(), OpenFlags::NATIVE_AIO),
            Some(millpond_messages::AioMode::Native)
        );
        assert_eq!(
            aio(plain(), OpenFlags::IO_URING),
            Some(millpond_messages::AioMode::IoUring)
        );
        for flag in [OpenFlags::NATIVE_AIO, OpenFlags::IO_URING] {
            assert_eq!(
                aio(threads.clone(), flag),
                Some(millpond_messages::AioMode::Threads)
            );
        }
        let refused = parse(plain(), OpenFlags::NATIVE_AIO).unwrap_err();
        assert_eq!(
            refused.to_string(),
            "aio=native was specified, but it requires cache.direct=on, which was not specified."
        );
        assert!(parse(plain(), OpenFlags::IO_URING).is_ok());
    }

    #[test]
    fn only_the_drivers_own_prefix_is_stripped() {
        assert_eq!(strip_protocol("file", "file:a:b"), "./a:b");
        assert_eq!(strip_protocol("file", "file:/a:b"), "/a:b");
        assert_eq!(strip_protocol("file", "files:a"), "files:a");
        assert_eq!(strip_protocol("host_device", "host_device:/dev/x"), "/dev/x");
    }
}
