//! How a file's requests reach the kernel, and what becomes of discards.

use serde::{Deserialize, Serialize};

/// The `aio` option of file drivers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum AioMode {
    /// A pool of threads makes blocking system calls.
    #[default]
    Threads,
    /// The kernel's native asynchronous I/O; needs `cache.direct=on`. Served by the ring here.
    Native,
    /// `aio=io_uring`: the iothread's own ring.
    IoUring,
}

/// An `aio` value that names no mode.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("invalid aio option '{0}'")]
pub struct UnknownAioMode(pub String);

/// The mode with this name: `threads`, `native` or `io_uring`.
///
/// # Errors
/// Any other name.
pub fn parse_aio(mode: &str) -> Result<AioMode, UnknownAioMode> {
    match mode {
        "threads" => Ok(AioMode::Threads),
        "native" => Ok(AioMode::Native),
        "io_uring" => Ok(AioMode::IoUring),
        other => Err(UnknownAioMode(other.to_owned())),
    }
}

/// The `discard` option of every node.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum DiscardMode {
    /// Discards succeed and do nothing.
    #[default]
    Ignore,
    /// Discards are passed down.
    Unmap,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn aio_modes_have_qemu_names() {
        assert_eq!(parse_aio("threads"), Ok(AioMode::Threads));
        assert_eq!(parse_aio("native"), Ok(AioMode::Native));
        assert_eq!(parse_aio("io_uring"), Ok(AioMode::IoUring));
        assert!(parse_aio("uring").is_err());
    }
}
