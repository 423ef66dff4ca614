//! What is loaded: an export of an NBD server, or a node in this process.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;
use std::time::{Duration, Instant};

use millpond_messages::graph::Options;
use serde_json::{Value, json};

use super::nbd::Stream;
use crate::Outcome;

/// The length of a null node that is given by its driver's name only, in bytes.
const NULL_SIZE: u64 = 1 << 30;

/// The prefixes that stand for a node of that driver over a file.
const FORMATS: [&str; 2] = ["raw:", "qcow2:"];

/// What is loaded.
#[derive(Debug, Clone, PartialEq)]
pub enum Target {
    /// An export of an NBD server.
    Nbd {
        /// Where the server listens.
        endpoint: Endpoint,
        /// The export's name.
        export: String,
    },
    /// A node that is opened in this process, with these options of `blockdev-add`.
    Node(Options),
}

/// Where an NBD server listens.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Endpoint {
    /// On a unix socket.
    Unix(PathBuf),
    /// On TCP, at HOST:PORT.
    Tcp(String),
}

impl Target {
    /// An export of a server on a unix socket.
    pub fn unix(path: PathBuf, export: &str) -> Target {
        Target::Nbd {
            endpoint: Endpoint::Unix(path),
            export: export.to_owned(),
        }
    }

    /// Waits until the server takes connections. Its socket's appearance cannot be awaited, so this asks again every
    /// few milliseconds, up to the limit.
    ///
    /// # Errors
    /// The last attempt's.
    pub fn wait_ready(&self, limit: Duration) -> Outcome<()> {
        let Target::Nbd { endpoint, .. } = self else {
            return Ok(());
        };
        let deadline = Instant::now() + limit;
        loop {
            match Stream::connect(endpoint) {
                Ok(_) => return Ok(()),
                Err(error) if Instant::now() > deadline => return Err(error),
                Err(_) => std::thread::sleep(Duration::from_millis(2)),
            }
        }
    }
}

impl Default for Target {
    fn default() -> Target {
        Target::Node(object(
            json!({ "driver": "null-co", "size": NULL_SIZE, "read-zeroes": false }),
        ))
    }
}

fn object(value: Value) -> Options {
    match value {
        Value::Object(options) => options,
        _ => Options::new(),
    }
}

impl FromStr for Target {
    type Err = String;

    fn from_str(text: &str) -> Result<Target, String> {
        if text == "null" {
            return Ok(Target::default());
        }
        if text.starts_with('{') {
            let options = serde_json::from_str(text).map_err(|error| format!("a node's options: {error}"))?;
            return Ok(Target::Node(options));
        }
        if let Some(prefix) = FORMATS.iter().find(|prefix| text.starts_with(**prefix)) {
            let (driver, path) = (prefix.trim_end_matches(':'), &text[prefix.len()..]);
            let file = json!({ "driver": "file", "filename": path, "discard": "unmap" });
            return Ok(Target::Node(object(
                json!({ "driver": driver, "discard": "unmap", "file": file }),
            )));
        }
        if let Some(rest) = text.strip_prefix("nbd+unix:///") {
            let (export, socket) = rest
                .split_once("?socket=")
                .ok_or("a unix URI ends with ?socket=PATH")?;
            return Ok(Target::unix(PathBuf::from(socket), export));
        }
        let rest = text.strip_prefix("nbd://").ok_or(
            "a target is nbd+unix:///NAME?socket=PATH, nbd://HOST:PORT/NAME, null, raw:PATH, qcow2:PATH or a node's \
             options in JSON",
        )?;
        let (host, export) = rest.split_once('/').unwrap_or((rest, ""));
        let has_port = host.rsplit_once(':').is_some_and(|(_, port)| !port.contains(']'));
        let address = if has_port {
            host.to_owned()
        } else {
            format!("{host}:10809")
        };
        Ok(Target::Nbd {
            endpoint: Endpoint::Tcp(address),
            export: export.to_owned(),
        })
    }
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Target::Nbd {
                endpoint: Endpoint::Unix(path),
                export,
            } => write!(f, "nbd+unix:///{export}?socket={}", path.display()),
            Target::Nbd {
                endpoint: Endpoint::Tcp(address),
                export,
            } => write!(f, "nbd://{address}/{export}"),
            Target::Node(options) => write!(f, "{}", Value::Object(options.clone())),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_forms_of_uri_are_understood() {
        let unix: Target = "nbd+unix:///disk?socket=/run/nbd.sock".parse().unwrap();
        assert_eq!(unix, Target::unix("/run/nbd.sock".into(), "disk"));
        for (text, address) in [
            ("nbd://localhost/a/b", "localhost:10809"),
            ("nbd://localhost:1/a/b", "localhost:1"),
            ("nbd://[::1]/a/b", "[::1]:10809"),
            ("nbd://[::1]:7/a/b", "[::1]:7"),
        ] {
            let tcp = Target::Nbd {
                endpoint: Endpoint::Tcp(address.to_owned()),
                export: "a/b".to_owned(),
            };
            assert_eq!(text.parse(), Ok(tcp), "{text}");
        }
        assert!("http://x".parse::<Target>().is_err());
        assert!("nbd+unix:///x".parse::<Target>().is_err());
    }

    #[test]
    fn a_node_is_given_by_its_options_or_by_driver_and_file() {
        let Ok(Target::Node(options)) = "qcow2:/images/a.qcow2".parse() else {
            panic!("a node");
        };
        assert_eq!(options["driver"], "qcow2");
        assert_eq!(options["file"]["filename"], "/images/a.qcow2");
        let json = r#"{"driver": "null-co", "size": 4096}"#;
        assert!(matches!(json.parse(), Ok(Target::Node(options)) if options["size"] == 4096));
        assert!("{".parse::<Target>().is_err());
        assert_eq!("null".parse(), Ok(Target::default()));
    }
}
