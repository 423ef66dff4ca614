//! What is asked of a node and what it answers, how that is carried out, and how nodes move between iothreads.
//!
//! The words ([`orders`], [`outcome`], [`mail`], [`moved`], [`root_handle`]) are below everything else of a node, what carries
//! them out is above.

pub mod answer;
pub mod carry_out;
pub mod commit;
pub mod hops;
pub mod mail;
pub mod moved;
pub mod moving;
pub mod orders;
pub mod outcome;
pub mod recorded;
pub mod root_handle;
pub mod task;
pub mod wiring;
