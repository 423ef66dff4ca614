//! Listening sockets for the addresses that QEMU's options describe.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::OwnedFd;
use std::path::PathBuf;

use messages::qapi::{InetSocketAddress, SocketAddress, UnixSocketAddress};
use messages::{Error, ErrorKind, IoError, Result};
use rustix::io::Errno;
use rustix::net::{
    AddressFamily, SocketAddrUnix, SocketFlags, SocketType, bind, ipproto, listen, socket_with, sockopt,
};

use crate::ffi;

/// Connections that wait to be accepted; the kernel has its own bound.
const BACKLOG: i32 = 128;

/// The longest path of a unix socket, in bytes.
const MAX_PATH: usize = 107;

/// What a server listens on.
#[derive(Debug, Default)]
pub(super) struct Listeners {
    /// One for each address.
    pub(super) sockets: Vec<OwnedFd>,
    /// A socket in the file system, to be removed at the end.
    pub(super) path: Option<PathBuf>,
}

/// Opens listening sockets, without `O_NONBLOCK`.
///
/// # Errors
/// QEMU's texts: the address cannot be resolved or bound, or its kind is not supported.
pub(super) async fn open(address: &SocketAddress) -> Result<Listeners> {
    match address {
        SocketAddress::Unix(unix) => open_unix(unix),
        SocketAddress::Inet(inet) => open_inet(inet).await,
        SocketAddress::Fd(fd) => open_fd(&fd.name),
        SocketAddress::Vsock(_) => Err(Error::new(
            ErrorKind::Unsupported,
            "Listening on a vsock address is not supported",
        )),
    }
}

fn failed(what: &str) -> impl Fn(Errno) -> Error {
    move |errno| Error::io(what, IoError::from_errno(errno.raw_os_error()))
}

fn open_unix(address: &UnixSocketAddress) -> Result<Listeners> {
    let UnixSocketAddress {
        path,
        is_abstract,
        tight,
    } = address;
    if path.len() > MAX_PATH {
        let text = format!("UNIX socket path '{path}' is too long");
        return Err(Error::new(ErrorKind::InvalidArgument, text));
    }
    let is_abstract = is_abstract.unwrap_or(false);
    let name = if is_abstract {
        let mut name = path.clone().into_bytes();
        if tight == &Some(false) {
            name.resize(MAX_PATH, 0);
        }
        SocketAddrUnix::new_abstract_name(&name)
    } else {
        SocketAddrUnix::new(path.as_str())
    };
    let name = name.map_err(failed(&format!("Failed to bind socket to {path}")))?;
    if !is_abstract {
        match rustix::fs::unlink(path.as_str()) {
            Ok(()) | Err(Errno::NOENT) => {}
            Err(errno) => return Err(failed(&format!("Failed to unlink socket {path}"))(errno)),
        }
    }
    let socket = socket_with(
        AddressFamily::UNIX,
        SocketType::STREAM,
        SocketFlags::CLOEXEC,
        None,
    );
    let socket = socket.map_err(failed("Failed to create Unix socket"))?;
    bind(&socket, &name).map_err(failed(&format!("Failed to bind socket to {path}")))?;
    listen(&socket, BACKLOG).map_err(failed("Failed to listen on socket"))?;
    Ok(Listeners {
        sockets: vec![socket],
        path: (!is_abstract).then(|| PathBuf::from(path)),
    })
}

fn open_fd(name: &str) -> Result<Listeners> {
    let Ok(number) = name.parse() else {
        return Err(Error::new(
            ErrorKind::Unsupported,
            "only QEMU supports file descriptor passing",
        ));
    };
    let not_a_socket = |error: io::Error| {
        let text = format!("File descriptor '{name}' is not a socket");
        Error::caused_by(ErrorKind::InvalidArgument, text, error)
    };
    let socket = ffi::inherited(number).map_err(not_a_socket)?;
    match sockopt::socket_acceptconn(&socket) {
        Ok(true) => Ok(Listeners {
            sockets: vec![socket],
            path: None,
        }),
        Ok(false) => {
            let text = format!("File descriptor '{name}' is not a listening socket");
            Err(Error::new(ErrorKind::InvalidArgument, text))
        }
        Err(errno) => Err(not_a_socket(errno.into())),
    }
}

async fn open_inet(address: &InetSocketAddress) -> Result<Listeners> {
    let first = port(address)?;
    let last = address.to.unwrap_or(first).max(first);
    let hosts = resolve(address).await?;
    let mut error = None;
    for port in first..=last {
        let mut sockets = Vec::new();
        for host in &hosts {
            match open_tcp(SocketAddr::new(*host, port), address) {
                Ok(socket) => sockets.push(socket),
                Err(why) => error = Some(why),
            }
        }
        // As many of a name's addresses as this host has.
        if !sockets.is_empty() {
            return Ok(Listeners { sockets, path: None });
        }
    }
    let resolved_to_nothing = || {
        let text = format!("address resolution failed for {}:{}", address.host, address.port);
        Error::new(ErrorKind::NotFound, text)
    };
    Err(error.unwrap_or_else(resolved_to_nothing))
}

fn port(address: &InetSocketAddress) -> Result<u16> {
    address.port.parse().map_err(|error| {
        let text = format!(
            "address resolution failed for {}:{}: Servname not supported for ai_socktype",
            address.host, address.port
        );
        Error::caused_by(ErrorKind::InvalidArgument, text, error)
    })
}

/// The addresses of a host name that the options allow.
async fn resolve(address: &InetSocketAddress) -> Result<Vec<IpAddr>> {
    // Asking for one family alone turns the other off.
    let allow_v4 = address.ipv4.unwrap_or(address.ipv6 != Some(true));
    let allow_v6 = address.ipv6.unwrap_or(address.ipv4 != Some(true));
    let mut hosts: Vec<IpAddr> = if address.host.is_empty() {
        vec![Ipv6Addr::UNSPECIFIED.into(), Ipv4Addr::UNSPECIFIED.into()]
    } else {
        let found = tokio::net::lookup_host((address.host.as_str(), 0))
            .await
            .map_err(|error| {
                let why = error.to_string();
                let why = why
                    .strip_prefix("failed to lookup address information: ")
                    .unwrap_or(&why);
                let text = format!(
                    "address resolution failed for {}:{}: {why}",
                    address.host, address.port
                );
                Error::caused_by(ErrorKind::NotFound, text, error)
            })?;
        found.map(|found| found.ip()).collect()
    };
    hosts.retain(|host| if host.is_ipv4() { allow_v4 } else { allow_v6 });
    hosts.dedup();
    Ok(hosts)
}

fn open_tcp(address: SocketAddr, options: &InetSocketAddress) -> Result<OwnedFd> {
    let family = if address.is_ipv4() {
        AddressFamily::INET
    } else {
        AddressFamily::INET6
    };
    let protocol = if options.mptcp == Some(true) {
        ipproto::MPTCP
    } else {
        ipproto::TCP
    };
    let socket = socket_with(family, SocketType::STREAM, SocketFlags::CLOEXEC, Some(protocol));
    let socket = socket.map_err(failed("Failed to create a socket"))?;
    let prepare = || {
        sockopt::set_socket_reuseaddr(&socket, true)?;
        if address.is_ipv6() {
            // Each family has a socket of its own.
            sockopt::set_ipv6_v6only(&socket, true)?;
        }
        // Accepted sockets inherit it.
        sockopt::set_socket_keepalive(&socket, options.keep_alive == Some(true))
    };
    prepare().map_err(failed("Failed to set up a socket"))?;
    bind(&socket, &address).map_err(failed("Failed to bind socket"))?;
    listen(&socket, BACKLOG).map_err(failed("Failed to listen on socket"))?;
    Ok(socket)
}
