//! Drained sections that are not still yet, and what they wait for. QEMU has no such query: the command's name says so.

use super::define::{Enum, EnumType, List, STR, Struct, StructType, U64, enumeration, req, structure};

pub(super) static PENDING_DRAIN: StructType = structure(
    "MillpondPendingDrain",
    &[
        req("token", U64),
        req("user", STR),
        req("age-ns", U64),
        req("waiting-for", List(&Struct(&WAITING_NODE))),
    ],
);

static WAITING_NODE: StructType = structure(
    "MillpondWaitingNode",
    &[
        req("node-name", STR),
        req("requests", List(&Struct(&PENDING_REQUEST))),
    ],
);

static PENDING_REQUEST: StructType = structure(
    "MillpondPendingRequest",
    &[
        req("operation", Enum(&OPERATION)),
        req("offset", U64),
        req("len", U64),
        req("age-ns", U64),
        req("stands-at", STR),
    ],
);

static OPERATION: EnumType = enumeration(
    "MillpondOperation",
    &[
        "read",
        "write",
        "write-zeroes",
        "discard",
        "flush",
        "truncate",
        "block-status",
        "query",
    ],
);
