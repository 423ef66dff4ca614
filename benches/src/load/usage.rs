//! What threads use of the machine: CPU time, context switches, system calls and instructions.
//!
//! CPU time and context switches are read from `/proc/PID/task`. System calls and instructions are counted by the kernel's
//! performance events, which many machines do not allow, or do not have: then they are not known.

use std::collections::BTreeMap;
use std::fs;
use std::io::ErrorKind;
use std::time::Duration;

use perf_event::events::{Hardware, Tracepoint};
use perf_event::{Builder, Counter};

use crate::{Outcome, process};

/// What some threads have used during a load.
#[derive(Debug, Clone, Default)]
pub struct Usage {
    /// Requests that were answered meanwhile.
    pub requests: u64,
    /// CPU time, user and system.
    pub cpu: Duration,
    /// How often a thread gave its processor up to wait.
    pub voluntary_switches: u64,
    /// How often a thread's processor was taken away.
    pub involuntary_switches: u64,
    /// System calls; none where they cannot be counted.
    pub system_calls: Option<u64>,
    /// Instructions in user space and in the kernel; none where they cannot be counted.
    pub instructions: Option<u64>,
    /// Memory of the process at the end, in bytes, where the process is not this one.
    pub resident: Option<u64>,
    /// Why something could not be counted.
    pub notes: Vec<String>,
}

impl Usage {
    fn each(&self, count: u64) -> f64 {
        count as f64 / self.requests.max(1) as f64
    }

    /// CPU time a request in microseconds.
    pub fn cpu_microseconds(&self) -> f64 {
        self.cpu.as_secs_f64() * 1e6 / self.requests.max(1) as f64
    }

    /// Voluntary context switches a request.
    pub fn voluntary_each(&self) -> f64 {
        self.each(self.voluntary_switches)
    }

    /// Involuntary context switches a request.
    pub fn involuntary_each(&self) -> f64 {
        self.each(self.involuntary_switches)
    }

    /// System calls a request.
    pub fn system_calls_each(&self) -> Option<f64> {
        self.system_calls.map(|count| self.each(count))
    }

    /// Instructions a request.
    pub fn instructions_each(&self) -> Option<f64> {
        self.instructions.map(|count| self.each(count))
    }
}

/// Which threads of a process are looked at.
#[derive(Debug, Clone)]
pub(crate) enum Threads {
    /// All.
    All,
    /// These, by their ids.
    Only(Vec<u32>),
    /// All but these.
    Except(Vec<u32>),
}

impl Threads {
    fn contains(&self, id: u32) -> bool {
        match self {
            Threads::All => true,
            Threads::Only(ids) => ids.contains(&id),
            Threads::Except(ids) => !ids.contains(&id),
        }
    }
}

/// What one thread has used so far.
#[derive(Debug, Clone, Copy, Default)]
struct ThreadUse {
    cpu: Duration,
    voluntary: u64,
    involuntary: u64,
}

/// The state of all counts at one time.
#[derive(Debug)]
struct Reading {
    threads: BTreeMap<u32, ThreadUse>,
    /// CPU time of the whole process, threads that have ended included, in the kernel's coarse unit.
    process_cpu: Duration,
    system_calls: Option<u64>,
    instructions: Option<u64>,
}

/// Measures what threads of a process use between two times.
#[derive(Debug)]
pub(crate) struct Meter {
    pid: u32,
    which: Threads,
    system_calls: Option<Counters>,
    instructions: Option<Counters>,
    notes: Vec<String>,
    first: Option<Reading>,
}

impl Meter {
    /// A meter of threads of process `pid`; with `counters`, system calls and instructions are counted if they can be.
    ///
    /// # Errors
    /// There is no such process, or it is somebody else's.
    pub fn new(pid: u32, which: Threads, counters: bool) -> Outcome<Meter> {
        let ids = ids(pid, &which)?;
        let mut notes = Vec::new();
        let mut count = |what: &str, open: &dyn Fn(u32) -> std::io::Result<Counter>| {
            if !counters {
                return None;
            }
            match Counters::open(&ids, open) {
                Ok(counters) => Some(counters),
                Err(error) => {
                    notes.push(format!("{what}: not available ({})", why_not(&error)));
                    None
                }
            }
        };
        let tracepoint = tracepoint("raw_syscalls/sys_enter");
        let system_calls = count("system calls", &|id| match &tracepoint {
            Ok(tracepoint) => open(Builder::new(*tracepoint), id),
            Err(error) => Err(std::io::Error::new(error.kind(), error.to_string())),
        });
        let instructions = count("instructions", &|id| {
            open(Builder::new(Hardware::INSTRUCTIONS), id)
        });
        Ok(Meter {
            pid,
            which,
            system_calls,
            instructions,
            notes,
            first: None,
        })
    }

    /// What is used counts from now on.
    ///
    /// # Errors
    /// The process has ended.
    pub fn begin(&mut self) -> Outcome<()> {
        self.first = Some(self.read()?);
        Ok(())
    }

    /// What was used since then.
    ///
    /// # Errors
    /// The process has ended.
    pub fn end(mut self) -> Outcome<Usage> {
        let last = self.read()?;
        let first = self.first.take().ok_or("a meter that was not begun")?;
        let mut usage = Usage {
            resident: (self.pid != std::process::id())
                .then(|| process::resident(self.pid))
                .transpose()?,
            notes: std::mem::take(&mut self.notes),
            ..Usage::default()
        };
        for (id, now) in &last.threads {
            let before = first.threads.get(id).copied().unwrap_or_default();
            usage.cpu += now.cpu.saturating_sub(before.cpu);
            usage.voluntary_switches += now.voluntary.saturating_sub(before.voluntary);
            usage.involuntary_switches += now.involuntary.saturating_sub(before.involuntary);
        }
        let ended = first
            .threads
            .keys()
            .filter(|id| !last.threads.contains_key(id))
            .count();
        if ended > 0 {
            usage.notes.push(format!(
                "context switches of {ended} threads that ended are not known"
            ));
            if matches!(self.which, Threads::All) {
                usage.cpu = last.process_cpu.saturating_sub(first.process_cpu);
            }
        }
        let between = |first: Option<u64>, last: Option<u64>| Some(last?.saturating_sub(first?));
        usage.system_calls = between(first.system_calls, last.system_calls);
        usage.instructions = between(first.instructions, last.instructions);
        Ok(usage)
    }

    fn read(&mut self) -> Outcome<Reading> {
        let mut threads = BTreeMap::new();
        for id in ids(self.pid, &self.which)? {
            // A thread may end between the listing and this.
            if let Some(used) = thread_use(self.pid, id)? {
                threads.insert(id, used);
            }
        }
        let read = |counters: &mut Option<Counters>| counters.as_mut().map(Counters::read).transpose();
        Ok(Reading {
            threads,
            process_cpu: process::cpu_time(self.pid)?,
            system_calls: read(&mut self.system_calls)?,
            instructions: read(&mut self.instructions)?,
        })
    }
}

/// One counter for each thread, which counts those that it starts as well.
#[derive(Debug)]
struct Counters(Vec<Counter>);

impl Counters {
    fn open(ids: &[u32], open: &dyn Fn(u32) -> std::io::Result<Counter>) -> std::io::Result<Counters> {
        let mut counters = Vec::new();
        for id in ids {
            match open(*id) {
                Ok(counter) => counters.push(counter),
                // It has ended since it was listed.
                Err(error) if error.raw_os_error() == Some(libc::ESRCH) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(Counters(counters))
    }

    fn read(&mut self) -> std::io::Result<u64> {
        self.0.iter_mut().map(Counter::read).sum()
    }
}

/// Why something cannot be counted, and what helps.
fn why_not(error: &std::io::Error) -> String {
    let why = match error.kind() {
        ErrorKind::PermissionDenied => "it takes root, or kernel.perf_event_paranoid=-1",
        ErrorKind::NotFound | ErrorKind::Unsupported => {
            "this kernel, container or virtual machine does not count them"
        }
        _ => return error.to_string(),
    };
    format!("{why}: {error}")
}

/// A counter of what a thread does in user space and in the kernel.
fn open(mut builder: Builder<'_>, thread: u32) -> std::io::Result<Counter> {
    let thread = i32::try_from(thread).map_err(std::io::Error::other)?;
    let builder = builder
        .observe_pid(thread)
        .any_cpu()
        .inherit(true)
        .include_kernel();
    let mut counter = builder.build()?;
    counter.enable()?;
    Ok(counter)
}

/// A place in the kernel, by the number that the kernel gave it.
fn tracepoint(name: &str) -> std::io::Result<Tracepoint> {
    let mut outcome = Err(ErrorKind::NotFound.into());
    for mount in ["/sys/kernel/tracing", "/sys/kernel/debug/tracing"] {
        match fs::read_to_string(format!("{mount}/events/{name}/id")) {
            Ok(id) => {
                let id = id.trim().parse().map_err(std::io::Error::other)?;
                return Ok(Tracepoint::with_id(id));
            }
            Err(error) => outcome = Err(error),
        }
    }
    outcome
}

/// The threads of a process that are looked at.
fn ids(pid: u32, which: &Threads) -> Outcome<Vec<u32>> {
    let entries =
        fs::read_dir(format!("/proc/{pid}/task")).map_err(|error| format!("process {pid}: {error}"))?;
    let mut ids = Vec::new();
    for entry in entries {
        let id = entry
            .map_err(|error| format!("process {pid}: {error}"))?
            .file_name();
        let id = id.to_string_lossy().parse()?;
        if which.contains(id) {
            ids.push(id);
        }
    }
    Ok(ids)
}

/// All threads of a process.
pub(super) fn all_ids(pid: u32) -> Outcome<Vec<u32>> {
    ids(pid, &Threads::All)
}

/// What a thread has used so far; none if it has ended.
fn thread_use(pid: u32, id: u32) -> Outcome<Option<ThreadUse>> {
    let task = format!("/proc/{pid}/task/{id}");
    let (Some(times), Some(status)) = (
        file(&format!("{task}/schedstat"))?,
        file(&format!("{task}/status"))?,
    ) else {
        return Ok(None);
    };
    let nanoseconds = times.split_whitespace().next().and_then(|time| time.parse().ok());
    let count = |name: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(name));
        line.and_then(|count| count.trim().parse().ok())
            .unwrap_or_default()
    };
    Ok(Some(ThreadUse {
        cpu: Duration::from_nanos(nanoseconds.ok_or("/proc/PID/task/TID/schedstat has no time")?),
        voluntary: count("voluntary_ctxt_switches:"),
        involuntary: count("nonvoluntary_ctxt_switches:"),
    }))
}

/// The contents of a file of `/proc`; none if its thread has ended.
fn file(path: &str) -> Outcome<Option<String>> {
    match fs::read_to_string(path) {
        Ok(text) => Ok(Some(text)),
        Err(error) if error.kind() == ErrorKind::NotFound || error.raw_os_error() == Some(libc::ESRCH) => {
            Ok(None)
        }
        Err(error) => Err(format!("{path}: {error}").into()),
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;
    use std::time::Instant;

    use super::*;

    /// A thread that works or waits for as long as it is told, and the meter's view of it alone.
    fn measured(work: impl FnOnce() + Send + 'static) -> Usage {
        let (tell, told) = mpsc::channel();
        let (go, gone) = mpsc::channel::<()>();
        let (stay, stays) = mpsc::channel::<()>();
        let (end, ended) = mpsc::channel();
        let thread = std::thread::spawn(move || {
            let id = rustix::thread::gettid().as_raw_nonzero().get().unsigned_abs();
            tell.send(id).unwrap();
            gone.recv().unwrap();
            work();
            end.send(()).unwrap();
            // It must not end before it was looked at.
            stays.recv().unwrap_err();
        });
        let id = told.recv().unwrap();
        let mut meter = Meter::new(std::process::id(), Threads::Only(vec![id]), true).unwrap();
        meter.begin().unwrap();
        go.send(()).unwrap();
        ended.recv().unwrap();
        let usage = meter.end().unwrap();
        drop(stay);
        thread.join().unwrap();
        usage
    }

    #[test]
    fn a_busy_threads_time_is_seen() {
        let usage = measured(|| {
            let begun = Instant::now();
            while begun.elapsed() < Duration::from_millis(50) {
                std::hint::spin_loop();
            }
        });
        assert!(usage.cpu > Duration::from_millis(5), "{usage:?}");
    }

    #[test]
    fn waiting_and_system_calls_are_counted_or_said_not_to_be() {
        let usage = measured(|| {
            for _ in 0..20 {
                std::thread::sleep(Duration::from_millis(1));
            }
        });
        assert!(usage.voluntary_switches >= 20, "{usage:?}");
        let said = |what: &str| usage.notes.iter().any(|note| note.starts_with(what));
        assert!(
            usage
                .system_calls
                .map_or(said("system calls"), |count| count >= 20),
            "{usage:?}"
        );
        assert!(
            usage.instructions.map_or(said("instructions"), |count| count > 0),
            "{usage:?}"
        );
    }

    #[test]
    fn a_process_that_is_not_there_is_an_error() {
        // Above the kernel's bound for process ids.
        let error = Meter::new(1 << 23, Threads::All, false).unwrap_err();
        assert!(error.to_string().contains("process 8388608"), "{error}");
    }
}
