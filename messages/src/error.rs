//! Errors: a small stable kind that callers match, the context that people read, and what caused it.

use std::borrow::Cow;

/// The result of a global-state operation.
pub type Result<T, E = Error> = std::result::Result<T, E>;
/// The result of an I/O operation.
pub type IoResult<T> = std::result::Result<T, IoError>;

/// What sort of failure an [`Error`] is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ErrorKind {
    /// An argument is missing, unknown, of the wrong type or out of range.
    InvalidArgument,
    /// A node, export, iothread or other thing of that name does not exist.
    NotFound,
    /// A thing of that name exists already.
    Exists,
    /// Somebody still uses it.
    InUse,
    /// A parent's permissions forbid it, or another process's lock does.
    Permission,
    /// The node or the image is read-only.
    ReadOnly,
    /// The driver or this build cannot do it.
    Unsupported,
    /// The image breaks its format's rules.
    Corrupt,
    /// The host's answer to a system call.
    Io(IoError),
    /// The command is not known.
    CommandNotFound,
    /// What would answer is shutting down.
    Closed,
}

/// Why a global-state operation failed. `Display` shows the context alone, which is the text that QEMU would give.
#[derive(Debug, thiserror::Error)]
#[error("{context}")]
pub struct Error {
    kind: ErrorKind,
    context: Cow<'static, str>,
    hint: Option<Box<str>>,
    #[source]
    source: Option<Box<dyn std::error::Error + Send + Sync>>,
}

impl Error {
    /// An error with no cause behind it.
    pub fn new(kind: ErrorKind, context: impl Into<Cow<'static, str>>) -> Self {
        Self {
            kind,
            context: context.into(),
            hint: None,
            source: None,
        }
    }

    /// An error caused by another.
    pub fn caused_by(
        kind: ErrorKind,
        context: impl Into<Cow<'static, str>>,
        source: impl Into<Box<dyn std::error::Error + Send + Sync>>,
    ) -> Self {
        Self {
            kind,
            context: context.into(),
            hint: None,
            source: Some(source.into()),
        }
    }

    /// A failed system call or request, told as QEMU tells it: `context: strerror`.
    #[must_use]
    pub fn io(context: &str, error: IoError) -> Self {
        Self::caused_by(ErrorKind::Io(error), format!("{context}: {error}"), error)
    }

    /// What sort of failure it is.
    #[must_use]
    pub const fn kind(&self) -> ErrorKind {
        self.kind
    }

    /// The text for people.
    #[must_use]
    pub fn context(&self) -> &str {
        &self.context
    }

    /// What to do about it, which a command line shows below the text.
    #[must_use]
    pub fn hint(&self) -> Option<&str> {
        self.hint.as_deref()
    }

    /// The same error with a hint about what to do about it.
    #[must_use]
    pub fn with_hint(mut self, hint: impl Into<Box<str>>) -> Self {
        self.hint = Some(hint.into());
        self
    }

    /// The same error with `prefix: ` before its text.
    #[must_use]
    pub fn within(mut self, prefix: &str) -> Self {
        self.context = format!("{prefix}: {}", self.context).into();
        self
    }

    /// The errno that stands for this error where only a number can be told.
    #[must_use]
    pub const fn errno(&self) -> i32 {
        match self.kind {
            ErrorKind::InvalidArgument | ErrorKind::CommandNotFound => errno::EINVAL,
            ErrorKind::NotFound => errno::ENOENT,
            ErrorKind::Exists => errno::EEXIST,
            ErrorKind::InUse => errno::EBUSY,
            ErrorKind::Permission => errno::EPERM,
            ErrorKind::ReadOnly => errno::EACCES,
            ErrorKind::Unsupported => errno::ENOTSUP,
            ErrorKind::Corrupt => errno::EIO,
            ErrorKind::Io(error) => error.errno(),
            ErrorKind::Closed => errno::ESHUTDOWN,
        }
    }
}

/// Why a request failed. Small and `Copy`: a failed request allocates nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, serde::Serialize, serde::Deserialize)]
pub enum IoError {
    /// The range is impossible or leaves the node.
    OutOfRange,
    /// A request that is wrong in itself.
    Invalid,
    /// The node, its parent's permission or its image forbids writing.
    ReadOnly,
    /// The client does not hold the permission for this.
    NotPermitted,
    /// Neither the driver nor an emulation can do this.
    NotSupported,
    /// No room is left on the storage.
    NoSpace,
    /// The image's metadata contradicts itself.
    Corrupt,
    /// A NO_WAIT request would have had to wait.
    WouldWait,
    /// There is no node behind the edge, or it is closing.
    NoMedium,
    /// The request was cancelled before it had an effect.
    Cancelled,
    /// An errno of the host that has no name here.
    Os(i32),
}

/// Linux's numbers for the errors named above.
pub mod errno {
    /// The caller may not do that (operation not permitted).
    pub const EPERM: i32 = 1;
    /// No such file or directory.
    pub const ENOENT: i32 = 2;
    /// The device failed (input/output error).
    pub const EIO: i32 = 5;
    /// No memory could be had (cannot allocate memory).
    pub const ENOMEM: i32 = 12;
    /// Access is refused (permission denied).
    pub const EACCES: i32 = 13;
    /// Device or resource busy.
    pub const EBUSY: i32 = 16;
    /// Something is there already (file exists).
    pub const EEXIST: i32 = 17;
    /// An argument makes no sense (invalid argument).
    pub const EINVAL: i32 = 22;
    /// Past the longest a file may be (file too large).
    pub const EFBIG: i32 = 27;
    /// No space left on device.
    pub const ENOSPC: i32 = 28;
    /// The file system takes no writes (read-only file system).
    pub const EROFS: i32 = 30;
    /// Value too large for defined data type.
    pub const EOVERFLOW: i32 = 75;
    /// It cannot do that (operation not supported).
    pub const ENOTSUP: i32 = 95;
    /// It took too long (connection timed out).
    pub const ETIMEDOUT: i32 = 110;
    /// Cannot send after transport endpoint shutdown.
    pub const ESHUTDOWN: i32 = 108;
    /// The user has used all its space (disk quota exceeded).
    pub const EDQUOT: i32 = 122;
    /// There is nothing to read or write (no medium found).
    pub const ENOMEDIUM: i32 = 123;
    /// Somebody called it off (operation canceled).
    pub const ECANCELED: i32 = 125;
}

impl IoError {
    /// Whether it is the storage that failed, rather than the request that was wrong, or not wanted any more.
    #[must_use]
    pub const fn is_of_storage(self) -> bool {
        matches!(self, Self::NoSpace | Self::Corrupt | Self::NoMedium | Self::Os(_))
    }

    /// The errno that says the same.
    #[must_use]
    pub const fn errno(self) -> i32 {
        match self {
            Self::OutOfRange | Self::Corrupt => errno::EIO,
            Self::Invalid => errno::EINVAL,
            Self::ReadOnly => errno::EACCES,
            Self::NotPermitted => errno::EPERM,
            Self::NotSupported => errno::ENOTSUP,
            Self::NoSpace => errno::ENOSPC,
            Self::WouldWait => errno::EBUSY,
            Self::NoMedium => errno::ENOMEDIUM,
            Self::Cancelled => errno::ECANCELED,
            Self::Os(code) => code,
        }
    }

    /// The error for an errno, a named one where there is one.
    #[must_use]
    pub const fn from_errno(code: i32) -> Self {
        match code {
            errno::ENOSPC => Self::NoSpace,
            errno::ENOTSUP => Self::NotSupported,
            errno::EINVAL => Self::Invalid,
            errno::ECANCELED => Self::Cancelled,
            other => Self::Os(other),
        }
    }
}

impl From<std::io::Error> for IoError {
    fn from(error: std::io::Error) -> Self {
        Self::from_errno(error.raw_os_error().unwrap_or(errno::EIO))
    }
}

impl std::fmt::Display for IoError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let text = std::io::Error::from_raw_os_error(self.errno()).to_string();
        f.write_str(text.split(" (os error").next().unwrap_or(&text))
    }
}

impl std::error::Error for IoError {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn io_errors_read_as_strerror_does() {
        assert_eq!(IoError::NoSpace.to_string(), "No space left on device");
        assert_eq!(
            IoError::from(std::io::Error::from_raw_os_error(28)),
            IoError::NoSpace
        );
        assert_eq!(
            Error::io("Could not open 'x'", IoError::Os(2)).to_string(),
            "Could not open 'x': No such file or directory"
        );
    }

    #[test]
    fn an_error_keeps_its_cause_and_kind() {
        let error = Error::io("Could not read", IoError::Corrupt).within("node 'a'");
        assert_eq!(error.kind(), ErrorKind::Io(IoError::Corrupt));
        assert!(std::error::Error::source(&error).is_some());
        assert_eq!(error.errno(), errno::EIO);
    }
}
