//! The graph with its permissions.

use super::define::{Enum, EnumType, I64, List, STR, Struct, StructType, enumeration, req, structure};

pub(super) static XDBG_BLOCK_GRAPH: StructType = structure(
    "XDbgBlockGraph",
    &[
        req("nodes", List(&Struct(&XDBG_BLOCK_GRAPH_NODE))),
        req("edges", List(&Struct(&XDBG_BLOCK_GRAPH_EDGE))),
    ],
);

pub(super) static XDBG_BLOCK_GRAPH_NODE: StructType = structure(
    "XDbgBlockGraphNode",
    &[
        req("id", I64),
        req("type", Enum(&XDBG_BLOCK_GRAPH_NODE_TYPE)),
        req("name", STR),
    ],
);

pub(super) static XDBG_BLOCK_GRAPH_NODE_TYPE: EnumType = enumeration(
    "XDbgBlockGraphNodeType",
    &["block-backend", "block-job", "block-driver"],
);

pub(super) static XDBG_BLOCK_GRAPH_EDGE: StructType = structure(
    "XDbgBlockGraphEdge",
    &[
        req("parent", I64),
        req("child", I64),
        req("name", STR),
        req("perm", List(&Enum(&BLOCK_PERMISSION))),
        req("shared-perm", List(&Enum(&BLOCK_PERMISSION))),
    ],
);

pub(super) static BLOCK_PERMISSION: EnumType = enumeration(
    "BlockPermission",
    &["consistent-read", "write", "write-unchanged", "resize"],
);
