//! The options of `nbd`, and the names that stand for them.

use std::sync::Arc;
use std::time::Duration;

use millpond_messages::graph::Options;
use millpond_messages::nbd::{MAX_STRING, context};
use millpond_messages::qapi::{InetSocketAddress, SocketAddress, UnixSocketAddress};
use millpond_messages::{Error, ErrorKind, Result};
use serde_json::{Value, json};

use crate::api::{invalid_options, parse_options};
use crate::tls::{ClientCredentials, ClientCredentialsById};

/// The port of a server that names none.
const DEFAULT_PORT: &str = "10809";

fn invalid(text: impl Into<String>) -> Error {
    Error::new(ErrorKind::InvalidArgument, text.into())
}

/// The options as QAPI's `BlockdevOptionsNbd` has them, and the older ones that stand for `server`.
#[derive(Debug, Clone, serde::Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
struct Given {
    server: Option<Value>,
    host: Option<String>,
    port: Option<String>,
    path: Option<String>,
    #[serde(default)]
    export: String,
    tls_creds: Option<String>,
    tls_hostname: Option<String>,
    x_dirty_bitmap: Option<String>,
    #[serde(default)]
    reconnect_delay: u32,
    #[serde(default)]
    open_timeout: u32,
}

/// What the options say.
#[derive(Debug, Clone)]
pub(super) struct NbdOptions {
    pub(super) options: Options,
    pub(super) server: Place,
    /// How to go on inside TLS, if that is wanted.
    pub(super) tls: Option<TlsWanted>,
    pub(super) export: String,
    /// The context of which block status is asked.
    pub(super) context: String,
    /// The context was chosen by the user.
    pub(super) is_own_context: bool,
    /// How long requests wait for a server that was lost.
    pub(super) reconnect_delay: Duration,
    /// How long an open tries.
    pub(super) open_timeout: Duration,
}

/// A session inside TLS that is wanted.
#[derive(Debug, Clone)]
pub(super) struct TlsWanted {
    pub(super) credentials: Arc<dyn ClientCredentials>,
    /// The name that the server has to prove.
    pub(super) hostname: Option<String>,
}

impl TlsWanted {
    fn new(
        id: &str,
        hostname: Option<String>,
        server: &Place,
        credentials: &ClientCredentialsById,
    ) -> Result<Self> {
        let found = credentials.find(id);
        let found = found
            .ok_or_else(|| Error::new(ErrorKind::NotFound, format!("No TLS credentials with id '{id}'")))?;
        found.check()?;
        let host = match server {
            Place::Inet { host, .. } => Some(host.clone()),
            Place::Unix(_) => None,
        };
        Ok(Self {
            credentials: found,
            hostname: hostname.or(host),
        })
    }
}

/// Where a server is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Place {
    Unix(String),
    Inet {
        host: String,
        port: String,
        ipv4: Option<bool>,
        ipv6: Option<bool>,
        keep_alive: bool,
    },
}

impl NbdOptions {
    /// Reads and checks the options of a node.
    ///
    /// # Errors
    /// Names what is wrong, in QEMU's words.
    pub(super) fn new(options: Options, credentials: &ClientCredentialsById) -> Result<Self> {
        let given: Given = parse_options(options.clone())?;
        let server = given.server()?;
        if given.export.len() > MAX_STRING {
            return Err(invalid("export name too long to send to server"));
        }
        let own = given.x_dirty_bitmap;
        if own.as_ref().is_some_and(|context| context.len() > MAX_STRING) {
            return Err(invalid("x-dirty-bitmap query too long to send to server"));
        }
        let tls = match &given.tls_creds {
            Some(id) => Some(TlsWanted::new(id, given.tls_hostname, &server, credentials)?),
            None => None,
        };
        Ok(Self {
            server,
            tls,
            export: given.export,
            is_own_context: own.is_some(),
            context: own.unwrap_or_else(|| context::BASE_ALLOCATION_NAME.to_owned()),
            reconnect_delay: Duration::from_secs(given.reconnect_delay.into()),
            open_timeout: Duration::from_secs(given.open_timeout.into()),
            options,
        })
    }

    /// The name of such a node: as in QEMU without the options that no name has.
    pub(super) fn filename(&self) -> String {
        let export = &self.export;
        match &self.server {
            Place::Unix(path) if !self.options.contains_key("export") => format!("nbd+unix://?socket={path}"),
            Place::Unix(path) => format!("nbd+unix:///{export}?socket={path}"),
            Place::Inet { host, port, .. } => {
                let host = if host.contains(':') {
                    format!("[{host}]")
                } else {
                    host.clone()
                };
                match self.options.contains_key("export") {
                    false => format!("nbd://{host}:{port}"),
                    true => format!("nbd://{host}:{port}/{export}"),
                }
            }
        }
    }
}

impl Given {
    fn server(&self) -> Result<Place> {
        if let Some(server) = &self.server {
            let address: SocketAddress = serde_json::from_value(server.clone())
                .map_err(|error| invalid_options(&error.to_string()))?;
            return Place::new(address);
        }
        match (&self.path, &self.host) {
            (Some(_), Some(_)) => Err(invalid("path and host may not be used at the same time")),
            (Some(path), None) => Ok(Place::Unix(path.clone())),
            (None, Some(host)) => Ok(Place::Inet {
                host: host.clone(),
                port: self.port.clone().unwrap_or_else(|| DEFAULT_PORT.to_owned()),
                ipv4: None,
                ipv6: None,
                keep_alive: false,
            }),
            (None, None) => Err(invalid("NBD server address missing")),
        }
    }
}

impl Place {
    fn new(address: SocketAddress) -> Result<Self> {
        let unsupported = |what: &str| {
            let text = format!("{what} are not supported by the NBD client");
            Err(Error::new(ErrorKind::Unsupported, text))
        };
        match address {
            SocketAddress::Unix(UnixSocketAddress { path, .. }) => Ok(Self::Unix(path)),
            SocketAddress::Inet(InetSocketAddress {
                host,
                port,
                ipv4,
                ipv6,
                keep_alive,
                ..
            }) => Ok(Self::Inet {
                host,
                port,
                ipv4,
                ipv6,
                keep_alive: keep_alive.unwrap_or(false),
            }),
            SocketAddress::Vsock(_) => unsupported("Sockets of virtual machines"),
            SocketAddress::Fd(_) => unsupported("Descriptors of other processes"),
        }
    }
}

/// The options that a filename stands for: `nbd:unix:PATH`, `nbd:HOST:PORT`, each perhaps with `:exportname=NAME`, or a URI.
///
/// # Errors
/// It is none of these.
pub(super) fn parse_filename(filename: &str) -> Result<Options> {
    if filename.contains("://") {
        return parse_uri(filename);
    }
    let Some(rest) = filename.strip_prefix("nbd:") else {
        return Err(invalid(
            "File name string for new protocol must start with 'nbd:'",
        ));
    };
    let mut options = Options::new();
    let place = match rest.split_once(":exportname=") {
        Some((place, export)) => {
            if !export.is_empty() {
                options.insert("export".to_owned(), export.into());
            }
            place
        }
        None => rest,
    };
    if place.is_empty() {
        // Whoever opens it is told that the address is missing.
        return Ok(options);
    }
    let server = match place.strip_prefix("unix:") {
        Some(path) => unix(path),
        None => {
            let (host, port) = host_and_port(place)?;
            inet(&host, port.as_deref().unwrap_or(DEFAULT_PORT))
        }
    };
    options.insert("server".to_owned(), server);
    Ok(options)
}

fn unix(path: &str) -> Value {
    json!({"type": "unix", "path": path})
}

fn inet(host: &str, port: &str) -> Value {
    json!({"type": "inet", "host": host, "port": port})
}

/// The parts of `HOST`, `HOST:PORT` or `[HOST]:PORT`.
fn host_and_port(text: &str) -> Result<(String, Option<String>)> {
    let wrong = || invalid(format!("error parsing address '{text}'"));
    let (host, port) = match text.strip_prefix('[') {
        Some(rest) => {
            let (host, rest) = rest.split_once(']').ok_or_else(wrong)?;
            match rest {
                "" => (host, None),
                rest => (host, Some(rest.strip_prefix(':').ok_or_else(wrong)?)),
            }
        }
        None => match text.split_once(':') {
            Some((host, port)) => (host, Some(port)),
            None => (text, None),
        },
    };
    Ok((host.to_owned(), port.map(str::to_owned)))
}

fn parse_uri(uri: &str) -> Result<Options> {
    let wrong = || invalid("No valid URL specified");
    let (scheme, rest) = uri.split_once("://").ok_or_else(wrong)?;
    let is_unix = match scheme {
        "nbd" | "nbd+tcp" => false,
        "nbd+unix" => true,
        _ => return Err(wrong()),
    };
    let (rest, query) = rest.split_once('?').unwrap_or((rest, ""));
    let (authority, path) = rest.split_once('/').unwrap_or((rest, ""));
    let mut options = Options::new();
    if !path.is_empty() {
        options.insert("export".to_owned(), decoded(path).ok_or_else(wrong)?.into());
    }
    let server = if is_unix {
        let socket = query.strip_prefix("socket=").ok_or_else(wrong)?;
        if !authority.is_empty() || socket.contains('&') {
            return Err(wrong());
        }
        unix(&decoded(socket).ok_or_else(wrong)?)
    } else {
        if authority.is_empty() || !query.is_empty() {
            return Err(wrong());
        }
        let (host, port) = host_and_port(authority)?;
        inet(&host, port.as_deref().unwrap_or(DEFAULT_PORT))
    };
    options.insert("server".to_owned(), server);
    Ok(options)
}

/// A part of a URI without its `%XX`.
fn decoded(text: &str) -> Option<String> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.bytes();
    while let Some(byte) = rest.next() {
        if byte != b'%' {
            bytes.push(byte);
            continue;
        }
        let digits = [rest.next()?, rest.next()?];
        let digits = std::str::from_utf8(&digits).ok()?;
        bytes.push(u8::from_str_radix(digits, 16).ok()?);
    }
    String::from_utf8(bytes).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(filename: &str) -> String {
        match parse_filename(filename)
            .and_then(|options| NbdOptions::new(options, &ClientCredentialsById::default()))
        {
            Ok(read) => format!("{:?} {:?}", read.server, read.export),
            Err(error) => error.to_string(),
        }
    }

    #[test]
    fn names_stand_for_servers_and_exports() {
        let inet = |host: &str, port: &str, export: &str| {
            format!(
                "Inet {{ host: {host:?}, port: {port:?}, ipv4: None, ipv6: None, keep_alive: false }} {export:?}"
            )
        };
        for (name, expected) in [
            ("nbd:localhost:1234", inet("localhost", "1234", "")),
            ("nbd:[::1]:1234:exportname=a", inet("::1", "1234", "a")),
            (
                "nbd:unix:/run/s:exportname=a:b",
                "Unix(\"/run/s\") \"a:b\"".to_owned(),
            ),
            ("nbd://host", inet("host", "10809", "")),
            ("nbd://[::1]:7/a/b%20c", inet("::1", "7", "a/b c")),
            ("nbd+tcp://host:8/", inet("host", "8", "")),
            (
                "nbd+unix:///x?socket=/run/a%3fb",
                "Unix(\"/run/a?b\") \"x\"".to_owned(),
            ),
            ("nbd+unix://?socket=s", "Unix(\"s\") \"\"".to_owned()),
            ("nbd:", "NBD server address missing".to_owned()),
        ] {
            assert_eq!(read(name), expected, "{name}");
        }
        for wrong in [
            "nbd://",
            "nbd+unix:///x",
            "nbd+unix://h/x?socket=s",
            "nbds://h",
            "nbd://h?x=1",
            "nbd://h/%zz",
        ] {
            assert_eq!(read(wrong), "No valid URL specified", "{wrong}");
        }
    }

    #[test]
    fn a_name_that_opens_a_node_is_told() {
        let name = |filename| {
            NbdOptions::new(
                parse_filename(filename).unwrap(),
                &ClientCredentialsById::default(),
            )
            .unwrap()
            .filename()
        };
        for filename in [
            "nbd://host:1/x",
            "nbd://[::1]:2",
            "nbd+unix:///x?socket=/s",
            "nbd+unix://?socket=/s",
        ] {
            assert_eq!(name(filename), filename);
        }
    }
}
