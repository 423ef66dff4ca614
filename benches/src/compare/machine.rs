//! What stands above a table: the machine, the kernel and how the figures were made.

use std::fs;
use std::path::Path;
use std::process::Command;

use super::tools;

/// Lines that tell on what and with what was measured.
pub fn describe(millpond: &Path, mode: &str) -> Vec<String> {
    let mut lines = vec![
        format!(
            "- date: {}",
            tools::first_line(Command::new("date").args(["-u", "+%Y-%m-%d %H:%M UTC"]))
        ),
        format!("- machine: {}", processor()),
        format!("- memory: {}", memory()),
        format!("- kernel: {}", read("/proc/sys/kernel/osrelease")),
        format!("- mode: {mode}"),
        format!(
            "- millpond: {}",
            tools::first_line(Command::new(millpond).arg("--version"))
        ),
    ];
    lines.extend(tools::report());
    lines
}

fn read(path: &str) -> String {
    fs::read_to_string(path).map_or_else(|error| error.to_string(), |text| text.trim().to_owned())
}

fn processor() -> String {
    let text = read("/proc/cpuinfo");
    let name = text
        .lines()
        .find_map(|line| line.strip_prefix("model name"))
        .map_or("of unknown make", |rest| {
            rest.trim_start_matches([' ', '\t', ':'])
        });
    let threads = text.lines().filter(|line| line.starts_with("processor")).count();
    let virtual_machine = if text.contains(" hypervisor") {
        ", in a virtual machine"
    } else {
        ""
    };
    format!("{threads} x {name}{virtual_machine}")
}

fn memory() -> String {
    let text = read("/proc/meminfo");
    let kib = text
        .lines()
        .find_map(|line| line.strip_prefix("MemTotal:"))
        .and_then(|rest| rest.trim().trim_end_matches(" kB").parse::<u64>().ok());
    kib.map_or_else(
        || "unknown".to_owned(),
        |kib| format!("{:.1} GiB", kib as f64 / f64::from(1 << 20)),
    )
}
