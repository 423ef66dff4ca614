//! A QMP client: sends a command, gives back its answer, and keeps the events that came meanwhile.

use std::collections::VecDeque;
use std::io::{BufRead, BufReader, ErrorKind, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::PATIENCE;

/// What the daemon answered in place of a result.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct QmpError {
    /// `GenericError`, `CommandNotFound`, ...
    pub class: String,
    /// The text for people, on which clients match.
    pub desc: String,
}

/// What it says of a daemon that does not answer in time.
pub const SILENCE: &str = "nothing came for";

/// One monitor connection, past capability negotiation.
#[derive(Debug)]
pub struct Qmp {
    stream: UnixStream,
    reader: BufReader<UnixStream>,
    events: VecDeque<Value>,
    greeting: Value,
}

impl Qmp {
    /// Connects to the monitor's socket, retrying while it does not exist yet, and negotiates.
    ///
    /// `alive` is asked between attempts; its error ends the wait.
    pub fn connect(path: &Path, mut alive: impl FnMut() -> Result<(), String>) -> Result<Qmp, String> {
        let stream = connect_when_ready(path, &mut alive)?;
        stream
            .set_read_timeout(Some(PATIENCE))
            .expect("a socket takes a read timeout");
        let reader = BufReader::new(stream.try_clone().expect("a socket can be cloned"));
        let mut qmp = Qmp {
            stream,
            reader,
            events: VecDeque::new(),
            greeting: Value::Null,
        };
        match qmp.negotiate() {
            Ok(()) => Ok(qmp),
            Err(error) => {
                // A daemon that closed the connection is ending, and its exit tells more than the closing.
                let deadline = Instant::now() + Duration::from_secs(5);
                while Instant::now() < deadline {
                    alive()?;
                    std::thread::sleep(Duration::from_millis(2));
                }
                Err(format!("{}: {error}", path.display()))
            }
        }
    }

    fn negotiate(&mut self) -> Result<(), String> {
        self.greeting = self.receive()?;
        self.stream
            .write_all(b"{\"execute\": \"qmp_capabilities\"}\n")
            .map_err(|error| error.to_string())?;
        // QEMU's daemon may greet twice whoever connects while it starts. Millpond may not.
        let mut answer = self.answer();
        let package = self.greeting["QMP"]["version"]["package"].as_str();
        if answer.is_err() && !package.is_some_and(|package| package.starts_with("millpond")) {
            answer = self.answer();
        }
        answer?
            .map(|_| ())
            .map_err(|error| format!("no capabilities: {error:?}"))
    }

    /// The greeting that the daemon sent first.
    pub fn greeting(&self) -> &Value {
        &self.greeting
    }

    /// Runs a command and waits for its answer.
    pub fn execute(&mut self, command: &str, arguments: Value) -> Result<Value, QmpError> {
        let mut request = json!({ "execute": command, "arguments": arguments });
        if arguments_are_empty(&request) {
            request
                .as_object_mut()
                .expect("it was made an object")
                .remove("arguments");
        }
        self.send_raw(&format!("{request}\n"));
        self.answer()
            .unwrap_or_else(|error| panic!("no answer to {request}: {error}"))
    }

    /// Runs a command that must succeed.
    #[track_caller]
    pub fn ok(&mut self, command: &str, arguments: Value) -> Value {
        match self.execute(command, arguments.clone()) {
            Ok(value) => value,
            Err(error) => panic!("{command} {arguments} failed: {} ({})", error.desc, error.class),
        }
    }

    /// Runs a command that must fail, and returns its error.
    #[track_caller]
    pub fn refused(&mut self, command: &str, arguments: Value) -> QmpError {
        match self.execute(command, arguments.clone()) {
            Ok(value) => panic!("{command} {arguments} should have failed but returned {value}"),
            Err(error) => error,
        }
    }

    /// Sends text as it is: for commands that are not well formed.
    pub fn send_raw(&mut self, text: &str) {
        self.stream
            .write_all(text.as_bytes())
            .unwrap_or_else(|error| panic!("monitor closed on {text}: {error}"));
    }

    /// Waits for the next answer, and keeps events that come before it.
    pub fn answer(&mut self) -> Result<Result<Value, QmpError>, String> {
        loop {
            let message = self.receive()?;
            if message.get("event").is_some() {
                self.events.push_back(message);
            } else if let Some(error) = message.get("error") {
                let text = |key: &str| error[key].as_str().unwrap_or_default().to_owned();
                return Ok(Err(QmpError {
                    class: text("class"),
                    desc: text("desc"),
                }));
            } else if let Some(value) = message.get("return") {
                return Ok(Ok(value.clone()));
            } else {
                return Err(format!("neither event, error nor return: {message}"));
            }
        }
    }

    /// Waits for an event of this name and returns its data; events of other names are kept.
    #[track_caller]
    pub fn wait_event(&mut self, name: &str) -> Value {
        self.wait_event_where(name, |_| true)
    }

    /// Waits for an event of this name whose data `wanted` accepts; others are kept.
    #[track_caller]
    pub fn wait_event_where(&mut self, name: &str, wanted: impl Fn(&Value) -> bool) -> Value {
        let fits = |event: &Value| event["event"] == name && wanted(&event["data"]);
        if let Some(at) = self.events.iter().position(fits) {
            return self.events.remove(at).expect("its position was just found")["data"].clone();
        }
        let deadline = Instant::now() + PATIENCE;
        while Instant::now() < deadline {
            let message = self
                .receive()
                .unwrap_or_else(|error| panic!("no event {name}: {error}"));
            if fits(&message) {
                return message["data"].clone();
            }
            assert!(
                message.get("event").is_some(),
                "an answer nobody asked for: {message}"
            );
            self.events.push_back(message);
        }
        panic!("no event {name} within {PATIENCE:?}; seen: {:?}", self.events);
    }

    /// Takes the events that came before the last answer and were not waited for.
    pub fn take_events(&mut self) -> Vec<Value> {
        self.events.drain(..).collect()
    }

    /// Asks the daemon to end. It may close the connection before it answers.
    pub fn quit(&mut self) {
        // A daemon that is already closing the socket may refuse the write, which is as good as an answer.
        let _ = self.stream.write_all(b"{\"execute\": \"quit\"}\n");
        while let Ok(message) = self.receive() {
            if message.get("return").is_some() {
                break;
            }
        }
    }

    /// Runs a job-making command and waits until its job has concluded; the job's error if it has one.
    #[track_caller]
    pub fn run_job(&mut self, id: &str, command: &str, arguments: Value) -> Result<(), String> {
        self.execute(command, arguments).map_err(|error| error.desc)?;
        self.wait_event_where("JOB_STATUS_CHANGE", |data| {
            data["id"] == id && data["status"] == "concluded"
        });
        let jobs = self.ok("query-jobs", json!({}));
        let job = jobs
            .as_array()
            .expect("a list of jobs")
            .iter()
            .find(|job| job["id"] == id);
        let error = job
            .unwrap_or_else(|| panic!("job {id} is gone before it was dismissed"))
            .get("error")
            .cloned();
        self.ok("job-dismiss", json!({ "id": id }));
        match error {
            Some(error) => Err(error.as_str().unwrap_or_default().to_owned()),
            None => Ok(()),
        }
    }

    fn receive(&mut self) -> Result<Value, String> {
        let line = self.receive_line()?;
        let beginning: String = line.chars().take(200).collect();
        serde_json::from_str(&line).map_err(|error| format!("not JSON: {error}: {beginning}"))
    }

    /// Waits for the next line of any kind, as it is: for answers that nest too deeply for a parser.
    pub fn receive_line(&mut self) -> Result<String, String> {
        let mut line = String::new();
        match self.reader.read_line(&mut line) {
            Ok(0) => Err("the monitor's connection was closed".to_owned()),
            Ok(_) => Ok(line),
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {
                Err(format!("{SILENCE} {PATIENCE:?}"))
            }
            Err(error) => Err(error.to_string()),
        }
    }
}

fn arguments_are_empty(request: &Value) -> bool {
    request["arguments"]
        .as_object()
        .is_some_and(|arguments| arguments.is_empty())
}

/// Connects to a socket that another process is about to make. The socket's appearance cannot be awaited by an event
/// before its folder's watcher exists, so this asks again every few milliseconds, up to the deadline.
fn connect_when_ready(
    path: &Path,
    alive: &mut impl FnMut() -> Result<(), String>,
) -> Result<UnixStream, String> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        match UnixStream::connect(path) {
            Ok(stream) => return Ok(stream),
            Err(error) if Instant::now() > deadline => return Err(format!("{}: {error}", path.display())),
            Err(_) => alive()?,
        }
        std::thread::sleep(Duration::from_millis(2));
    }
}
