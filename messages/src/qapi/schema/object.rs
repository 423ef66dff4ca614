//! User objects.

use super::define::{
    ANY, BOOL, Enum, EnumType, I64, List, STR, Struct, StructType, U16, U64, enumeration, opt, req, structure,
};

/// The arguments of `object-add`, also what `--object` takes.
pub static OBJECT_OPTIONS: StructType = structure(
    "ObjectOptions",
    &[req("qom-type", Enum(&OBJECT_TYPE)), req("id", STR)],
)
.union(
    "qom-type",
    &[
        ("iothread", &IOTHREAD_PROPERTIES),
        ("main-loop", &MAIN_LOOP_PROPERTIES),
        ("chaos", &CHAOS_PROPERTIES),
        ("throttle-group", &THROTTLE_GROUP_PROPERTIES),
    ],
);

pub(super) static OBJECT_TYPE: EnumType = enumeration(
    "ObjectType",
    &["iothread", "main-loop", "chaos", "throttle-group"],
);

pub(super) static IOTHREAD_PROPERTIES: StructType = structure(
    "IothreadProperties",
    &[
        opt("aio-max-batch", I64),
        opt("thread-pool-min", I64),
        opt("thread-pool-max", I64),
        opt("poll-max-ns", I64),
        opt("poll-grow", I64),
        opt("poll-shrink", I64),
        // Not QEMU's.
        opt("x-millpond-cpu-affinity", List(&U16)),
    ],
);

pub(super) static MAIN_LOOP_PROPERTIES: StructType = structure(
    "MainLoopProperties",
    &[
        opt("aio-max-batch", I64),
        opt("thread-pool-min", I64),
        opt("thread-pool-max", I64),
    ],
);

/// Not QEMU's: which messages between actors are held back.
pub(super) static CHAOS_PROPERTIES: StructType = structure(
    "MillpondChaosProperties",
    &[opt("seed", U64), opt("rules", List(&Struct(&CHAOS_RULE)))],
);

pub(super) static CHAOS_RULE: StructType = structure(
    "MillpondChaosRule",
    &[
        opt("sender", STR),
        opt("receiver", STR),
        opt("kind", STR),
        opt("node", STR),
        opt("iothread", STR),
        opt("delay", STR),
        opt("burst", STR),
        opt("stall", STR),
        opt("slow-client", STR),
        opt("dying-client", STR),
    ],
);

pub(super) static THROTTLE_GROUP_PROPERTIES: StructType = structure(
    "ThrottleGroupProperties",
    &[
        opt("limits", Struct(&THROTTLE_LIMITS)),
        opt("x-iops-total", I64).with(&["unstable"]),
        opt("x-iops-total-max", I64).with(&["unstable"]),
        opt("x-iops-total-max-length", I64).with(&["unstable"]),
        opt("x-iops-read", I64).with(&["unstable"]),
        opt("x-iops-read-max", I64).with(&["unstable"]),
        opt("x-iops-read-max-length", I64).with(&["unstable"]),
        opt("x-iops-write", I64).with(&["unstable"]),
        opt("x-iops-write-max", I64).with(&["unstable"]),
        opt("x-iops-write-max-length", I64).with(&["unstable"]),
        opt("x-bps-total", I64).with(&["unstable"]),
        opt("x-bps-total-max", I64).with(&["unstable"]),
        opt("x-bps-total-max-length", I64).with(&["unstable"]),
        opt("x-bps-read", I64).with(&["unstable"]),
        opt("x-bps-read-max", I64).with(&["unstable"]),
        opt("x-bps-read-max-length", I64).with(&["unstable"]),
        opt("x-bps-write", I64).with(&["unstable"]),
        opt("x-bps-write-max", I64).with(&["unstable"]),
        opt("x-bps-write-max-length", I64).with(&["unstable"]),
        opt("x-iops-size", I64).with(&["unstable"]),
    ],
);

static THROTTLE_LIMITS: StructType = structure(
    "ThrottleLimits",
    &[
        opt("iops-total", I64),
        opt("iops-total-max", I64),
        opt("iops-total-max-length", I64),
        opt("iops-read", I64),
        opt("iops-read-max", I64),
        opt("iops-read-max-length", I64),
        opt("iops-write", I64),
        opt("iops-write-max", I64),
        opt("iops-write-max-length", I64),
        opt("bps-total", I64),
        opt("bps-total-max", I64),
        opt("bps-total-max-length", I64),
        opt("bps-read", I64),
        opt("bps-read-max", I64),
        opt("bps-read-max-length", I64),
        opt("bps-write", I64),
        opt("bps-write-max", I64),
        opt("bps-write-max-length", I64),
        opt("iops-size", I64),
    ],
);

pub(super) static OBJECT_PROPERTY_INFO: StructType = structure(
    "ObjectPropertyInfo",
    &[
        req("name", STR),
        req("type", STR),
        opt("description", STR),
        opt("default-value", ANY),
    ],
);

pub(super) static OBJECT_TYPE_INFO: StructType = structure(
    "ObjectTypeInfo",
    &[req("name", STR), opt("abstract", BOOL), opt("parent", STR)],
);
