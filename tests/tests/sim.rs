//! The whole daemon under the simulator: a number of seeds, and those that found something once.

use millpond_tests::sim::{Options, run_seed, run_seeds};

/// Enough to touch every option many times; the command line runs more.
const SEEDS: u64 = 60;

fn options(seeds: u64) -> Options {
    Options {
        seeds,
        first: 1,
        seed: None,
        trace: false,
        twice: false,
        jobs: std::thread::available_parallelism().map_or(1, usize::from),
        keep_going: true,
    }
}

#[test]
fn no_seed_breaks_an_invariant_or_hangs() {
    let summary = run_seeds(&options(SEEDS));
    let rate = summary.runs as f64 / summary.took.as_secs_f64();
    println!("{} seeds, {:.1} a second", summary.runs, rate);
    assert_eq!(summary.runs, SEEDS);
    let failed: Vec<_> = summary
        .failed
        .iter()
        .map(|report| (report.seed, &report.failure))
        .collect();
    assert!(failed.is_empty(), "{failed:?}");
}

#[test]
fn a_seed_gives_the_same_trace_bit_for_bit() {
    let twice = Options {
        twice: true,
        ..options(8)
    };
    let summary = run_seeds(&twice);
    assert!(summary.failed.is_empty(), "{:?}", summary.failed);
    let hashes = [1, 2].map(|seed| run_seed(seed, false).expect("the run can be made").hash);
    assert_ne!(hashes[0], hashes[1], "the hash tells seeds apart");
}

/// Each finds something that was found on the way, once it is broken again: what, it says. (A write-back that left writes
/// behind was found too; drivers/tests/qcow2_writeback.rs has that one, since no seed among the first 400 meets it any more.)
const FOUND: [(u64, &str); 1] = [(
    80,
    "a snapshot left what was acknowledged before it unflushed below the overlay",
)];

#[test]
fn what_seeds_have_found_stays_mended() {
    for (seed, what) in FOUND {
        let report = run_seed(seed, false).expect("the run can be made");
        assert_eq!(report.failure, None, "seed {seed}, which once found that {what}");
    }
}
