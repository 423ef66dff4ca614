//! Unix sockets, by path or by abstract name.

use std::os::linux::net::SocketAddrExt;
use std::os::unix::net as std_unix;
use std::path::Path;

use millpond_messages::IoError;
use millpond_messages::qapi::UnixSocketAddress;
use rustix::net::{
    AddressFamily, SocketAddrUnix, SocketFlags, SocketType, bind, listen as listen_on, socket_with,
};

use super::error::{BACKLOG, SocketError};
use super::{Listeners, OwnFile, clear_for_socket};

/// The longest path of a unix socket, in bytes, without the zero at its end.
const MAX_PATH: usize = 107;

/// The bytes of an abstract name.
fn abstract_name(address: &UnixSocketAddress) -> Vec<u8> {
    let mut name = address.path.clone().into_bytes();
    if address.tight == Some(false) {
        name.resize(MAX_PATH, 0);
    }
    name
}

/// Where to connect to.
///
/// # Errors
/// The path is too long, or cannot be one.
pub fn unix_address(address: &UnixSocketAddress) -> Result<std_unix::SocketAddr, SocketError> {
    check_length(address)?;
    let made = if address.is_abstract == Some(true) {
        std_unix::SocketAddr::from_abstract_name(abstract_name(address))
    } else {
        std_unix::SocketAddr::from_pathname(&address.path)
    };
    made.map_err(|error| path_error(address, error))
}

fn check_length(address: &UnixSocketAddress) -> Result<(), SocketError> {
    if address.path.len() > MAX_PATH {
        return Err(SocketError::PathTooLong(address.path.clone()));
    }
    Ok(())
}

fn path_error(address: &UnixSocketAddress, why: impl ToString) -> SocketError {
    SocketError::Path {
        path: address.path.clone(),
        why: why.to_string(),
    }
}

pub(super) fn listen(address: &UnixSocketAddress) -> Result<Listeners, SocketError> {
    check_length(address)?;
    let failed = |errno: rustix::io::Errno| path_error(address, IoError::from_errno(errno.raw_os_error()));
    let is_abstract = address.is_abstract == Some(true);
    let path = Path::new(&address.path);
    let name = if is_abstract {
        SocketAddrUnix::new_abstract_name(&abstract_name(address))
    } else {
        SocketAddrUnix::new(path)
    };
    let name = name.map_err(failed)?;
    if !is_abstract {
        clear_for_socket(path).map_err(|error| path_error(address, error))?;
    }
    let socket = socket_with(
        AddressFamily::UNIX,
        SocketType::STREAM,
        SocketFlags::CLOEXEC,
        None,
    );
    let socket = socket.map_err(SocketError::system("Failed to create Unix socket"))?;
    bind(&socket, &name).map_err(failed)?;
    let file = if is_abstract {
        None
    } else {
        let made = OwnFile::made_at(path);
        Some(made.map_err(|error| path_error(address, IoError::from(error)))?)
    };
    if let Err(errno) = listen_on(&socket, BACKLOG) {
        file.iter().for_each(OwnFile::remove);
        return Err(SocketError::system("Failed to listen on socket")(errno));
    }
    Ok(Listeners {
        sockets: vec![socket],
        file,
    })
}
