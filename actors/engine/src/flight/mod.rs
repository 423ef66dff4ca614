//! The flight recorder: the last messages of each thread, to see after the fact what a hang was waiting for.
//!
//! Each iothread and the graph actor's thread writes the messages that it sees into a ring of its own, over the oldest. A
//! record is some words written in place; no other thread writes there, and any may read, so that a dump needs nobody's
//! help: neither that of a thread that is stuck, nor in a panic. What is in flight is not in the rings alone, where it may
//! be overwritten long since: iothreads that are asked and answer in time tell what they have open, and the dump says of
//! the others that they did not.

mod dump;
mod print;
mod recorder;

pub use dump::{Open, write_new, write_to, written};
pub use print::{FlightError, Printed};
pub use recorder::{Note, RECORDS, Recorder, nanoseconds};
