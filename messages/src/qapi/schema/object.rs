//! User objects.

use super::define::{
    ANY, BOOL, Enum, EnumType, I64, List, STR, StructType, U16, enumeration, opt, req, structure,
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
    ],
);

pub(super) static OBJECT_TYPE: EnumType = enumeration("ObjectType", &["iothread", "main-loop"]);

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
