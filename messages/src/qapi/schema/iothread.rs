//! What iothreads have done. QEMU has no such query: the command's name says so.

use super::define::{List, STR, StructType, U16, U32, U64, req, structure};

pub(super) static IOTHREAD_REPORT: StructType = structure(
    "MillpondIothreadReport",
    &[
        req("id", STR),
        req("thread-id", U32),
        req("nodes", U64),
        req("cpu-affinity", List(&U16)),
        req("age-ns", U64),
        req("slept-ns", U64),
        req("polled-ns", U64),
        req("busy-ns", U64),
        req("turns", U64),
        req("system-calls", U64),
        req("sleeps", U64),
        req("wake-ups", U64),
        req("polls", U64),
        req("polls-paid", U64),
        req("messages", U64),
        req("task-runs", U64),
        req("requests", U64),
        req("requests-from-elsewhere", U64),
        req("operations", U64),
        req("operations-in-flight", U64),
    ],
);
