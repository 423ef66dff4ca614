//! What several changes together are told.

use super::define::{Enum, EnumType, STR, Struct, StructType, enumeration, opt, req, structure};

pub(super) static TRANSACTION_ACTION: StructType = structure(
    "TransactionAction",
    &[req("type", Enum(&TRANSACTION_ACTION_KIND))],
)
.union(
    "type",
    &[
        ("abort", &ABORT_WRAPPER),
        ("blockdev-snapshot", &BLOCKDEV_SNAPSHOT_WRAPPER),
    ],
);

static TRANSACTION_ACTION_KIND: EnumType =
    enumeration("TransactionActionKind", &["abort", "blockdev-snapshot"]);

static ABORT_WRAPPER: StructType = structure("AbortWrapper", &[req("data", Struct(&ABORT))]);

static ABORT: StructType = structure("Abort", &[]);

static BLOCKDEV_SNAPSHOT_WRAPPER: StructType = structure(
    "BlockdevSnapshotWrapper",
    &[req("data", Struct(&BLOCKDEV_SNAPSHOT))],
);

static BLOCKDEV_SNAPSHOT: StructType =
    structure("BlockdevSnapshot", &[req("node", STR), req("overlay", STR)]);

pub(super) static TRANSACTION_PROPERTIES: StructType = structure(
    "TransactionProperties",
    &[opt("completion-mode", Enum(&ACTION_COMPLETION_MODE))],
);

static ACTION_COMPLETION_MODE: EnumType = enumeration("ActionCompletionMode", &["individual", "grouped"]);
