//! Nodes from inside: what no user of theirs can see.
#![allow(clippy::unwrap_used, reason = "a test ends where something fails")]
#![allow(clippy::cast_possible_truncation, reason = "the tests' sizes are small")]

#[path = "../../../tests/support/driver.rs"]
#[allow(dead_code, reason = "other tests use other parts of it")]
mod driver;
mod paths;
#[path = "../../../tests/node/world.rs"]
#[allow(dead_code, reason = "other tests use other parts of it")]
mod world;
