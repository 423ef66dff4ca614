//! The workloads: an image of some kind, and what is done to it.

use serde_json::{Value, json};

pub use super::keeping::Keep;

/// Something done to an image besides requests.
#[derive(Debug, Clone)]
pub enum Step {
    /// Only requests.
    Requests,
    /// The disk gets another length.
    Resize(u64),
    /// An overlay is made and put on top.
    Snapshot,
    /// The overlay is committed to its backing image.
    Commit,
    /// Format options are changed in place.
    Amend(Value),
    /// The image names its backing file otherwise.
    ChangeBackingFile(&'static str),
    /// The image is reopened with other options.
    Reopen(Value),
    /// A drained section comes and goes.
    Drain,
    /// The user's permissions change and change back.
    Permissions,
    /// All is closed and opened again.
    CloseAndOpen,
    /// A job copies.
    Job(Work),
    /// What the image keeps besides the disk changes.
    Keep(Keep),
}

/// What a job does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Work {
    /// The disk is copied as it is at the start.
    Backup,
    /// The last image gets all that is below it.
    Stream,
    /// The image below the last one is merged down.
    Commit,
    /// The last one is, and the one below it is the last then.
    CommitActive,
    /// The disk is copied, and the copy takes its place.
    Mirror {
        /// Writes wait for the copy.
        is_blocking: bool,
    },
}

/// What requests are made, in parts of their sum.
#[derive(Debug, Clone, Copy)]
pub struct Mix {
    /// Writes.
    pub write: u32,
    /// Writes of zeroes.
    pub zero: u32,
    /// Discards.
    pub discard: u32,
    /// Writes of compressed clusters.
    pub compressed: u32,
    /// Reads.
    pub read: u32,
    /// Flushes.
    pub flush: u32,
}

const MIX: Mix = Mix {
    write: 10,
    zero: 2,
    discard: 2,
    compressed: 0,
    read: 1,
    flush: 3,
};

/// A workload.
#[derive(Debug, Clone)]
pub struct Workload {
    /// Its name.
    pub name: &'static str,
    /// What the image is made with, its size left out.
    pub create: Value,
    /// How long the disk is.
    pub size: u64,
    /// How long the raw image below it is.
    pub backing: Option<u64>,
    /// Which requests are made.
    pub mix: Mix,
    /// The longest of them.
    pub longest: u64,
    /// Requests in flight at once.
    pub depth: u32,
    /// Requests beside each step.
    pub requests: u32,
    /// What is done, one after the other, with requests all the time.
    pub steps: Vec<Step>,
    /// What the file demands of requests.
    pub alignment: u32,
}

fn workload(name: &'static str, create: Value, size: u64) -> Workload {
    Workload {
        name,
        create,
        size,
        backing: None,
        mix: MIX,
        longest: size / 12,
        depth: 3,
        requests: 40,
        steps: vec![Step::Requests],
        alignment: 1,
    }
}

/// All workloads.
pub fn all() -> Vec<Workload> {
    let mut list = plain();
    list.extend(chains());
    list.extend(changes());
    list.extend(keeping());
    list.extend(jobs());
    list
}

fn plain() -> Vec<Workload> {
    let small = json!({"cluster-size": 4096});
    vec![
        workload("allocate", json!({}), 1 << 20),
        Workload {
            requests: 60,
            ..workload(
                "tables",
                json!({"cluster-size": 512, "refcount-bits": 64}),
                1 << 20,
            )
        },
        workload(
            "narrow",
            json!({"cluster-size": 4096, "refcount-bits": 1}),
            1 << 20,
        ),
        workload(
            "version2",
            json!({"cluster-size": 4096, "version": "v2"}),
            1 << 20,
        ),
        workload(
            "lazy",
            json!({"cluster-size": 2048, "lazy-refcounts": true}),
            1 << 19,
        ),
        Workload {
            mix: Mix {
                write: 4,
                zero: 6,
                discard: 8,
                ..MIX
            },
            ..workload("discard", small.clone(), 1 << 19)
        },
        Workload {
            mix: Mix {
                compressed: 6,
                write: 5,
                ..MIX
            },
            ..workload("compressed", small.clone(), 1 << 19)
        },
        Workload {
            alignment: 512,
            longest: 3000,
            ..workload("unaligned", small, 1 << 18)
        },
    ]
}

fn chains() -> Vec<Workload> {
    let small = json!({"cluster-size": 4096});
    let size = 1 << 19;
    vec![
        Workload {
            backing: Some(size),
            longest: 20_000,
            ..workload("backing", json!({"cluster-size": 16384}), size)
        },
        Workload {
            backing: Some(size / 2),
            mix: Mix { discard: 6, ..MIX },
            ..workload(
                "backing-version2",
                json!({"cluster-size": 4096, "version": "v2"}),
                size,
            )
        },
        Workload {
            requests: 15,
            steps: vec![
                Step::Requests,
                Step::Snapshot,
                Step::Requests,
                Step::ChangeBackingFile("/dev/null"),
                Step::Requests,
            ],
            ..workload("snapshot", small.clone(), size)
        },
        Workload {
            requests: 15,
            steps: vec![
                Step::Requests,
                Step::Snapshot,
                Step::Requests,
                Step::Commit,
                Step::Requests,
                Step::Commit,
            ],
            ..workload("commit", small, size)
        },
    ]
}

fn changes() -> Vec<Workload> {
    let small = json!({"cluster-size": 512});
    let size = 1 << 18;
    vec![
        Workload {
            requests: 15,
            steps: vec![
                Step::Requests,
                Step::Resize(2 * size),
                Step::Requests,
                Step::Resize(size / 2),
                Step::Resize(size),
                Step::Requests,
            ],
            ..workload("resize", small.clone(), size)
        },
        Workload {
            requests: 12,
            backing: Some(size),
            steps: vec![
                Step::Requests,
                Step::Resize(size / 2),
                Step::Resize(size + 1536),
                Step::Requests,
            ],
            ..workload("resize-backing", json!({"cluster-size": 4096}), size)
        },
        Workload {
            requests: 12,
            mix: Mix { zero: 0, ..MIX },
            steps: vec![
                Step::Requests,
                Step::Amend(json!({"compat": "1.1"})),
                Step::Amend(json!({"lazy_refcounts": true})),
                Step::Amend(json!({"lazy_refcounts": false})),
                Step::Amend(json!({"size": 2 * size})),
                Step::Requests,
            ],
            ..workload("amend", json!({"cluster-size": 4096, "version": "v2"}), size)
        },
        Workload {
            requests: 10,
            steps: vec![
                Step::Requests,
                Step::Amend(json!({"refcount_bits": 64})),
                Step::Requests,
                Step::Amend(json!({"refcount_bits": 1})),
                Step::Amend(json!({"refcount_bits": 16})),
                Step::Amend(json!({"compat": "0.10"})),
                Step::Requests,
            ],
            ..workload("widths", small.clone(), size)
        },
        Workload {
            requests: 12,
            steps: vec![
                Step::Reopen(json!({"lazy-refcounts": true})),
                Step::Reopen(json!({"read-only": false})),
                Step::Drain,
                Step::Permissions,
                Step::CloseAndOpen,
                Step::Requests,
            ],
            ..workload("reopen", small, size)
        },
    ]
}

/// Bitmaps that the image stores, and snapshots that it has.
fn keeping() -> Vec<Workload> {
    let steps = |keeps: &[Keep]| -> Vec<Step> {
        let kept = keeps.iter().map(|keep| Step::Keep(*keep));
        [Step::Requests].into_iter().chain(kept).collect()
    };
    let (size, small) = (1 << 21, json!({"cluster-size": 512}));
    let mut bitmaps = steps(&[
        Keep::AddBitmap("fine", 512),
        Keep::AddBitmap("coarse", 65536),
        Keep::ReadOnly,
        Keep::HandOver,
        Keep::RemoveBitmap("coarse"),
    ]);
    bitmaps.extend([Step::CloseAndOpen, Step::Resize(2 * size), Step::CloseAndOpen]);
    bitmaps.extend(steps(&[
        Keep::RemoveBitmap("fine"),
        Keep::AddBitmap("last", 4096),
    ]));
    let mut internal = steps(&[
        Keep::Make("one"),
        Keep::Make("two"),
        Keep::Apply("one"),
        Keep::Delete("two"),
        Keep::Make("three"),
    ]);
    internal.push(Step::CloseAndOpen);
    internal.extend(steps(&[Keep::Apply("three"), Keep::Delete("one")]));
    vec![
        Workload {
            requests: 6,
            longest: 20_000,
            steps: bitmaps,
            ..workload("bitmaps", small.clone(), size)
        },
        Workload {
            requests: 9,
            longest: 9_000,
            steps: internal,
            ..workload("internal", small, 1 << 17)
        },
    ]
}

fn jobs() -> Vec<Workload> {
    let size = 1 << 18;
    let job = |name, works: &[Step]| Workload {
        requests: 12,
        longest: size / 8,
        steps: [Step::Requests]
            .into_iter()
            .chain(works.iter().cloned())
            .chain([Step::Requests])
            .collect(),
        ..workload(name, json!({"cluster-size": 4096}), size)
    };
    let mirror = |is_blocking| [Step::Job(Work::Mirror { is_blocking })];
    let over = |works: &[Step]| [&[Step::Snapshot, Step::Requests], works].concat();
    vec![
        job("job-backup", &[Step::Job(Work::Backup)]),
        job("job-stream", &over(&[Step::Job(Work::Stream)])),
        job(
            "job-commit",
            &over(&[Step::Snapshot, Step::Requests, Step::Job(Work::Commit)]),
        ),
        job("job-commit-active", &over(&[Step::Job(Work::CommitActive)])),
        job("job-mirror", &mirror(false)),
        job("job-mirror-blocking", &mirror(true)),
    ]
}

impl Workload {
    /// Whether jobs are a part of it.
    pub fn has_jobs(&self) -> bool {
        self.steps.iter().any(|step| matches!(step, Step::Job(_)))
    }
}

/// The workload of this name.
pub fn find(name: &str) -> Option<Workload> {
    all().into_iter().find(|workload| workload.name == name)
}
