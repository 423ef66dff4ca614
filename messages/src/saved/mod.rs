//! Saved state: what outlives a request, written down so that a later daemon can go on with it.
//!
//! A record is an envelope around a body. The envelope says what kind of record it is and in which version of that kind it
//! was written, so that it can be refused before anything of the body is read:
//!
//! ```text
//!   magic (8 bytes) | length of the kind's name (1) | the name | version (4, LE) | length of the body (4, LE) | the body
//! ```
//! The body is bincode in its standard configuration. That has no field names: **whoever changes a saved type in any way
//! raises the version of its kind**. `messages/tests/saved.rs` holds the bytes of each kind and fails otherwise.
//!
//! A kind may hold records of other kinds: a node's holds that of its driver, whose version is the driver's own matter.
//!
//! What is in the record is what nobody could find out again from files and options. A record is taken of nodes that are
//! still, in drained sections that it lists. Descriptors are named by their place in the list that is handed over with it.

mod chunks;
mod daemon;
mod driver;
mod export;
mod graph;
mod job;
mod node;

pub use chunks::SavedChunks;
pub use daemon::{SavedDaemon, SavedObject, SavedRate, SavedThrottleGroup};
pub use driver::DriverRecord;
pub use export::{
    SavedConnection, SavedExport, SavedExportKind, SavedFuseAgreement, SavedFuseExport, SavedNbdExport,
    SavedNbdServer, SavedReplies, SavedStanding, SavedVduseExport,
};
pub use graph::{
    SavedBlocker, SavedEdge, SavedFreeze, SavedGraph, SavedIothread, SavedParent, SavedRoot, SavedSection,
    SavedSectionCover,
};
pub use job::{SavedFate, SavedJob, SavedRetry, SavedStep, SavedWishes, SavedWork};
pub use node::{
    SavedBitmap, SavedBits, SavedCell, SavedCommon, SavedGiven, SavedNode, SavedOptions, SavedZeroDetection,
};

use serde::Serialize;
use serde::de::DeserializeOwned;

/// What every record begins with.
const MAGIC: &[u8; 8] = b"MILLPOND";
/// The most bytes of a kind's name.
const MAX_KIND: usize = 64;
/// The most bytes of a body: thousands of nodes with their options and histograms.
pub const MAX_BODY: usize = 64 << 20;

/// A type that is saved as a record of its own.
pub trait Saved: Serialize + DeserializeOwned {
    /// The name of the kind, at most 64 bytes, never used for anything else.
    const KIND: &'static str;
    /// The version that is written, and the only one that is read.
    const VERSION: u32;
}

/// Why a record cannot be written or read.
#[derive(Debug, thiserror::Error)]
pub enum SavedError {
    /// The bytes are no record at all.
    #[error("this is no saved state of millpond's")]
    NoRecord,
    /// The bytes end before the record does.
    #[error("the saved state is cut short")]
    Short,
    /// It is a record of something else.
    #[error("saved state of kind '{found}' cannot be used as '{wanted}'")]
    Kind {
        /// The kind that the record says.
        found: String,
        /// The kind that was asked for.
        wanted: &'static str,
    },
    /// It was written by another version.
    #[error("saved state of kind '{kind}' has version {found}; this program reads version {known} only")]
    Version {
        /// The kind of record.
        kind: &'static str,
        /// The version that the record says.
        found: u32,
        /// The version that is known here.
        known: u32,
    },
    /// The body is longer than any that is written.
    #[error("saved state of {0} bytes is longer than the {MAX_BODY} allowed")]
    TooLong(usize),
    /// The body is no value of its kind.
    #[error("the saved state holds no valid '{kind}'")]
    Decode {
        /// The kind of record.
        kind: &'static str,
        /// What is wrong with the bytes.
        source: Box<bincode::error::DecodeError>,
    },
    /// The value cannot be written.
    #[error("the state of '{kind}' cannot be encoded")]
    Encode {
        /// The kind of record.
        kind: &'static str,
        /// What is wrong with the value.
        source: Box<bincode::error::EncodeError>,
    },
    /// There is something behind the record.
    #[error("{0} bytes follow the saved state")]
    Trailing(usize),
    /// A value was read and makes no sense.
    #[error("the saved state is not possible: {0}")]
    Impossible(String),
}

/// The record of a value.
///
/// # Errors
/// It is too long, or cannot be encoded.
pub fn save<T: Saved>(value: &T) -> Result<Vec<u8>, SavedError> {
    let config = bincode::config::standard();
    let body = bincode::serde::encode_to_vec(value, config).map_err(|source| SavedError::Encode {
        kind: T::KIND,
        source: Box::new(source),
    })?;
    let name = u8::try_from(T::KIND.len())
        .ok()
        .filter(|_| T::KIND.len() <= MAX_KIND);
    let length = u32::try_from(body.len()).ok().filter(|_| body.len() <= MAX_BODY);
    let (Some(name), Some(length)) = (name, length) else {
        return Err(SavedError::TooLong(body.len()));
    };
    let mut record = MAGIC.to_vec();
    record.push(name);
    record.extend_from_slice(T::KIND.as_bytes());
    record.extend_from_slice(&T::VERSION.to_le_bytes());
    record.extend_from_slice(&length.to_le_bytes());
    record.extend_from_slice(&body);
    Ok(record)
}

/// The value of a record, which `bytes` hold and nothing else.
///
/// # Errors
/// It is no record, one of another kind or version, or damaged. No more memory is taken than a record of the greatest length
/// needs, whatever it says.
pub fn load<T: Saved>(bytes: &[u8]) -> Result<T, SavedError> {
    let rest = bytes.strip_prefix(MAGIC).ok_or(SavedError::NoRecord)?;
    let (&name, rest) = rest.split_first().ok_or(SavedError::Short)?;
    let name = usize::from(name);
    if name > MAX_KIND {
        return Err(SavedError::NoRecord);
    }
    let (kind, rest) = rest.split_at_checked(name).ok_or(SavedError::Short)?;
    if kind != T::KIND.as_bytes() {
        return Err(SavedError::Kind {
            found: String::from_utf8_lossy(kind).into_owned(),
            wanted: T::KIND,
        });
    }
    let (version, rest) = number(rest)?;
    if version != T::VERSION {
        return Err(SavedError::Version {
            kind: T::KIND,
            found: version,
            known: T::VERSION,
        });
    }
    let (length, rest) = number(rest)?;
    let length = usize::try_from(length).unwrap_or(usize::MAX);
    if length > MAX_BODY {
        return Err(SavedError::TooLong(length));
    }
    let (body, behind) = rest.split_at_checked(length).ok_or(SavedError::Short)?;
    let config = bincode::config::standard().with_limit::<MAX_BODY>();
    let (value, used) =
        bincode::serde::decode_from_slice(body, config).map_err(|source| SavedError::Decode {
            kind: T::KIND,
            source: Box::new(source),
        })?;
    match length - used + behind.len() {
        0 => Ok(value),
        more => Err(SavedError::Trailing(more)),
    }
}

fn number(bytes: &[u8]) -> Result<(u32, &[u8]), SavedError> {
    let (number, rest) = bytes.split_first_chunk().ok_or(SavedError::Short)?;
    Ok((u32::from_le_bytes(*number), rest))
}
