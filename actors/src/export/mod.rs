//! Exports: how the data of nodes is shown to programs outside.
//!
//! ```text
//!   control thread:  registry (ids, holds, iothreads, removal) --> kind: Prepared, Export
//!   iothread:        worker (connections, queues), at its seat --> backend (the node behind the export)
//! ```
//! Each kind of export is a folder here, and knows nothing of the others. The kinds that are virtio devices share the folder
//! `virtio`.

pub mod backend;
mod fuse;
mod kind;
pub mod nbd;
mod placement;
mod registry;
pub(crate) mod saved;
mod seat;
mod vduse;
mod vhost;
mod virtio;
mod watched;
mod worker;

pub use registry::ExportRegistry;
