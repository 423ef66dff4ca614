//! `--chardev`'s own grammar: older than that of the other options, with its own texts.

use super::asked::{Roles, check as check_roles};
use super::backend::{Address, Backend, ChardevOptions, LogFile, Protocol, Socket};
use super::ring::DEFAULT_SIZE;
use millpond_messages::qapi::{
    IDENTIFIER_HINT, InetSocketAddress, SIZE_HINT, check_identifier, parse_size, take_pair,
};
use std::time::Duration;

/// What the text of `--chardev` asks for.
#[derive(Debug, PartialEq)]
pub enum Parsed {
    /// The options of a character device.
    Device(Box<ChardevOptions>),
    /// The list of backends.
    BackendHelp,
    /// The list of parameters.
    ParameterHelp,
}

/// The kinds of backend there are.
pub const BACKENDS: &[&str] = &[
    "pty", "file", "udp", "memory", "stdio", "socket", "ringbuf", "null", "pipe", "mux",
];

#[derive(Clone, Copy, PartialEq)]
enum Kind {
    Text,
    Switch,
    Number,
    Size,
}

use Kind::{Number, Size, Switch, Text};

/// Every parameter, whichever backend it belongs to.
const PARAMETERS: &[(&str, Kind)] = &[
    ("abstract", Switch),
    ("append", Switch),
    ("backend", Text),
    ("chardev", Text),
    ("delay", Switch),
    ("fd", Text),
    ("host", Text),
    ("input-path", Text),
    ("ipv4", Switch),
    ("ipv6", Switch),
    ("localaddr", Text),
    ("localport", Text),
    ("logappend", Switch),
    ("logfile", Text),
    ("mux", Switch),
    ("nodelay", Switch),
    ("path", Text),
    ("port", Text),
    ("reconnect", Number),
    ("reconnect-ms", Number),
    ("server", Switch),
    ("signal", Switch),
    ("size", Size),
    ("telnet", Switch),
    ("tight", Switch),
    ("tls-authz", Text),
    ("tls-creds", Text),
    ("tn3270", Switch),
    ("to", Number),
    ("wait", Switch),
    ("websocket", Switch),
];

/// What `--chardev BACKEND,help` prints.
pub fn parameter_help() -> String {
    let mut text = String::from("chardev options:\n");
    for (name, kind) in PARAMETERS {
        let kind = match kind {
            Text => "<str>",
            Switch => "<bool (on/off)>",
            Number => "<num>",
            Size => "<size>",
        };
        text.push_str(&format!("  {name}={kind}\n"));
    }
    text
}

/// Values by name; a later one wins.
#[derive(Default)]
struct Values(Vec<(String, String)>);

impl Values {
    fn text(&self, name: &str) -> Option<&str> {
        self.0
            .iter()
            .rev()
            .find(|(key, _)| key == name)
            .map(|(_, value)| value.as_str())
    }

    fn switch(&self, name: &str) -> Option<bool> {
        self.text(name).map(|value| value == "on")
    }

    /// Text that is not empty.
    fn filled(&self, name: &str) -> Option<&str> {
        self.text(name).filter(|text| !text.is_empty())
    }

    fn number(&self, name: &str) -> Option<u64> {
        self.text(name).and_then(|value| value.parse().ok())
    }
}

/// Parses the text of `--chardev`; `warn` is told of old forms.
///
/// # Errors
/// QEMU's text for what is wrong.
pub fn parse(text: &str, mut warn: impl FnMut(String)) -> Result<Parsed, String> {
    let mut values = Values::default();
    let mut id = None;
    let mut rest = text;
    let mut first = true;
    while !rest.is_empty() {
        let (name, value, tail) = take_pair(rest);
        rest = tail;
        let (name, value) = match name {
            Some(name) => (name.to_owned(), value),
            None if value == "help" || value == "?" => {
                return Ok(match first {
                    true => Parsed::BackendHelp,
                    false => Parsed::ParameterHelp,
                });
            }
            None if first => ("backend".to_owned(), value),
            None => short_form(&value, &mut warn),
        };
        first = false;
        if name == "id" {
            // The first one counts.
            id.get_or_insert(value);
        } else {
            check(&name, &value)?;
            values.0.push((name, value));
        }
    }
    build(id, &values).map(Box::new).map(Parsed::Device)
}

/// A name alone means `on`, and with `no` before it `off`.
fn short_form(name: &str, warn: &mut impl FnMut(String)) -> (String, String) {
    let (full, value) = match name.strip_prefix("no") {
        Some(rest)
            if PARAMETERS
                .iter()
                .any(|(known, kind)| *known == rest && *kind == Switch) =>
        {
            (rest, "off")
        }
        _ => (name, "on"),
    };
    warn(format!(
        "short-form boolean option '{name}' deprecated\nPlease use {full}={value} instead"
    ));
    (full.to_owned(), value.to_owned())
}

fn check(name: &str, value: &str) -> Result<(), String> {
    match PARAMETERS.iter().find(|(known, _)| *known == name) {
        None => Err(format!("Invalid parameter '{name}'")),
        Some((_, Switch)) if value != "on" && value != "off" => {
            Err(format!("Parameter '{name}' expects 'on' or 'off'"))
        }
        Some((_, Number)) if value.parse::<u64>().is_err() => {
            Err(format!("Parameter '{name}' expects a number"))
        }
        Some((_, Size)) if parse_size(value).is_none() => Err(format!(
            "Parameter '{name}' expects a non-negative number below 2^64\n{SIZE_HINT}"
        )),
        Some(_) => Ok(()),
    }
}

fn build(id: Option<String>, values: &Values) -> Result<ChardevOptions, String> {
    if let Some(Err(error)) = id.as_deref().map(check_identifier) {
        return Err(format!("{error}\n{IDENTIFIER_HINT}"));
    }
    let id = id.ok_or("chardev: no id specified")?;
    let backend = match values.text("backend") {
        None => return Err(format!("chardev: \"{id}\" missing backend")),
        Some(kind) => backend(kind, values)?,
    };
    let append = values.switch("logappend").unwrap_or(false);
    let log = values.text("logfile").map(str::to_owned);
    Ok(ChardevOptions {
        log: log.map(|path| LogFile { path, append }),
        is_shared: values.switch("mux").unwrap_or(false),
        ..ChardevOptions::new(id, backend)
    })
}

fn backend(kind: &str, values: &Values) -> Result<Backend, String> {
    let path = |missing: &str| values.text("path").map(str::to_owned).ok_or(missing.to_owned());
    Ok(match kind {
        "null" => Backend::Null,
        "stdio" => Backend::Stdio,
        "socket" => Backend::Socket(socket(values)?),
        "file" => Backend::File {
            output: path("chardev: file: no filename given")?,
            input: values.text("input-path").map(str::to_owned),
            append: values.switch("append").unwrap_or(false),
        },
        "pipe" => Backend::Pipe(path("chardev: pipe: no device path given")?),
        "pty" => Backend::Pty(values.text("path").map(str::to_owned)),
        "udp" => datagrams(values)?,
        "ringbuf" | "memory" => Backend::Ring {
            size: match values.text("size").and_then(parse_size) {
                None | Some(0) => DEFAULT_SIZE,
                Some(size) => size.cast_signed(),
            },
            is_memory: kind == "memory",
        },
        "mux" => {
            let base = values.text("chardev").ok_or("chardev: mux: no chardev given")?;
            Backend::Mux(base.to_owned())
        }
        other => return Err(format!("'{other}' is not a valid char driver name")),
    })
}

fn datagrams(values: &Values) -> Result<Backend, String> {
    let inet = |host: &str, port: &str| {
        Address::Inet(InetSocketAddress {
            host: host.to_owned(),
            port: port.to_owned(),
            ipv4: values.switch("ipv4"),
            ipv6: values.switch("ipv6"),
            ..InetSocketAddress::default()
        })
    };
    let port = values
        .filled("port")
        .ok_or("chardev: udp: remote port not specified")?;
    let (local_host, local_port) = (values.filled("localaddr"), values.filled("localport"));
    let has_local = local_host.is_some() || local_port.is_some();
    Ok(Backend::Udp {
        remote: inet(values.filled("host").unwrap_or("localhost"), port),
        local: has_local.then(|| inet(local_host.unwrap_or(""), local_port.unwrap_or("0"))),
    })
}

fn socket(values: &Values) -> Result<Socket, String> {
    let address = match (values.text("path"), values.text("host"), values.text("fd")) {
        (Some(_), _, Some(_)) | (_, Some(_), Some(_)) | (Some(_), Some(_), _) => {
            return Err("None or one of 'path', 'fd' or 'host' option required.".into());
        }
        (Some(path), ..) => Address::Unix {
            path: path.into(),
            is_abstract: values.switch("abstract").unwrap_or(false),
            tight: values.switch("tight").unwrap_or(true),
        },
        (_, Some(host), _) => Address::Inet(InetSocketAddress {
            host: host.into(),
            port: values
                .text("port")
                .ok_or("chardev: socket: no port given")?
                .into(),
            to: values.number("to").and_then(|to| u16::try_from(to).ok()),
            ipv4: values.switch("ipv4"),
            ipv6: values.switch("ipv6"),
            ..InetSocketAddress::default()
        }),
        (.., fd) => Address::Fd(fd.unwrap_or_default().into()),
    };
    let server = values.switch("server").unwrap_or(false);
    let reconnect = match (values.number("reconnect"), values.number("reconnect-ms")) {
        (Some(_), Some(_)) => return Err("'reconnect' and 'reconnect-ms' are mutually exclusive".into()),
        (Some(seconds), None) => seconds.saturating_mul(1000),
        (None, milliseconds) => milliseconds.unwrap_or(0),
    };
    let protocol = Protocol {
        telnet: values.switch("telnet").unwrap_or(false),
        tn3270: values.switch("tn3270").unwrap_or(false),
        websocket: values.switch("websocket").unwrap_or(false),
    };
    check_roles(&Roles {
        server,
        websocket: protocol.websocket,
        reconnect: i64::try_from(reconnect).unwrap_or(i64::MAX),
        has_wait: values.text("wait").is_some(),
        tls_creds: values.text("tls-creds").is_some(),
        tls_authz: values.text("tls-authz").is_some(),
    })?;
    Ok(Socket {
        address,
        server,
        wait: server && values.switch("wait").unwrap_or(true),
        reconnect: (reconnect > 0).then(|| Duration::from_millis(reconnect)),
        protocol,
        tls_creds: values.text("tls-creds").map(str::to_owned),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn device(text: &str) -> ChardevOptions {
        match parse(text, |_| {}) {
            Ok(Parsed::Device(device)) => *device,
            other => panic!("{text}: {other:?}"),
        }
    }

    #[test]
    fn what_other_programs_pass_is_understood() {
        let address = Address::Unix {
            path: "/a,b".into(),
            is_abstract: false,
            tight: true,
        };
        let expected = ChardevOptions::new("qmp", Backend::Socket(Socket::server(address)));
        assert_eq!(device("socket,id=qmp,path=/a,,b,server=on,wait=off"), expected);
        let mut warnings = Vec::new();
        let old = parse("socket,id=qmp,path=/a,,b,server,nowait", |text| {
            warnings.push(text)
        });
        assert_eq!(old, Ok(Parsed::Device(expected.into())));
        assert_eq!(
            warnings,
            [
                "short-form boolean option 'server' deprecated\nPlease use server=on instead",
                "short-form boolean option 'nowait' deprecated\nPlease use wait=off instead"
            ]
        );
        assert_eq!(device("stdio,id=c").backend, Backend::Stdio);
        assert_eq!(parse("help", |_| {}), Ok(Parsed::BackendHelp));
        assert_eq!(parse("null,help", |_| {}), Ok(Parsed::ParameterHelp));
    }
}
