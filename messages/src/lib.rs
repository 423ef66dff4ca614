//! Millpond's vocabulary: what its actors say to each other, and the types its users see.
#![forbid(unsafe_code)]
