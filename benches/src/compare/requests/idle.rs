//! What a daemon does when it has nothing to do.

use std::path::Path;
use std::thread;
use std::time::Duration;

use serde_json::json;

use crate::Outcome;
use crate::compare::bench::Bench;
use crate::compare::client::Client;
use crate::compare::statistics::Samples;
use crate::compare::table::{Line, Section, Verdict};
use crate::load::{Meter, Threads};
use crate::qmp::Monitor;
use crate::server::Program;

/// Exports, each of a node of its own, with a connection each.
const EXPORTS: usize = 300;

/// How long a daemon may take to come to rest: polling that adapts dies down.
const SETTLE: Duration = Duration::from_secs(1);

/// How long is counted.
const COUNTED: Duration = Duration::from_secs(4);

/// Adds the row of the idle daemon.
pub fn rows(bench: &Bench<'_>, section: &mut Section) -> Outcome<()> {
    let work = format!("system calls of an idle daemon a second ({EXPORTS} exports, a connection each)");
    if !bench.wants(&work) {
        return Ok(());
    }
    let counted = if bench.quick() { COUNTED / 8 } else { COUNTED };
    let mut shown = Vec::new();
    for program in bench.programs() {
        shown.push(vec![idle(program, bench.dir(), counted)?]);
    }
    let shown = bench.beside_peer(shown);
    let calls = |which: usize| {
        let runs = shown.get(which).map(Vec::as_slice).unwrap_or_default();
        Samples::new(runs.iter().copied()).median()
    };
    section.lines.push(line(&work, calls(0), calls(1)));
    Ok(())
}

fn line(work: &str, peer: Option<f64>, ours: Option<f64>) -> Line {
    let show = |calls: Option<f64>| calls.map_or_else(|| "-".to_owned(), |calls| format!("{calls:.1}/s"));
    Line {
        work: work.to_owned(),
        peer: show(peer),
        ours: show(ours),
        ratio: "-".to_owned(),
        target: "0".to_owned(),
        verdict: match ours {
            None => Verdict::Open("system calls cannot be counted on this machine".to_owned()),
            Some(0.0) => Verdict::Met,
            Some(calls) => Verdict::Missed(format!("{calls:.1}/s")),
        },
        further: Vec::new(),
    }
}

/// System calls a second of a daemon that idles; not a number where they cannot be counted.
fn idle(program: &Program, dir: &Path, counted: Duration) -> Outcome<f64> {
    let socket = dir.join("idle.nbd");
    let iothread = ["--object".to_owned(), "iothread,id=io".to_owned()];
    let mut monitor = Monitor::start_with(program, dir, &iothread)?;
    let address = json!({ "addr": { "type": "unix", "data": { "path": socket } }, "max-connections": 0 });
    monitor.execute("nbd-server-start", &address)?;
    let mut clients = Vec::with_capacity(EXPORTS);
    for at in 0..EXPORTS {
        let name = format!("n{at}");
        let node = json!({ "driver": "null-co", "node-name": name, "size": 1 << 20, "read-zeroes": true });
        monitor.execute("blockdev-add", &node)?;
        let export = json!({ "type": "nbd", "id": name, "node-name": name, "name": name, "iothread": "io" });
        monitor.execute("block-export-add", &export)?;
        let mut client = Client::open(&socket, &name)?;
        client.read(0, 4096)?;
        clients.push(client);
    }
    thread::sleep(SETTLE);
    let mut meter = Meter::new(monitor.pid(), Threads::All, true)?;
    meter.begin()?;
    thread::sleep(counted);
    let usage = meter.end()?;
    drop(clients);
    std::fs::remove_file(&socket)?;
    Ok(usage
        .system_calls
        .map_or(f64::NAN, |calls| calls as f64 / counted.as_secs_f64()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_single_call_misses_the_target() {
        assert_eq!(line("idle", Some(100.0), Some(0.0)).verdict, Verdict::Met);
        assert_eq!(
            line("idle", Some(100.0), Some(0.5)).verdict,
            Verdict::Missed("0.5/s".to_owned())
        );
        assert!(matches!(line("idle", Some(1.0), None).verdict, Verdict::Open(_)));
    }
}
