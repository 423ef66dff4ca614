//! A QMP client that does no more than a measurement needs: it sends commands and counts what comes back.

use std::io::{BufRead, BufReader, ErrorKind, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};

use crate::Outcome;
use crate::server::Program;

/// Commands on their way at once when many are sent.
const BATCH: usize = 64;

/// How long a daemon may take for a reply.
const PATIENCE: Duration = Duration::from_secs(600);

/// A connection to a daemon's monitor.
#[derive(Debug)]
pub struct Connection {
    reader: BufReader<UnixStream>,
    writer: UnixStream,
    /// The last reply, its line end included.
    line: String,
    /// A job has told that it is over, or ready to be completed.
    job_told: bool,
}

/// A daemon and a connection to its monitor.
#[derive(Debug)]
pub struct Monitor {
    connection: Connection,
    child: Child,
    socket: PathBuf,
}

impl Monitor {
    /// Starts a daemon, its socket in `dir`.
    ///
    /// # Errors
    /// It cannot be run, or opens no monitor.
    pub fn start(program: &Program, dir: &Path) -> Outcome<Monitor> {
        Monitor::start_with(program, dir, &[])
    }

    /// Starts a daemon with these arguments besides those for its monitor.
    ///
    /// # Errors
    /// It cannot be run, or opens no monitor.
    pub fn start_with(program: &Program, dir: &Path, arguments: &[String]) -> Outcome<Monitor> {
        let socket = dir.join(format!("{}.sock", program.name));
        let child = program
            .command()
            .args(arguments)
            .arg("--chardev")
            .arg(format!(
                "socket,id=qmp,path={},server=on,wait=off",
                socket.display()
            ))
            .args(["--monitor", "chardev=qmp"])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .spawn()
            .map_err(|error| format!("{}: {error}", program.name))?;
        Ok(Monitor {
            connection: Connection::connect(&socket)?,
            child,
            socket,
        })
    }

    /// Its process.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Sends a command and waits for its reply; answers how many bytes that had.
    ///
    /// # Errors
    /// The reply is an error, or the daemon has gone.
    pub fn run(&mut self, command: &str) -> Outcome<usize> {
        self.connection.run(command)
    }

    /// Carries out one command with its arguments; answers how many bytes its reply had.
    ///
    /// # Errors
    /// The reply is an error, or the daemon has gone.
    pub fn execute(&mut self, command: &str, arguments: &Value) -> Outcome<usize> {
        self.connection.execute(command, arguments)
    }

    /// Carries out one command with its arguments; answers what it returned.
    ///
    /// # Errors
    /// The reply is an error or no JSON, or the daemon has gone.
    pub fn ask(&mut self, command: &str, arguments: &Value) -> Outcome<Value> {
        self.connection.ask(command, arguments)
    }

    /// Waits until the only job of this daemon is over or ready to be completed, or for so long; answers whether it is.
    ///
    /// # Errors
    /// The job has failed, or the daemon has gone.
    pub fn wait_job(&mut self, limit: Duration) -> Outcome<bool> {
        self.connection.wait_job(limit)
    }

    /// Forgets what a job has told: the next [`Monitor::wait_job`] waits for what it tells from now on.
    pub fn forget_job(&mut self) {
        self.connection.job_told = false;
    }

    /// Sends so many commands, some at once, until `deadline`; answers how many were carried out.
    ///
    /// # Errors
    /// A reply is an error, or the daemon has gone.
    pub fn run_many(
        &mut self,
        count: usize,
        deadline: Instant,
        command: impl Fn(usize) -> String,
    ) -> Outcome<usize> {
        self.connection.run_many(count, deadline, command)
    }
}

impl Connection {
    /// Connects to the monitor on a unix socket, waiting for the socket if need be, and negotiates.
    ///
    /// # Errors
    /// There is no monitor there.
    pub fn connect(socket: &Path) -> Outcome<Connection> {
        let stream = connect(socket).map_err(|error| format!("{}: {error}", socket.display()))?;
        stream.set_read_timeout(Some(PATIENCE))?;
        let mut connection = Connection {
            reader: BufReader::new(stream.try_clone()?),
            writer: stream,
            line: String::new(),
            job_told: false,
        };
        connection.run(r#"{"execute": "qmp_capabilities"}"#)?;
        Ok(connection)
    }

    /// Sends a command and waits for its reply; answers how many bytes that had.
    ///
    /// # Errors
    /// The reply is an error, or the daemon has gone.
    pub fn run(&mut self, command: &str) -> Outcome<usize> {
        self.send(command)?;
        self.reply()
    }

    /// Carries out one command with its arguments; answers how many bytes its reply had.
    ///
    /// # Errors
    /// The reply is an error, or the daemon has gone.
    pub fn execute(&mut self, command: &str, arguments: &Value) -> Outcome<usize> {
        let text = json!({ "execute": command, "arguments": arguments }).to_string();
        self.run(&text)
            .map_err(|error| format!("{command} {arguments}: {error}").into())
    }

    /// Carries out one command with its arguments; answers what it returned.
    ///
    /// # Errors
    /// The reply is an error or no JSON, or the daemon has gone.
    pub fn ask(&mut self, command: &str, arguments: &Value) -> Outcome<Value> {
        self.execute(command, arguments)?;
        let mut reply: Value = serde_json::from_str(&self.line)?;
        Ok(reply["return"].take())
    }

    /// Sends so many commands, some at once, until `deadline`; answers how many were carried out.
    ///
    /// # Errors
    /// A reply is an error, or the daemon has gone.
    pub fn run_many(
        &mut self,
        count: usize,
        deadline: Instant,
        command: impl Fn(usize) -> String,
    ) -> Outcome<usize> {
        let mut done = 0;
        while done < count && Instant::now() < deadline {
            let batch = BATCH.min(count - done);
            let text: String = (done..done + batch).map(|at| command(at) + "\n").collect();
            self.writer.write_all(text.as_bytes())?;
            for _ in 0..batch {
                self.reply()?;
            }
            done += batch;
        }
        Ok(done)
    }

    fn send(&mut self, command: &str) -> Outcome<()> {
        Ok(self.writer.write_all(format!("{command}\n").as_bytes())?)
    }

    /// Waits for what a job tells at its end.
    ///
    /// # Errors
    /// It has failed, or the daemon has gone.
    fn wait_job(&mut self, limit: Duration) -> Outcome<bool> {
        let deadline = Instant::now() + limit;
        while !self.job_told {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                break;
            }
            self.writer.set_read_timeout(Some(left))?;
            match self.next_line() {
                Ok(()) => self.note_event()?,
                Err(error) if is_timeout(&*error) => break,
                Err(error) => return Err(error),
            }
        }
        self.writer.set_read_timeout(Some(PATIENCE))?;
        Ok(self.job_told)
    }

    /// Notes what an event tells of a job.
    fn note_event(&mut self) -> Outcome<()> {
        if !self.line.contains(r#""BLOCK_JOB_"#) {
            return Ok(());
        }
        let event: Value = serde_json::from_str(&self.line)?;
        let (name, data) = (&event["event"], &event["data"]);
        self.job_told |= name == "BLOCK_JOB_READY" || name == "BLOCK_JOB_COMPLETED";
        match data["error"].as_str() {
            Some(error) => Err(format!("the job has failed: {error}").into()),
            None => Ok(()),
        }
    }

    fn next_line(&mut self) -> Outcome<()> {
        self.line.clear();
        if self.reader.read_line(&mut self.line)? == 0 {
            return Err("the daemon has closed its monitor".into());
        }
        Ok(())
    }

    /// Reads up to the next reply. The greeting is passed over, and so are events but for those of jobs.
    fn reply(&mut self) -> Outcome<usize> {
        loop {
            self.next_line()?;
            if self.line.starts_with(r#"{"return""#) {
                return Ok(self.line.len());
            }
            if self.line.starts_with(r#"{"error""#) {
                return Err(self.line.clone().into());
            }
            self.note_event()?;
        }
    }
}

/// Nothing has come in time.
fn is_timeout(error: &(dyn std::error::Error + 'static)) -> bool {
    let kind = error.downcast_ref::<std::io::Error>().map(std::io::Error::kind);
    matches!(kind, Some(ErrorKind::WouldBlock | ErrorKind::TimedOut))
}

fn connect(socket: &Path) -> Outcome<UnixStream> {
    let deadline = Instant::now() + Duration::from_secs(20);
    loop {
        match UnixStream::connect(socket) {
            Ok(stream) => return Ok(stream),
            Err(error) if Instant::now() > deadline => return Err(error.into()),
            Err(_) => thread::sleep(Duration::from_millis(10)),
        }
    }
}

impl Drop for Monitor {
    fn drop(&mut self) {
        // They fail only if it has ended by itself, which a command has reported. It is killed since closing a hundred
        // thousand nodes is not what is measured.
        let _ = kill_process(Pid::from_child(&self.child), Signal::KILL);
        let _ = self.child.wait();
        let _ = std::fs::remove_file(&self.socket);
    }
}
