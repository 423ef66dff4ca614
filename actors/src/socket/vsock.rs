//! Sockets between a virtual machine and its host.

use std::io;
use std::os::fd::{AsFd, OwnedFd};

use millpond_messages::qapi::VsockSocketAddress;
use rustix::io::Errno;
use socket2::{Domain, SockAddr, SockRef, Socket, Type};

use super::error::{BACKLOG, SocketError};

/// The address that the options mean.
fn parse(address: &VsockSocketAddress) -> Result<SockAddr, SocketError> {
    let cid = address.cid.parse();
    let cid = cid.map_err(|_| SocketError::Machine(address.cid.clone()))?;
    let port = address.port.parse();
    let port = port.map_err(|_| SocketError::MachinePort(address.port.clone()))?;
    Ok(SockAddr::vsock(cid, port))
}

fn system(what: &'static str) -> impl Fn(io::Error) -> SocketError {
    move |error| SocketError::system(what)(Errno::from_io_error(&error).unwrap_or(Errno::IO))
}

pub(super) fn listen(address: &VsockSocketAddress) -> Result<OwnedFd, SocketError> {
    let address = parse(address)?;
    let socket = Socket::new(Domain::VSOCK, Type::STREAM, None);
    let socket = socket.map_err(system("Failed to create socket"))?;
    socket.bind(&address).map_err(system("Failed to bind socket"))?;
    let listening = socket.listen(BACKLOG);
    listening.map_err(system("Failed to listen on socket"))?;
    Ok(socket.into())
}

/// The address of such a socket; none if it is of another kind.
pub(super) fn address_of(socket: impl AsFd) -> Option<VsockSocketAddress> {
    let address = SockRef::from(&socket).local_addr().ok()?;
    let (cid, port) = address.as_vsock_address()?;
    Some(VsockSocketAddress {
        cid: cid.to_string(),
        port: port.to_string(),
    })
}
