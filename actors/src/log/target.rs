//! Where the log goes: what `--log` says.

use millpond_messages::qapi::{Options, QmpError};
use serde_json::Value;
use std::path::PathBuf;

/// What the option `--log` says.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct LogOptions {
    /// Where the messages go.
    pub target: Target,
    /// In which form they are written.
    pub format: Format,
}

/// Where a log goes.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum Target {
    /// To the process's standard error.
    #[default]
    Stderr,
    /// A file, by an absolute path. It is made if it is not there, and added to if it is.
    File(PathBuf),
    /// The system's log, over its socket.
    Syslog(PathBuf),
    /// systemd's journal, over its socket.
    Journald(PathBuf),
}

/// How a line looks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Format {
    /// Lines of text, for people.
    #[default]
    Text,
    /// A JSON object a line, for programs.
    Json,
}

/// Where the system's log takes messages.
const SYSLOG: &str = "/dev/log";
/// Where systemd's journal takes messages.
const JOURNALD: &str = "/run/systemd/journal/socket";

/// The keys that `--log` takes.
const KEYS: [&str; 4] = ["target", "file", "socket", "format"];

impl LogOptions {
    /// What `--log` prints when it is asked for help.
    pub const HELP: &str = "\
--log [target=]stderr|syslog|journald|file=PATH[,format=text|json][,socket=PATH]
  stderr                 standard error; this is the default
  file=PATH              append to a file; x-millpond-log-reopen reopens it
  syslog                 the system log, over the socket /dev/log
  journald               systemd's journal, over its socket
  format=text|json       plain lines, or one JSON object per line
  socket=PATH            use another socket for syslog or journald
";

    /// Whether a value of `--log` asks for help.
    #[must_use]
    pub fn is_help(text: &str) -> bool {
        matches!(text, "help" | "?")
    }

    /// What a value of `--log` says.
    ///
    /// # Errors
    /// A text that names what is wrong.
    pub fn parse(text: &str) -> Result<Self, String> {
        let options =
            Options::parse_without_help(text, Some("target")).map_err(|error: QmpError| error.desc)?;
        if let Some(unknown) = options.values.keys().find(|key| !KEYS.contains(&key.as_str())) {
            return Err(format!("Parameter '{unknown}' is unexpected"));
        }
        let given = |key: &str| match options.values.get(key) {
            None => Ok(None),
            Some(Value::String(text)) if !text.is_empty() => Ok(Some(text.as_str())),
            Some(_) => Err(format!("Parameter '{key}' expects a text that is not empty")),
        };
        let socket = given("socket")?;
        let target = match (given("target")?, given("file")?) {
            (Some(_), Some(_)) => return Err("A log goes to a file or elsewhere, not to both".to_owned()),
            (None, Some(path)) => Target::File(absolute(path)?),
            (None | Some("stderr"), None) => Target::Stderr,
            (Some("syslog"), None) => Target::Syslog(absolute(socket.unwrap_or(SYSLOG))?),
            (Some("journald"), None) => Target::Journald(absolute(socket.unwrap_or(JOURNALD))?),
            (Some(other), None) => {
                return Err(format!(
                    "A log goes to stderr, syslog, journald or file=PATH, not to '{other}'"
                ));
            }
        };
        if socket.is_some() && matches!(target, Target::Stderr | Target::File(_)) {
            return Err("Parameter 'socket' is only for syslog and journald".to_owned());
        }
        let format = match given("format")? {
            None | Some("text") => Format::Text,
            Some("json") => Format::Json,
            Some(other) => return Err(format!("A log's format is text or json, not '{other}'")),
        };
        Ok(Self { target, format })
    }
}

/// A path that stays the same when the process goes to another folder.
fn absolute(path: &str) -> Result<PathBuf, String> {
    std::path::absolute(path).map_err(|error| format!("{path}: {error}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn targets_and_formats_are_told_apart() {
        let parsed = |text| LogOptions::parse(text).map(|options| (options.target, options.format));
        assert_eq!(parsed("stderr"), Ok((Target::Stderr, Format::Text)));
        assert_eq!(parsed("format=json"), Ok((Target::Stderr, Format::Json)));
        assert_eq!(
            parsed("file=/x/y,format=json"),
            Ok((Target::File("/x/y".into()), Format::Json))
        );
        assert_eq!(
            parsed("syslog"),
            Ok((Target::Syslog(SYSLOG.into()), Format::Text))
        );
        let journal = (Target::Journald("/s".into()), Format::Text);
        assert_eq!(parsed("target=journald,socket=/s,format=text"), Ok(journal));
        let here = std::env::current_dir().unwrap().join("log");
        assert_eq!(parsed("file=log"), Ok((Target::File(here), Format::Text)));
    }

    #[test]
    fn what_is_wrong_is_named() {
        for (text, wrong) in [
            (
                "kafka",
                "A log goes to stderr, syslog, journald or file=PATH, not to 'kafka'",
            ),
            ("syslog,file=x", "A log goes to a file or elsewhere, not to both"),
            ("file=", "Parameter 'file' expects a text that is not empty"),
            ("stderr,format=xml", "A log's format is text or json, not 'xml'"),
            ("stderr,size=5", "Parameter 'size' is unexpected"),
            (
                "file=x,socket=y",
                "Parameter 'socket' is only for syslog and journald",
            ),
        ] {
            assert_eq!(LogOptions::parse(text), Err(wrong.to_owned()), "{text}");
        }
    }
}
