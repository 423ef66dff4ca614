//! `millpond-bench compare` as a whole, on a row that takes no time.

use std::path::Path;
use std::process::{Command, Output};

use millpond_tests::program::millpond;

/// The row: a few nodes come and go.
const ROW: &str = "blockdev-add + blockdev-del beside 0 nodes";

fn compare(dir: &Path, arguments: &[&str], path: Option<&Path>) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_millpond-bench"));
    command.args(["compare", "--quick"]).args(arguments);
    command.arg("--millpond").arg(millpond());
    command.arg("--dir").arg(dir).arg("--disk-dir").arg(dir);
    if let Some(path) = path {
        command.env("PATH", path);
    }
    command.output().expect("the program that was built can be run")
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

#[test]
fn a_row_is_measured_printed_and_written() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("table.md");
    let output = compare(
        dir.path(),
        &["--only", ROW, "--output", &file.to_string_lossy()],
        None,
    );
    assert!(output.status.success(), "{}", text(&output.stderr));
    let table = text(&output.stdout);
    let row = table.lines().find(|line| line.contains(ROW)).unwrap_or_default();
    let cells: Vec<_> = row.split('|').map(str::trim).collect();
    assert!(
        matches!(cells[..], ["", ROW, peer, ours, ratio, "5x", met, ..]
            if peer.ends_with(" us") && ours.ends_with(" us") && ratio.ends_with('x') && !met.is_empty()),
        "{row}"
    );
    assert_eq!(
        table.matches("| blockdev").count(),
        1,
        "only the row that is asked for: {table}"
    );
    for told in ["- machine: ", "- kernel: ", "- date: ", "- qemu-storage-daemon: "] {
        assert!(table.contains(told), "{told} in {table}");
    }
    assert_eq!(std::fs::read_to_string(&file).unwrap(), table);
    let left: Vec<_> = std::fs::read_dir(dir.path()).unwrap().collect();
    assert_eq!(left.len(), 1, "nothing but the table is left: {left:?}");
}

#[test]
fn peers_that_are_not_installed_are_named_and_no_ratio_is_made_up() {
    let dir = tempfile::tempdir().unwrap();
    let output = compare(dir.path(), &["--only", ROW], Some(dir.path()));
    assert!(output.status.success(), "{}", text(&output.stderr));
    let table = text(&output.stdout);
    for package in ["qemu-utils", "nbdkit", "fio"] {
        let told = |line: &str| line.contains("**missing**") && line.contains(package);
        assert!(table.lines().any(told), "{package} in {table}");
    }
    let row = table.lines().find(|line| line.contains(ROW)).unwrap_or_default();
    let cells: Vec<_> = row.split('|').map(str::trim).collect();
    assert!(
        matches!(cells[..], ["", ROW, "-", ours, "-", "5x", "no peer", ..] if ours.ends_with(" us")),
        "{row}"
    );
}

#[test]
fn what_makes_no_sense_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    for arguments in [["--runs", "0"], ["--seconds", "0"], ["--group", "nothing"]] {
        let output = compare(dir.path(), &arguments, None);
        assert!(!output.status.success(), "{arguments:?}");
    }
    let mut command = Command::new(env!("CARGO_BIN_EXE_millpond-bench"));
    command
        .args(["compare", "--millpond", "/nowhere/millpond", "--dir"])
        .arg(dir.path());
    let output = command.arg("--disk-dir").arg(dir.path()).output().unwrap();
    assert!(!output.status.success());
    assert!(
        text(&output.stderr).contains("/nowhere/millpond is not there"),
        "{}",
        text(&output.stderr)
    );
}

#[test]
fn a_job_is_held_against_the_peer_and_the_limit() {
    let row = "block-commit of 512 MiB, intermediate";
    let dir = tempfile::tempdir().unwrap();
    let output = compare(dir.path(), &["--group", "jobs", "--only", row], None);
    assert!(output.status.success(), "{}", text(&output.stderr));
    let table = text(&output.stdout);
    let line = table.lines().find(|line| line.contains(row)).unwrap_or_default();
    let cells: Vec<_> = line.split('|').map(str::trim).collect();
    assert!(
        matches!(cells[..], ["", _, peer, ours, ratio, _, _, limit, of_limit, cpu, _, ""]
            if peer.ends_with(" s") && ours.ends_with(" s") && ratio.ends_with('x')
                && limit.starts_with("limit: ") && of_limit.ends_with('%') && cpu.contains(", ")),
        "{line}"
    );
}
