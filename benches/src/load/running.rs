//! A load that runs in the background.

use std::sync::Arc;
use std::sync::mpsc::{self, RecvTimeoutError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use millpond::graph::GraphHandle;

use super::embedded::Layer;
use super::nbd;
use super::record::Control;
use super::report::Report;
use super::spec::Spec;
use super::stamp::mixed;
use super::target::Target;
use super::timeline::{Mark, Slice};
use super::usage::{Meter, Threads, Usage, all_ids};
use super::workload::{Part, Workload};
use crate::Outcome;

/// A load that runs. It goes on if this is dropped, until its time is over.
#[derive(Debug)]
#[must_use = "a load that nobody waits for shows nothing"]
pub struct Running {
    spec: Spec,
    control: Arc<Control>,
    connections: Vec<JoinHandle<Outcome<Part>>>,
    meter: JoinHandle<Outcome<(Usage, Option<Usage>)>>,
    /// Dropped to end the measurement early.
    stop: Option<mpsc::Sender<()>>,
    layer: Option<Layer>,
}

/// What a load has done lately.
#[derive(Debug, Clone)]
pub struct Progress {
    /// How long it has been counting.
    pub elapsed: Duration,
    /// What was answered in the time asked for.
    pub lately: Slice,
}

/// Starts a load. This returns once all connections stand and the first requests are on their way.
///
/// # Errors
/// The work makes no sense, or the server does not take the connections or does not offer what is asked for.
pub fn start(spec: &Spec) -> Outcome<Running> {
    spec.check()?;
    let own = std::process::id();
    let others = all_ids(own)?;
    let layer = match &spec.target {
        Target::Node(options) => Some(Layer::start(options, spec)?),
        Target::Nbd { .. } => None,
    };
    let mut opened = Vec::new();
    for _ in 0..spec.connections {
        opened.push(match (&spec.target, &layer) {
            (Target::Nbd { endpoint, export }, _) => {
                let (stream, size) = nbd::open(endpoint, export, spec)?;
                (Opened::Nbd(stream), size)
            }
            (Target::Node(_), Some(layer)) => {
                let (client, size) = layer.open(spec)?;
                (Opened::Client(client), size)
            }
            (Target::Node(_), None) => return Err("a node without its graph".into()),
        });
    }
    let control = Arc::new(Control::new(spec.warm_up, spec.duration));
    // What an earlier run wrote with the same seed is not taken for this one's.
    let run = mixed(spec.seed ^ std::time::UNIX_EPOCH.elapsed()?.as_nanos() as u64);
    let mut works = Vec::new();
    for (index, (opened, size)) in (0..).zip(opened) {
        works.push((opened, Workload::new(spec, &control, index, size, run)?));
    }
    let (tell, told) = mpsc::channel();
    let mut connections = Vec::new();
    for (opened, workload) in works {
        let (spec, tell) = (spec.clone(), tell.clone());
        let thread = std::thread::Builder::new().name("load".to_owned());
        connections.push(thread.spawn(move || {
            let control = Arc::clone(workload.control());
            tell.send(rustix::thread::gettid().as_raw_nonzero().get().unsigned_abs())?;
            let part = opened.run(&spec, workload);
            if part.is_err() {
                control.fail();
            }
            part
        })?);
    }
    drop(tell);
    let clients: Vec<u32> = told.iter().collect();
    let (stop, stopped) = mpsc::channel();
    let meters = match (&spec.target, spec.home) {
        (Target::Nbd { .. }, _) => (
            (own, Threads::Only(clients)),
            spec.server.map(|pid| (pid, Threads::All)),
        ),
        (Target::Node(_), false) => (
            (own, Threads::Only(clients.clone())),
            Some((own, Threads::Except([others, clients].concat()))),
        ),
        (Target::Node(_), true) => ((own, Threads::Except(others)), None),
    };
    let meter = {
        let (control, counters) = (Arc::clone(&control), spec.counters);
        std::thread::Builder::new()
            .name("meter".to_owned())
            .spawn(move || measure(&control, meters, counters, &stopped))?
    };
    Ok(Running {
        spec: spec.clone(),
        control,
        connections,
        meter,
        stop: Some(stop),
        layer,
    })
}

/// Runs a load to its end.
///
/// # Errors
/// It could not be started, a request failed, or verification found something wrong.
pub fn run(spec: &Spec) -> Outcome<Report> {
    start(spec)?.finish()
}

/// A way to what is loaded.
#[derive(Debug)]
enum Opened {
    Nbd(nbd::Stream),
    Client(super::embedded::Opened),
}

impl Opened {
    fn run(self, spec: &Spec, workload: Workload) -> Outcome<Part> {
        match self {
            Opened::Nbd(stream) => nbd::Connection::new(stream, spec, workload).run(),
            Opened::Client(client) => client.run(spec, workload),
        }
    }
}

/// Measures a client's threads and maybe a server's from when the load counts until it ends.
fn measure(
    control: &Control,
    (client, server): ((u32, Threads), Option<(u32, Threads)>),
    counters: bool,
    stopped: &mpsc::Receiver<()>,
) -> Outcome<(Usage, Option<Usage>)> {
    let not_me = |which| match which {
        Threads::Except(mut ids) => {
            ids.push(rustix::thread::gettid().as_raw_nonzero().get().unsigned_abs());
            Threads::Except(ids)
        }
        other => other,
    };
    let meter = |(pid, which)| Meter::new(pid, not_me(which), counters);
    let mut client = meter(client)?;
    let mut server = server.map(meter).transpose()?;
    let wait_until = |time: u64| match control.instant(time) {
        Some(instant) => stopped.recv_timeout(instant.saturating_duration_since(Instant::now())),
        None => stopped.recv().map_err(|_| RecvTimeoutError::Disconnected),
    };
    // An end before the counting began is noticed by the second wait again.
    let _ = wait_until(control.from());
    client.begin()?;
    server.as_mut().map(Meter::begin).transpose()?;
    // Either the time is over or somebody ends the load: the same to a meter.
    let _ = wait_until(control.until());
    Ok((client.end()?, server.map(Meter::end).transpose()?))
}

impl Running {
    /// When counting begins, or began: times of the report count from here.
    pub fn counted_from(&self) -> Instant {
        self.control
            .instant(self.control.from())
            .unwrap_or_else(Instant::now)
    }

    /// The graph of the node that is loaded, if it is one of this process: for changes under load.
    pub fn graph(&self) -> Option<&GraphHandle> {
        self.layer.as_ref().map(Layer::graph)
    }

    /// Notes in the timeline that something happened between two instants.
    pub fn mark(&self, label: impl Into<String>, from: Instant, until: Instant) {
        let begin = self.counted_from();
        self.control.timeline().mark(Mark {
            label: label.into(),
            from: from.saturating_duration_since(begin),
            until: until.saturating_duration_since(begin),
        });
    }

    /// Whether time is over, or some connection has failed.
    pub fn is_over(&self) -> bool {
        self.control.now() >= self.control.until()
    }

    /// What was answered in the last `time`, to a slice's length.
    ///
    /// # Errors
    /// None that is known.
    pub fn progress(&self, time: Duration) -> Outcome<Progress> {
        let timeline = self.control.timeline();
        let slices = timeline.slices();
        let count = time.as_nanos().div_ceil(timeline.width().as_nanos()) as usize;
        let mut lately = Slice::empty()?;
        for slice in &slices[slices.len().saturating_sub(count.max(1))..] {
            lately.add(slice)?;
        }
        Ok(Progress {
            elapsed: Duration::from_nanos(self.control.now().saturating_sub(self.control.from())),
            lately,
        })
    }

    /// Ends the load now, and waits for what is in flight and for the read-back of verification.
    ///
    /// # Errors
    /// Those of [`Running::finish`].
    pub fn stop(mut self) -> Outcome<Report> {
        self.control.stop();
        self.stop = None;
        self.finish()
    }

    /// Waits until the load is over.
    ///
    /// # Errors
    /// A request failed, the server went away, or verification found something wrong.
    pub fn finish(self) -> Outcome<Report> {
        let mut parts = Vec::new();
        let mut failure = None;
        for connection in self.connections {
            match connection.join().map_err(|_| "a connection's thread panicked")? {
                Ok(part) => parts.push(part),
                Err(error) => failure = failure.or(Some(error)),
            }
        }
        if failure.is_some() {
            // The meter need not wait for a load that has ended.
            drop(self.stop);
        }
        let usage = self.meter.join().map_err(|_| "the meter's thread panicked")?;
        if let Some(layer) = self.layer {
            layer.end()?;
        }
        if let Some(failure) = failure {
            return Err(failure);
        }
        let elapsed = Duration::from_nanos(self.control.until() - self.control.from());
        let counted_from = self
            .control
            .instant(self.control.from())
            .ok_or("a time out of range")?;
        let timeline = self.control.timeline().clone();
        Report::new(self.spec, elapsed, counted_from, &parts, timeline, usage?)
    }
}
