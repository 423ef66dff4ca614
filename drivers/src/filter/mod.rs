//! Filters: drivers that show the data of the node below them, and do something of their own on its way.

pub mod blkdebug;
pub mod blklogwrites;
pub mod blkverify;
pub mod commit_top;
pub mod compress;
pub mod copy_before_write;
pub mod copy_on_read;
pub mod mirror_top;
pub mod preallocate;
pub mod snapshot_access;
pub mod throttle;
