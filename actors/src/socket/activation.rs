//! Sockets that the process was started with: by number, or by the names that a service manager gives them
//! (`LISTEN_FDS` and `LISTEN_FDNAMES`).

use std::io;
use std::os::fd::{OwnedFd, RawFd};
use std::sync::OnceLock;

use rustix::net::getsockname;

use super::error::SocketError;
use millpond_ring::os::process::inherited;

/// A descriptor that was passed, and its name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Passed {
    /// The number that the descriptor was inherited under.
    pub number: RawFd,
    /// Its name; that of a unit unless the unit says otherwise, and empty if the manager gave none.
    pub name: String,
}

/// Written once, before any thread is started, and only read from then on: nobody ever waits for it.
static PASSED: OnceLock<Vec<Passed>> = OnceLock::new();

/// The descriptors that the service manager passed to this process.
pub fn all() -> &'static [Passed] {
    PASSED.get().map_or(&[], Vec::as_slice)
}

/// Takes note of the descriptors that the service manager passed. To be called at the start of the program, by the
/// process that they are meant for.
///
/// # Errors
/// The manager's variables contradict themselves or each other.
pub fn note() -> io::Result<()> {
    let passed = sd_notify::listen_fds_with_names()?;
    let passed = passed.map(|(number, name)| Passed { number, name }).collect();
    // Noted already: then by the same process, from the same environment.
    let _ = PASSED.set(passed);
    Ok(())
}

/// For an error: which names there are.
pub(super) fn known() -> String {
    let names: Vec<_> = all().iter().map(|passed| passed.name.as_str()).collect();
    if names.is_empty() {
        return String::new();
    }
    format!("; LISTEN_FDNAMES has {}", names.join(", "))
}

/// Duplicates of the sockets that were passed under a number or a name.
///
/// # Errors
/// There are none.
pub fn passed(name: &str) -> Result<Vec<OwnedFd>, SocketError> {
    let named: Vec<RawFd> = all()
        .iter()
        .filter(|passed| passed.name == name)
        .map(|passed| passed.number)
        .collect();
    let numbers = match name.parse() {
        _ if !named.is_empty() => named,
        Ok(number) => vec![number],
        Err(_) => {
            return Err(SocketError::UnknownDescriptor {
                name: name.to_owned(),
            });
        }
    };
    numbers.into_iter().map(|number| socket(number, name)).collect()
}

fn socket(number: RawFd, name: &str) -> Result<OwnedFd, SocketError> {
    let not_a_socket = || SocketError::NotASocket(name.to_owned());
    let socket = inherited(number).map_err(|_| not_a_socket())?;
    getsockname(&socket).map_err(|_| not_a_socket())?;
    Ok(socket)
}

/// The one socket that was passed under a number or a name.
///
/// # Errors
/// There is none, or there are several.
pub fn passed_one(name: &str) -> Result<OwnedFd, SocketError> {
    let mut sockets = passed(name)?;
    match (sockets.pop(), sockets.len()) {
        (Some(socket), 0) => Ok(socket),
        (_, others) => Err(SocketError::Several {
            name: name.to_owned(),
            count: others + 1,
        }),
    }
}
