//! Character devices as `chardev-add` describes them.

use std::time::Duration;

use millpond_messages::qapi::schema::{ChardevBackend, ChardevSocket, SocketAddress};

use super::backend::{Backend, ChardevOptions, LogFile, Protocol, Socket};
use super::ring::DEFAULT_SIZE;

/// The device that is asked for.
///
/// # Errors
/// QEMU's text for options that exclude each other.
pub fn asked(id: String, backend: ChardevBackend) -> Result<ChardevOptions, String> {
    let (backend, logfile, logappend) = match backend {
        ChardevBackend::File(wrapper) => {
            let file = wrapper.data;
            let backend = Backend::File {
                input: file.input,
                output: file.out,
                append: file.append.unwrap_or(false),
            };
            (backend, file.logfile, file.logappend)
        }
        ChardevBackend::Pipe(wrapper) => {
            let pipe = wrapper.data;
            (Backend::Pipe(pipe.device), pipe.logfile, pipe.logappend)
        }
        ChardevBackend::Socket(wrapper) => {
            let ChardevSocket {
                logfile, logappend, ..
            } = wrapper.data.clone();
            (Backend::Socket(socket(wrapper.data)?), logfile, logappend)
        }
        ChardevBackend::Udp(wrapper) => {
            let udp = wrapper.data;
            let backend = Backend::Udp {
                remote: SocketAddress::from(udp.remote).into(),
                local: udp.local.map(|local| SocketAddress::from(local).into()),
            };
            (backend, udp.logfile, udp.logappend)
        }
        ChardevBackend::Pty(wrapper) => {
            let pty = wrapper.data;
            (Backend::Pty(pty.path), pty.logfile, pty.logappend)
        }
        ChardevBackend::Null(wrapper) => (Backend::Null, wrapper.data.logfile, wrapper.data.logappend),
        ChardevBackend::Mux(wrapper) => {
            let mux = wrapper.data;
            (Backend::Mux(mux.chardev), mux.logfile, mux.logappend)
        }
        ChardevBackend::Stdio(wrapper) => (Backend::Stdio, wrapper.data.logfile, wrapper.data.logappend),
        ChardevBackend::Ringbuf(wrapper) => {
            let ring = wrapper.data;
            (memory(ring.size, false), ring.logfile, ring.logappend)
        }
        ChardevBackend::Memory(wrapper) => {
            let ring = wrapper.data;
            (memory(ring.size, true), ring.logfile, ring.logappend)
        }
    };
    let log = logfile.map(|path| LogFile {
        path,
        append: logappend.unwrap_or(false),
    });
    Ok(ChardevOptions {
        log,
        ..ChardevOptions::new(id, backend)
    })
}

fn memory(size: Option<i64>, is_memory: bool) -> Backend {
    let size = size.unwrap_or(DEFAULT_SIZE);
    Backend::Ring { size, is_memory }
}

fn socket(asked: ChardevSocket) -> Result<Socket, String> {
    let server = asked.server.unwrap_or(true);
    let websocket = asked.websocket.unwrap_or(false);
    let reconnect = match (asked.reconnect, asked.reconnect_ms) {
        (Some(_), Some(_)) => return Err("'reconnect' and 'reconnect-ms' are mutually exclusive".into()),
        (Some(seconds), None) => seconds.saturating_mul(1000),
        (None, milliseconds) => milliseconds.unwrap_or(0),
    };
    check(&Roles {
        server,
        websocket,
        reconnect,
        has_wait: asked.wait.is_some(),
        tls_creds: asked.tls_creds.is_some(),
        tls_authz: asked.tls_authz.is_some(),
    })?;
    Ok(Socket {
        address: SocketAddress::from(asked.addr).into(),
        server,
        wait: server && asked.wait.unwrap_or(false),
        reconnect: u64::try_from(reconnect)
            .ok()
            .filter(|reconnect| *reconnect > 0)
            .map(Duration::from_millis),
        protocol: Protocol {
            telnet: asked.telnet.unwrap_or(false),
            tn3270: asked.tn3270.unwrap_or(false),
            websocket,
        },
        tls_creds: asked.tls_creds,
    })
}

/// What is not for both those who listen and those who connect.
pub(super) struct Roles {
    pub(super) server: bool,
    pub(super) websocket: bool,
    pub(super) reconnect: i64,
    pub(super) has_wait: bool,
    pub(super) tls_creds: bool,
    pub(super) tls_authz: bool,
}

/// Checks that the options of a socket are for its role.
///
/// # Errors
/// QEMU's text.
pub(super) fn check(roles: &Roles) -> Result<(), String> {
    let wrong = match roles {
        Roles {
            tls_authz: true,
            tls_creds: false,
            ..
        } => "'tls_authz' option requires 'tls_creds' option",
        Roles {
            server: true,
            reconnect: 1..,
            ..
        } => "'reconnect' option is incompatible with socket in server listen mode",
        Roles {
            server: false,
            websocket: true,
            ..
        } => "Websocket client is not implemented",
        Roles {
            server: false,
            has_wait: true,
            ..
        } => "'wait' option is incompatible with socket in client connect mode",
        _ => return Ok(()),
    };
    Err(wrong.into())
}
