//! Drained sections on the whole block layer: what QEMU's own unit tests of drain assert, restated for this design, and
//! the shapes in which drains fail in the field.
//!
//! A driver's drained-begin and drained-end are `Driver::quiesce` and `Driver::resume`, a context is an iothread, and to
//! poll is to await. A section covers a node and its ancestors, never its children alone; a node counts the sections that
//! cover it, and its driver hears of the first and the last.
#![allow(clippy::unwrap_used, reason = "a test ends where something fails")]
#![allow(clippy::cast_possible_truncation, reason = "the tests' sizes are small")]
mod callbacks;
mod changes;
mod chaos;
mod clusters;
#[path = "../../engine/tests/support/driver.rs"]
#[allow(dead_code, reason = "other tests use other parts of it")]
mod driver;
mod iothreads;
mod job;
mod jobs;
mod shapes;
mod slow;
mod users;
mod work;
mod work_cases;
mod work_moves;
mod work_swing;
mod world;
