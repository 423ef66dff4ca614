//! Who is at the other end of a connection, for people.

use millpond_ring::Fd;
use rustix::net::{SocketAddrAny, getpeername, sockopt};
use std::net::SocketAddr;

/// The address of a TCP client, or the process of one over a unix socket.
pub(super) fn peer(socket: &Fd) -> String {
    let Ok(Some(address)) = getpeername(socket).map(|address: Option<SocketAddrAny>| address) else {
        return "somebody who has left".to_owned();
    };
    if let Ok(address) = SocketAddr::try_from(address) {
        return address.to_string();
    }
    match sockopt::socket_peercred(socket) {
        Ok(credentials) => format!(
            "process {} of user {}",
            credentials.pid.as_raw_nonzero(),
            credentials.uid.as_raw()
        ),
        Err(_) => "a unix socket".to_owned(),
    }
}
