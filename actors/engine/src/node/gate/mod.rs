//! What a node needs to be drained and watched: the gate and the queue before it, overlapping requests, counters. These are
//! leaves: none of them knows a node or a driver, so that the model checker can drive them.

pub mod in_turn;
pub mod overlap;

pub mod sections;
pub mod stack_depth;
pub mod statistics;
pub mod wait_queue;
