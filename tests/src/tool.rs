//! Runs other people's programs, and says which Debian package has one that is missing.

use std::ffi::OsStr;
use std::io::ErrorKind;
use std::process::{Command, Output, Stdio};

use serde_json::Value;

use crate::PATIENCE;

/// Which Debian package installs which program.
const PACKAGES: &[(&str, &str)] = &[
    ("qemu-img", "qemu-utils"),
    ("qemu-io", "qemu-utils"),
    ("qemu-nbd", "qemu-utils"),
    ("qemu-storage-daemon", "qemu-utils (10.0 from bookworm-backports)"),
    ("nbdinfo", "libnbd-bin"),
    ("nbdcopy", "libnbd-bin"),
    ("nbdsh", "python3-libnbd"),
    ("fio", "fio"),
    ("python3", "python3"),
    ("strace", "strace"),
    ("cryptsetup", "cryptsetup-bin"),
    ("keyctl", "keyutils"),
    ("certtool", "gnutls-bin"),
    ("fusermount3", "fuse3"),
    ("timeout", "coreutils"),
];

/// A program run to its end.
#[derive(Debug)]
pub struct Run {
    /// The command line, for messages.
    pub line: String,
    /// Its exit code; none if a signal ended it.
    pub code: Option<i32>,
    /// Standard output.
    pub stdout: String,
    /// Standard error.
    pub stderr: String,
}

/// What to add to "cannot run": the package to install, if known.
pub fn hint(program: &str) -> String {
    let name = program.rsplit('/').next().unwrap_or(program);
    match PACKAGES.iter().find(|(tool, _)| *tool == name) {
        Some((_, package)) => format!(" (install the Debian package {package})"),
        None => String::new(),
    }
}

/// Runs a program to its end, for at most the time a test waits; what it returns may be a failure.
#[track_caller]
pub fn try_run<S: AsRef<OsStr>>(program: &str, args: &[S]) -> Run {
    require(program);
    let run = run_with(program, args, |command| {
        // nbdsh takes the first python3 of the path; its module belongs to the distribution's.
        if program == "nbdsh" {
            command.env("PATH", "/usr/bin:/bin");
        }
    });
    Run {
        line: describe(program, args),
        ..run
    }
}

/// The same for a program that is a file, and whose surroundings `change` makes; the line is left to the caller.
#[track_caller]
pub(crate) fn run_with<S: AsRef<OsStr>>(
    program: impl AsRef<OsStr>,
    args: &[S],
    change: impl FnOnce(&mut Command),
) -> Run {
    let mut command = Command::new("timeout");
    command
        .arg("--kill-after=5")
        .arg((2 * PATIENCE.as_secs()).to_string())
        .arg(program)
        .args(args)
        .stdin(Stdio::null());
    change(&mut command);
    match command.output() {
        Ok(Output {
            status,
            stdout,
            stderr,
        }) => Run {
            line: String::new(),
            code: status.code(),
            stdout: String::from_utf8_lossy(&stdout).into_owned(),
            stderr: String::from_utf8_lossy(&stderr).into_owned(),
        },
        Err(error) => panic!("cannot run timeout: {error}{}", hint("timeout")),
    }
}

/// Runs a program that must succeed, and returns its standard output.
#[track_caller]
pub fn run<S: AsRef<OsStr>>(program: &str, args: &[S]) -> String {
    let run = try_run(program, args);
    assert_eq!(
        run.code,
        Some(0),
        "{} failed:\n{}{}",
        run.line,
        run.stdout,
        run.stderr
    );
    run.stdout
}

/// Runs a program that must succeed and print JSON.
#[track_caller]
pub fn run_json<S: AsRef<OsStr>>(program: &str, args: &[S]) -> Value {
    let stdout = run(program, args);
    serde_json::from_str(&stdout)
        .unwrap_or_else(|error| panic!("{program} printed no JSON: {error}\n{stdout}"))
}

/// `qemu-img` with these words, which must succeed.
#[track_caller]
pub fn qemu_img(words: &str) -> String {
    run("qemu-img", &words.split_whitespace().collect::<Vec<_>>())
}

/// `qemu-io` on `file` with each command in turn; all must succeed. `qemu-io` may report a failed pattern only in its
/// output, which is checked too.
#[track_caller]
pub fn qemu_io(file_options: &[&str], commands: &[&str]) -> String {
    let mut args: Vec<&str> = file_options.to_vec();
    for command in commands {
        args.extend(["-c", command]);
    }
    let stdout = run("qemu-io", &args);
    for bad in ["failed", "error"] {
        assert!(
            !stdout.to_lowercase().contains(bad),
            "qemu-io {args:?}:\n{stdout}"
        );
    }
    stdout
}

/// Fails with the package's name if the program is not there. `timeout` would report its absence less clearly.
#[track_caller]
fn require(program: &str) {
    if let Err(error) = Command::new(program)
        .arg("--version")
        .stdin(Stdio::null())
        .output()
    {
        assert!(
            error.kind() != ErrorKind::NotFound,
            "{program} is not installed{}",
            hint(program)
        );
    }
}

fn describe<S: AsRef<OsStr>>(program: &str, args: &[S]) -> String {
    let mut line = program.to_owned();
    for arg in args {
        line.push(' ');
        line.push_str(&arg.as_ref().to_string_lossy());
    }
    line
}
