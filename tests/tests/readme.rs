//! Every command of the README runs: the blocks of each section in one shell, which stops at the first that fails, in a
//! folder where the binaries under test lie where the README's build would put them. What takes long is made shorter, by
//! the shell's functions below and nowhere else.

use std::fs;
use std::io::{self, BufRead, BufReader, Read};
use std::os::unix::fs::symlink;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::thread::JoinHandle;

use millpond_tests::daemon::{scratch, wait_for};
use millpond_tests::program;
use rustix::process::{Pid, Signal, kill_process_group};

/// What stands in for cargo and for long loads. Building is done already; `tests/run` runs this test among others; the
/// examples have tests of their own, in actors/tests/examples.rs; `compare` runs for minutes, so its arguments are only
/// understood.
const FUNCTIONS: &str = r#"
set -euo pipefail
cargo() {
    local command=$1 package=millpond
    shift
    [ "$command" = run ] || { [ "$command" = build ]; return; }
    while [ "$1" != -- ]; do
        case $1 in
            --release) ;;
            --profile) shift ;;
            -p) package=$2; shift ;;
            --example) test -f "$REPOSITORY/actors/examples/$2.rs"; return ;;
            *) echo "unknown to this test: cargo run $1" >&2; return 1 ;;
        esac
        shift
        [ $# -gt 0 ] || return 1
    done
    shift
    case "$package $1" in
        "millpond-bench load") "$BENCH" "$@" --seconds 1 ;;
        "millpond-bench compare") "$BENCH" "$@" --help > compare.help ;;
        "millpond-tests sim") "$TESTS" "${@/#100/1}" ;;
        "millpond-tests crash") "$TESTS" "${@/#500/10}" --workload lazy ;;
        "millpond-tests nth") "$TESTS" "$@" --stride 200 ;;
        "millpond "*) exec target/release/millpond "$@" ;;
        *) echo "unknown to this test: cargo run -p $package $1" >&2; return 1 ;;
    esac
}
millpond-bench() { "$BENCH" "${@/#10/3}"; }
qemu-img() { command qemu-img "${@/#200000/20000}"; }
"#;

/// The sections of the README that have commands, in their order: a name, and its commands.
fn sections() -> Vec<(String, String)> {
    let readme = fs::read_to_string(repository().join("README.md")).expect("there is a README");
    let mut sections: Vec<(String, String)> = Vec::new();
    let mut heading = String::new();
    let mut in_block = false;
    for line in readme.lines() {
        match line {
            "```sh" => in_block = true,
            "```" => in_block = false,
            line if in_block => {
                if sections.last().is_none_or(|(name, _)| *name != heading) {
                    sections.push((heading.clone(), String::new()));
                }
                let (_, commands) = sections.last_mut().expect("one was just added");
                commands.push_str(line);
                commands.push('\n');
            }
            line => {
                if let Some(name) = line.strip_prefix("## ") {
                    heading = name.to_owned();
                }
            }
        }
    }
    sections
}

fn repository() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .parent()
        .expect("tests/ lies in it")
}

/// A shell that runs a section's commands in `dir`, in a process group of its own.
fn shell(dir: &Path, commands: &str) -> Child {
    Command::new("bash")
        .arg("-c")
        .arg(format!("{FUNCTIONS}\n{commands}"))
        .current_dir(dir)
        // Where sockets go that are not named.
        .env("XDG_RUNTIME_DIR", dir)
        .env("REPOSITORY", repository())
        .env("BENCH", program::bench())
        .env("TESTS", env!("CARGO_BIN_EXE_millpond-tests"))
        .process_group(0)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("bash can be run")
}

/// All that comes through a pipe, read by a thread.
fn taken(mut pipe: impl Read + Send + 'static) -> JoinHandle<io::Result<String>> {
    std::thread::spawn(move || {
        let mut text = String::new();
        pipe.read_to_string(&mut text).map(|_| text)
    })
}

/// What a section's shell has written, once it has ended well.
#[track_caller]
fn expect_success(name: &str, mut shell: Child) -> String {
    // Read beside the wait: a shell whose output nobody takes does not end.
    let errors = taken(shell.stderr.take().expect("a pipe"));
    let output = taken(shell.stdout.take().expect("a pipe"));
    let status = shell.wait().expect("it can be waited for");
    // What a shell that failed has left in the background holds the pipes; one that ended well has left nothing.
    let _ = kill_process_group(Pid::from_child(&shell), Signal::KILL);
    let [output, errors] =
        [output, errors].map(|text| text.join().expect("no panic").expect("it can be read"));
    assert!(
        status.success(),
        "'{name}' ended with {status}:\n{output}\n{errors}"
    );
    output
}

#[track_caller]
fn interrupt(shell: &Child) {
    kill_process_group(Pid::from_child(shell), Signal::INT).expect("it runs");
}

#[test]
fn every_command_of_the_readme_runs() {
    let dir = scratch();
    let release = dir.path().join("target/release");
    fs::create_dir_all(&release).expect("a folder can be made");
    symlink(program::millpond(), release.join("millpond")).expect("a link can be made");
    let mut seen = Vec::new();
    for (name, commands) in sections() {
        match name.as_str() {
            "Run the tests" => assert_eq!(commands, "tests/run\n"),
            // These serve until somebody ends them, as a person would.
            "Serve an image" => {
                let mut shell = shell(dir.path(), &commands);
                let mut lines = BufReader::new(shell.stdout.take().expect("a pipe")).lines();
                let served = lines.any(|line| line.is_ok_and(|line| line.starts_with("Ctrl-C")));
                assert!(served, "it says that it serves");
                interrupt(&shell);
                let status = wait_for(&mut shell).expect("it ends");
                assert!(status.success(), "{status}");
            }
            "Run it as a service" => {
                let mut shell = shell(dir.path(), &commands);
                let mut told = BufReader::new(shell.stderr.take().expect("a pipe")).lines();
                let listens = told.any(|line| line.is_ok_and(|line| line.starts_with("Listening on")));
                assert!(listens, "it says that it listens");
                let uri = format!("nbd+unix:///?socket={}", dir.path().join("disk.sock").display());
                let size = millpond_tests::tool::run("nbdinfo", &["--size", &uri]);
                assert_eq!(size.trim(), (10_u64 << 30).to_string());
                interrupt(&shell);
                let status = wait_for(&mut shell).expect("it ends");
                assert!(status.success(), "{status}");
            }
            _ => {
                let output = expect_success(&name, shell(dir.path(), &commands));
                match name.as_str() {
                    "A tour: a snapshot under load" => {
                        assert!(output.contains("\"node-name\": \"overlay\""), "{output}")
                    }
                    "A tour: an image as a file" => {
                        assert!(output.contains("\"type\": \"fuse\""), "{output}")
                    }
                    "A chaos tour: messages that come late" => {
                        assert!(
                            output.contains("verified") && output.contains("Unanswered"),
                            "{output}"
                        );
                    }
                    "How fast it is" => assert!(output.contains("verified"), "{output}"),
                    _ => {}
                }
            }
        }
        seen.push(name);
    }
    let expected = [
        "Serve an image",
        "Run the tests",
        "A tour: a snapshot under load",
        "A tour: an image as a file",
        "A chaos tour: messages that come late",
        "Simulate it, crash it, fail it",
        "Run it as a service",
        "Embed it",
        "How fast it is",
    ];
    assert_eq!(seen, expected);
    let mut left: Vec<_> = fs::read_dir(dir.path())
        .expect("the folder is there")
        .map(|entry| {
            entry
                .expect("it can be read")
                .file_name()
                .into_string()
                .expect("a plain name")
        })
        .collect();
    left.sort();
    // The tours clean up after themselves; the socket is the service manager's.
    assert_eq!(left, ["compare.help", "disk.qcow2", "disk.sock", "target"]);
}
