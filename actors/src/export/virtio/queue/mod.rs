//! A queue on the iothread of its node: requests from the ring to the node, and answers back.

mod bytes;
mod chain;
mod request;
mod serve;
mod session;
mod worker;
