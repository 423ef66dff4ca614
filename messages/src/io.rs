//! I/O requests: what may be asked of a node, generic over the buffers that the request owns and gives back.

use std::fmt;
use std::sync::Arc;

use crate::common::{BlockStatus, CopySource, Lender, MirrorLine, MomentLine, NodeId, Range, RequestFlags};
use crate::error::{IoError, IoResult};

/// How space is laid out when an image grows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Preallocation {
    /// Nothing is allocated before it is written.
    #[default]
    Off,
    /// The format's tables are.
    Metadata,
    /// The host reserves the space without writing it.
    Falloc,
    /// Space is allocated by writing zeroes.
    Full,
}

/// One request. Offsets and lengths are in bytes; the length of a read or write is that of its buffers.
#[derive(Debug)]
pub enum Operation<B> {
    /// Fill the buffers from `offset`.
    Read {
        /// The first byte to read.
        offset: u64,
        /// What the data is read into.
        buffers: B,
        /// COPY_ON_READ and PREFETCH have a meaning here.
        flags: RequestFlags,
    },
    /// Store the buffers at `offset`.
    Write {
        /// The first byte to write.
        offset: u64,
        /// The data to be written, all of it.
        buffers: B,
        /// FUA, WRITE_COMPRESSED, WRITE_UNCHANGED, SERIALISING, NO_WAIT.
        flags: RequestFlags,
    },
    /// Make a range read as zeroes.
    WriteZeroes {
        /// The bytes to zero.
        range: Range,
        /// MAY_UNMAP, FUA, NO_FALLBACK, SERIALISING, NO_WAIT.
        flags: RequestFlags,
    },
    /// Forget a range: what it reads as afterwards is up to the driver.
    Discard {
        /// The bytes to discard.
        range: Range,
    },
    /// Make everything acknowledged before durable.
    Flush,
    /// Change the node's length.
    Truncate {
        /// The new length in bytes.
        size: u64,
        /// Fail rather than end up longer than asked.
        exact: bool,
        /// What to do with the new part.
        preallocation: Preallocation,
        /// ZERO_WRITE: the new part must read as zeroes.
        flags: RequestFlags,
    },
    /// What the start of a range is made of.
    BlockStatus {
        /// The bytes that are of interest; the answer may cover fewer.
        range: Range,
        /// Ask storage whether data is zeroes, which may cost a system call.
        want_zero: bool,
        /// Follow the chain down to what is allocated, rather than answer for this node alone.
        whole_chain: bool,
        /// The chain ends above this node: what no layer above it has is unallocated.
        base: Option<NodeId>,
    },
    /// What a range is made of, extent after extent from its start: [`Value::Map`]. Each layer of a chain is looked at once
    /// for each extent of its own, and not once for each of the chain's.
    Map {
        /// The bytes that are of interest; the answer may cover fewer, but covers some.
        range: Range,
        /// Ask storage whether data is zeroes, which may cost a system call an extent.
        want_zero: bool,
        /// Follow the chain down to what is allocated, rather than answer for this node alone.
        whole_chain: bool,
    },
    /// About a copy in which the bytes pass no buffer.
    Copy(CopyRequest),
    /// About the moment of its past that the node keeps.
    Snapshot(SnapshotRequest<B>),
    /// About what a node mirrors of itself.
    Mirror(MirrorRequest),
    /// The node's length in bytes.
    Length,
    /// Bytes that the image takes on its host.
    AllocatedSize,
}

/// A request of a copy from file to file of the host, which answers `NotSupported` where the bytes have to pass a buffer.
#[derive(Debug)]
pub enum CopyRequest {
    /// Lend the start of a range, which stays where it is until the loan is given back.
    Out(Lender),
    /// Store what lies in a file of the host in a range. If that fails, any part of it may have been stored.
    In {
        /// The bytes to write.
        range: Range,
        /// Where they come from.
        source: CopySource,
        /// FUA has a meaning here.
        flags: RequestFlags,
    },
}

/// A request for the moment of its past that a node keeps, such as one of `copy-before-write`.
#[derive(Debug)]
pub enum SnapshotRequest<B> {
    /// Fill the buffers with what was at `offset` then.
    Read {
        /// The first byte to read.
        offset: u64,
        /// What the data is read into.
        buffers: B,
    },
    /// What the start of a range was made of then.
    Status {
        /// The bytes that are of interest; the answer may cover fewer.
        range: Range,
    },
    /// What was in a range then need not be kept any longer.
    Discard {
        /// The bytes that nobody will ask for.
        range: Range,
    },
    /// Have what was in a range then where it is kept, rather than wait for the first write to it. Answers
    /// [`Value::Copied`].
    Copy {
        /// The bytes to copy, rounded to what the node copies in one go.
        range: Range,
    },
    /// Tell this line when the moment is lost.
    Join(Arc<MomentLine>),
}

/// A request of a mirror's job to the node that sees the writes and copies what is left.
#[derive(Debug)]
pub enum MirrorRequest {
    /// Tell this line what is left, and treat writes as it says.
    Join(Arc<MirrorLine>),
    /// A range is left to copy, whatever is known of it.
    Add {
        /// The bytes in which source and target may differ.
        range: Range,
    },
    /// Copy the next piece of what is left. Answers [`Value::Mirrored`].
    Copy,
}

/// What a request to copy a piece has come to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MirrorStep {
    /// Nothing is left, but for what others are copying.
    Nothing,
    /// So many bytes were copied.
    Copied(u64),
    /// So many bytes were made to read as zeroes.
    Zeroed(u64),
    /// So many bytes were alike already.
    Alike(u64),
}

/// What a request that is no read or write answers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Value {
    /// It was done; there is nothing to tell.
    Done,
    /// A number of bytes.
    Bytes(u64),
    /// What the start of a range is made of.
    Status(BlockStatus),
    /// What a range is made of from its start on, extent after extent. Neighbours may be alike.
    Map(Box<[BlockStatus]>),
    /// How a copy of a range ended.
    Copied(Result<(), CopyFault>),
    /// What the copy of a piece has come to.
    Mirrored(Result<MirrorStep, CopyFault>),
}

/// Why a range was not copied.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum CopyFault {
    /// It could not be read.
    #[error("reading: {0}")]
    Source(IoError),
    /// It could not be written.
    #[error("writing: {0}")]
    Target(IoError),
}

impl CopyFault {
    /// The error of the request that failed.
    #[must_use]
    pub const fn error(self) -> IoError {
        match self {
            Self::Source(error) | Self::Target(error) => error,
        }
    }
}

/// The end of a request: its result, and the buffers it took.
#[derive(Debug)]
#[must_use = "a request's outcome says whether it failed"]
pub struct Outcome<B> {
    /// Its value, or why it failed.
    pub result: IoResult<Value>,
    /// The buffers of a read or write.
    pub buffers: Option<B>,
}

impl<B> Outcome<B> {
    /// A request without buffers that ended with `result`.
    pub const fn plain(result: IoResult<Value>) -> Self {
        Self {
            result,
            buffers: None,
        }
    }

    /// The result and the buffers of a read or write. A request that got lost on its way has neither, and is an error.
    ///
    /// # Errors
    /// The request's own.
    pub fn into_parts(self) -> (IoResult<()>, Option<B>) {
        (self.result.map(|_| ()), self.buffers)
    }

    /// The end of a request that answers nothing but that it is done.
    ///
    /// # Errors
    /// The request's own.
    pub fn into_done(self) -> IoResult<()> {
        match self.result? {
            Value::Done => Ok(()),
            _ => Err(IoError::Invalid),
        }
    }

    /// How the copy ended that was asked for.
    ///
    /// # Errors
    /// The copy's, or that of a request that did not get there, as one of its target.
    pub fn into_copied(self) -> Result<(), CopyFault> {
        match self.result {
            Ok(Value::Copied(copied)) => copied,
            Ok(_) => Err(CopyFault::Target(IoError::Invalid)),
            Err(error) => Err(CopyFault::Target(error)),
        }
    }

    /// What the copy of a piece has come to that was asked for.
    ///
    /// # Errors
    /// The copy's, or that of a request that did not get there, as one of its source.
    pub fn into_mirrored(self) -> Result<MirrorStep, CopyFault> {
        match self.result {
            Ok(Value::Mirrored(mirrored)) => mirrored,
            Ok(_) => Err(CopyFault::Source(IoError::Invalid)),
            Err(error) => Err(CopyFault::Source(error)),
        }
    }

    /// The number that a length or size query answers.
    ///
    /// # Errors
    /// The request's own.
    pub fn into_bytes(self) -> IoResult<u64> {
        match self.result? {
            Value::Bytes(bytes) => Ok(bytes),
            _ => Err(IoError::Invalid),
        }
    }

    /// The status that a status query answers.
    ///
    /// # Errors
    /// The request's own.
    pub fn into_status(self) -> IoResult<BlockStatus> {
        match self.result? {
            Value::Status(status) => Ok(status),
            _ => Err(IoError::Invalid),
        }
    }

    /// The extents that were asked for.
    ///
    /// # Errors
    /// The request's own.
    pub fn into_map(self) -> IoResult<Box<[BlockStatus]>> {
        match self.result? {
            Value::Map(extents) => Ok(extents),
            _ => Err(IoError::Invalid),
        }
    }
}

/// The kind of an operation, for statistics, tracing and the query that names what a drain waits for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum OperationKind {
    /// The kind of [`Operation::Read`].
    Read,
    /// The kind of [`Operation::Write`].
    Write,
    /// The kind of [`Operation::WriteZeroes`].
    WriteZeroes,
    /// The kind of [`Operation::Discard`].
    Discard,
    /// The kind of [`Operation::Flush`].
    Flush,
    /// The kind of [`Operation::Truncate`].
    Truncate,
    /// The kind of [`Operation::BlockStatus`] and [`Operation::Map`].
    BlockStatus,
    /// The kind of [`Operation::Length`] and [`Operation::AllocatedSize`].
    Query,
}

impl fmt::Display for OperationKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Read => "read",
            Self::Write => "write",
            Self::WriteZeroes => "write of zeroes",
            Self::Discard => "discard",
            Self::Flush => "flush",
            Self::Truncate => "truncation",
            Self::BlockStatus => "block status query",
            Self::Query => "query",
        })
    }
}

impl<B> Operation<B> {
    /// What kind of request it is.
    #[must_use]
    pub const fn kind(&self) -> OperationKind {
        match self {
            Self::Read { .. }
            | Self::Copy(CopyRequest::Out(_))
            | Self::Snapshot(SnapshotRequest::Read { .. } | SnapshotRequest::Copy { .. })
            | Self::Mirror(MirrorRequest::Copy) => OperationKind::Read,
            Self::Write { .. } | Self::Copy(CopyRequest::In { .. }) => OperationKind::Write,
            Self::WriteZeroes { .. } => OperationKind::WriteZeroes,
            Self::Discard { .. } => OperationKind::Discard,
            Self::Flush => OperationKind::Flush,
            Self::Truncate { .. } => OperationKind::Truncate,
            Self::BlockStatus { .. } | Self::Map { .. } | Self::Snapshot(SnapshotRequest::Status { .. }) => {
                OperationKind::BlockStatus
            }
            Self::Snapshot(SnapshotRequest::Discard { .. }) => OperationKind::Discard,
            Self::Length
            | Self::AllocatedSize
            | Self::Snapshot(SnapshotRequest::Join(_))
            | Self::Mirror(MirrorRequest::Join(_) | MirrorRequest::Add { .. }) => OperationKind::Query,
        }
    }
}
