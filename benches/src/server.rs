//! Starts a server for a measurement, and ends it.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use crate::Outcome;
use crate::load::Target;
use crate::process::Process;

/// Which daemon, by name and how to run it.
#[derive(Debug, Clone)]
pub struct Program {
    /// What tables call it.
    pub name: &'static str,
    path: PathBuf,
    leading: &'static [&'static str],
}

impl Program {
    /// Millpond at this path.
    pub fn millpond(path: PathBuf) -> Program {
        Program {
            name: "millpond",
            path,
            leading: &["serve"],
        }
    }

    /// A command of the same program that is no server.
    pub fn other_command(&self, name: &str) -> Command {
        let mut command = Command::new(&self.path);
        command.arg(name);
        command
    }

    /// QEMU's storage daemon, found on the path.
    pub fn peer() -> Program {
        Program {
            name: "qemu-storage-daemon",
            path: "qemu-storage-daemon".into(),
            leading: &[],
        }
    }

    /// A command that runs it.
    pub fn command(&self) -> Command {
        let mut command = Command::new(&self.path);
        command.args(self.leading);
        command
    }
}

/// A running server with one export that matters.
#[derive(Debug)]
pub struct Server {
    process: Process,
    target: Target,
}

impl Server {
    /// Starts a daemon with these objects, whose node `disk` these options make, served from an iothread with these options.
    pub fn start(
        program: &Program,
        dir: &Path,
        iothread: &str,
        objects: &[&str],
        blockdevs: &[String],
    ) -> Outcome<Server> {
        let socket = dir.join("bench.sock");
        let mut command = program.command();
        command.arg("--object").arg(format!("iothread,id=io{iothread}"));
        for object in objects {
            command.arg("--object").arg(object);
        }
        for blockdev in blockdevs {
            command.arg("--blockdev").arg(blockdev);
        }
        command
            .arg("--nbd-server")
            .arg(format!("addr.type=unix,addr.path={}", socket.display()));
        command
            .arg("--export")
            .arg("nbd,id=disk,node-name=disk,name=disk,writable=on,iothread=io");
        Server::spawn(command, socket, "disk").map_err(|error| format!("{}: {error}", program.name).into())
    }

    /// Starts any server that listens on this socket and has this export. What it says goes into a file beside the
    /// socket, and is told if it does not come up.
    ///
    /// # Errors
    /// It cannot be run, or does not take connections in time.
    pub fn spawn(mut command: Command, socket: PathBuf, export: &str) -> Outcome<Server> {
        if socket.exists() {
            std::fs::remove_file(&socket)?;
        }
        let log = socket.with_extension("log");
        let child = command
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(File::create(&log)?)
            .spawn()
            .map_err(|error| format!("{}: {error}", command.get_program().display()))?;
        let server = Server {
            process: Process(child),
            target: Target::unix(socket, export),
        };
        server
            .target
            .wait_ready(Duration::from_secs(20))
            .map_err(|error| {
                let said = std::fs::read_to_string(&log).unwrap_or_default();
                format!("{error}; it said: {said}")
            })?;
        Ok(server)
    }

    /// Its process.
    pub fn pid(&self) -> u32 {
        self.process.0.id()
    }

    /// Its export.
    pub fn target(&self) -> &Target {
        &self.target
    }
}
