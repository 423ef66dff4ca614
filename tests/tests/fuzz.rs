//! Every fuzz target on its seeds, on the corpus, on what once broke it, and on a fixed number of mutations of all three.
//!
//! The mutations are the same at each run; `MILLPOND_SEED` gives others.

use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};

use millpond_tests::fuzz::{TARGETS, mutate, target};

/// Inputs by name.
fn inputs(name: &str) -> Vec<(String, Vec<u8>)> {
    let target = target(name).expect("there is such a target");
    let seeds = (target.seeds)().into_iter().enumerate();
    let mut inputs: Vec<_> = seeds
        .map(|(index, seed)| (format!("seed {index}"), seed))
        .collect();
    let corpus = std::fs::read_dir(target.corpus()).expect("each target has a corpus");
    let regressions = std::fs::read_dir(target.regressions()).ok();
    for entry in corpus.chain(regressions.into_iter().flatten()) {
        let entry = entry.expect("the folder can be read");
        let input = std::fs::read(entry.path()).expect("an input can be read");
        inputs.push((entry.file_name().display().to_string(), input));
    }
    inputs.sort();
    inputs
}

/// Resident memory at its highest, in KiB.
fn peak_kib() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").expect("a process has a status");
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    let number = line.and_then(|line| line.trim().trim_end_matches(" kB").parse().ok());
    number.expect("VmHWM is a number")
}

fn run(name: &str) {
    let target = target(name).expect("there is such a target");
    let inputs = inputs(name);
    let one = |what: &str, input: &[u8]| {
        if let Err(panic) = catch_unwind(AssertUnwindSafe(|| (target.run)(input))) {
            let path = std::env::temp_dir().join(format!("millpond-fuzz-{name}"));
            std::fs::write(&path, input).expect("the input can be kept");
            eprintln!("{name} fails on {what}: {}", path.display());
            resume_unwind(panic);
        }
    };
    for (what, input) in &inputs {
        one(what, input);
    }
    let seed = std::env::var("MILLPOND_SEED")
        .ok()
        .and_then(|seed| seed.parse().ok());
    let mut rng = fastrand::Rng::with_seed(seed.unwrap_or(0));
    for count in 0..target.mutations {
        let (input, other) = (rng.usize(0..inputs.len()), rng.usize(0..inputs.len()));
        let input = mutate(&mut rng, &inputs[input].1, &inputs[other].1);
        one(&format!("mutation {count}"), &input);
    }
    let peak = peak_kib();
    assert!(peak < 1 << 20, "{name}: {peak} KiB at most");
}

#[test]
fn qcow2() {
    run("qcow2");
}

#[test]
fn nbd_handshake() {
    run("nbd_handshake");
}

#[test]
fn nbd_requests() {
    run("nbd_requests");
}

#[test]
fn qmp() {
    run("qmp");
}

#[test]
fn options() {
    run("options");
}

#[test]
fn frames() {
    run("frames");
}

#[test]
fn virtio() {
    run("virtio");
}

#[test]
fn every_target_is_run_here() {
    let here = include_str!("fuzz.rs");
    for target in TARGETS {
        let call = format!("run(\"{}\")", target.name);
        assert!(here.contains(&call), "{} is not run", target.name);
    }
}
