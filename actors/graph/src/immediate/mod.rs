//! What is carried out at once, beside whatever mutation is under way.

pub mod cancel;
pub mod debug;
pub mod drain;
