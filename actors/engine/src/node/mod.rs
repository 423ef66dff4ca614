//! Nodes: cells pinned to an iothread, the gate that drains close, and the choke point that every request passes.
//!
//! ```text
//!   Client (any thread) --mailbox--+            graph actor --orders--+
//!                                  v                                  v
//!   HomeClient (iothread) --> RootCell --gate--> NodeCell <-------- NodeTable
//!                                                   | choke point: check, locate/place, emulate
//!                                                   v
//!                                                EdgeCell --> NodeCell below, or a mailbox
//! ```
//! What must hold:
//! - A request is admitted at its root edge, in the same step that takes it from its source, and counted until after it
//!   was answered. Pieces of an admitted request never wait at a gate.
//! - While a gate is closed, what comes over root edges is parked, per edge in order of arrival.
//! - An admitted request runs to its end, even if whoever asked has lost interest: drivers are never left half-way.

mod cell;
mod entry;
mod gate;
mod io;
mod order;
mod quiesce;
mod serve;
mod table;
#[cfg(test)]
mod tests;

/// The node's half of the drain handshake, for the model checker of the graph.
pub use gate::in_turn::InTurn;
pub use gate::sections::{Background, BackgroundState, Gate, InFlight};
pub use gate::wait_queue::{Parked, WaitEnd, WaitQueue};

pub use cell::home::EventSink;
pub use entry::client::{CancellableRequest, Client, HomeClient};
pub use entry::pending::{Begun, Pending};
pub use order::mail::{Entry, Mail, NodeAddress, RemoteRequest};
pub use order::moved::{MovedNode, MovedRoot};
pub use order::orders::{
    Address, BitmapMerge, BitmapOrder, Handles, IothreadOrder, Naming, NodeOrder, NodeTask, OpenOrder, Order,
    Wiring,
};
pub use order::outcome::{
    BitmapFacts, Description, DetectZeroes, DeviceFacts, Event, FoundBitmap, NewBitmap, NodeSettings,
    OpenFacts, OrderId, OrderOutcome,
};
/// Messages as the flight recorder keeps them.
pub use order::recorded;
pub use order::root_handle::RootHandle;
pub use order::unwanted::Unwanted;
pub use serve::serve;
