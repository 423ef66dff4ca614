//! The answer of drivers that have no image, no debug points or no device.

/// Stands for the image, the debug points or the device that a driver does not have.
#[derive(Debug, Clone, Copy)]
pub struct Nothing;
