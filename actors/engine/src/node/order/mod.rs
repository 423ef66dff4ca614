//! Orders of the graph actor to nodes: the words for them, carrying them out, and moving nodes between iothreads.
//!
//! The words ([`orders`], [`outcome`], [`mail`], [`moved`], [`root_handle`], [`unwanted`]) are below everything else of a node; what carries
//! orders out is above. Nothing here serves requests: that is [`io`](super::io).

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
pub mod unwanted;
pub mod wiring;
