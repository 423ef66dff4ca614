//! Millpond and the programs that users would pick instead, side by side: the table of targets, row by row.
//!
//! Each row runs both programs alternately (A B A B ...), each run as a new process unless the row is about a program
//! that has been running, and compares medians. The peer is `qemu-storage-daemon` in the configuration that was best for
//! it in short trial runs; other servers and the bare responder take their turns in the same runs. Where the runs of one
//! program lie too far apart, even when repeated with twice as many, no ratio is told.

mod bench;
mod client;
mod commands;
mod exports;
mod fairness;
mod fio;
mod graph;
mod image;
mod jobs;
mod machine;
mod plot;
mod rates;
mod requests;
mod spread;
mod statistics;
mod table;
mod tls;
mod tools;
mod virtio;

use std::path::PathBuf;

use clap::{Args, ValueEnum};

use crate::Outcome;
use bench::Bench;
use statistics::SCATTER_BOUND;
use table::Section;

/// The options of `millpond-bench compare`.
#[derive(Debug, Args)]
#[command(after_help = AFTER_HELP)]
pub struct CompareArguments {
    /// Millpond's binary, built with --profile dist
    #[arg(long, default_value = "target/dist/millpond")]
    millpond: PathBuf,
    /// Where images and sockets are made; it should lie in memory
    #[arg(long, default_value = "/dev/shm")]
    dir: PathBuf,
    /// Where the images of the rows about a disk are made; its file system must know O_DIRECT
    #[arg(long, default_value = "target")]
    disk_dir: PathBuf,
    /// Runs of each program
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..=1000))]
    runs: u32,
    /// Seconds a run
    #[arg(long, default_value_t = 1.0, value_parser = seconds)]
    seconds: f64,
    /// Only rows whose name contains this
    #[arg(long, default_value = "")]
    only: String,
    /// Only rows of this kind
    #[arg(long)]
    group: Option<Group>,
    /// One short run of each program, to see that everything works; its figures mean little
    #[arg(long)]
    quick: bool,
    /// Seconds that a daemon may take for adding the nodes beside which others are added
    #[arg(long, default_value_t = 40)]
    fill_seconds: u64,
    /// Where criterion keeps its results: the figures of the bench "hop" come from there
    #[arg(long, default_value = "target/criterion")]
    criterion: PathBuf,
    /// Write the tables there too, as Markdown, and plots beside it
    #[arg(long, value_name = "FILE")]
    output: Option<PathBuf>,
}

const AFTER_HELP: &str = "\
Peers are the programs of the Debian packages qemu-utils, nbdkit and fio; those that are missing are named in the
output. Everything is measured in turn, in one run, on this machine: leave it alone meanwhile. All rows take about
20 minutes. A ratio is told only if the middle half of each program's runs lies within 15% of their median; otherwise the
runs are repeated once with twice as many, and if they still lie apart the row says \"scatters\".";

/// Kinds of rows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Group {
    /// Requests to images in memory
    Requests,
    /// Requests to images on a disk
    Disk,
    /// Changes and queries of the graph, memory, drains, chains
    Graph,
    /// Jobs
    Jobs,
    /// A virtio block device, and nodes as files
    Exports,
    /// Commands for images
    Images,
}

fn seconds(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(seconds) if (0.05..=3600.0).contains(&seconds) => Ok(seconds),
        _ => Err("a number of seconds from 0.05 to 3600".to_owned()),
    }
}

/// Runs `millpond-bench compare`.
pub fn main(arguments: &CompareArguments) -> Outcome<()> {
    run(&Bench::new(arguments)?, arguments)
}

/// What measures the rows of a group.
type Rows = fn(&Bench<'_>, Group) -> Section;

fn run(bench: &Bench<'_>, arguments: &CompareArguments) -> Outcome<()> {
    if let Some(folder) = arguments.output.as_ref().and_then(|path| path.parent()) {
        std::fs::create_dir_all(folder).map_err(|error| format!("{}: {error}", folder.display()))?;
    }
    let mut text = heading(bench, arguments);
    print!("{text}");
    let mut failures = Vec::new();
    let groups: [(Group, Rows); 6] = [
        (Group::Requests, requests::section),
        (Group::Disk, requests::section),
        (Group::Graph, |bench, _| graph::section(bench)),
        (Group::Jobs, |bench, _| jobs::section(bench)),
        (Group::Exports, |bench, _| exports::section(bench)),
        (Group::Images, |bench, _| commands::section(bench)),
    ];
    for (group, section) in groups {
        if !bench.wants_group(group) {
            continue;
        }
        let section = section(bench, group);
        if section.is_empty() {
            continue;
        }
        let part = format!("\n{}", section.markdown());
        print!("{part}");
        text.push_str(&part);
        failures.extend(section.failures);
        // What is there is kept, whatever comes of the rest.
        if let Some(path) = &arguments.output {
            std::fs::write(path, &text).map_err(|error| format!("{}: {error}", path.display()))?;
        }
    }
    if failures.is_empty() {
        Ok(())
    } else {
        Err(failures.join("\n").into())
    }
}

fn heading(bench: &Bench<'_>, arguments: &CompareArguments) -> String {
    let mode = if arguments.quick {
        "quick: one short run, the figures mean little".to_owned()
    } else {
        format!(
            "{} runs of each program in turn, {} s each; images in {}, those of the disk rows in {}",
            bench.runs(),
            bench.seconds(),
            arguments.dir.display(),
            arguments.disk_dir.display()
        )
    };
    let mut text = "# Millpond side by side\n\n".to_owned();
    for line in machine::describe(&arguments.millpond, &mode) {
        text.push_str(&line);
        text.push('\n');
    }
    text.push_str(&format!(
        "\nThe peer is `qemu-storage-daemon`. Figures are medians of the runs; a ratio says how many times better \
         Millpond is. Spread is the distance between the quartiles by the median: above {:.0}% no ratio is told.\n",
        SCATTER_BOUND * 100.0
    ));
    text
}
