//! Copying, as all jobs that move data do it, and programs that copy images.
//!
//! ```text
//!   Left      which chunks are left, which are under way, what is known of those ahead
//!     ^  next: look, take a piece, wait
//!   Copier    a fixed number of pieces under way; pauses with none
//!     |  look, copy, what to do about a fault
//!   Copying   the job's part: most often by its Ends, a source and a target
//! ```
//! All of it runs on the iothread of the source. What is under way is a population: the memory of a copy is that of its pieces,
//! however slow its target is.

mod copier;
mod ends;
#[cfg(test)]
mod tests;

pub use copier::{Copier, Copying, Fault, FaultVerdict, Stopped, begun};
pub use ends::Ends;
pub use millpond_drivers::replica::left::{Left, Need};
