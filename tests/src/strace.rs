//! The system calls that a daemon makes, seen by `strace`.

use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStderr, Command, Stdio};

use crate::tool::hint;

/// What `strace` sees of a process.
pub struct Strace {
    child: Child,
    lines: BufReader<ChildStderr>,
    call: String,
    log: PathBuf,
}

impl Strace {
    /// Looks at calls of one kind, such as `futex`, and writes them to a file. Begins once all threads are watched.
    ///
    /// # Panics
    /// There is no `strace`, or it may not look.
    #[must_use]
    pub fn attach(pid: u32, call: &str, log: &Path) -> Self {
        let mut child = Command::new("strace")
            .args(["-f", "-Y", "-e", &format!("trace={call}"), "-o"])
            .arg(log)
            .args(["-p", &pid.to_string()])
            .stderr(Stdio::piped())
            .spawn()
            .unwrap_or_else(|error| panic!("cannot run strace: {error}{}", hint("strace")));
        let stderr = child.stderr.take().expect("it is piped");
        let mut lines = BufReader::new(stderr);
        let mut line = String::new();
        lines
            .read_line(&mut line)
            .expect("strace says that it is attached");
        assert!(line.contains("attached"), "strace: {line}");
        Self {
            child,
            lines,
            call: format!("{call}("),
            log: log.to_owned(),
        }
    }

    /// Ends, and tells the calls, a line each.
    ///
    /// # Panics
    /// It does not end, or has written nothing.
    #[must_use]
    pub fn detach(mut self) -> Vec<String> {
        let pid = rustix::process::Pid::from_child(&self.child);
        rustix::process::kill_process(pid, rustix::process::Signal::INT).expect("it runs");
        // So that it does not wait for somebody to read.
        std::io::copy(&mut self.lines, &mut std::io::sink()).expect("it ends");
        self.child.wait().expect("it ends");
        let log = std::fs::read_to_string(&self.log).expect("strace wrote it");
        let calls = log.lines().filter(|line| line.contains(&self.call));
        calls.map(ToOwned::to_owned).collect()
    }
}
