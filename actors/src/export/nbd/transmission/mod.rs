//! The transmission phase: requests of one client, and their replies.

mod arena;
pub(super) mod budget;
pub mod connection;
mod delay;
mod outbox;
mod plan;
mod presence;
mod receive;
pub mod reply;
pub mod request;
mod serve;
mod session;
mod standing;

pub use budget::{MAX_BYTES, MAX_IN_FLIGHT, MAX_SHARED, Pool};
pub use standing::Standing;
