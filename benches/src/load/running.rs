//! A load that runs in the background.

use std::sync::Arc;
use std::sync::mpsc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant, UNIX_EPOCH};

use millpond::graph::GraphHandle;

use super::embedded::Layer;
use super::measure::{Measure, SLEEP, thread_id};
use super::nbd;
use super::record::Control;
use super::report::Report;
use super::spec::Spec;
use super::stamp::mixed;
use super::target::Target;
use super::timeline::{Mark, Slice};
use super::usage::{Usage, all_ids};
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
    let others = all_ids(std::process::id())?;
    let layer = match &spec.target {
        Target::Node(options) => Some(Layer::start(options, spec)?),
        Target::Nbd { .. } => None,
    };
    let opened: Vec<_> = (0..spec.connections)
        .map(|_| Opened::new(spec, layer.as_ref()))
        .collect::<Outcome<_>>()?;
    let control = Arc::new(Control::new(spec.warm_up, spec.duration));
    // What an earlier run wrote with the same seed is not taken for this one's.
    let run = mixed(spec.seed ^ UNIX_EPOCH.elapsed()?.as_nanos() as u64);
    let mut works = Vec::new();
    for (index, (opened, size)) in (0..).zip(opened) {
        works.push((opened, Workload::new(spec, &control, index, size, run)?));
    }
    let crew = Crew::start(spec, works)?;
    let measure = Measure::new(spec, crew.ids, others);
    let meter = {
        let control = Arc::clone(&control);
        let thread = std::thread::Builder::new().name("meter".to_owned());
        thread.spawn(move || {
            let usage = measure.run(&control);
            drop(crew.measured);
            usage
        })?
    };
    Ok(Running {
        spec: spec.clone(),
        control,
        connections: crew.connections,
        meter,
        layer,
    })
}

/// The threads of a load's connections.
struct Crew {
    connections: Vec<JoinHandle<Outcome<Part>>>,
    ids: Vec<u32>,
    /// What a thread has used can be read only while it is there: each stays until its end of these is dropped.
    measured: Vec<mpsc::Sender<()>>,
}

impl Crew {
    fn start(spec: &Spec, works: Vec<(Opened, Workload)>) -> Outcome<Crew> {
        let (tell, told) = mpsc::channel();
        let (mut connections, mut measured) = (Vec::new(), Vec::new());
        for (opened, workload) in works {
            let (spec, tell) = (spec.clone(), tell.clone());
            let (leave, may_leave) = mpsc::channel::<()>();
            measured.push(leave);
            let thread = std::thread::Builder::new().name("load".to_owned());
            connections.push(thread.spawn(move || {
                let control = Arc::clone(workload.control());
                tell.send(thread_id())?;
                drop(tell);
                let part = opened.run(&spec, workload);
                if part.is_err() {
                    control.fail();
                }
                // Nothing is ever sent.
                let _ = may_leave.recv();
                part
            })?);
        }
        drop(tell);
        Ok(Crew {
            connections,
            ids: told.iter().collect(),
            measured,
        })
    }
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
    /// One way, and the length in bytes of what is there.
    fn new(spec: &Spec, layer: Option<&Layer>) -> Outcome<(Opened, u64)> {
        match (&spec.target, layer) {
            (Target::Nbd { endpoint, export }, _) => {
                let (stream, size) = nbd::open(endpoint, export, spec)?;
                Ok((Opened::Nbd(stream), size))
            }
            (Target::Node(_), Some(layer)) => {
                let (client, size) = layer.open(spec)?;
                Ok((Opened::Client(client), size))
            }
            (Target::Node(_), None) => Err("a node without its graph".into()),
        }
    }

    fn run(self, spec: &Spec, workload: Workload) -> Outcome<Part> {
        match self {
            Opened::Nbd(stream) => nbd::Connection::new(stream, spec, workload).run(),
            Opened::Client(client) => client.run(spec, workload),
        }
    }
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

    /// Waits until an instant; false, and possibly earlier, if the load is over by then.
    pub fn wait_until(&self, instant: Instant) -> bool {
        while !self.is_over() {
            let left = instant.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return true;
            }
            std::thread::sleep(left.min(SLEEP));
        }
        false
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

    /// Has the load end soon, for a reason of the caller's; [`Running::finish`] waits for it.
    pub fn give_up(&self) {
        self.control.fail();
    }

    /// Ends the load now, and waits for what is in flight and for the read-back of verification.
    ///
    /// # Errors
    /// Those of [`Running::finish`].
    pub fn stop(self) -> Outcome<Report> {
        self.control.stop();
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
        let usage = self.meter.join().map_err(|_| "the meter's thread panicked")?;
        let ended = self.layer.map_or(Ok(()), Layer::end);
        if let Some(failure) = failure {
            return Err(failure);
        }
        ended?;
        let elapsed = Duration::from_nanos(self.control.until() - self.control.from());
        let counted_from = self
            .control
            .instant(self.control.from())
            .ok_or("a time out of range")?;
        let timeline = self.control.timeline().clone();
        Report::new(self.spec, elapsed, counted_from, &parts, timeline, usage?)
    }
}
