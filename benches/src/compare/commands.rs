//! The rows about commands for images: how long each takes, beside `qemu-img` with the same words.

use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Instant;

use super::bench::Bench;
use super::image;
use super::statistics::{Samples, alternate};
use super::table::{Better, Section, compared};
use super::tools::Tool;
use crate::Outcome;

const COLUMNS: &[&str] = &["spread"];

/// Bytes of an image's data.
const SIZE: u64 = 1 << 30;

/// Images of a folder in which commands run.
struct Images {
    /// What makes them, once for all runs: arguments of `qemu-img`, a command a line.
    once: &'static str,
    /// What makes those that the command changes, before each run.
    before: &'static str,
}

/// A command, and what is wanted of it.
struct Row {
    work: &'static str,
    /// How many times faster than the peer it is to be.
    at_least: Option<f64>,
    images: Images,
    /// The words behind the program's name.
    words: &'static str,
}

const fn row(work: &'static str, at_least: Option<f64>, once: &'static str, words: &'static str) -> Row {
    Row {
        work,
        at_least,
        images: Images { once, before: "" },
        words,
    }
}

/// The raw image `full` is there for all rows.
const QCOW2: &str = "convert -f raw -O qcow2 full full.qcow2";
/// An image whose tables are as large as those of a full disk of a terabyte.
const TABLES: &str = "create -q -f qcow2 -o preallocation=metadata tables.qcow2 1T";

const ROWS: [Row; 16] = [
    row("img --version", None, "", "--version"),
    row("img info", None, QCOW2, "info full.qcow2"),
    row(
        "img convert raw to raw, 1 GiB",
        None,
        "",
        "convert -f raw -O raw full made",
    ),
    row(
        "img convert raw to qcow2, 1 GiB",
        Some(1.3),
        "",
        "convert -f raw -O qcow2 full made",
    ),
    row(
        "img convert qcow2 to qcow2, 1 GiB",
        Some(1.3),
        QCOW2,
        "convert -f qcow2 -O qcow2 full.qcow2 made",
    ),
    row(
        "img convert to qcow2 compressed (zlib) against -m 8 -W, 1 GiB",
        Some(2.5),
        QCOW2,
        "convert -m 8 -W -c -f qcow2 -O qcow2 full.qcow2 made",
    ),
    row(
        "img convert to qcow2 compressed (zstd) against -m 8 -W, 1 GiB",
        Some(2.0),
        QCOW2,
        "convert -m 8 -W -c -o compression_type=zstd -f qcow2 -O qcow2 full.qcow2 made",
    ),
    row(
        "img convert of 1 TiB without data to raw",
        None,
        "create -q -f raw empty 1T",
        "convert -f raw -O raw empty made",
    ),
    row(
        "img convert of 1 TiB without data to qcow2",
        None,
        "create -q -f qcow2 empty 1T",
        "convert -f qcow2 -O qcow2 empty made",
    ),
    row(
        "img compare, 1 GiB",
        Some(2.0),
        QCOW2,
        "compare -f raw -F qcow2 full full.qcow2",
    ),
    row(
        "img map of 16 TiB without data",
        Some(2.0),
        "create -q -f qcow2 empty 16T",
        "map --output=json empty",
    ),
    row(
        "img measure of 1 TiB of tables",
        Some(2.0),
        TABLES,
        "measure -O qcow2 tables.qcow2",
    ),
    row(
        "img check of 1 TiB of tables",
        Some(2.0),
        TABLES,
        "check tables.qcow2",
    ),
    row(
        "img map of 1 TiB of tables",
        Some(2.0),
        TABLES,
        "map --output=json tables.qcow2",
    ),
    Row {
        work: "img commit, 1 GiB",
        at_least: Some(2.0),
        images: Images {
            once: "",
            before: "create -q -f qcow2 base 1G\n\
                     create -q -f qcow2 -b base -F qcow2 made\n\
                     convert -n -f raw -O qcow2 full made",
        },
        words: "commit -f qcow2 made",
    },
    Row {
        work: "img rebase to nothing, 1 GiB",
        at_least: Some(2.0),
        images: Images {
            once: QCOW2,
            before: "create -q -f qcow2 -b full.qcow2 -F qcow2 made",
        },
        words: "rebase -f qcow2 -b  made",
    },
];

/// The rows that are asked for.
pub fn section(bench: &Bench<'_>) -> Section {
    let mut section = Section::new("Commands for images", COLUMNS);
    for row in &ROWS {
        if bench.wants(row.work) {
            let outcome = measure(bench, row, &mut section);
            section.attempt(row.work, outcome);
        }
    }
    section
}

fn measure(bench: &Bench<'_>, row: &Row, section: &mut Section) -> Outcome<()> {
    if Tool::QemuImg.find().is_none() {
        return Err(Tool::QemuImg.missing().into());
    }
    let dir = bench.dir().join("images");
    std::fs::create_dir_all(&dir)?;
    let outcome = in_turn(bench, row, &dir, section);
    // The next row has room for its own.
    std::fs::remove_dir_all(dir)?;
    outcome
}

fn in_turn(bench: &Bench<'_>, row: &Row, dir: &Path, section: &mut Section) -> Outcome<()> {
    let size = if bench.quick() { SIZE / 64 } else { SIZE };
    image::fill(&dir.join("full"), size)?;
    make(dir, row.images.once)?;
    let programs = [
        Command::new(Tool::QemuImg.program()),
        bench.ours().other_command("img"),
    ];
    let mut programs = programs.map(|mut program| {
        program
            .current_dir(dir)
            .stdin(Stdio::null())
            .stdout(Stdio::null());
        program.args(row.words.split(' '));
        program
    });
    let take = |which: usize| -> Outcome<f64> {
        make(dir, row.images.before)?;
        let program = &mut programs[which];
        let begun = Instant::now();
        let status = program.status()?;
        let took = begun.elapsed().as_secs_f64();
        // What is leaked is told by another code, and no failure.
        if !matches!(status.code(), Some(0 | 3)) {
            return Err(format!("{program:?} ended with {status}").into());
        }
        Ok(took)
    };
    let runs = alternate(bench.runs(), 2, 2, take, |took| [*took])?;
    let mut samples = runs.into_iter().map(Samples::new);
    let (peer, ours) = (samples.next(), samples.next());
    let (Some(peer), Some(ours)) = (peer, ours) else {
        return Err("nothing was measured".into());
    };
    let shown = |seconds: f64| match seconds < 0.1 {
        true => format!("{:.1} ms", seconds * 1000.0),
        false => format!("{seconds:.2} s"),
    };
    let line = compared(row.work, &peer, &ours, Better::Less, row.at_least, shown);
    section.lines.push(line);
    Ok(())
}

/// Runs a command of `qemu-img` for each line.
fn make(dir: &Path, lines: &str) -> Outcome<()> {
    for line in lines.lines() {
        let mut command = Command::new(Tool::QemuImg.program());
        let status = command.args(line.split_whitespace()).current_dir(dir).status()?;
        if !status.success() {
            return Err(format!("qemu-img {line} failed").into());
        }
    }
    Ok(())
}
