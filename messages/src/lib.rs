//! Millpond's vocabulary: what its actors say to each other, and the types its users see.
//!
//! Nothing here starts a thread, does I/O or holds a handle: every function is a *helper* in the sense of the
//! four classes (helper, global state, I/O, home), so it may be called from anywhere.
#![forbid(unsafe_code)]

pub mod common;
pub mod error;
pub mod graph;
pub mod handshake;
pub mod io;
pub mod nbd;
pub mod qapi;
pub mod record;
pub mod saved;

pub use common::*;
pub use error::{Error, ErrorKind, IoError, IoResult, Result};
