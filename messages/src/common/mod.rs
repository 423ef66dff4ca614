//! The plain types that every crate shares: flags, permissions, roles, statuses, limits, names and paths.

mod aio;
mod cache;
mod chunk_set;
mod debug_event;
mod flags;
mod id;
mod info;
mod limits;
mod loan;
mod measure;
mod medium;
mod mirror;
mod moment;
mod op_blocker;
pub mod path;
mod permission;
mod range;
mod role;
mod snapshot;
mod statistics;
mod status;

pub use aio::{AioMode, DiscardMode, UnknownAioMode, parse_aio};
pub use cache::{CacheMode, ParseCacheError, parse_cache_mode, parse_discard_flags};
pub use chunk_set::{ChunkSet, TooManyChunks};
pub use debug_event::{DebugEvent, DebugOrder};
pub use flags::{OpenFlags, RequestFlags};
pub use id::{BitmapId, ChildSlot, EdgeId, IoThreadId, NodeId, RootId, Token};
pub use info::{BlockSizes, CheckResult, DriverInfo, FINDINGS, FragmentInfo, Geometry, Repair};
pub use limits::{
    Limits, MAX_ALIGNMENT, MAX_LENGTH, REQUEST_MAX_BYTES, REQUEST_MAX_SECTORS, RangeError, SECTOR_SIZE,
    check_length, check_range,
};
pub use loan::{CopySource, Lender, Loan, lending};
pub use measure::{DataCount, ImageMeasure, ImagePlan};
pub use medium::{MediumOrder, ScsiAnswer, ScsiCommand, ScsiData};
pub use mirror::{MirrorLine, MirrorMode};
pub use moment::MomentLine;
pub use op_blocker::OpBlocker;
pub use permission::{Permissions, child_permissions};
pub use range::Range;
pub use role::{Role, RoleError};
pub use snapshot::{InternalSnapshot, SnapshotChange, SnapshotName};
pub use statistics::{
    LatencyHistogram, LatencyHistograms, MAX_BOUNDARIES, NodeReport, NodeStatistics, OperationCount,
};
pub use status::{BlockStatus, StatusFlags};
