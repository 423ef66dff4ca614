//! What the format defines beside its header: numbers in bytes, table entries, sizes, and the index spaces. Plain values; nothing
//! here knows of an open image.

pub(crate) mod bytes;
pub(crate) mod entry;
pub(crate) mod geometry;
pub(crate) mod index;
pub(crate) mod space;
pub(crate) mod subcluster;
