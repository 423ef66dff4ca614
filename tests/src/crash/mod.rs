//! Crash exploration: every image that a crash can leave is rebuilt and examined.
//!
//! A workload runs in the whole block layer on recorded [`disk`]s. For each moment of it, and for each choice of what got
//! lost of the changes that no flush had made durable by then (any of them, in any order, torn at sectors), the images
//! are rebuilt and must pass: no corruption but leaks by a [`census`] of our own and by `qemu-img check`; ours opens
//! it; and it reads as its users were promised ([`history`]). Where there are too many choices a seed picks.

mod by_qemu;
pub mod census;
pub mod disk;
pub mod examine;
mod found;
pub mod history;
mod jobs;
mod keeping;
pub mod kept;
pub mod keys;
mod lane;
pub mod link;
pub mod recorder;
pub mod site;
pub mod workload;

use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use disk::{Clock, Disk, Fate};
use examine::Opening;
use futures_executor::block_on;
use keys::Opens;
use link::{Format, Images, Link, RecordedLink, Stored};
use site::{Run, Site, Stretch};
use workload::Workload;

/// What to explore.
#[derive(Debug, Clone, clap::Args)]
pub struct Options {
    /// The workload's name; all by default.
    #[arg(long)]
    pub workload: Option<String>,
    /// What decides on requests, delays and losses.
    #[arg(long, default_value_t = 1)]
    pub seed: u64,
    /// How many images to examine of each workload, about.
    #[arg(long, default_value_t = 2000)]
    pub images: u64,
    /// Every how many images QEMU looks too.
    #[arg(long, default_value_t = 20)]
    pub qemu_every: u64,
    /// The one moment to look at.
    #[arg(long)]
    pub point: Option<u64>,
    /// The one choice of losses to look at.
    #[arg(long)]
    pub case: Option<u64>,
}

/// What was looked at.
#[derive(Debug, Clone, Copy, Default)]
pub struct Report {
    /// Images that were rebuilt and examined here.
    pub images: u64,
    /// Those of them that QEMU looked at.
    pub by_qemu: u64,
    /// Moments that they are from.
    pub points: u64,
}

/// Ends the process where something takes too long, and says what it was: a hang has no other end.
pub struct Watchdog(Arc<AtomicBool>, std::thread::Thread);

impl Watchdog {
    /// Watches until it is dropped.
    pub fn new(what: String) -> Self {
        let done = Arc::<AtomicBool>::default();
        let seen = Arc::clone(&done);
        let thread = std::thread::spawn(move || {
            let patience = 5 * crate::PATIENCE;
            let started = std::time::Instant::now();
            while !seen.load(Ordering::Acquire) {
                let left = patience.saturating_sub(started.elapsed());
                if left == Duration::ZERO {
                    eprintln!("nothing comes to an end: {what}");
                    std::process::abort();
                }
                std::thread::park_timeout(left);
            }
        });
        Self(done, thread.thread().clone())
    }
}

impl Drop for Watchdog {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Release);
        self.1.unpark();
    }
}

/// A failure, with the command that repeats it.
fn failed(workload: &str, seed: u64, point: u64, case: u64, text: &str) -> String {
    format!(
        "{workload}: {text}\nrepeat with: cargo run -p millpond-tests -- crash --workload {workload} --seed {seed} --point \
         {point} --case {case}"
    )
}

/// Explores as asked, and prints what was found.
pub fn run(options: &Options) -> ExitCode {
    let names = workload::all()
        .into_iter()
        .map(|workload| workload.name)
        .chain(["create"]);
    let chosen = |name: &&str| options.workload.as_deref().is_none_or(|wanted| wanted == *name);
    let names: Vec<&str> = names.filter(chosen).collect();
    if names.is_empty() {
        eprintln!("there is no such workload");
        return ExitCode::FAILURE;
    }
    let mut code = ExitCode::SUCCESS;
    for name in names {
        match explore(name, options) {
            Ok(report) => println!(
                "{name}: {} images of {} moments, {} of them by qemu-img",
                report.images, report.points, report.by_qemu
            ),
            Err(text) => {
                eprintln!("{text}");
                code = ExitCode::FAILURE;
            }
        }
    }
    code
}

/// Explores one workload.
///
/// # Errors
/// Says what was wrong with which image.
pub fn explore(name: &str, options: &Options) -> Result<Report, String> {
    let _watchdog = Watchdog::new(format!("crash --workload {name} --seed {}", options.seed));
    block_on(async {
        let site = Site::start().await;
        let result = match workload::find(name) {
            Some(workload) => explore_workload(&site, &workload, options).await,
            None => explore_create(&site, options).await,
        };
        site.end().await;
        result
    })
}

async fn explore_workload(site: &Site, workload: &Workload, options: &Options) -> Result<Report, String> {
    let mut run = Run::prepare(site, workload, options.seed).await;
    run.open().await;
    run.steps().await;
    run.close().await;
    let fail = |text: &str| failed(workload.name, options.seed, 0, 0, text);
    if let Some(failure) = run.failures().first() {
        return Err(fail(&format!("{failure:?}")));
    }
    let mut explorer = Explorer::new(workload.name, options, &run.chains)?;
    let promised = run.promised();
    let keys = |point| run.history.keys.at(point);
    explorer
        .explore(keys, async |left, point, case| {
            let then_write = case % 4 == 3;
            let examined = examine::examine(site, &left.chain, promised, point, then_write).await;
            let (Err(text), Some(instead)) = (&examined, &left.instead) else {
                return examined;
            };
            let other = examine::examine(site, instead, promised, point, then_write).await;
            other.map_err(|other| format!("neither is whole: {text}; and {other}"))
        })
        .await
}

/// Formats a disk that had another image on it: till that is done it is that image still, or empty, or no image.
async fn explore_create(site: &Site, options: &Options) -> Result<Report, String> {
    let fail = |text: String| failed("create", options.seed, 0, 0, &text);
    let workload = workload::find("allocate").ok_or("there is no such workload")?;
    let mut run = Run::prepare(site, &workload, options.seed).await;
    run.open().await;
    run.steps().await;
    run.close().await;
    let old = Stored::of(&run.links()[0]);
    let before = examine::contents(site, &vec![old.clone()], Opening::default()).await;
    let (before, _) = before.map_err(fail)?;
    let disk = Disk::new(old.bytes, &Arc::<Clock>::default(), 1, options.seed, 3);
    let made = Link::new(site.put("image", &disk), Arc::clone(&disk), Format::Qcow2);
    disk.record();
    let create = serde_json::json!({"cluster-size": 4096});
    let created = site.create(&made, &create, workload.size).await;
    created.map_err(|error| fail(error.to_string()))?;
    let chains = [Stretch::of(0, vec![made])];
    let mut explorer = Explorer::new("create", options, &chains)?;
    let end = explorer.points.last().copied().unwrap_or(0);
    explorer
        .explore(
            |_| Vec::new(),
            async |left, point, _| {
                let images = &left.chain;
                let opened = examine::contents(site, images, Opening::default()).await;
                let Ok((found, _)) = opened else {
                    return if point < end { Ok(()) } else { opened.map(drop) };
                };
                examine::sound(images)?;
                let zeroes = found.iter().all(|byte| *byte == 0);
                let whole = found.len() as u64 == workload.size;
                match (point < end, zeroes, found == before) {
                    (true, true, _) | (true, _, true) => Ok(()),
                    (false, true, _) if whole => Ok(()),
                    _ => Err("it reads as neither the old nor an empty image".into()),
                }
            },
        )
        .await
}

/// What a crash leaves.
struct Left {
    /// All images.
    all: Images,
    /// Those that were in use.
    chain: Images,
    /// Those that may have been in use instead.
    instead: Option<Images>,
}

/// What was recorded from a time on.
struct Recorded {
    since: u64,
    images: Vec<RecordedLink>,
    /// Which of them were in use.
    chain: Vec<usize>,
    /// Which of them may have been in use instead.
    instead: Option<Vec<usize>>,
}

impl Recorded {
    fn of(stretch: &Stretch) -> Self {
        let mut all: Vec<&Link> = Vec::new();
        let links = stretch.links.iter().chain(stretch.instead.iter().flatten());
        for link in links.chain(&stretch.besides) {
            if all.iter().all(|known| known.name != link.name) {
                all.push(link);
            }
        }
        let find = |links: &Vec<Link>| -> Vec<usize> {
            let place = |link: &Link| all.iter().position(|known| known.name == link.name);
            links.iter().filter_map(place).collect()
        };
        Self {
            since: stretch.since,
            chain: find(&stretch.links),
            instead: stretch.instead.as_ref().map(find),
            images: all.iter().map(|link| link.recorded()).collect(),
        }
    }
}

/// Goes through the images that a crash can leave.
struct Explorer<'a> {
    name: &'a str,
    options: &'a Options,
    stretches: Vec<Recorded>,
    points: Vec<u64>,
    scratch: tempfile::TempDir,
    report: Report,
}

/// The most choices at one moment that are all looked at.
const ALL_CHOICES: u64 = 16;

impl<'a> Explorer<'a> {
    fn new(name: &'a str, options: &'a Options, chains: &[Stretch]) -> Result<Self, String> {
        let stretches: Vec<Recorded> = chains.iter().map(Recorded::of).collect();
        let all = stretches.iter().flat_map(|stretch| &stretch.images);
        let mut points: Vec<u64> = all.flat_map(RecordedLink::points).collect();
        // What was answered by then is known by then: so the last moment before each change is the one that asks most.
        points.iter_mut().for_each(|point| *point -= 1);
        points.push(u64::MAX);
        points.sort_unstable();
        points.dedup();
        Ok(Self {
            name,
            options,
            stretches,
            points,
            scratch: tempfile::tempdir().map_err(|error| error.to_string())?,
            report: Report::default(),
        })
    }

    async fn explore(
        &mut self,
        keys: impl Fn(u64) -> Vec<(&'static str, Opens)>,
        examine: impl AsyncFn(&Left, u64, u64) -> Result<(), String>,
    ) -> Result<Report, String> {
        let cases = (self.options.images / self.points.len() as u64).max(4);
        let mut rng = fastrand::Rng::with_seed(self.options.seed);
        let share = self.options.images as f64 / (self.points.len() as u64 * cases) as f64;
        for point in self.points.clone() {
            if self.options.point.map_or(rng.f64() > share, |only| only != point) {
                continue;
            }
            self.report.points += 1;
            for case in 0..cases {
                if self.options.case.is_some_and(|only| only != case) {
                    continue;
                }
                let Some(left) = self.left(point, case, cases) else {
                    break;
                };
                let looked = match self.look(&left, point, case, &examine).await {
                    Ok(()) => self.look_by_qemu(&left, &keys(point)),
                    looked => looked,
                };
                looked.map_err(|text| failed(self.name, self.options.seed, point, case, &text))?;
            }
        }
        Ok(self.report)
    }

    async fn look(
        &mut self,
        left: &Left,
        point: u64,
        case: u64,
        examine: &impl AsyncFn(&Left, u64, u64) -> Result<(), String>,
    ) -> Result<(), String> {
        self.report.images += 1;
        if self.name != "create" {
            examine::sound(&left.all)?;
        }
        examine(left, point, case).await
    }

    fn look_by_qemu(&mut self, left: &Left, keys: &[(&'static str, Opens)]) -> Result<(), String> {
        if self.name == "create" || !self.report.images.is_multiple_of(self.options.qemu_every) {
            return Ok(());
        }
        self.report.by_qemu += 1;
        by_qemu::check(&left.all, self.scratch.path(), keys)
    }

    /// The images of one choice of losses; none where there are not so many choices.
    fn left(&self, point: u64, case: u64, cases: u64) -> Option<Left> {
        let mut stretches = self.stretches.iter().rev();
        let stretch = stretches.find(|stretch| stretch.since <= point)?;
        let volatile = stretch.images.iter().map(|image| image.volatile(point));
        let total: usize = volatile.clone().sum();
        let few = total < 63 && 1 << total <= ALL_CHOICES.min(cases);
        if few && case >= 1 << total {
            return None;
        }
        let mut rng =
            fastrand::Rng::with_seed(self.options.seed ^ point.wrapping_mul(0x9e37_79b9) ^ case << 48);
        let losing = [2, 5, 8][rng.usize(0..3)];
        let mut fate = |at: usize| match case {
            _ if few => [Fate::Kept, Fate::Lost][(case >> at & 1) as usize],
            0 => Fate::Kept,
            1 => Fate::Lost,
            _ if rng.u8(0..10) < losing => Fate::Lost,
            _ if rng.u8(0..5) == 0 => Fate::Torn,
            _ => Fate::Kept,
        };
        let fates: Vec<Fate> = (0..total).map(&mut fate).collect();
        let mut left = fates.as_slice();
        let mut all = Images::new();
        for (image, count) in stretch.images.iter().zip(volatile) {
            let (own, rest) = left.split_at(count);
            left = rest;
            all.push(image.image(point, own, &mut rng));
        }
        let some = |places: &Vec<usize>| places.iter().map(|at| all[*at].clone()).collect();
        Some(Left {
            chain: some(&stretch.chain),
            instead: stretch.instead.as_ref().map(some),
            all,
        })
    }
}
