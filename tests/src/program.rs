//! Finds the programs that tests run: the daemon under test, and the one it is compared with.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

/// Names a program to test in place of this workspace's own; it gets no `serve` before its arguments.
pub const UNDER_TEST: &str = "MILLPOND_UNDER_TEST";

/// A storage daemon: the file to run and the arguments that come before those of a test.
#[derive(Debug, Clone)]
pub struct Program {
    path: PathBuf,
    leading: Vec<String>,
}

impl Program {
    /// A command that runs the daemon, ready for further arguments.
    pub fn command(&self) -> Command {
        let mut command = Command::new(&self.path);
        command.args(&self.leading);
        command
    }

    /// Whether it is the one that the tests are about.
    pub fn is_under_test(&self) -> bool {
        self.path == under_test().path
    }

    /// The file that is run.
    pub fn path(&self) -> &Path {
        &self.path
    }
}

/// The daemon under test. The first call in a process builds the `millpond` binary, in the profile of the tests.
pub fn under_test() -> &'static Program {
    static PROGRAM: OnceLock<Program> = OnceLock::new();
    PROGRAM.get_or_init(|| match std::env::var_os(UNDER_TEST) {
        Some(path) => Program {
            path: PathBuf::from(path),
            leading: Vec::new(),
        },
        None => Program {
            path: millpond().to_owned(),
            leading: vec!["serve".to_owned()],
        },
    })
}

/// QEMU's own storage daemon.
pub fn oracle() -> Program {
    Program {
        path: PathBuf::from("qemu-storage-daemon"),
        leading: Vec::new(),
    }
}

/// This workspace's `millpond` binary, built on the first call in a process.
pub fn millpond() -> &'static Path {
    static BINARY: OnceLock<PathBuf> = OnceLock::new();
    BINARY.get_or_init(|| build(&["--workspace", "--bin", "millpond"], "millpond"))
}

/// This workspace's `millpond-bench` binary, built on the first call in a process.
pub fn bench() -> &'static Path {
    static BINARY: OnceLock<PathBuf> = OnceLock::new();
    BINARY.get_or_init(|| build(&["--workspace", "--bin", "millpond-bench"], "millpond-bench"))
}

/// Runs `cargo build` with `selection` in the profile and target folder of the running test, and returns the path of
/// `artifact` below that profile's folder.
fn build(selection: &[&str], artifact: &str) -> PathBuf {
    let profile_dir = profile_dir();
    let target_dir = profile_dir
        .parent()
        .expect("a profile's folder lies in the target folder");
    let workspace = Path::new(env!("CARGO_MANIFEST_DIR"))
        .parent()
        .expect("tests/ lies in the workspace");
    let mut cargo = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    cargo
        .current_dir(workspace)
        .arg("build")
        .args(selection)
        .arg("--target-dir")
        .arg(target_dir);
    match profile_dir.file_name().and_then(|name| name.to_str()) {
        Some("debug") | None => {}
        Some(profile) => {
            cargo.args(["--profile", profile]);
        }
    }
    let output = cargo
        .output()
        .expect("cargo must be found to build the program under test");
    assert!(
        output.status.success(),
        "cargo build {} failed:\n{}",
        selection.join(" "),
        String::from_utf8_lossy(&output.stderr)
    );
    profile_dir.join(artifact)
}

/// `target/debug`, or that of another profile: the folder above `deps/`, where test executables lie.
fn profile_dir() -> PathBuf {
    let test = std::env::current_exe().expect("a running program has a path");
    let deps = test.parent().expect("a file lies in a folder");
    deps.parent()
        .expect("cargo puts tests two folders below the target folder")
        .to_owned()
}
