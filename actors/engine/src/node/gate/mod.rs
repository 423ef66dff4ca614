//! What a node needs to be drained and watched: the gate and the queue before it, overlapping requests, counters.

pub mod overlap;

pub mod sections;
pub mod stack_depth;
pub mod statistics;
pub mod wait_queue;
