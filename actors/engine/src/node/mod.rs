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
mod table;

/// The node's half of the drain handshake, for the model checker of the graph.
pub use gate::line::{Line, Parked, Turn};
pub use gate::sections::{Background, Gate, InFlight};

pub use entry::client::{Client, HomeClient, RootHandle, Started};
pub use entry::pending::{Begun, UnderWay};
pub use order::mail::{
    Description, DetectZeroes, Entry, Event, Handles, Mail, NodeAddress, NodeSettings, OpenFacts,
    OrderOutcome, RemoteRequest, Ticket,
};
pub use order::moving::{MovedNode, MovedRoot};
pub use order::orders::{Address, IothreadOrder, Naming, NodeOrder, NodeTask, OpenOrder, Order, Wiring};
/// Messages as the flight recorder keeps them.
pub use order::recorded;
pub use table::{EventSink, serve};
