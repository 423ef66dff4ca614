//! What a bench measures: time, or the instructions that the process executes meanwhile.
//!
//! `MILLPOND_BENCH_COUNT` chooses: unset for time, `instructions` for the processor's own counter, `callgrind` for
//! valgrind's, which works on any machine and is set by the script `benches/instructions`. Both counters leave out what the
//! kernel does.

use std::path::PathBuf;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::Instant;

use criterion::measurement::{Measurement, ValueFormatter, WallTime};
use criterion::{Criterion, Throughput};
use perf_event::events::Hardware;
use perf_event::{Builder, Counter};

/// A criterion with the measurement that was chosen. To be made before any thread is: a counter counts those that its
/// process starts later.
pub fn criterion() -> Criterion<Meter> {
    Criterion::default().with_measurement(meter().clone())
}

/// The measurement that was chosen. Ends the process where it cannot be.
pub fn meter() -> &'static Meter {
    static METER: OnceLock<Meter> = OnceLock::new();
    METER.get_or_init(|| {
        Meter::chosen().unwrap_or_else(|why| {
            eprintln!("error: {why}");
            std::process::exit(1);
        })
    })
}

/// A measurement, for any thread. Values are nanoseconds or instructions.
#[derive(Clone)]
pub enum Meter {
    Time,
    /// What all threads of the process execute.
    Counter(Arc<Mutex<Counter>>),
    Callgrind(Arc<Callgrind>),
}

/// The files into which callgrind writes what was executed since the last of them, at every call of
/// [`callgrind_mark`].
pub struct Callgrind {
    prefix: PathBuf,
    written: AtomicU32,
}

/// Where a measurement begins.
pub enum Begun {
    Time(Instant),
    Count(u64),
}

impl Meter {
    fn chosen() -> Result<Self, String> {
        match std::env::var("MILLPOND_BENCH_COUNT").as_deref() {
            Err(_) => Ok(Self::Time),
            Ok("instructions") => Self::counter(),
            Ok("callgrind") => {
                let prefix = std::env::var_os("MILLPOND_BENCH_CALLGRIND")
                    .ok_or("callgrind counts only under the script benches/instructions")?;
                Ok(Self::Callgrind(Arc::new(Callgrind {
                    prefix: prefix.into(),
                    written: AtomicU32::new(0),
                })))
            }
            Ok(other) => Err(format!(
                "MILLPOND_BENCH_COUNT is `instructions` or `callgrind`, not `{other}`"
            )),
        }
    }

    fn counter() -> Result<Self, String> {
        let counter = Builder::new(Hardware::INSTRUCTIONS).inherit(true).build();
        counter
            .and_then(|mut counter| counter.enable().map(|()| counter))
            .map(|counter| Self::Counter(Arc::new(Mutex::new(counter))))
            .map_err(|error| {
                format!(
                    "no instructions can be counted: {error}. This machine has no hardware counter for them, or \
                     kernel.perf_event_paranoid forbids it. The script benches/instructions counts by callgrind instead."
                )
            })
    }

    /// Whether instructions are counted: those of threads that look for work without sleeping say nothing.
    pub fn counts(&self) -> bool {
        !matches!(self, Self::Time)
    }

    /// What `more` is beyond `less`, by the `parts` that it has more.
    pub fn part(more: u64, less: u64, parts: u64) -> u64 {
        more.saturating_sub(less) / parts
    }
}

impl Measurement for Meter {
    type Intermediate = Begun;
    type Value = u64;

    fn start(&self) -> Begun {
        match self {
            Self::Time => Begun::Time(Instant::now()),
            Self::Counter(counter) => Begun::Count(read(counter)),
            Self::Callgrind(callgrind) => {
                callgrind.begin();
                Begun::Count(0)
            }
        }
    }

    fn end(&self, begun: Begun) -> u64 {
        match (self, begun) {
            (Self::Counter(counter), Begun::Count(before)) => read(counter) - before,
            (Self::Callgrind(callgrind), _) => callgrind.since_begin(),
            (_, Begun::Time(start)) => start.elapsed().as_nanos() as u64,
            (Self::Time, Begun::Count(_)) => unreachable!("a measurement ends as it began"),
        }
    }

    fn add(&self, one: &u64, other: &u64) -> u64 {
        one + other
    }

    fn zero(&self) -> u64 {
        0
    }

    fn to_f64(&self, value: &u64) -> f64 {
        *value as f64
    }

    fn formatter(&self) -> &dyn ValueFormatter {
        match self {
            Self::Time => WallTime.formatter(),
            Self::Counter(_) | Self::Callgrind(_) => &Instructions,
        }
    }
}

fn read(counter: &Mutex<Counter>) -> u64 {
    let mut counter = counter.lock().unwrap_or_else(PoisonError::into_inner);
    counter.read().expect("a counter that was opened can be read")
}

impl Callgrind {
    /// Has what was executed so far written down. Nothing is done here that would be counted.
    fn begin(&self) {
        self.written.fetch_add(1, Ordering::Relaxed);
        callgrind_mark();
    }

    /// Instructions since the beginning.
    fn since_begin(&self) -> u64 {
        callgrind_mark();
        let number = self.written.fetch_add(1, Ordering::Relaxed) + 1;
        let path = |number: u32| {
            let mut path = self.prefix.clone().into_os_string();
            path.push(format!(".{number}"));
            PathBuf::from(path)
        };
        let counted = std::fs::read_to_string(path(number)).ok().and_then(|text| {
            let total = text.lines().find_map(|line| line.strip_prefix("totals: "))?;
            total.trim().parse().ok()
        });
        // There are many of them, and they are of no use to anybody else. One that is not there is found below.
        for number in [number - 1, number] {
            drop(std::fs::remove_file(path(number)));
        }
        counted.unwrap_or_else(|| panic!("callgrind has not written {}", path(number).display()))
    }
}

/// Callgrind is told to write down its counts whenever this is called.
#[inline(never)]
fn callgrind_mark() {
    std::hint::black_box(());
}

/// Says how many instructions.
struct Instructions;

impl ValueFormatter for Instructions {
    fn scale_values(&self, typical: f64, values: &mut [f64]) -> &'static str {
        let (by, unit) = scale(typical);
        values.iter_mut().for_each(|value| *value /= by);
        unit
    }

    fn scale_throughputs(&self, typical: f64, throughput: &Throughput, values: &mut [f64]) -> &'static str {
        let (Throughput::Elements(count) | Throughput::Bytes(count) | Throughput::BytesDecimal(count)) =
            throughput
        else {
            return self.scale_values(typical, values);
        };
        values.iter_mut().for_each(|value| *value /= *count as f64);
        "instructions each"
    }

    fn scale_for_machines(&self, _values: &mut [f64]) -> &'static str {
        "instructions"
    }
}

fn scale(typical: f64) -> (f64, &'static str) {
    match typical {
        0.0..1e4 => (1.0, "instructions"),
        1e4..1e7 => (1e3, "thousand instructions"),
        _ => (1e6, "million instructions"),
    }
}
