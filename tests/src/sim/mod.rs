//! The whole daemon on one thread, from one seed: what a run finds once it finds again.
//!
//! ```text
//!   clients, monitor, drainer     tasks of one tokio runtime whose clock stands still
//!        | sockets
//!   exports, monitors, graph      the daemon's own actors, in the same runtime
//!        | mailboxes
//!   iothreads                     cores without threads, turned in any order (stage)
//!        | ring
//!   disks, sockets                a backend that is slow, fails, tears and forgets (backend, disk)
//! ```
//!
//! Nothing depends on anything but the seed: it draws the options (swarm), every choice and every delay. The trace's hash
//! shows it. A run has a safety phase, with faults anywhere, in which every byte is held against an oracle; then faults
//! stop, and all that is pending must end within a bound; then the daemon is closed, and what it flushed is opened
//! again. Or the power is lost in the middle, and what is left of the disks is opened.

mod backend;
mod begin;
mod client;
mod command;
mod disk;
mod drainer;
mod editor;
mod embedder;
mod jobber;
mod monitor;
mod oracle;
mod run;
mod section;
mod session;
mod side;
mod site;
mod stage;
mod swarm;
mod target;
mod trace;

pub use command::{Options, Summary, run, run_seeds};
pub use run::{Report, run_seed};
