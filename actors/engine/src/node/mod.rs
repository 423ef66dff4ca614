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
mod choke;
mod client;
mod commit;
mod control;
mod depth;
mod edge;
mod gate;
mod kept;
mod late;
mod line;
mod mail;
mod migrate;
mod order;
mod overlap;
pub mod recorded;
mod root;
mod statistics;
mod table;
mod under_way;

/// The node's half of the drain handshake, for the model checker of the graph.
pub use gate::{Background, Gate, InFlight};
pub use line::{Line, Parked, Turn};

pub use client::{Client, HomeClient, RootHandle, Started};
pub use mail::{
    Description, DetectZeroes, Entry, Event, Handles, Mail, NodeAddress, NodeSettings, OpenFacts,
    OrderOutcome, RemoteRequest, Ticket,
};
pub use migrate::{MovedNode, MovedRoot};
pub use order::{Address, IothreadOrder, Naming, NodeOrder, NodeTask, OpenOrder, Order, Wiring};
pub use table::{EventSink, serve};
pub use under_way::{Begun, UnderWay};
