//! Exports: how the data of nodes is shown to programs outside.

pub mod nbd;
mod registry;
mod told;

pub use registry::ExportRegistry;
