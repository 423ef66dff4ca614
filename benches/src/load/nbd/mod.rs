//! The load over NBD: one connection each, which keeps as many requests in flight as it is told.

mod connection;
mod negotiate;
mod output;
mod replies;
mod stream;

pub(super) use connection::{Connection, open};
pub(super) use stream::Stream;
