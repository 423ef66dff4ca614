//! Exports: how the data of nodes is shown to programs outside.

pub mod backend;
pub mod nbd;
mod registry;

pub use registry::ExportRegistry;
