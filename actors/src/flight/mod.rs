//! Flight records of this process: collected when somebody asks, or written when a thread panics.
//!
//! The rings themselves, and how they are written and printed, are [`millpond_engine::flight`].

mod collect;
#[cfg(feature = "daemon")]
mod panic;

pub use collect::{PATIENCE, collect};
pub use millpond_engine::flight::*;
#[cfg(feature = "daemon")]
pub use panic::record_panics;
