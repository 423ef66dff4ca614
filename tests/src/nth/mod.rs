//! I/O errors: each request that reaches an image's file in a workload fails once, and from then on.
//!
//! A workload of [`crate::crash`] runs with the n-th request of a kind failing, for each n until there are not so many.
//!
//! # Who is told
//! A request that fails because its own data could not be read or written tells its user, and only that user. Metadata
//! is written back later: what fails then is told to whoever the write-back was for, which is a flush, a write with FUA,
//! a request that had to wait for room among the changed tables, a change of the image (resize, amend, commit, ...) or
//! a reopen. So one failure is told at most once. A close cannot fail, as in QEMU, and only logs it; nor does a
//! snapshot where the image below, flushed already, cannot be made read-only. Nobody is told where
//! nothing is lost: of a discard of freed clusters (as in QEMU), and of a read ahead, which is repeated without. Where
//! storage fails from then on, each request that needs it fails.
//!
//! # What must hold
//! Nothing hangs; the graph answers, drains end and, once storage works again, writes, flushes and reads do; what is
//! left on the disk then, whatever a crash does to what was not flushed, passes as in [`crate::crash`].
//!
//! # Jobs
//! What they read fails, and what they write, one after the other; they report that, or stop and are told to go on. One that
//! fails leaves the chain as it was, with nothing of the job in it, and is begun once more; one that goes on has the result
//! that it has without an error. Whoever uses the disk is told nothing of the target.

use std::process::ExitCode;

use futures_executor::block_on;
use millpond_messages::IoError;

use crate::crash::Watchdog;
use crate::crash::disk::{Fate, Fault, Kind};
use crate::crash::examine::examine;
use crate::crash::link::Images;
use crate::crash::site::{Failure, Run, Side, Site};
use crate::crash::workload::{self, Step, Workload};

/// What to try.
#[derive(Debug, Clone, clap::Args)]
pub struct Options {
    /// The workload's name; all by default.
    #[arg(long)]
    pub workload: Option<String>,
    /// What decides on requests and delays.
    #[arg(long, default_value_t = 1)]
    pub seed: u64,
    /// Requests beside each step of a workload; its own number by default.
    #[arg(long)]
    pub requests: Option<u32>,
    /// Fail every so many requests.
    #[arg(long, default_value_t = 1)]
    pub stride: u64,
    /// The one kind of requests to fail.
    #[arg(long)]
    pub kind: Option<String>,
    /// The one request to fail.
    #[arg(long)]
    pub nth: Option<u64>,
}

/// What was tried.
#[derive(Debug, Clone, Copy, Default)]
pub struct Report {
    /// Runs in which a request failed.
    pub runs: u64,
    /// Those of them in which a user was told.
    pub told: u64,
}

/// How a request fails.
#[derive(Debug, Clone, Copy)]
struct Case {
    side: Side,
    fault: Fault,
    /// What jobs do about it.
    on_error: &'static str,
    seed: u64,
}

/// An error that no driver makes up, so that a refusal (a compressed write of what is stored already is refused with
/// `EIO`) is not taken for it.
const BROKEN: IoError = IoError::Os(libc::EREMOTEIO);

const ERRORS: [IoError; 2] = [BROKEN, IoError::NoSpace];

/// Tries as asked, and prints what was found.
pub fn run(options: &Options) -> ExitCode {
    let mut code = ExitCode::SUCCESS;
    let mut found = false;
    for one in workload::all() {
        if options
            .workload
            .as_deref()
            .is_some_and(|wanted| wanted != one.name)
        {
            continue;
        }
        found = true;
        match explore(one.name, options) {
            Ok(report) => println!(
                "{}: {} runs, in {} a user was told",
                one.name, report.runs, report.told
            ),
            Err(text) => {
                eprintln!("{text}");
                code = ExitCode::FAILURE;
            }
        }
    }
    if !found {
        eprintln!("there is no such workload");
        return ExitCode::FAILURE;
    }
    code
}

/// Tries one workload.
///
/// # Errors
/// Says what went wrong in which run.
pub fn explore(name: &str, options: &Options) -> Result<Report, String> {
    let mut workload = workload::find(name).ok_or("there is no such workload")?;
    if let Some(requests) = options.requests {
        workload.requests = requests;
    }
    block_on(async {
        let site = Site::start().await;
        let mut report = Report::default();
        for kind in Kind::ALL {
            let name = format!("{kind:?}").to_lowercase();
            if options.kind.as_ref().is_some_and(|wanted| *wanted != name) {
                continue;
            }
            for (side, on_error) in manners(&workload) {
                let manner = (kind, *side, *on_error);
                explore_kind(&site, &workload, manner, options, &mut report).await?;
            }
        }
        site.end().await;
        Ok(report)
    })
}

/// Which disks fail, and what jobs do about that.
fn manners(workload: &Workload) -> &'static [(Side, &'static str)] {
    match workload.has_jobs() {
        false => &[(Side::All, "report")],
        true => &[
            (Side::First, "report"),
            (Side::First, "stop"),
            (Side::Later, "report"),
            (Side::Later, "stop"),
        ],
    }
}

async fn explore_kind(
    site: &Site,
    workload: &Workload,
    (kind, side, on_error): (Kind, Side, &'static str),
    options: &Options,
    report: &mut Report,
) -> Result<(), String> {
    let mut nth = options.nth.unwrap_or(0);
    loop {
        let mut reached = false;
        for (error, stays) in ERRORS
            .into_iter()
            .flat_map(|error| [(error, false), (error, true)])
        {
            let fault = Fault {
                kind,
                nth,
                error,
                stays,
            };
            let case = Case {
                side,
                fault,
                on_error,
                seed: options.seed,
            };
            let text = format!(
                "nth --workload {} --seed {} --requests {} --kind {} --nth {nth}",
                workload.name,
                options.seed,
                workload.requests,
                format!("{kind:?}").to_lowercase()
            );
            let _watchdog = Watchdog::new(text.clone());
            let told = try_case(site, workload, case).await.map_err(|problem| {
                format!(
                    "{}: {problem}\nwith {fault:?} of {side:?}, {on_error}\nrepeat with: cargo run -p millpond-tests -- {text}",
                    workload.name
                )
            })?;
            let Some(told) = told else { break };
            reached = true;
            report.runs += 1;
            report.told += u64::from(told);
        }
        if !reached || options.nth.is_some() {
            return Ok(());
        }
        nth += options.stride;
    }
}

/// One run; none where no request of that number was made, else whether a user was told.
async fn try_case(site: &Site, workload: &Workload, case: Case) -> Result<Option<bool>, String> {
    let mut run = Run::prepare(site, workload, case.seed).await;
    run.on_error = case.on_error;
    run.set_fault(case.side, Some(case.fault));
    run.open().await;
    run.steps().await;
    let told = run.failures();
    let hits = run.set_fault(case.side, None);
    if told.iter().any(|failure| failure.what == "WRONG DATA") {
        return Err(format!("{told:#?}"));
    }
    if run.client().is_none() && !run.open().await {
        return Err(format!("it does not open any more: {:#?}", run.failures()));
    }
    run.is_alive()
        .await
        .map_err(|text| format!("{text}; told till then: {told:#?}"))?;
    look(site, &run, case.seed)
        .await
        .map_err(|text| format!("before the close: {text}; told: {told:#?}"))?;
    let before = run.failures().len();
    run.close().await;
    if let Some(failure) = run.failures().get(before) {
        return Err(format!("with storage that works: {failure:?}"));
    }
    look(site, &run, case.seed)
        .await
        .map_err(|text| format!("after the close: {text}; told: {told:#?}"))?;
    if hits == 0 {
        return if told.is_empty() {
            Ok(None)
        } else {
            Err(format!("nothing failed, but told was {told:#?}"))
        };
    }
    told_fits(workload, case.fault, hits, &told)?;
    Ok(Some(!told.is_empty()))
}

/// What failed once is told once at the most. Each disk has its own n-th request.
fn told_fits(workload: &Workload, fault: Fault, hits: u64, told: &[Failure]) -> Result<(), String> {
    if !fault.stays && told.len() as u64 > hits {
        return Err(format!("{hits} failed, told was {told:#?}"));
    }
    let quiet = |step: &Step| matches!(step, Step::CloseAndOpen | Step::Snapshot);
    // A data file is told of zeroes that the tables show, so that it may free their space.
    let is_hint = fault.kind == Kind::Zero && workload.has_data_file && !workload.is_raw_outside();
    let silent =
        is_hint || workload.steps.iter().any(quiet) || matches!(fault.kind, Kind::Discard | Kind::Read);
    if told.is_empty() && !silent {
        return Err("nobody was told".to_owned());
    }
    Ok(())
}

/// What is on the disks now, and what a crash would leave of it.
async fn look(site: &Site, run: &Run<'_>, seed: u64) -> Result<(), String> {
    let point = run.history.now();
    let mut rng = fastrand::Rng::with_seed(seed);
    for fate in [Fate::Kept, Fate::Lost, Fate::Torn] {
        let images: Images = run
            .links()
            .iter()
            .map(|link| {
                let recorded = link.recorded();
                let fates = vec![fate; recorded.volatile(point)];
                recorded.image(point, &fates, &mut rng)
            })
            .collect();
        examine(site, &images, run.promised(), point, fate == Fate::Torn)
            .await
            .map_err(|text| format!("{fate:?}: {text}"))?;
    }
    Ok(())
}
