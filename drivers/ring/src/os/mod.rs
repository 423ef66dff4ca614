//! System calls that no safe wrapper offers, each behind a function that is safe to call.

pub mod files;
pub mod process;
pub mod scsi;
#[cfg(feature = "guest")]
pub mod shared_memory;
#[cfg(feature = "guest")]
pub mod vduse;
