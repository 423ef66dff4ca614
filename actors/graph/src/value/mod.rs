//! The graph as a value: what it is, and what can be told from it, with nothing of how it is changed.

pub mod bitmap;
pub mod blockers;
pub mod chain;
pub mod common;
pub mod edge;
pub mod filename;
pub mod forbidden;
pub mod frozen;
pub mod graph;
pub mod home;
pub mod node;
pub mod permissions;
pub mod refusal;
pub mod rewired;
