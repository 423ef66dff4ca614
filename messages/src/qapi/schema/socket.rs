//! Addresses of sockets.

use crate::qapi::row::qapi;

qapi! {
    /// The families of addresses.
    enum SocketAddressType {
        /// A TCP address and its options.
        Inet = "inet",
        /// A unix socket and its options.
        Unix = "unix",
        /// A virtual machine socket.
        Vsock = "vsock",
        /// A file descriptor, by number or name.
        Fd = "fd",
    }

    /// The address of a socket, of any family.
    #[derive(Eq)]
    branches SocketAddress by "type": SocketAddressType {
        /// A TCP address and its options.
        Inet = "inet": InetSocketAddress,
        /// A unix socket and its options.
        Unix = "unix": UnixSocketAddress,
        /// A virtual machine socket.
        Vsock = "vsock": VsockSocketAddress,
        /// A file descriptor, by number or name.
        Fd = "fd": FdSocketAddress,
    }

    /// A socket address as older commands write it: what the family knows is one level down.
    branches SocketAddressLegacy by "type": SocketAddressType {
        /// A TCP address and its options.
        Inet = "inet": InetSocketAddressWrapper,
        /// A unix socket and its options.
        Unix = "unix": UnixSocketAddressWrapper,
        /// A virtual machine socket.
        Vsock = "vsock": VsockSocketAddressWrapper,
        /// A file descriptor, by number or name.
        Fd = "fd": FdSocketAddressWrapper,
    }

    /// A TCP address, one level down.
    struct InetSocketAddressWrapper {
        /// The address and its options.
        data: InetSocketAddress,
    }

    /// A TCP address, and how to use it.
    #[derive(Default, Eq)]
    struct InetSocketAddress {
        /// Host name or number; empty for any.
        host: String,
        /// Port as number or service name.
        port: String,
        /// Do not resolve names.
        numeric: Option<bool>,
        /// Try the ports up to this one.
        to: Option<u16>,
        /// Use (or do not use) IPv4.
        ipv4: Option<bool>,
        /// Use (or do not use) IPv6.
        ipv6: Option<bool>,
        /// Whether TCP sends keep-alive probes.
        keep_alive: Option<bool>,
        /// How many probes go unanswered before the connection is given up; 0 leaves it to the system.
        keep_alive_count: Option<u32>,
        /// Seconds without a byte before the first probe; 0 leaves it to the system.
        keep_alive_idle: Option<u32>,
        /// Seconds between probes; 0 leaves it to the system.
        keep_alive_interval: Option<u32>,
        /// Whether several network paths are used at once.
        mptcp: Option<bool>,
    }

    /// A unix socket's address, one level down.
    struct UnixSocketAddressWrapper {
        /// The address and its options.
        data: UnixSocketAddress,
    }

    /// A unix socket's address.
    #[derive(Default, Eq)]
    struct UnixSocketAddress {
        /// The path, or the name in the abstract name space.
        path: String,
        /// Use the abstract name space; default false.
        is_abstract as "abstract": Option<bool>,
        /// Do not pad an abstract name with zeroes; default true.
        tight: Option<bool>,
    }

    /// A virtual machine socket's address, one level down.
    struct VsockSocketAddressWrapper {
        /// The address and its options.
        data: VsockSocketAddress,
    }

    /// A virtual machine socket's address.
    #[derive(Default, Eq)]
    struct VsockSocketAddress {
        /// The context id: which machine is meant.
        cid: String,
        /// The port at that machine.
        port: String,
    }

    /// An inherited file descriptor, one level down.
    struct FdSocketAddressWrapper {
        /// The descriptor by number or name.
        data: FdSocketAddress,
    }

    /// An inherited file descriptor.
    #[derive(Default, Eq)]
    struct FdSocketAddress {
        /// Its number, or the name it was given through a monitor.
        name as "str": String,
    }
}

impl From<SocketAddressLegacy> for SocketAddress {
    fn from(legacy: SocketAddressLegacy) -> Self {
        match legacy {
            SocketAddressLegacy::Inet(inet) => Self::Inet(inet.data),
            SocketAddressLegacy::Unix(unix) => Self::Unix(unix.data),
            SocketAddressLegacy::Vsock(vsock) => Self::Vsock(vsock.data),
            SocketAddressLegacy::Fd(fd) => Self::Fd(fd.data),
        }
    }
}
