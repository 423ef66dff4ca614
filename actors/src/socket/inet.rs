//! TCP: names of hosts and services, and the two families of addresses.

use std::net::SocketAddr;
use std::os::fd::{AsFd, OwnedFd};
use std::time::Duration;

use millpond_messages::qapi::InetSocketAddress;
use rustix::io::Errno;
use rustix::net::{
    AddressFamily, SocketFlags, SocketType, bind, getsockname, ipproto, listen as listen_on, socket_with,
    sockopt,
};

use super::error::{BACKLOG, SocketError};

/// The resolver's text for a port that is neither a number nor the name of a service.
const NO_SERVICE: &str = "Servname not supported for ai_socktype";

/// Which families the options allow: asking for one alone turns the other off.
#[derive(Clone, Copy)]
struct Families {
    v4: bool,
    v6: bool,
}

impl Families {
    fn of(address: &InetSocketAddress) -> Self {
        Self {
            v4: address.ipv4.unwrap_or(address.ipv6 != Some(true)),
            v6: address.ipv6.unwrap_or(address.ipv4 != Some(true)),
        }
    }

    /// What the resolver is asked for.
    fn hint(self) -> i32 {
        match (self.v4, self.v6) {
            (true, false) => libc::AF_INET,
            (false, true) => libc::AF_INET6,
            _ => libc::AF_UNSPEC,
        }
    }
}

/// The addresses of a host and a service, for listening or for connecting. The lookup holds up nothing else.
///
/// # Errors
/// There are none, with the resolver's text.
pub async fn resolve(address: &InetSocketAddress, to_listen: bool) -> Result<Vec<SocketAddr>, SocketError> {
    let (host, port) = (address.host.clone(), address.port.clone());
    let unresolved = |why: String| SocketError::Unresolved {
        host: host.clone(),
        port: port.clone(),
        why,
    };
    // The C library takes a number modulo 65536.
    if port
        .parse::<i64>()
        .is_ok_and(|number| u16::try_from(number).is_err())
    {
        return Err(unresolved(NO_SERVICE.to_owned()));
    }
    let families = Families::of(address);
    let mut flags = if to_listen { libc::AI_PASSIVE } else { 0 };
    if address.numeric == Some(true) {
        flags |= libc::AI_NUMERICHOST | libc::AI_NUMERICSERV;
    }
    let hints = dns_lookup::AddrInfoHints {
        flags,
        address: families.hint(),
        socktype: libc::SOCK_STREAM,
        protocol: 0,
    };
    let (asked_host, asked_port) = (host.clone(), port.clone());
    let lookup = tokio::task::spawn_blocking(move || {
        let host = Some(asked_host.as_str()).filter(|host| !host.is_empty());
        // Without a host, a service is asked for: an empty one would be nothing at all.
        let port = if asked_port.is_empty() { "0" } else { &asked_port };
        let found = dns_lookup::getaddrinfo(host, Some(port), Some(hints)).map_err(std::io::Error::from)?;
        found
            .map(|one| one.map(|one| one.sockaddr))
            .collect::<std::io::Result<Vec<_>>>()
    });
    let found = match lookup.await {
        Ok(Ok(found)) => found,
        Ok(Err(error)) => {
            let why = error.to_string();
            let why = why
                .strip_prefix("failed to lookup address information: ")
                .unwrap_or(&why);
            return Err(unresolved(why.to_owned()));
        }
        Err(error) => return Err(unresolved(error.to_string())),
    };
    let mut addresses: Vec<SocketAddr> = found;
    addresses.dedup();
    Ok(addresses)
}

pub(super) async fn listen(address: &InetSocketAddress) -> Result<Vec<OwnedFd>, SocketError> {
    let hosts = resolve(address, true).await?;
    let first = hosts.first().map_or(0, SocketAddr::port);
    let last = address.to.unwrap_or(first).max(first);
    let mut error = None;
    for port in first..=last {
        match listen_on_port(&hosts, port, address) {
            Ok(sockets) => return Ok(sockets),
            Err(why) => error = Some(why),
        }
    }
    Err(error.unwrap_or_else(|| SocketError::system("Failed to bind socket")(Errno::ADDRNOTAVAIL)))
}

/// Sockets on one port of as many of a name's addresses as this host has; at least one.
fn listen_on_port(
    hosts: &[SocketAddr],
    mut port: u16,
    options: &InetSocketAddress,
) -> Result<Vec<OwnedFd>, SocketError> {
    let mut sockets = Vec::new();
    let mut error = SocketError::system("Failed to bind socket")(Errno::ADDRNOTAVAIL);
    for host in hosts {
        match listen_at(SocketAddr::new(host.ip(), port), options) {
            Ok(socket) => {
                // The system chose for the first: the others are where a client expects them.
                if port == 0 {
                    port = port_of(&socket);
                }
                sockets.push(socket);
            }
            Err(why) => error = why,
        }
    }
    if sockets.is_empty() {
        return Err(error);
    }
    Ok(sockets)
}

/// The port that a socket is bound to; 0 if it has none.
pub(super) fn port_of(socket: &OwnedFd) -> u16 {
    getsockname(socket)
        .ok()
        .and_then(|address| SocketAddr::try_from(address).ok())
        .map_or(0, |address| address.port())
}

fn listen_at(address: SocketAddr, options: &InetSocketAddress) -> Result<OwnedFd, SocketError> {
    let families = Families::of(options);
    // The address that stands for all hosts is that of both families, unless one is not wanted or the other's port is
    // taken already.
    if address.is_ipv6() && families.v4 && families.v6 {
        match bound(address, options, false) {
            Err(SocketError::System {
                errno: Errno::ADDRINUSE,
                ..
            }) => {}
            made => return made,
        }
    }
    bound(address, options, true)
}

/// Has a connection, or those that are accepted on a socket, probe whether the other side is there.
///
/// # Errors
/// The system has no such option, or the number is out of its range.
pub fn keep_alive(socket: impl AsFd, options: &InetSocketAddress) -> rustix::io::Result<()> {
    let socket = socket.as_fd();
    let seconds = |given: Option<u32>| {
        let given = given.filter(|seconds| *seconds > 0);
        given.map(|seconds| Duration::from_secs(seconds.into()))
    };
    sockopt::set_socket_keepalive(socket, options.keep_alive == Some(true))?;
    if let Some(count) = options.keep_alive_count.filter(|count| *count > 0) {
        sockopt::set_tcp_keepcnt(socket, count)?;
    }
    if let Some(idle) = seconds(options.keep_alive_idle) {
        sockopt::set_tcp_keepidle(socket, idle)?;
    }
    if let Some(interval) = seconds(options.keep_alive_interval) {
        sockopt::set_tcp_keepintvl(socket, interval)?;
    }
    Ok(())
}

fn bound(address: SocketAddr, options: &InetSocketAddress, v6_only: bool) -> Result<OwnedFd, SocketError> {
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
    let socket = socket.map_err(SocketError::system("Failed to create a socket"))?;
    let prepare = || {
        sockopt::set_socket_reuseaddr(&socket, true)?;
        if address.is_ipv6() {
            sockopt::set_ipv6_v6only(&socket, v6_only)?;
        }
        // Accepted sockets inherit it.
        keep_alive(&socket, options)
    };
    prepare().map_err(SocketError::system("Failed to set up a socket"))?;
    bind(&socket, &address).map_err(SocketError::system("Failed to bind socket"))?;
    // Two may bind one port as long as neither listens: this can fail for the same reason.
    listen_on(&socket, BACKLOG).map_err(SocketError::system("Failed to listen on socket"))?;
    Ok(socket)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn accepted_sockets_probe_as_the_options_say() {
        let told = InetSocketAddress {
            host: "127.0.0.1".into(),
            port: "0".into(),
            keep_alive: Some(true),
            keep_alive_count: Some(3),
            keep_alive_idle: Some(40),
            keep_alive_interval: Some(0),
            ..InetSocketAddress::default()
        };
        let accepted = async |options: &InetSocketAddress| {
            let listener = listen(options).await.unwrap().remove(0);
            let address = ("127.0.0.1", port_of(&listener));
            let _client = std::net::TcpStream::connect(address).unwrap();
            rustix::net::accept(listener).unwrap()
        };
        let (probing, silent) = (
            accepted(&told).await,
            accepted(&InetSocketAddress {
                keep_alive: None,
                keep_alive_count: None,
                keep_alive_idle: None,
                ..told.clone()
            })
            .await,
        );
        assert!(sockopt::socket_keepalive(&probing).unwrap());
        assert_eq!(sockopt::tcp_keepcnt(&probing).unwrap(), 3);
        assert_eq!(sockopt::tcp_keepidle(&probing).unwrap().as_secs(), 40);
        assert!(!sockopt::socket_keepalive(&silent).unwrap());
        assert_eq!(
            sockopt::tcp_keepintvl(&probing).unwrap(),
            sockopt::tcp_keepintvl(&silent).unwrap(),
            "zero is the system's own"
        );
    }
}
