//! Where the plain mode listens: for NBD clients, and for a monitor's.

use super::Plain;
use crate::daemon::Daemon;
use crate::monitor::chardev::{Address, Backend, ChardevOptions, Socket};
use crate::qmp::Commands;
use crate::socket::activation;
use millpond_messages::qapi::QmpError;
use millpond_messages::qapi::schema::MonitorOptions;
use rustix::io::Errno;
use serde_json::{Value, json};
use std::path::{Path, PathBuf};

/// Where this program finds what it is to listen on among what the service manager passed: the rest is for NBD.
const PASSED_MONITOR: &str = "qmp";

impl Plain {
    /// What to listen on: what the service manager passed, if it passed something.
    pub(super) fn address(&self) -> Result<Value, QmpError> {
        let passed = activation::all()
            .iter()
            .filter(|passed| passed.name != PASSED_MONITOR);
        let mut names: Vec<&str> = passed.clone().map(|passed| passed.name.as_str()).collect();
        names.dedup();
        match (names.as_slice(), self.port) {
            ([], Some(port)) => Ok(json!({"type": "inet", "host": "127.0.0.1", "port": port.to_string()})),
            ([], None) => {
                let path = self.socket_path();
                check_unused(&path, "--socket")?;
                Ok(json!({"type": "unix", "path": path}))
            }
            _ if self.port.is_some() || self.socket.is_some() => Err(QmpError::generic(
                "--socket and --port cannot be used with a socket that the service manager passes",
            )),
            ([name], None) => Ok(json!({"type": "fd", "str": name})),
            _ => Err(QmpError::generic(format!(
                "The service manager passes sockets with several names ({}): give all sockets for NBD one name, and the \
                 monitor's the name {PASSED_MONITOR}",
                names.join(", ")
            ))),
        }
    }

    fn socket_path(&self) -> PathBuf {
        self.socket.clone().unwrap_or_else(|| {
            let folder = std::env::var_os("XDG_RUNTIME_DIR").map_or_else(|| "/tmp".into(), PathBuf::from);
            let name = self.image.file_name().unwrap_or_default().to_string_lossy();
            folder.join(format!("millpond-{name}.sock"))
        })
    }

    /// Takes QMP commands, where that is asked for.
    pub(super) async fn open_monitor(&self, daemon: &Daemon) -> Result<(), QmpError> {
        let is_passed = activation::all()
            .iter()
            .any(|passed| passed.name == PASSED_MONITOR);
        let address = match &self.qmp {
            Some(_) if is_passed => {
                return Err(QmpError::generic(
                    "--qmp cannot be used with a socket for QMP that the service manager passes",
                ));
            }
            Some(path) => {
                check_unused(path, "--qmp")?;
                Address::Unix {
                    path: path.to_string_lossy().into_owned(),
                    is_abstract: false,
                    tight: true,
                }
            }
            None if is_passed => Address::Fd(PASSED_MONITOR.to_owned()),
            None => return Ok(()),
        };
        let options = ChardevOptions::new("qmp", Backend::Socket(Socket::server(address)));
        daemon.add_chardev(options, |_| {}).await?;
        daemon.add_monitor(&MonitorOptions::on("qmp"), Commands::of(daemon))?;
        daemon.open_monitors();
        Ok(())
    }
}

/// Refuses a socket that somebody listens on; `option` is what chooses another.
fn check_unused(path: &Path, option: &str) -> Result<(), QmpError> {
    use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, connect, socket_with};
    // A path that is no address is refused where it is listened on.
    let Ok(address) = SocketAddrUnix::new(path) else {
        return Ok(());
    };
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None);
    match socket.and_then(|socket| connect(&socket, &address)) {
        // It takes us, or has too many that it did not take yet, or takes no streams.
        Ok(()) | Err(Errno::AGAIN | Errno::PROTOTYPE) => Err(QmpError::generic(format!(
            "{} is in use by another server; choose another with {option}",
            path.display()
        ))),
        Err(_) => Ok(()),
    }
}
