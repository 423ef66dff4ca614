//! The rows about NBD inside TLS, with `nbdcopy` as the client of both.

use std::fs::File;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use super::bench::Bench;
use super::rates::rates;
use super::table::Section;
use super::tools::Tool;
use crate::Outcome;
use crate::process::Process;
use crate::server::Program;

/// The key that both sides know.
const KEY: &str = "alice:0f0e0d0c0b0a09080706050403020100f0e0d0c0b0a090807060504030201000";
/// How long a daemon may take to come up.
const PATIENCE: Duration = Duration::from_secs(20);

struct Row {
    name: &'static str,
    block: u64,
    depth: u32,
    /// Bytes that are read in all.
    size: u64,
    /// How many times the peer's rate is wanted.
    target: f64,
}

const ROWS: [Row; 2] = [
    Row {
        name: "NBD inside TLS, null, 256 KiB read, 8 in flight",
        block: 256 << 10,
        depth: 8,
        size: 1 << 30,
        target: 1.5,
    },
    Row {
        name: "NBD inside TLS, null, 4 KiB read, 32 in flight",
        block: 4 << 10,
        depth: 32,
        size: 256 << 20,
        target: 3.0,
    },
];

/// Adds the rows that are asked for.
pub fn rows(bench: &Bench<'_>, section: &mut Section) {
    for row in ROWS.iter().filter(|row| bench.wants(row.name)) {
        let outcome = rates(bench, row.name, row.target, section, |program| {
            measure(program, bench.dir(), row)
        });
        section.attempt(row.name, outcome);
    }
}

/// How many requests a second a client gets that reads the whole disk.
fn measure(program: &Program, dir: &Path, row: &Row) -> Outcome<f64> {
    std::fs::write(dir.join("keys.psk"), KEY)?;
    let socket = dir.join("tls.sock");
    if socket.exists() {
        std::fs::remove_file(&socket)?;
    }
    let credentials = format!("tls-creds-psk,id=tls,dir={},endpoint=server", dir.display());
    let _daemon = Process(
        program
            .command()
            .args(["--object", "iothread,id=io", "--object", &credentials])
            .arg("--blockdev")
            .arg(format!("null-co,node-name=disk,size={}", row.size))
            .arg("--nbd-server")
            .arg(format!(
                "addr.type=unix,addr.path={},tls-creds=tls",
                socket.display()
            ))
            .args(["--export", "nbd,id=exp,node-name=disk,name=disk,iothread=io"])
            .stdout(Stdio::null())
            .stderr(File::create(dir.join("tls.log"))?)
            .spawn()
            .map_err(|error| format!("{}: {error}", program.name))?,
    );
    let deadline = Instant::now() + PATIENCE;
    while UnixStream::connect(&socket).is_err() {
        if Instant::now() > deadline {
            let said = std::fs::read_to_string(dir.join("tls.log")).unwrap_or_default();
            return Err(format!("{} does not listen: {said}", program.name).into());
        }
        std::thread::yield_now();
    }
    let begin = Instant::now();
    read_all(&socket, &dir.join("keys.psk"), row)?;
    Ok((row.size / row.block) as f64 / begin.elapsed().as_secs_f64())
}

fn read_all(socket: &Path, keys: &Path, row: &Row) -> Outcome<()> {
    let output = Command::new(Tool::Nbdcopy.program())
        .args(["--no-extents", "--connections=1", "--threads=1"])
        .arg(format!("--request-size={}", row.block))
        .arg(format!("--requests={}", row.depth))
        .arg(format!(
            "nbds+unix://alice@/disk?socket={}&tls-psk-file={}",
            socket.display(),
            keys.display()
        ))
        .arg("null:")
        .output()
        .map_err(|error| format!("{error}: {}", Tool::Nbdcopy.missing()))?;
    if output.status.success() {
        return Ok(());
    }
    Err(format!("nbdcopy: {}", String::from_utf8_lossy(&output.stderr)).into())
}
