//! The commands: one row each.

use super::amend::BLOCKDEV_AMEND_OPTIONS;
use super::character_device::{CHARDEV_BACKEND_INFO, CHARDEV_INFO};
use super::check::{CHECK_REPAIR, CHECK_RESULT};
use super::control::{COMMAND_INFO, QMP_CAPABILITY, VERSION_INFO};
use super::create::{BLOCKDEV_CREATE_OPTIONS, PREALLOC_MODE};
use super::define::{
    ANY, Alternate, BOOL, Command, Enum, I64, List, SIZE, STR, Struct, U32, U64, command, opt, req,
};
use super::drain::PENDING_DRAIN;
use super::export::{
    BLOCK_EXPORT_INFO, BLOCK_EXPORT_OPTIONS, BLOCK_EXPORT_REMOVE_MODE, NBD_SERVER_ADD_OPTIONS,
};
use super::graph::XDBG_BLOCK_GRAPH;
use super::image::BLOCK_DEVICE_INFO;
use super::introspection::SCHEMA_INFO;
use super::iothread::IOTHREAD_REPORT;
use super::job::{BLOCK_JOB_INFO, JOB_INFO};
use super::node::{BLOCKDEV_OPTIONS, STR_OR_NULL};
use super::object::{OBJECT_OPTIONS, OBJECT_PROPERTY_INFO, OBJECT_TYPE_INFO};
use super::socket::SOCKET_ADDRESS_LEGACY;
use super::statistics::{BLOCK_INFO, BLOCK_STATS};
use super::transaction::{TRANSACTION_ACTION, TRANSACTION_PROPERTIES};

/// Every command of the schema, in the order in which it is listed.
pub static COMMANDS: &[Command] = &[
    command("qmp_capabilities").takes(&[opt("enable", List(&Enum(&QMP_CAPABILITY)))]),
    command("query-version").returns(Struct(&VERSION_INFO)),
    command("query-commands").returns(List(&Struct(&COMMAND_INFO))),
    command("query-qmp-schema").returns(List(&Struct(&SCHEMA_INFO))),
    command("quit"),
    command("blockdev-add").boxed(&BLOCKDEV_OPTIONS),
    command("blockdev-del").takes(&[req("node-name", STR)]),
    command("blockdev-reopen").takes(&[req("options", List(&Struct(&BLOCKDEV_OPTIONS)))]),
    command("blockdev-snapshot")
        .takes(&[req("node", STR), req("overlay", STR)])
        .with(&["allow-write-only-overlay"]),
    command("transaction").takes(&[
        req("actions", List(&Struct(&TRANSACTION_ACTION))),
        opt("properties", Struct(&TRANSACTION_PROPERTIES)),
    ]),
    command("blockdev-create").takes(&[
        req("job-id", STR),
        req("options", Struct(&BLOCKDEV_CREATE_OPTIONS)),
    ]),
    command("x-blockdev-amend")
        .takes(&[
            req("job-id", STR),
            req("node-name", STR),
            req("options", Struct(&BLOCKDEV_AMEND_OPTIONS)),
            opt("force", BOOL),
        ])
        .with(&["unstable"]),
    command("blockdev-set-active").takes(&[opt("node-name", STR), req("active", BOOL)]),
    command("block_resize").takes(&[opt("device", STR), opt("node-name", STR), req("size", I64)]),
    command("x-blockdev-change")
        .takes(&[req("parent", STR), opt("child", STR), opt("node", STR)])
        .with(&["unstable"]),
    command("change-backing-file").takes(&[
        req("device", STR),
        req("image-node-name", STR),
        req("backing-file", STR),
    ]),
    command("x-blockdev-set-iothread")
        .takes(&[
            req("node-name", STR),
            req("iothread", Alternate(&STR_OR_NULL)),
            opt("force", BOOL),
        ])
        .with(&["unstable"]),
    command("query-named-block-nodes")
        .takes(&[opt("flat", BOOL)])
        .returns(List(&Struct(&BLOCK_DEVICE_INFO))),
    command("query-block").returns(List(&Struct(&BLOCK_INFO))),
    command("query-blockstats")
        .takes(&[opt("query-nodes", BOOL)])
        .returns(List(&Struct(&BLOCK_STATS))),
    command("query-block-jobs").returns(List(&Struct(&BLOCK_JOB_INFO))),
    command("x-debug-query-block-graph")
        .returns(Struct(&XDBG_BLOCK_GRAPH))
        .with(&["unstable"]),
    command("x-millpond-check")
        .takes(&[req("node-name", STR), opt("repair", Enum(&CHECK_REPAIR))])
        .returns(Struct(&CHECK_RESULT))
        .with(&["unstable"]),
    command("x-millpond-flight-record")
        .takes(&[req("filename", STR)])
        .with(&["unstable"]),
    command("x-millpond-latency-histogram-set")
        .takes(&[
            req("node-name", STR),
            opt("boundaries", List(&U64)),
            opt("boundaries-read", List(&U64)),
            opt("boundaries-write", List(&U64)),
            opt("boundaries-flush", List(&U64)),
        ])
        .with(&["unstable"]),
    command("x-millpond-log-reopen").with(&["unstable"]),
    command("x-millpond-move-node")
        .takes(&[
            req("node-name", STR),
            req("iothread", Alternate(&STR_OR_NULL)),
            opt("joined", BOOL),
            opt("dry-run", BOOL),
        ])
        .with(&["unstable"]),
    command("x-millpond-query-dot").returns(STR).with(&["unstable"]),
    command("x-millpond-query-drains")
        .returns(List(&Struct(&PENDING_DRAIN)))
        .with(&["unstable"]),
    command("x-millpond-query-iothreads")
        .returns(List(&Struct(&IOTHREAD_REPORT)))
        .with(&["unstable"]),
    command("x-millpond-truncate")
        .takes(&[
            req("node-name", STR),
            req("size", SIZE),
            opt("exact", BOOL),
            opt("preallocation", Enum(&PREALLOC_MODE)),
            opt("zero", BOOL),
        ])
        .with(&["unstable"]),
    command("block-export-add").boxed(&BLOCK_EXPORT_OPTIONS),
    command("block-export-del").takes(&[req("id", STR), opt("mode", Enum(&BLOCK_EXPORT_REMOVE_MODE))]),
    command("query-block-exports").returns(List(&Struct(&BLOCK_EXPORT_INFO))),
    command("nbd-server-start").takes(&[
        opt("handshake-max-seconds", U32),
        opt("tls-creds", STR),
        opt("tls-authz", STR),
        opt("max-connections", U32),
        req("addr", Struct(&SOCKET_ADDRESS_LEGACY)),
    ]),
    command("nbd-server-add")
        .boxed(&NBD_SERVER_ADD_OPTIONS)
        .with(&["deprecated"]),
    command("nbd-server-remove")
        .takes(&[req("name", STR), opt("mode", Enum(&BLOCK_EXPORT_REMOVE_MODE))])
        .with(&["deprecated"]),
    command("nbd-server-stop"),
    command("query-jobs").returns(List(&Struct(&JOB_INFO))),
    command("job-pause").takes(&[req("id", STR)]),
    command("job-resume").takes(&[req("id", STR)]),
    command("job-cancel").takes(&[req("id", STR)]),
    command("job-complete").takes(&[req("id", STR)]),
    command("job-finalize").takes(&[req("id", STR)]),
    command("job-dismiss").takes(&[req("id", STR)]),
    command("object-add").boxed(&OBJECT_OPTIONS),
    command("object-del").takes(&[req("id", STR)]),
    command("qom-list")
        .takes(&[req("path", STR)])
        .returns(List(&Struct(&OBJECT_PROPERTY_INFO))),
    command("qom-get")
        .takes(&[req("path", STR), req("property", STR)])
        .returns(ANY),
    command("qom-set").takes(&[req("path", STR), req("property", STR), req("value", ANY)]),
    command("qom-list-types")
        .takes(&[opt("implements", STR), opt("abstract", BOOL)])
        .returns(List(&Struct(&OBJECT_TYPE_INFO))),
    command("qom-list-properties")
        .takes(&[req("typename", STR)])
        .returns(List(&Struct(&OBJECT_PROPERTY_INFO))),
    command("query-chardev").returns(List(&Struct(&CHARDEV_INFO))),
    command("query-chardev-backends").returns(List(&Struct(&CHARDEV_BACKEND_INFO))),
];
