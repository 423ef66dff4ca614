//! Whether changes and queries of the graph stay as fast as they are when there are many nodes.
//!
//! Both daemons run at once and are asked in turn over QMP, so that whatever else the machine does meets both: some
//! commands to one, then some to the other, since a daemon that walks over all its nodes empties the processor's caches
//! for both. A time is the median of many commands.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use clap::Args;

use crate::Outcome;
use crate::process::resident;
use crate::qmp::Monitor;
use crate::server::Program;

/// The options of `millpond-bench flat`.
#[derive(Debug, Args)]
pub struct FlatArguments {
    /// Millpond's binary, built with --profile dist
    #[arg(long, default_value = "target/dist/millpond")]
    millpond: PathBuf,
    /// Where sockets are made
    #[arg(long, default_value = "/dev/shm")]
    dir: PathBuf,
    /// How many nodes there are already, one column each; ratios compare the last column with the first
    #[arg(long, value_delimiter = ',', default_value = "0,1000,100000")]
    nodes: Vec<usize>,
    /// Nodes added and removed for each time
    #[arg(long, default_value_t = 300)]
    rounds: usize,
    /// Seconds that a program may take for adding the nodes of one column
    #[arg(long, default_value_t = 60)]
    fill_seconds: u64,
    /// Nodes on top of each other, for the rows about chains
    #[arg(long, default_value_t = 200)]
    chain: usize,
    /// Nodes side by side, for the rows about queries
    #[arg(long, default_value_t = 10_000)]
    wide: usize,
}

/// Commands to one daemon before it is the other's turn.
const IN_A_ROW: usize = 20;

/// One command pair that is measured: what is added, by its first command, and removed, by its second.
struct Pair {
    name: &'static str,
    add: &'static str,
    del: &'static str,
}

const PAIRS: &[Pair] = &[
    Pair {
        name: "null-co",
        add: r#"{"execute": "blockdev-add", "arguments": {"driver": "null-co", "node-name": "new", "size": 1048576,
            "read-zeroes": true}}"#,
        del: r#"{"execute": "blockdev-del", "arguments": {"node-name": "new"}}"#,
    },
    Pair {
        name: "raw over null-co",
        add: r#"{"execute": "blockdev-add", "arguments": {"driver": "raw", "node-name": "new", "file": {"driver":
            "null-co", "node-name": "below", "size": 1048576, "read-zeroes": true}}}"#,
        del: r#"{"execute": "blockdev-del", "arguments": {"node-name": "new"}}"#,
    },
    Pair {
        name: "iothread",
        add: r#"{"execute": "object-add", "arguments": {"qom-type": "iothread", "id": "new"}}"#,
        del: r#"{"execute": "object-del", "arguments": {"id": "new"}}"#,
    },
];

/// Medians of a pair's two commands.
#[derive(Debug, Clone, Copy)]
struct Times {
    add: Duration,
    del: Duration,
}

/// One program at one number of nodes.
struct Column {
    filled: usize,
    resident: u64,
    pairs: Vec<Times>,
}

/// Runs `millpond-bench flat`.
pub fn main(arguments: &FlatArguments) -> Outcome<()> {
    let dir = arguments
        .dir
        .join(format!("millpond-flat-{}", std::process::id()));
    std::fs::create_dir(&dir)?;
    let programs = [Program::peer(), Program::millpond(arguments.millpond.clone())];
    let start = || -> Outcome<Vec<Monitor>> {
        let started = programs.iter().map(|program| Monitor::start(program, &dir));
        started.collect()
    };
    let outcome = (|| {
        let mut columns = Vec::new();
        for nodes in &arguments.nodes {
            columns.push(column(arguments, *nodes, start()?)?);
        }
        print_pairs(&programs, &columns);
        println!();
        print_chains(arguments, &programs, &start)?;
        println!();
        print_queries(arguments, &dir, &programs, &start)
    })();
    std::fs::remove_dir_all(&dir)?;
    outcome
}

fn column(arguments: &FlatArguments, nodes: usize, mut monitors: Vec<Monitor>) -> Outcome<Vec<Column>> {
    let mut columns = Vec::new();
    for monitor in &mut monitors {
        let deadline = Instant::now() + Duration::from_secs(arguments.fill_seconds);
        let filled = monitor.run_many(nodes, deadline, null_node)?;
        let resident = resident(monitor.pid())?;
        columns.push(Column {
            filled,
            resident,
            pairs: Vec::new(),
        });
    }
    for pair in PAIRS {
        let mut times = vec![(Vec::new(), Vec::new()); monitors.len()];
        for _ in 0..arguments.rounds.div_ceil(IN_A_ROW) {
            for (monitor, (add, del)) in monitors.iter_mut().zip(&mut times) {
                for _ in 0..IN_A_ROW {
                    add.push(timed(monitor, pair.add)?);
                    del.push(timed(monitor, pair.del)?);
                }
            }
        }
        for (column, (add, del)) in columns.iter_mut().zip(times) {
            let (add, del) = (median(add), median(del));
            column.pairs.push(Times { add, del });
        }
    }
    Ok(columns)
}

fn null_node(at: usize) -> String {
    format!(
        r#"{{"execute": "blockdev-add", "arguments": {{"driver": "null-co", "node-name": "n{at}", "size": 1048576}}}}"#
    )
}

fn timed(monitor: &mut Monitor, command: &str) -> Outcome<Duration> {
    // One line each: a command's own line breaks are for the reader of this file.
    let command = command.replace('\n', " ");
    let start = Instant::now();
    monitor.run(&command)?;
    Ok(start.elapsed())
}

fn median(mut times: Vec<Duration>) -> Duration {
    times.sort_unstable();
    times.get(times.len() / 2).copied().unwrap_or_default()
}

fn micros(time: Duration) -> f64 {
    time.as_secs_f64() * 1e6
}

fn print_pairs(programs: &[Program], columns: &[Vec<Column>]) {
    print!("| microseconds a command, beside so many nodes | program |");
    for column in columns {
        let most = column.iter().map(|column| column.filled).max().unwrap_or(0);
        print!(" {most} |");
    }
    println!(" last to first |");
    println!("| --- | --- |{} --- |", " --- |".repeat(columns.len()));
    for (index, pair) in PAIRS.iter().enumerate() {
        for (verb, select) in [
            ("add", (|times| times.add) as fn(Times) -> Duration),
            ("delete", |times| times.del),
        ] {
            for (which, program) in programs.iter().enumerate() {
                let times: Vec<f64> = columns
                    .iter()
                    .map(|column| micros(select(column[which].pairs[index])))
                    .collect();
                print!("| {verb} {} | {} |", pair.name, program.name);
                times.iter().for_each(|time| print!(" {time:.0} |"));
                println!(" {:.2} |", times[times.len() - 1] / times[0]);
            }
        }
    }
    for (which, program) in programs.iter().enumerate() {
        print!("| resident MiB | {} |", program.name);
        for column in columns {
            print!(" {} |", column[which].resident >> 20);
        }
        println!(" |");
    }
    let most = |column: &Vec<Column>| column.iter().map(|column| column.filled).max().unwrap_or(0);
    for column in columns {
        for (program, reached) in programs.iter().zip(column) {
            if reached.filled < most(column) {
                println!(
                    "{} reached {} of {} nodes in the time given: its times are of so many",
                    program.name,
                    reached.filled,
                    most(column)
                );
            }
        }
    }
}

type Start<'a> = &'a dyn Fn() -> Outcome<Vec<Monitor>>;

/// A backing chain of qcow2 images in `dir`, opened for reading: both daemons have it open.
fn backing_chain(dir: &Path, monitors: &mut [Monitor], length: usize) -> Outcome<()> {
    let path = |at: usize| dir.join(format!("n{at}.qcow2"));
    for at in 0..length {
        if path(at).exists() {
            continue;
        }
        let mut command = Command::new("qemu-img");
        command.args(["create", "-q", "-u", "-f", "qcow2"]);
        if at > 0 {
            command.arg("-F").arg("qcow2").arg("-b").arg(path(at - 1));
        }
        if !command.arg(path(at)).arg("1M").status()?.success() {
            return Err("qemu-img create failed".into());
        }
    }
    let node = |at: usize| {
        let backing = match at {
            0 => "null".to_owned(),
            _ => format!("\"n{}\"", at - 1),
        };
        format!(
            r#"{{"execute": "blockdev-add", "arguments": {{"driver": "qcow2", "node-name": "n{at}", "read-only": true,
            "file": {{"driver": "file", "filename": "{}"}}, "backing": {backing}}}}}"#,
            path(at).display()
        )
        .replace('\n', " ")
    };
    for monitor in monitors {
        monitor.run_many(length, Instant::now() + Duration::from_secs(60), node)?;
    }
    Ok(())
}

/// A chain of raw nodes; `n0` is the null node at its bottom.
fn chain(monitor: &mut Monitor, length: usize) -> Outcome<()> {
    let deadline = Instant::now() + Duration::from_secs(60);
    let node = |at: usize| match at {
        0 => null_node(0),
        _ => format!(
            r#"{{"execute": "blockdev-add", "arguments": {{"driver": "raw", "node-name": "n{at}", "file": "n{}"}}}}"#,
            at - 1
        ),
    };
    let reached = monitor.run_many(length, deadline, node)?;
    if reached < length {
        return Err(format!("only {reached} of {length} nodes of a chain in a minute").into());
    }
    Ok(())
}

/// A writer that comes and goes at the top: every node below is asked for its permission, and gives it back.
fn print_chains(arguments: &FlatArguments, programs: &[Program], start: Start<'_>) -> Outcome<()> {
    let lengths = [1, arguments.chain / 2, arguments.chain];
    println!(
        "| microseconds, at the top of a chain of | program | {} | {} | {} | a node, from the last two |",
        lengths[0], lengths[1], lengths[2]
    );
    println!("| --- | --- | --- | --- | --- | --- |");
    let mut columns: Vec<Vec<(Duration, Duration)>> = vec![Vec::new(); programs.len()];
    for length in lengths {
        let mut monitors = start()?;
        for (monitor, program) in monitors.iter_mut().zip(programs) {
            chain(monitor, length)?;
            let socket = arguments.dir.join(format!(
                "millpond-flat-{}-{}.nbd",
                std::process::id(),
                program.name
            ));
            monitor.run(&format!(
                r#"{{"execute": "nbd-server-start", "arguments": {{"addr": {{"type": "unix", "data": {{"path":
                "{}"}}}}}}}}"#,
                socket.display()
            )
            .replace('\n', " "))?;
            std::fs::remove_file(&socket)?;
        }
        let add = format!(
            r#"{{"execute": "block-export-add", "arguments": {{"type": "nbd", "id": "e", "node-name": "n{}", "writable":
            true}}}}"#,
            length - 1
        );
        let del = r#"{"execute": "block-export-del", "arguments": {"id": "e"}}"#;
        let mut times = vec![(Vec::new(), Vec::new()); monitors.len()];
        for _ in 0..arguments.rounds.min(50) {
            for (monitor, (taken, given)) in monitors.iter_mut().zip(&mut times) {
                taken.push(timed(monitor, &add)?);
                given.push(timed(monitor, del)?);
            }
        }
        for (column, (taken, given)) in columns.iter_mut().zip(times) {
            column.push((median(taken), median(given)));
        }
    }
    let steps = (lengths[2] - lengths[1]).max(1) as f64;
    for (verb, select) in [
        (
            "take WRITE",
            (|times| times.0) as fn((Duration, Duration)) -> Duration,
        ),
        ("give it back", |times| times.1),
    ] {
        for (program, column) in programs.iter().zip(&columns) {
            let times: Vec<f64> = column.iter().map(|times| micros(select(*times))).collect();
            print!("| {verb} | {} |", program.name);
            times.iter().for_each(|time| print!(" {time:.0} |"));
            println!(" {:.2} |", (times[2] - times[1]) / steps);
        }
    }
    Ok(())
}

/// `query-named-block-nodes`, on chains and on nodes side by side.
fn print_queries(
    arguments: &FlatArguments,
    dir: &Path,
    programs: &[Program],
    start: Start<'_>,
) -> Outcome<()> {
    println!("| query-named-block-nodes of | flat | program | milliseconds | bytes | ns a byte |");
    println!("| --- | --- | --- | --- | --- | --- |");
    let shapes = [
        ("backing chain of", arguments.chain / 2, true),
        ("backing chain of", arguments.chain, true),
        ("side by side:", arguments.wide / 10, false),
        ("side by side:", arguments.wide, false),
    ];
    for (shape, count, is_chain) in shapes {
        let mut monitors = start()?;
        for monitor in &mut monitors {
            let deadline = Instant::now() + Duration::from_secs(arguments.fill_seconds);
            monitor.run_many(if is_chain { 0 } else { count }, deadline, null_node)?;
        }
        if is_chain {
            backing_chain(dir, &mut monitors, count)?;
        }
        for flat in [true, false] {
            let query =
                format!(r#"{{"execute": "query-named-block-nodes", "arguments": {{"flat": {flat}}}}}"#);
            for (monitor, program) in monitors.iter_mut().zip(programs) {
                let mut times = Vec::new();
                let mut bytes = 0;
                for _ in 0..5 {
                    let begun = Instant::now();
                    bytes = monitor.run(&query)?;
                    times.push(begun.elapsed());
                }
                let time = median(times);
                println!(
                    "| {shape} {count} | {flat} | {} | {:.1} | {bytes} | {:.1} |",
                    program.name,
                    time.as_secs_f64() * 1e3,
                    time.as_secs_f64() * 1e9 / bytes.max(1) as f64,
                );
            }
        }
    }
    Ok(())
}
