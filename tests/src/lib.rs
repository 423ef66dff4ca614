//! What the tests of this folder share: starting programs, talking QMP and NBD, and checking what came back.
//!
//! The daemon under test is the `millpond` binary of this workspace, run as `millpond serve`. Set
//! `MILLPOND_UNDER_TEST=/usr/bin/qemu-storage-daemon` to run the same tests against the program that Millpond must
//! behave like: that shows the tests, not the daemon, to be right.
//!
//! Everything here panics with a full sentence when something does not go as a test needs it.

#![forbid(unsafe_code)]

pub mod beside;
pub mod bitmaps;
pub mod crafted;
pub mod crash;
pub mod crowd;
pub mod daemon;
pub mod exported;
pub mod fuse;
pub mod fuzz;
pub mod image;
pub mod layers;
pub mod model;
pub mod mounted;
pub mod nbd;
pub mod nth;
pub mod pairwise;
pub mod program;
pub mod qmp;
pub mod sim;
pub mod strace;
pub mod tls;
pub mod tool;
pub mod tools;
pub mod vhost;
pub mod workload;

use std::time::Duration;

/// How long a test waits for one answer before it says that none came: far longer than any answer takes on a busy
/// machine of two cores, so that only a hang meets it.
pub const PATIENCE: Duration = Duration::from_secs(60);
