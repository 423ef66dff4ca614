//! The answer of drivers that have no image, no debug points or no device.

/// What a driver without an image, places to hold requests at or a device has to say of them.
#[derive(Debug, Clone, Copy)]
pub struct Nothing;
