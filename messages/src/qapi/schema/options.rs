//! The objects that options of the command line describe.

use super::define::{BOOL, Enum, EnumType, STR, Struct, StructType, U32, enumeration, opt, req, structure};
pub use super::export::BLOCK_EXPORT_OPTIONS;
pub use super::node::BLOCKDEV_OPTIONS;
pub use super::object::OBJECT_OPTIONS;
use super::socket::{
    FD_SOCKET_ADDRESS, INET_SOCKET_ADDRESS, SOCKET_ADDRESS_TYPE, UNIX_SOCKET_ADDRESS, VSOCK_SOCKET_ADDRESS,
};

static SOCKET_ADDRESS: StructType = structure("SocketAddress", &[req("type", Enum(&SOCKET_ADDRESS_TYPE))])
    .union(
        "type",
        &[
            ("inet", &INET_SOCKET_ADDRESS),
            ("unix", &UNIX_SOCKET_ADDRESS),
            ("vsock", &VSOCK_SOCKET_ADDRESS),
            ("fd", &FD_SOCKET_ADDRESS),
        ],
    );

/// What the option `--nbd-server` takes.
pub static NBD_SERVER_OPTIONS: StructType = structure(
    "NbdServerOptions",
    &[
        opt("handshake-max-seconds", U32),
        opt("tls-creds", STR),
        opt("tls-authz", STR),
        opt("max-connections", U32),
        req("addr", Struct(&SOCKET_ADDRESS)),
    ],
);

static MONITOR_MODE: EnumType = enumeration("MonitorMode", &["readline", "control"]);

/// What the option `--monitor` takes.
pub static MONITOR_OPTIONS: StructType = structure(
    "MonitorOptions",
    &[
        opt("id", STR),
        opt("mode", Enum(&MONITOR_MODE)),
        opt("pretty", BOOL),
        req("chardev", STR),
    ],
);
