//! The NBD server and the addresses sockets listen on.

use serde::{Deserialize, Serialize};

/// Seconds a client has for the handshake if nothing else is said.
pub const DEFAULT_HANDSHAKE_MAX_SECONDS: u32 = 10;
/// Clients at once if nothing else is said.
pub const DEFAULT_MAX_CONNECTIONS: u32 = 100;

/// The NBD server as `--nbd-server` describes it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct NbdServerOptions {
    /// The address to listen at.
    pub addr: SocketAddress,
    /// Seconds a client has for the handshake, 0 for no limit; see [`DEFAULT_HANDSHAKE_MAX_SECONDS`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub handshake_max_seconds: Option<u32>,
    /// The TLS credentials object.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tls_creds: Option<String>,
    /// The object that says who may connect.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tls_authz: Option<String>,
    /// How many clients at once, 0 for no limit; see [`DEFAULT_MAX_CONNECTIONS`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_connections: Option<u32>,
}

/// The address of a socket, of any family.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "kebab-case")]
pub enum SocketAddress {
    /// A TCP address and its options.
    Inet(InetSocketAddress),
    /// A unix socket and its options.
    Unix(UnixSocketAddress),
    /// A virtual machine socket.
    Vsock(VsockSocketAddress),
    /// A file descriptor, by number or name.
    Fd(FdSocketAddress),
}

/// A TCP address, and how to use it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct InetSocketAddress {
    /// Host name or number; empty for any.
    pub host: String,
    /// Port as number or service name.
    pub port: String,
    /// Do not resolve names.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub numeric: Option<bool>,
    /// Try the ports up to this one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub to: Option<u16>,
    /// Use (or do not use) IPv4.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ipv4: Option<bool>,
    /// Use (or do not use) IPv6.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ipv6: Option<bool>,
    /// Whether TCP sends keep-alive probes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub keep_alive: Option<bool>,
    /// Whether several network paths are used at once.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mptcp: Option<bool>,
}

/// A unix socket's address.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct UnixSocketAddress {
    /// The path, or the name in the abstract name space.
    pub path: String,
    /// Use the abstract name space; default false.
    #[serde(default, rename = "abstract", skip_serializing_if = "Option::is_none")]
    pub is_abstract: Option<bool>,
    /// Do not pad an abstract name with zeroes; default true.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tight: Option<bool>,
}

/// A virtual machine socket's address.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct VsockSocketAddress {
    /// The context id: which machine is meant.
    pub cid: String,
    /// The port at that machine.
    pub port: String,
}

/// An inherited file descriptor.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct FdSocketAddress {
    /// Its number, or the name it was given through a monitor.
    #[serde(rename = "str")]
    pub name: String,
}
