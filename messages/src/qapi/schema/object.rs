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
    ],
);

pub(super) static OBJECT_TYPE: EnumType = enumeration("ObjectType", &["iothread", "main-loop", "chaos"]);

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
