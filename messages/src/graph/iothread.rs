//! Iothreads: their properties, and what they have done.

use serde::{Deserialize, Serialize};

/// An iothread object's properties, with QEMU's defaults.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct IothreadOptions {
    /// The id that its maker gave it.
    pub id: String,
    /// The longest busy wait, in nanoseconds; 0 never waits busily.
    #[serde(default = "default_poll_max")]
    pub poll_max_ns: i64,
    /// Factor by which the busy wait grows; 0 doubles.
    #[serde(default)]
    pub poll_grow: i64,
    /// Divisor by which it shrinks; 0 goes back to none.
    #[serde(default)]
    pub poll_shrink: i64,
    /// The most requests in one batch; 0 chooses.
    #[serde(default)]
    pub aio_max_batch: i64,
    /// Threads of the pool kept when idle.
    #[serde(default)]
    pub thread_pool_min: i64,
    /// The most threads of the pool.
    #[serde(default = "default_pool_max")]
    pub thread_pool_max: i64,
    /// The processors that the thread may run on, by number; empty for all of the process's. It cannot be changed.
    #[serde(
        default,
        rename = "x-millpond-cpu-affinity",
        skip_serializing_if = "Vec::is_empty"
    )]
    pub cpu_affinity: Vec<u16>,
}

impl IothreadOptions {
    /// An iothread of this id with all other properties at their defaults.
    #[must_use]
    pub fn named(id: impl Into<String>) -> Self {
        Self {
            id: id.into(),
            poll_max_ns: default_poll_max(),
            poll_grow: 0,
            poll_shrink: 0,
            aio_max_batch: 0,
            thread_pool_min: 0,
            thread_pool_max: default_pool_max(),
            cpu_affinity: Vec::new(),
        }
    }
}

const fn default_poll_max() -> i64 {
    32_768
}

const fn default_pool_max() -> i64 {
    64
}

/// What an iothread is and has done since it was started. Times are in nanoseconds.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct IothreadReport {
    /// Its id; that of the main one is `main`, which no object has unless a user makes one of that name.
    pub id: String,
    /// The thread's id on the host.
    pub thread_id: u32,
    /// Nodes that live there.
    pub nodes: u64,
    /// The processors that it may run on; empty for all of the process's.
    pub cpu_affinity: Vec<u16>,
    /// What the iothread has counted so far.
    #[serde(flatten)]
    pub counters: IothreadCounters,
}

/// The counters of an [`IothreadReport`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct IothreadCounters {
    /// Time since its start.
    pub age_ns: u64,
    /// Time that it slept.
    pub slept_ns: u64,
    /// Time that it waited busily for work before it slept or got some.
    pub polled_ns: u64,
    /// All other time: it worked, or was ready to and had no processor.
    pub busy_ns: u64,
    /// Turns of its loop.
    pub turns: u64,
    /// System calls for I/O and waiting.
    pub system_calls: u64,
    /// How many times it slept.
    pub sleeps: u64,
    /// Sleeps that another thread ended.
    pub wake_ups: u64,
    /// How many times it polled instead of sleeping.
    pub polls: u64,
    /// Busy waits that found work.
    pub polls_paid: u64,
    /// How many messages it has handled.
    pub messages: u64,
    /// Times that a task was run.
    pub task_runs: u64,
    /// Requests that entered the graph at its nodes.
    pub requests: u64,
    /// Pieces of requests that came from nodes of other iothreads.
    pub requests_from_elsewhere: u64,
    /// Operations handed to its ring.
    pub operations: u64,
    /// Operations in flight now.
    pub operations_in_flight: u64,
}
