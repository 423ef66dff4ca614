//! What a refused command says: QMP's error class and its text.

use crate::{Error, ErrorKind};
use serde::{Deserialize, Serialize};

/// QMP's error classes; clients may branch on them, everything else is in the text.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum ErrorClass {
    /// Everything that has no class of its own.
    #[default]
    GenericError,
    /// No such command, or not in this mode.
    CommandNotFound,
    /// The device is not there or not in use.
    DeviceNotActive,
    /// No device or node of this name.
    DeviceNotFound,
    /// A feature that this build or host does not have.
    KVMMissingCap,
}

/// An error as a QMP client sees it. The text is one sentence without a full stop, as QEMU's are.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[error("{desc}")]
pub struct QmpError {
    /// QMP's class of the error.
    pub class: ErrorClass,
    /// The text that people read.
    pub desc: String,
    /// Advice that a command line prints below the text; QMP has no place for it.
    #[serde(skip)]
    pub hint: Option<String>,
}

impl QmpError {
    /// An error of class `GenericError`.
    pub fn generic(desc: impl Into<String>) -> Self {
        Self {
            class: ErrorClass::GenericError,
            desc: desc.into(),
            hint: None,
        }
    }

    /// An error of the given class.
    pub fn new(class: ErrorClass, desc: impl Into<String>) -> Self {
        Self {
            class,
            desc: desc.into(),
            hint: None,
        }
    }
}

/// A refusal of the block layer as a client sees it.
impl From<&Error> for QmpError {
    fn from(error: &Error) -> Self {
        let class = match error.kind() {
            ErrorKind::CommandNotFound => ErrorClass::CommandNotFound,
            _ => ErrorClass::GenericError,
        };
        Self {
            hint: error.hint().map(str::to_owned),
            ..Self::new(class, error.context())
        }
    }
}

impl From<Error> for QmpError {
    fn from(error: Error) -> Self {
        Self::from(&error)
    }
}
