//! Whose use of the machine is measured during a load, and when.

use std::time::Duration;

use super::record::Control;
use super::spec::Spec;
use super::target::Target;
use super::usage::{Meter, Threads, Usage};
use crate::Outcome;

/// How often those who wait look whether the load is over.
pub(super) const SLEEP: Duration = Duration::from_millis(20);

/// The number of this thread, as the kernel has it.
pub(super) fn thread_id() -> u32 {
    rustix::thread::gettid().as_raw_nonzero().get().unsigned_abs()
}

/// Threads of a process.
type Whose = (u32, Threads);

/// Whose use is measured.
pub(super) struct Measure {
    client: Whose,
    server: Option<Whose>,
    counters: bool,
}

impl Measure {
    /// The threads of `clients`, and the server's: its process, or those threads of this process that were not there
    /// before (`others`). With requests from a node's own iothread, that is the client.
    pub fn new(spec: &Spec, clients: Vec<u32>, mut others: Vec<u32>) -> Measure {
        let own = std::process::id();
        let (client, server) = match (&spec.target, spec.home) {
            (Target::Nbd { .. }, _) => (Threads::Only(clients), spec.server.map(|pid| (pid, Threads::All))),
            (Target::Node(_), false) => {
                others.extend(&clients);
                (Threads::Only(clients), Some((own, Threads::Except(others))))
            }
            (Target::Node(_), true) => (Threads::Except(others), None),
        };
        Measure {
            client: (own, client),
            server,
            counters: spec.counters,
        }
    }

    /// Measures from when the load counts until it ends. A load that cannot be measured is ended.
    pub fn run(self, control: &Control) -> Outcome<(Usage, Option<Usage>)> {
        let usage = self.measure(control);
        if usage.is_err() {
            control.fail();
        }
        usage
    }

    fn measure(self, control: &Control) -> Outcome<(Usage, Option<Usage>)> {
        let meter = |(pid, threads)| Meter::new(pid, without_this(threads), self.counters);
        let mut client = meter(self.client)?;
        let mut server = self.server.map(meter).transpose()?;
        while sleep_for(control, control.from()) {}
        client.begin()?;
        server.as_mut().map(Meter::begin).transpose()?;
        // The end may move towards us.
        while sleep_for(control, control.until()) {}
        Ok((client.end()?, server.map(Meter::end).transpose()?))
    }
}

/// The same threads but for this one.
fn without_this(threads: Threads) -> Threads {
    match threads {
        Threads::Except(mut ids) => {
            ids.push(thread_id());
            Threads::Except(ids)
        }
        other => other,
    }
}

/// Sleeps for a moment on the way to a time; false if it has come.
fn sleep_for(control: &Control, time: u64) -> bool {
    let left = Duration::from_nanos(time.saturating_sub(control.now()));
    std::thread::sleep(left.min(SLEEP));
    !left.is_zero()
}
