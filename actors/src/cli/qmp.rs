//! `millpond qmp SOCKET COMMAND KEY=VALUE...`: a small client of QMP, for people and scripts. It is a program of its own:
//! it blocks as it likes, and no graph is behind it.

use clap::Parser;
use millpond_messages::IoError;
use millpond_messages::qapi::{JsonStream, Object, parse_json, to_compact};
use serde_json::{Value, json};
use std::io::{self, Read, Write};
use std::net::TcpStream;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::ExitCode;
use std::time::{Duration, Instant};

/// How often a socket that nobody listens on yet is tried.
const TRY_EVERY: Duration = Duration::from_millis(50);
/// How long a daemon may take to greet before a person is told what that may mean.
const SILENCE: Duration = Duration::from_secs(2);
/// How long it may take at most, unless told otherwise.
const LONGEST_SILENCE: Duration = Duration::from_secs(30);

/// Sends a command to a daemon's monitor, and prints what it returns.
///
/// The exit status is 1 if the daemon refuses the command or cannot be reached.
#[derive(Debug, Parser)]
#[command(name = "millpond", bin_name = "millpond qmp", version = super::texts::VERSION, after_help = "\
A VALUE that parses as JSON is sent as JSON: size=4096, backing=null,
bitmaps='[\"a\", \"b\"]'. Anything else is sent as a string; '\"1\"' is the string 1.
In a KEY, dots lead into objects and numbers into lists: file.driver=file,
rules.0.delay=fixed:1s. Options come before SOCKET.

Examples:
  millpond qmp qmp.sock query-block-exports
  millpond qmp qmp.sock block_resize node-name=disk size=1073741824
  millpond qmp qmp.sock '{\"execute\": \"quit\"}'
  millpond qmp --events qmp.sock")]
struct Client {
    /// Where the monitor listens: the path of a Unix socket, or HOST:PORT.
    socket: String,
    /// The command, or a whole command as a JSON object; optional with --events.
    #[arg(required_unless_present = "events")]
    command: Option<String>,
    /// The command's arguments, as key=value or JSON.
    #[arg(value_name = "KEY=VALUE")]
    arguments: Vec<String>,
    /// Also print events, one per line, until the daemon closes the connection.
    #[arg(long)]
    events: bool,
    /// Wait up to this long for the daemon to listen and to greet.
    #[arg(long, value_name = "SECONDS", value_parser = seconds)]
    wait: Option<Duration>,
}

fn seconds(text: &str) -> Result<Duration, String> {
    let seconds = text.parse().map_err(|_| "not a number of seconds")?;
    Duration::try_from_secs_f64(seconds).map_err(|error| error.to_string())
}

/// Why there is no answer to print.
#[derive(Debug, thiserror::Error)]
enum Failure {
    #[error("'{0}' is not an argument of the form KEY=VALUE")]
    NoArgument(String),
    #[error("'{0}' is given twice, or is both a value and an object")]
    Mixed(String),
    #[error("a JSON command takes no further arguments")]
    JsonAndArguments,
    #[error("{0}")]
    Json(String),
    #[error("no daemon can be reached at {socket}: {error}")]
    Unreachable { socket: String, error: IoError },
    #[error("{0} is not a QMP monitor: its greeting is a different one")]
    NoMonitor(String),
    #[error("{0} sends no greeting: another client may be connected to it")]
    Silent(String),
    #[error("the daemon closed the connection before it answered")]
    Closed,
    #[error("the connection is broken: {0}")]
    Io(#[from] io::Error),
    #[error("{command}: {text}")]
    Refused { command: String, text: String },
}

/// Runs the client; `arguments` are what follows `qmp`.
pub fn run(program: &str, arguments: &[String]) -> ExitCode {
    let name = "millpond qmp".to_owned();
    let client = match Client::try_parse_from(std::iter::once(&name).chain(arguments)) {
        Ok(client) => client,
        Err(error) => return super::texts::usage(&error),
    };
    match client.talk(program) {
        Ok(()) => ExitCode::SUCCESS,
        // Whoever reads has seen enough.
        Err(Failure::Io(error)) if error.kind() == io::ErrorKind::BrokenPipe => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{program}: {}", super::texts::printable(&error));
            ExitCode::FAILURE
        }
    }
}

impl Client {
    fn talk(&self, program: &str) -> Result<(), Failure> {
        let request = self.request()?;
        let until = Instant::now() + self.wait.unwrap_or_default();
        let mut monitor = self.connect(until)?;
        let patience = until.max(Instant::now() + self.wait.unwrap_or(LONGEST_SILENCE));
        self.expect_greeting(program, &mut monitor, patience)?;
        let capabilities = json!({"execute": "qmp_capabilities"});
        self.ask(&mut monitor, &capabilities)?;
        if let Some(request) = request {
            let value = self.ask(&mut monitor, &request)?;
            let text = serde_json::to_string_pretty(&value).unwrap_or_else(|_| to_compact(&value));
            print_line(&text)?;
        }
        if self.events {
            return self.follow(&mut monitor);
        }
        Ok(())
    }

    /// Prints events until the daemon ends the connection.
    fn follow(&self, monitor: &mut Monitor) -> Result<(), Failure> {
        loop {
            match monitor.next() {
                Ok(message) => self.print_event(&message)?,
                Err(Failure::Closed) => return Ok(()),
                Err(error) => return Err(error),
            }
        }
    }

    /// The command as it is sent.
    fn request(&self) -> Result<Option<Value>, Failure> {
        let Some(command) = &self.command else {
            return Ok(None);
        };
        if command.trim_start().starts_with('{') {
            if !self.arguments.is_empty() {
                return Err(Failure::JsonAndArguments);
            }
            return parse_json(command)
                .map(Some)
                .map_err(|error| Failure::Json(error.desc));
        }
        let mut request = json!({"execute": command});
        if !self.arguments.is_empty() {
            request["arguments"] = arguments(&self.arguments)?;
        }
        Ok(Some(request))
    }

    fn connect(&self, until: Instant) -> Result<Monitor, Failure> {
        loop {
            match Stream::connect(&self.socket) {
                Ok(stream) => return Ok(Monitor::new(stream)),
                Err(error) if Instant::now() >= until || !is_early(&error) => {
                    return Err(Failure::Unreachable {
                        socket: self.socket.clone(),
                        error: error.into(),
                    });
                }
                // This process is a client with one thread: it serves nobody that would wait meanwhile.
                Err(_) => std::thread::sleep(TRY_EVERY),
            }
        }
    }

    fn expect_greeting(&self, program: &str, monitor: &mut Monitor, until: Instant) -> Result<(), Failure> {
        let mut told = false;
        loop {
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err(Failure::Silent(self.socket.clone()));
            }
            match monitor.next_within(Some(left.min(SILENCE))) {
                Ok(Some(greeting)) if greeting.get("QMP").is_some() => return Ok(()),
                Ok(Some(_)) | Err(Failure::Json(_)) => return Err(Failure::NoMonitor(self.socket.clone())),
                Ok(None) if !told => {
                    told = true;
                    eprintln!(
                        "{program}: {} does not greet yet: the daemon is starting, or another client is connected",
                        self.socket
                    );
                }
                Ok(None) => {}
                Err(error) => return Err(error),
            }
        }
    }

    /// Sends a command; answers what it returns.
    fn ask(&self, monitor: &mut Monitor, request: &Value) -> Result<Value, Failure> {
        monitor.send(request)?;
        loop {
            let mut message = monitor.next()?;
            if let Some(value) = message.get_mut("return") {
                return Ok(value.take());
            }
            if let Some(error) = message.get("error") {
                let text = |name: &str| error.get(name).and_then(Value::as_str).unwrap_or_default();
                let command = request.get("execute").and_then(Value::as_str);
                return Err(Failure::Refused {
                    command: command.unwrap_or("the command").to_owned(),
                    text: match text("class") {
                        "GenericError" => text("desc").to_owned(),
                        class => format!("{} ({class})", text("desc")),
                    },
                });
            }
            self.print_event(&message)?;
        }
    }

    fn print_event(&self, message: &Value) -> io::Result<()> {
        if self.events && message.get("event").is_some() {
            print_line(&message.to_string())?;
        }
        Ok(())
    }
}

/// Whether an attempt to connect may only have been made too early.
fn is_early(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused
    )
}

fn print_line(text: &str) -> io::Result<()> {
    let mut out = io::stdout().lock();
    writeln!(out, "{text}")?;
    out.flush()
}

/// The object that `KEY=VALUE` pairs make.
fn arguments(pairs: &[String]) -> Result<Value, Failure> {
    let mut all = Value::Object(Object::new());
    for pair in pairs {
        let Some((key, value)) = pair.split_once('=').filter(|(key, _)| !key.is_empty()) else {
            return Err(Failure::NoArgument(pair.clone()));
        };
        let value = parse_json(value).unwrap_or_else(|_| value.into());
        let mut place = &mut all;
        for part in key.split('.') {
            let Value::Object(object) = place else {
                return Err(Failure::Mixed(key.to_owned()));
            };
            place = object.entry(part).or_insert_with(|| Value::Object(Object::new()));
        }
        // What is there already is another value, or what another key has put inside.
        if *place != Value::Object(Object::new()) {
            return Err(Failure::Mixed(key.to_owned()));
        }
        *place = value;
    }
    make_lists(&mut all);
    Ok(all)
}

/// Objects whose keys count from 0 become lists.
fn make_lists(value: &mut Value) {
    let Value::Object(object) = value else { return };
    object.values_mut().for_each(make_lists);
    let numbers: Vec<String> = (0..object.len()).map(|number| number.to_string()).collect();
    if object.is_empty() || !numbers.iter().all(|number| object.contains_key(number)) {
        return;
    }
    let list = numbers
        .iter()
        .filter_map(|number| object.remove(number))
        .collect();
    *value = Value::Array(list);
}

enum Stream {
    Unix(UnixStream),
    Tcp(TcpStream),
}

impl Stream {
    /// A path that is there, or has a slash, is one; anything else with a colon is a host and a port.
    fn connect(socket: &str) -> io::Result<Self> {
        if socket.contains('/') || !socket.contains(':') || Path::new(socket).exists() {
            return UnixStream::connect(socket).map(Self::Unix);
        }
        TcpStream::connect(socket).map(Self::Tcp)
    }

    fn set_timeout(&self, timeout: Option<Duration>) -> io::Result<()> {
        match self {
            Self::Unix(stream) => stream.set_read_timeout(timeout),
            Self::Tcp(stream) => stream.set_read_timeout(timeout),
        }
    }
}

impl Read for Stream {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match self {
            Self::Unix(stream) => stream.read(buffer),
            Self::Tcp(stream) => stream.read(buffer),
        }
    }
}

impl Write for Stream {
    fn write(&mut self, buffer: &[u8]) -> io::Result<usize> {
        match self {
            Self::Unix(stream) => stream.write(buffer),
            Self::Tcp(stream) => stream.write(buffer),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// A connection to a monitor.
struct Monitor {
    stream: Stream,
    incoming: JsonStream,
    /// What was received and not looked at, the last first.
    messages: Vec<Value>,
}

impl Monitor {
    fn new(stream: Stream) -> Self {
        Self {
            stream,
            incoming: JsonStream::default(),
            messages: Vec::new(),
        }
    }

    fn send(&mut self, request: &Value) -> io::Result<()> {
        self.stream.write_all(format!("{request}\n").as_bytes())
    }

    /// The next message of the daemon, whatever it is.
    fn next(&mut self) -> Result<Value, Failure> {
        // Without a limit there is no end to the wait but a message.
        self.next_within(None)?.ok_or(Failure::Closed)
    }

    /// The next message, if one comes in time.
    fn next_within(&mut self, timeout: Option<Duration>) -> Result<Option<Value>, Failure> {
        self.stream.set_timeout(timeout)?;
        let mut buffer = [0; 65536];
        loop {
            if let Some(message) = self.messages.pop() {
                return Ok(Some(message));
            }
            let count = match self.stream.read(&mut buffer) {
                Ok(0) => return Err(Failure::Closed),
                Ok(count) => count,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock && timeout.is_some() => {
                    return Ok(None);
                }
                Err(error) => return Err(error.into()),
            };
            for message in self.incoming.feed(buffer.get(..count).unwrap_or_default()) {
                self.messages.push(message.map_err(Failure::Json)?);
            }
            self.messages.reverse();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn made(pairs: &[&str]) -> Result<Value, String> {
        let pairs: Vec<String> = pairs.iter().map(|pair| (*pair).to_owned()).collect();
        arguments(&pairs).map_err(|error| error.to_string())
    }

    #[test]
    fn pairs_become_the_object_that_they_spell() {
        let object = made(&[
            "driver=qcow2",
            "node-name=\"1\"",
            "backing=null",
            "file.driver=file",
            "file.filename=a=b,c",
            "size=4096",
            "rules.0.kind=reply",
            "rules.1={'kind': 'order'}",
            "on=true",
            "empty=",
        ]);
        assert_eq!(
            object.unwrap(),
            json!({
                "driver": "qcow2", "node-name": "1", "backing": null,
                "file": {"driver": "file", "filename": "a=b,c"}, "size": 4096,
                "rules": [{"kind": "reply"}, {"kind": "order"}], "on": true, "empty": "",
            })
        );
    }

    #[test]
    fn pairs_that_contradict_each_other_are_refused() {
        for pairs in [
            &["a=1", "a=2"][..],
            &["a=1", "a.b=2"],
            &["a.b=2", "a=1"],
            &["a"],
            &["=1"],
        ] {
            assert!(made(pairs).is_err(), "{pairs:?}");
        }
    }
}
