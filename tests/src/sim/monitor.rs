//! A QMP client of a run.

use std::cell::RefCell;
use std::io;
use std::path::Path;
use std::rc::Rc;
use std::time::Duration;

use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader, Lines};
use tokio::net::UnixStream;
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};

use super::stage::Stage;

struct Connection {
    lines: Lines<BufReader<OwnedReadHalf>>,
    writer: OwnedWriteHalf,
}

/// A connection to a monitor. One command at a time.
pub struct Monitor {
    stage: Rc<Stage>,
    connection: Connection,
    who: &'static str,
    /// The run's folder, whose name is not the same in another run.
    folder: String,
    /// The command that is being carried out, for people.
    current: Rc<RefCell<Option<String>>>,
}

impl Monitor {
    /// Connects, and leaves the negotiation.
    ///
    /// # Errors
    /// Nobody listens, or not in QMP.
    pub async fn connect(stage: Rc<Stage>, path: &Path, who: &'static str) -> io::Result<Self> {
        let (reader, writer) = UnixStream::connect(path).await?.into_split();
        let mut connection = Connection {
            lines: BufReader::new(reader).lines(),
            writer,
        };
        connection.line().await?;
        let folder = path.parent().unwrap_or(path).to_string_lossy().into_owned();
        let mut monitor = Self {
            stage,
            connection,
            who,
            folder,
            current: Rc::default(),
        };
        let current = monitor.current();
        monitor.stage.add_witness(Box::new(move || {
            let current = current.borrow();
            current
                .as_ref()
                .map(|command| format!("the {who} waits for {command}"))
        }));
        match monitor.run("qmp_capabilities", json!({})).await? {
            Ok(_) => Ok(monitor),
            Err(text) => Err(io::Error::other(text)),
        }
    }

    /// What is being carried out, as it changes.
    pub fn current(&self) -> Rc<RefCell<Option<String>>> {
        Rc::clone(&self.current)
    }

    /// Carries out a command.
    ///
    /// # Errors
    /// The connection is lost; inside, the error's text.
    pub async fn run(&mut self, command: &str, arguments: Value) -> io::Result<Result<Value, String>> {
        let request = json!({"execute": command, "arguments": arguments}).to_string();
        self.stage
            .line(self.who, format_args!("{}", request.replace(&self.folder, "")));
        let stage = Rc::clone(&self.stage);
        let _edit = (!command.starts_with("query")).then(|| stage.sections.edit());
        self.current.replace(Some(request.clone()));
        self.connection.writer.write_all(request.as_bytes()).await?;
        self.connection.writer.write_all(b"\n").await?;
        loop {
            let mut answer = self.connection.line().await?;
            if let Some(error) = answer.get("error") {
                let text = error["desc"].as_str().unwrap_or_default().to_owned();
                self.stage.line(
                    self.who,
                    format_args!("{command}: {}", text.replace(&self.folder, "")),
                );
                self.current.replace(None);
                return Ok(Err(text));
            }
            if let Some(value) = answer.get_mut("return") {
                self.stage.line(self.who, format_args!("{command}: done"));
                self.current.replace(None);
                return Ok(Ok(value.take()));
            }
        }
    }

    /// Carries out a command that must not fail.
    ///
    /// # Errors
    /// The connection is lost, or it failed all the same.
    pub async fn must(&mut self, command: &str, arguments: Value) -> io::Result<Value> {
        let text = format!("{command} {arguments}");
        let done = self.run(command, arguments).await?;
        done.map_err(|error| io::Error::other(format!("{text}: {error}")))
    }

    /// Makes an image by a job of this id, and waits for the job's end.
    ///
    /// # Errors
    /// The connection is lost; inside, the job's error.
    pub async fn create(&mut self, id: &str, options: Value) -> io::Result<Result<(), String>> {
        let arguments = json!({"job-id": id, "options": options});
        if let Err(text) = self.run("blockdev-create", arguments).await? {
            return Ok(Err(text));
        }
        loop {
            let jobs = self.must("query-jobs", json!({})).await?;
            let concluded = jobs.as_array().and_then(|jobs| {
                let mut jobs = jobs.iter();
                jobs.find(|job| job["id"] == id && job["status"] == "concluded")
            });
            if let Some(job) = concluded {
                let error = job["error"].as_str().map(str::to_owned);
                self.must("job-dismiss", json!({"id": id})).await?;
                return Ok(error.map_or(Ok(()), Err));
            }
            tokio::time::sleep(Duration::from_millis(4)).await;
        }
    }
}

impl Connection {
    async fn line(&mut self) -> io::Result<Value> {
        let line = self.lines.next_line().await?;
        let line = line.ok_or_else(|| io::Error::other("the monitor closed the connection"))?;
        serde_json::from_str(&line).map_err(io::Error::other)
    }
}
