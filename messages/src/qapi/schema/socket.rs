//! Addresses of sockets, and the NBD server that listens on one.

use super::define::{BOOL, Enum, EnumType, STR, Struct, StructType, U16, enumeration, opt, req, structure};

pub(super) static SOCKET_ADDRESS_LEGACY: StructType =
    structure("SocketAddressLegacy", &[req("type", Enum(&SOCKET_ADDRESS_TYPE))]).union(
        "type",
        &[
            ("inet", &INET_SOCKET_ADDRESS_WRAPPER),
            ("unix", &UNIX_SOCKET_ADDRESS_WRAPPER),
            ("vsock", &VSOCK_SOCKET_ADDRESS_WRAPPER),
            ("fd", &FD_SOCKET_ADDRESS_WRAPPER),
        ],
    );

pub(super) static SOCKET_ADDRESS_TYPE: EnumType =
    enumeration("SocketAddressType", &["inet", "unix", "vsock", "fd"]);

pub(super) static INET_SOCKET_ADDRESS_WRAPPER: StructType = structure(
    "InetSocketAddressWrapper",
    &[req("data", Struct(&INET_SOCKET_ADDRESS))],
);

pub(super) static INET_SOCKET_ADDRESS: StructType = structure(
    "InetSocketAddress",
    &[
        req("host", STR),
        req("port", STR),
        opt("numeric", BOOL),
        opt("to", U16),
        opt("ipv4", BOOL),
        opt("ipv6", BOOL),
        opt("keep-alive", BOOL),
        opt("mptcp", BOOL),
    ],
);

pub(super) static UNIX_SOCKET_ADDRESS_WRAPPER: StructType = structure(
    "UnixSocketAddressWrapper",
    &[req("data", Struct(&UNIX_SOCKET_ADDRESS))],
);

pub(super) static UNIX_SOCKET_ADDRESS: StructType = structure(
    "UnixSocketAddress",
    &[req("path", STR), opt("abstract", BOOL), opt("tight", BOOL)],
);

pub(super) static VSOCK_SOCKET_ADDRESS_WRAPPER: StructType = structure(
    "VsockSocketAddressWrapper",
    &[req("data", Struct(&VSOCK_SOCKET_ADDRESS))],
);

pub(super) static VSOCK_SOCKET_ADDRESS: StructType =
    structure("VsockSocketAddress", &[req("cid", STR), req("port", STR)]);

pub(super) static FD_SOCKET_ADDRESS_WRAPPER: StructType = structure(
    "FdSocketAddressWrapper",
    &[req("data", Struct(&FD_SOCKET_ADDRESS))],
);

pub(super) static FD_SOCKET_ADDRESS: StructType = structure("FdSocketAddress", &[req("str", STR)]);
