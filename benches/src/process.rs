//! Processes that are measured: their end, and what one has used of the machine, as the kernel counts it.

use std::fs;
use std::process::Child;
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};

use crate::Outcome;

/// A process that is ended in good order when this is dropped, and waited for.
#[derive(Debug)]
pub struct Process(pub Child);

impl Drop for Process {
    fn drop(&mut self) {
        // Both fail only if it has ended by itself, which the load has reported.
        let _ = kill_process(Pid::from_child(&self.0), Signal::TERM);
        let _ = self.0.wait();
    }
}

/// User and system time of a process and all its threads so far.
pub fn cpu_time(pid: u32) -> Outcome<Duration> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat"))?;
    // The name, in parentheses, may contain anything; the fields after it are numbers but for the first.
    let fields = stat.rsplit_once(')').ok_or("/proc/PID/stat has no name")?.1;
    let mut fields = fields.split_whitespace().skip(11);
    let mut ticks = 0_u64;
    for _ in 0..2 {
        ticks += fields
            .next()
            .ok_or("/proc/PID/stat is too short")?
            .parse::<u64>()?;
    }
    Ok(Duration::from_secs(ticks) / u32::try_from(rustix::param::clock_ticks_per_second())?)
}

/// Resident memory of a process in bytes.
pub fn resident(pid: u32) -> Outcome<u64> {
    let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix("VmRSS:"))
        .ok_or("no VmRSS")?;
    Ok(line.trim().trim_end_matches(" kB").parse::<u64>()? << 10)
}

#[cfg(test)]
mod tests {
    #[test]
    fn this_process_has_used_some_memory() {
        assert!(super::resident(std::process::id()).unwrap() > 0);
        super::cpu_time(std::process::id()).unwrap();
    }
}
