//! Opening, reading and mapping a long chain of overlays.

use std::fs;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::json;

use super::{pair, show_micros, timed};
use crate::Outcome;
use crate::compare::bench::Bench;
use crate::compare::client::Client;
use crate::compare::image;
use crate::compare::statistics::{Samples, alternate};
use crate::compare::table::{Better, Line, Section, Verdict, compared};
use crate::qmp::Monitor;
use crate::server::Program;

/// Overlays over a base.
const LENGTH: usize = 200;

/// With their base these are 1,000 images, the most that Millpond opens as a chain.
const LONG: usize = 999;

/// How far a chain five times as long may take more than five times as long, and still be called linear.
const LINEAR: f64 = 1.25;

/// Overlays that have a cluster, evenly spread over the chain.
const WITH_CLUSTERS: usize = 100;

const CLUSTER: u64 = 16 << 10;

/// The name that the template gives its backing file: as long as every image's, so that it can be written over.
const PLACE: &str = "c0000.qcow2";

/// What one run took, in microseconds.
#[derive(Debug, Clone, Copy)]
struct Times {
    /// From the command that opens it to the first bytes read.
    open_and_read: f64,
    map: f64,
}

/// Adds the rows about chains.
pub fn rows(bench: &Bench<'_>, section: &mut Section) -> Outcome<()> {
    let work = format!("open a chain of {LENGTH} overlays and read; map it; {LONG}");
    if !bench.wants(&work) {
        return Ok(());
    }
    let long = if bench.quick() { LENGTH + 50 } else { LONG };
    for length in [LENGTH, long] {
        make(&folder(bench.dir(), length), length)?;
    }
    let programs = bench.programs();
    let figures = |times: &Times| [times.open_and_read, times.map];
    let run = |which: usize| one_run(programs[which], bench.dir(), LENGTH);
    let short = alternate(bench.runs(), programs.len(), programs.len(), run, figures)?;
    let short = bench.beside_peer(short);
    let (long_peer, died) = match bench.peer().map(|peer| long_runs(peer, bench, long)) {
        Some(Ok(runs)) => (runs, None),
        // It is known to have an end: a request is a coroutine in a coroutine for each image of the chain.
        Some(Err(error)) => (Vec::new(), Some(error.to_string())),
        None => (Vec::new(), None),
    };
    let long_runs = [long_peer, long_runs(bench.ours(), bench, long)?];
    for (what, figure) in [
        (
            "open and read",
            (|times| times.open_and_read) as fn(&Times) -> f64,
        ),
        ("map", |times| times.map),
    ] {
        let (peer, ours) = pair(&short, figure);
        let work = format!("{what} a chain of {LENGTH} overlays");
        section.lines.push(compared(
            &work,
            &peer,
            &ours,
            Better::Less,
            Some(3.0),
            show_micros,
        ));
        let (long_peer, long_ours) = pair(&long_runs, figure);
        let steps = long as f64 / LENGTH as f64;
        let work = format!("{what} a chain of {long}");
        let mut line = linear(&work, steps, &ours, &long_peer, &long_ours);
        if died.is_some() {
            line.peer = "fails".to_owned();
        }
        section.lines.push(line);
    }
    if let Some(error) = died {
        section
            .notes
            .push(format!("The peer with a chain of {long}: {error}."));
    }
    section.notes.push(
        "A chain: a hundred of the overlays, evenly spread, have a cluster of their own. \"Open and read\" is from \
         `blockdev-add` of the topmost image, which opens the rest, over adding an export and connecting, to 16 KiB read \
         from the lowest image; \"map\" asks over NBD where the whole export has data."
            .to_owned(),
    );
    Ok(())
}

/// A row about growth: the long chain against the short one.
fn linear(work: &str, steps: f64, short: &Samples, long_peer: &Samples, long: &Samples) -> Line {
    let mut line = compared(work, long_peer, long, Better::Less, None, show_micros);
    line.target = format!("linear: at most {:.2}x of {LENGTH}'s", steps * LINEAR);
    line.verdict = match (short.median(), long.median()) {
        (Some(short), Some(long)) if long <= short * steps * LINEAR => Verdict::Met,
        (Some(short), Some(long)) => Verdict::Missed(format!("{:.2}x of {LENGTH}'s", long / short)),
        _ => Verdict::Open("no runs".to_owned()),
    };
    line
}

/// Where the images of a chain are.
fn folder(dir: &Path, length: usize) -> PathBuf {
    dir.join(format!("chain{length}"))
}

fn path(dir: &Path, at: usize) -> PathBuf {
    dir.join(format!("c{at:04}.qcow2"))
}

/// Makes the base and `length` overlays. `qemu-img` makes one of them; the others differ from that in the name of their
/// backing file and in which cluster they have.
///
/// Each image that has a cluster is an extent of its own, which is found by asking all images above: so that the work grows
/// as the chain does, and not with its square, as many images have one in every chain.
fn make(dir: &Path, length: usize) -> Outcome<()> {
    fs::create_dir_all(dir)?;
    let cluster = format!("cluster_size={CLUSTER}");
    image::create(&path(dir, 0), "qcow2", "32M", &["-o", &cluster])?;
    fill_first_cluster(&path(dir, 0))?;
    let template = path(dir, 1);
    let backing = ["-o", &cluster, "-F", "qcow2", "-b", PLACE];
    image::create(&template, "qcow2", "32M", &backing)?;
    fill_first_cluster(&template)?;
    let bytes = fs::read(&template)?;
    for at in 1..=length {
        let file = fs::File::create(path(dir, at))?;
        file.set_len(bytes.len() as u64)?;
        for (index, cluster) in bytes.chunks(CLUSTER as usize).enumerate() {
            if cluster.iter().any(|byte| *byte != 0) {
                file.write_all_at(cluster, index as u64 * CLUSTER)?;
            }
        }
        let name = format!("c{:04}.qcow2", at - 1);
        file.write_all_at(name.as_bytes(), number(&bytes, 8)?)?;
        // The first entry of the first L2 table goes to the place of this overlay's own cluster.
        let table = number(&bytes, usize::try_from(number(&bytes, 40)?)?)? & OFFSET_MASK;
        let entry = number(&bytes, usize::try_from(table)?)?;
        file.write_all_at(&[0; 8], table)?;
        if at.is_multiple_of(length / WITH_CLUSTERS) {
            file.write_all_at(&entry.to_be_bytes(), table + 8 * at as u64)?;
        }
    }
    Ok(())
}

/// The bits of an entry of a table in which it says where something is.
const OFFSET_MASK: u64 = 0x00ff_ffff_ffff_fe00;

/// A number of 8 bytes in the image.
fn number(image: &[u8], at: usize) -> Outcome<u64> {
    let bytes = image.get(at..).and_then(|rest| rest.first_chunk());
    Ok(u64::from_be_bytes(*bytes.ok_or("the image is too short")?))
}

fn fill_first_cluster(path: &Path) -> Outcome<()> {
    let mut command = Command::new("qemu-io");
    let write = format!("write -q -P 7 0 {CLUSTER}");
    let status = command.args(["-f", "qcow2", "-c", &write]).arg(path).status()?;
    if status.success() {
        Ok(())
    } else {
        Err("qemu-io write failed".into())
    }
}

/// A few runs with the long chain: what is asked is whether it is linear, not a ratio.
fn long_runs(program: &Program, bench: &Bench<'_>, length: usize) -> Outcome<Vec<Times>> {
    (0..bench.runs().min(3))
        .map(|_| one_run(program, bench.dir(), length))
        .collect()
}

fn one_run(program: &Program, dir: &Path, length: usize) -> Outcome<Times> {
    try_run(program, dir, length)
        .map_err(|error| format!("{} at {length} overlays: {error}", program.name).into())
}

fn try_run(program: &Program, dir: &Path, length: usize) -> Outcome<Times> {
    let mut monitor = Monitor::start(program, dir)?;
    let socket = dir.join("chain.nbd");
    let address = json!({ "addr": { "type": "unix", "data": { "path": socket } } });
    monitor.execute("nbd-server-start", &address)?;
    let mut client = None;
    let open_and_read = timed(|| {
        let top = json!({
            "driver": "qcow2", "node-name": "top", "read-only": true,
            "file": { "driver": "file", "filename": path(&folder(dir, length), length) },
        });
        monitor.execute("blockdev-add", &top)?;
        let export = json!({ "type": "nbd", "id": "e", "node-name": "top", "name": "top" });
        monitor.execute("block-export-add", &export)?;
        let mut opened = Client::open(&socket, "top")?;
        opened.read(0, CLUSTER as u32)?;
        client = Some(opened);
        Ok(())
    })?;
    let mut client = client.ok_or("no client")?;
    let mut extents = 0;
    let map = timed(|| {
        extents = client.map()?;
        Ok(())
    })?;
    fs::remove_file(&socket)?;
    // Those of the overlays and that of the base, and at least one hole.
    if extents <= WITH_CLUSTERS || client.size() != 32 << 20 {
        return Err(format!("{}: the chain has {extents} extents", program.name).into());
    }
    Ok(Times { open_and_read, map })
}
