//! The workloads: an image of some kind, and what is done to it.

use serde_json::{Value, json};

pub use super::keeping::Keep;
use super::keys::{FIRST, KEYS, KeyChange};
use super::link::Format;

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
    /// The passwords of the image change.
    Keys(KeyChange),
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
    /// What the image is.
    pub format: Format,
    /// What it is made with, its size and its files left out.
    pub create: Value,
    /// Its data is on a disk of its own.
    pub has_data_file: bool,
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
    /// The image keeps a log of its bitmaps.
    pub bitmap_log: bool,
}

fn workload(name: &'static str, create: Value, size: u64) -> Workload {
    Workload {
        name,
        format: Format::Qcow2,
        create,
        has_data_file: false,
        size,
        backing: None,
        mix: MIX,
        longest: size / 12,
        depth: 3,
        requests: 40,
        steps: vec![Step::Requests],
        alignment: 1,
        bitmap_log: false,
    }
}

/// All workloads.
pub fn all() -> Vec<Workload> {
    let mut list = plain();
    list.extend(chains());
    list.extend(changes());
    list.extend(keeping());
    list.extend(features());
    list.extend(encrypted());
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
            requests: 10,
            backing: Some(size),
            steps: vec![
                Step::Requests,
                Step::Amend(json!({"compat": "0.10"})),
                Step::Requests,
                Step::Amend(json!({"compat": "1.1"})),
                Step::Requests,
                Step::Amend(json!({"compat": "0.10"})),
                Step::Requests,
            ],
            ..workload("versions", small.clone(), size)
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
    let mut logged = steps(&[
        Keep::AddBitmap("fine", 512),
        Keep::AddBitmap("coarse", 65536),
        Keep::ClearBitmap("fine"),
        Keep::Merge("fine", "coarse"),
        Keep::Record("coarse", false),
        Keep::ReadOnly,
        Keep::Record("coarse", true),
        Keep::ClearBitmap("coarse"),
        Keep::HandOver,
        Keep::RemoveBitmap("coarse"),
    ]);
    logged.extend([Step::Resize(2 * size), Step::CloseAndOpen, Step::Resize(size)]);
    logged.extend(steps(&[
        Keep::ClearBitmap("fine"),
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
            requests: 6,
            longest: 20_000,
            steps: logged,
            bitmap_log: true,
            ..workload("bitmap-log", small.clone(), size)
        },
        Workload {
            requests: 9,
            longest: 9_000,
            steps: internal,
            ..workload("internal", small, 1 << 17)
        },
    ]
}

/// Subclusters, and data in a file of its own.
fn features() -> Vec<Workload> {
    let (size, extended) = (1 << 19, json!({"cluster-size": 16384, "extended-l2": true}));
    let resizes = vec![
        Step::Requests,
        Step::Resize(2 * size),
        Step::Requests,
        Step::Resize(size / 2),
        Step::Requests,
    ];
    let data_file = |name, create| Workload {
        has_data_file: true,
        requests: 15,
        steps: resizes.clone(),
        ..workload(name, create, size)
    };
    let kept = [Keep::Make("one"), Keep::Apply("one"), Keep::Delete("one")];
    let kept = kept.into_iter().map(Step::Keep).chain([Step::CloseAndOpen]);
    vec![
        Workload {
            longest: 6000,
            requests: 20,
            mix: Mix {
                zero: 5,
                discard: 4,
                compressed: 2,
                ..MIX
            },
            steps: resizes.clone(),
            ..workload("subclusters", extended.clone(), size)
        },
        Workload {
            backing: Some(size),
            longest: 6000,
            requests: 60,
            ..workload("subclusters-backing", extended.clone(), size)
        },
        Workload {
            requests: 9,
            longest: 9_000,
            steps: [Step::Requests].into_iter().chain(kept).collect(),
            ..workload("subclusters-internal", extended.clone(), 1 << 17)
        },
        data_file("data-file", json!({"cluster-size": 4096})),
        data_file("data-file-subclusters", extended),
        Workload {
            // What a raw disk has where something was forgotten is nobody's promise.
            mix: Mix { discard: 0, ..MIX },
            ..data_file(
                "data-file-raw",
                json!({"cluster-size": 4096, "data-file-raw": true}),
            )
        },
    ]
}

/// Images whose data is encrypted, and their passwords.
fn encrypted() -> Vec<Workload> {
    // Short keys have short places, of which a crash is tried at each write.
    let keys = json!({
        "key-secret": FIRST, "iter-time": 1, "cipher-alg": "aes-128", "cipher-mode": "cbc", "ivgen-alg": "plain64"
    });
    let [first, second, third, fourth] = KEYS;
    let changes = [
        KeyChange::Replace(0, first, second),
        KeyChange::Put(6, third),
        KeyChange::Erase(second),
        KeyChange::Put(1, fourth),
        KeyChange::Erase(third),
    ];
    let steps = |changes: &[KeyChange]| -> Vec<Step> {
        let changes = changes.iter().map(|change| Step::Keys(*change));
        let all = [Step::Requests].into_iter().chain(changes);
        all.chain([Step::CloseAndOpen, Step::Requests]).collect()
    };
    let mut inside = keys.clone();
    inside["format"] = json!("luks");
    vec![
        Workload {
            requests: 6,
            steps: steps(&changes),
            ..workload(
                "encrypted",
                json!({"cluster-size": 4096, "encrypt": inside}),
                1 << 18,
            )
        },
        Workload {
            format: Format::Luks,
            requests: 6,
            steps: steps(&changes),
            ..workload("luks", keys, 1 << 18)
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

    /// Whether a password opens it.
    pub fn is_encrypted(&self) -> bool {
        self.format == Format::Luks || self.create["encrypt"].is_object()
    }

    /// Whether its data reads alike without its tables.
    pub fn is_raw_outside(&self) -> bool {
        self.create["data-file-raw"] == true
    }
}

/// The workload of this name.
pub fn find(name: &str) -> Option<Workload> {
    all().into_iter().find(|workload| workload.name == name)
}
