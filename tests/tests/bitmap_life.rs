//! What becomes of dirty bitmaps while their nodes change: resizes, reopens, moves between iothreads, jobs, and anything in any
//! order, beside QEMU's daemon and a model.

use millpond_tests::beside::{Command, beside_qemu};
use millpond_tests::bitmaps::{
    add, answer, clear, disable, enable, export, merge, ok, open, remove, shown, together, unexport,
};
use millpond_tests::daemon::Daemon;
use millpond_tests::image;
use millpond_tests::nbd::{Connect, Extent, Request};
use millpond_tests::workload::seeded;
use serde_json::{Value, json};

const KIB: u64 = 1 << 10;
const MIB: u64 = 1 << 20;

fn resize(node: &str, size: u64) -> Command {
    ("block_resize", json!({"node-name": node, "size": size}))
}

#[test]
fn bitmaps_follow_their_node_through_resizes() {
    beside_qemu(|mut daemon| {
        open(&mut daemon, "raw", "disk", MIB);
        for (node, granularity) in [("disk", 512), ("disk", 64 * KIB), ("disk-file", 1 << 21)] {
            ok(&mut daemon, add(node, &granularity.to_string(), granularity));
        }
        let mut session = daemon.session("disk");
        session.write(0, &[1; 512]);
        session.write(MIB - 70_000, &[1; 70_000]);
        drop(session);
        unexport(&mut daemon, "disk");
        let mut seen = Vec::new();
        for size in [MIB - 512, MIB - 4096, MIB + 100 * KIB, 40 * MIB, 512, 0, MIB] {
            seen.extend(answer(&mut daemon, &resize("disk", size)));
        }
        daemon.quit();
        seen
    });
}

/// A node that grows by being written to takes its bitmaps along.
#[test]
fn bitmaps_follow_a_file_that_grows_under_an_image() {
    beside_qemu(|mut daemon| {
        open(&mut daemon, "qcow2", "disk", 4 * MIB);
        ok(&mut daemon, add("disk-file", "grows", 2 * MIB));
        let mut session = daemon.session("disk");
        session.write(0, &[1; 64 * 1024]);
        session.write(2 * MIB, &vec![1; MIB as usize]);
        session.flush();
        let seen = shown(&mut daemon);
        drop(session);
        daemon.quit();
        seen
    });
}

#[test]
fn bitmaps_go_along_to_other_iothreads_and_through_a_reopen() {
    beside_qemu(|mut daemon| {
        for id in ["io0", "io1"] {
            daemon
                .qmp
                .ok("object-add", json!({"qom-type": "iothread", "id": id}));
        }
        open(&mut daemon, "qcow2", "disk", MIB);
        ok(&mut daemon, add("disk", "on", 4096));
        ok(&mut daemon, add("disk", "off", 4096));
        let mut seen = Vec::new();
        let mut session = daemon.session("disk");
        session.write(0, &[1; 4096]);
        ok(&mut daemon, disable("disk", "off"));
        for (step, iothread) in [json!("io0"), json!("io1"), Value::Null].into_iter().enumerate() {
            let arguments = json!({"node-name": "disk", "iothread": iothread, "force": true});
            daemon.qmp.ok("x-blockdev-set-iothread", arguments);
            seen.extend(shown(&mut daemon));
            session.write((step as u64 + 1) * 10_000, &[1; 512]);
            seen.extend(shown(&mut daemon));
        }
        let mut options = image::over("qcow2", "disk", "disk-file");
        options["lazy-refcounts"] = json!(true);
        daemon.qmp.ok("blockdev-reopen", json!({"options": [options]}));
        session.write(500 * KIB, &[1; 512]);
        seen.extend(shown(&mut daemon));
        drop(session);
        daemon.quit();
        seen
    });
}

/// A chain of two images with a bitmap each, both with data of their own.
fn chain(daemon: &mut Daemon) {
    let dir = daemon.dir().to_owned();
    image::create(&dir.join("base"), "qcow2", "", MIB);
    image::create(&dir.join("top"), "qcow2", "", MIB);
    for name in ["base", "top"] {
        let mut node = image::over("qcow2", name, "");
        node["file"] = image::file(&format!("{name}-file"), &dir.join(name));
        node["backing"] = match name {
            "top" => json!("base"),
            _ => Value::Null,
        };
        if name == "top" {
            export(daemon, "base");
            daemon.session("base").write(0, &[1; 300_000]);
            unexport(daemon, "base");
        }
        daemon.qmp.ok("blockdev-add", node);
        ok(daemon, add(name, "b", 4096));
    }
    export(daemon, "top");
    daemon.session("top").write(200_000, &[2; 200_000]);
}

fn finished(daemon: &mut Daemon, command: &str, mut arguments: Value) {
    arguments["job-id"] = json!("job");
    arguments["auto-dismiss"] = json!(false);
    if let Err(error) = daemon.qmp.run_job("job", command, arguments) {
        panic!("{command}: {error}");
    }
}

#[test]
fn jobs_mark_what_they_write_and_not_what_they_leave_as_it_reads() {
    beside_qemu(|mut daemon| {
        chain(&mut daemon);
        let mut seen = shown(&mut daemon);
        finished(&mut daemon, "block-stream", json!({"device": "top"}));
        seen.extend(shown(&mut daemon));
        daemon.quit();
        seen
    });
    beside_qemu(|mut daemon| {
        chain(&mut daemon);
        let dir = daemon.dir().to_owned();
        // Where the source has data the target is written to, whatever is known of the rest.
        daemon.session("top").write(0, &vec![3; MIB as usize]);
        image::create(&dir.join("target"), "raw", "", MIB);
        let target = image::file("target", &dir.join("target"));
        daemon.qmp.ok("blockdev-add", target);
        ok(&mut daemon, add("target", "b", 4096));
        let backup = json!({"device": "top", "target": "target", "sync": "full"});
        finished(&mut daemon, "blockdev-backup", backup);
        let seen = shown(&mut daemon);
        daemon.quit();
        seen
    });
    beside_qemu(|mut daemon| {
        chain(&mut daemon);
        unexport(&mut daemon, "top");
        let overlay = daemon.dir().join("over");
        image::create(&overlay, "qcow2", "", MIB);
        let mut node = image::over("qcow2", "over", "");
        node["file"] = image::file("over-file", &overlay);
        node["backing"] = json!("top");
        daemon.qmp.ok("blockdev-add", node);
        let commit = json!({"device": "over", "top-node": "top", "base-node": "base"});
        finished(&mut daemon, "block-commit", commit);
        let seen = shown(&mut daemon);
        daemon.quit();
        seen
    });
}

/// A bitmap, bit by bit.
#[derive(Clone)]
struct Sketch {
    name: String,
    granularity: u64,
    recording: bool,
    dirty: Vec<bool>,
}

impl Sketch {
    fn resize(&mut self, size: u64) {
        self.dirty.resize(size.div_ceil(self.granularity) as usize, false);
    }

    fn mark(&mut self, offset: u64, length: u64) {
        let (first, last) = (
            offset / self.granularity,
            (offset + length - 1) / self.granularity,
        );
        self.dirty[first as usize..=last as usize].fill(true);
    }

    fn count(&self) -> u64 {
        self.dirty.iter().filter(|dirty| **dirty).count() as u64 * self.granularity
    }
}

/// What the disk's bitmaps should be, the oldest first.
#[derive(Clone)]
struct Book {
    size: u64,
    bitmaps: Vec<Sketch>,
}

impl Book {
    fn wrote(&mut self, offset: u64, length: u64) {
        let recording = self.bitmaps.iter_mut().filter(|bitmap| bitmap.recording);
        recording.for_each(|bitmap| bitmap.mark(offset, length));
    }

    fn find(&mut self, name: &str) -> Option<&mut Sketch> {
        self.bitmaps.iter_mut().find(|bitmap| bitmap.name == name)
    }

    /// Carries a command out, if it is possible.
    fn apply(&mut self, (command, arguments): &Command) -> bool {
        let name = arguments["name"].as_str().or(arguments["target"].as_str());
        let name = name.expect("each command names a bitmap").to_owned();
        let size = self.size;
        if *command == "block-dirty-bitmap-add" {
            let granularity = arguments["granularity"].as_u64().expect("it is given");
            let dirty = vec![false; size.div_ceil(granularity) as usize];
            let is_new = self.find(&name).is_none();
            if is_new {
                let recording = true;
                self.bitmaps.push(Sketch {
                    name,
                    granularity,
                    recording,
                    dirty,
                });
            }
            return is_new;
        }
        let sources: Vec<Option<Sketch>> = arguments["bitmaps"]
            .as_array()
            .into_iter()
            .flatten()
            .map(|source| self.find(source.as_str().expect("a name")).cloned())
            .collect();
        let Some(bitmap) = self.find(&name) else {
            return false;
        };
        match *command {
            "block-dirty-bitmap-clear" => bitmap.dirty.fill(false),
            "block-dirty-bitmap-enable" => bitmap.recording = true,
            "block-dirty-bitmap-disable" => bitmap.recording = false,
            "block-dirty-bitmap-merge" => {
                let Some(sources) = sources.into_iter().collect::<Option<Vec<_>>>() else {
                    return false;
                };
                for source in sources {
                    let starts = (0..).step_by(source.granularity as usize);
                    let dirty = starts.zip(&source.dirty).filter(|(_, dirty)| **dirty);
                    dirty.for_each(|(at, _)| bitmap.mark(at, source.granularity.min(size - at)));
                }
            }
            _ => self.bitmaps.retain(|bitmap| bitmap.name != name),
        }
        true
    }

    fn counts(&self) -> Vec<(String, u64, bool)> {
        let newest_first = self.bitmaps.iter().rev();
        newest_first
            .map(|bitmap| (bitmap.name.clone(), bitmap.count(), bitmap.recording))
            .collect()
    }
}

/// What the daemon says of the same.
fn counts(daemon: &mut Daemon) -> Vec<(String, u64, bool)> {
    let nodes = daemon.qmp.ok("query-named-block-nodes", json!({"flat": true}));
    let nodes = nodes.as_array().expect("a list of nodes");
    let disk = nodes
        .iter()
        .find(|node| node["node-name"] == "disk")
        .expect("it is there");
    let bitmaps = disk["dirty-bitmaps"].as_array().into_iter().flatten();
    let of = |bitmap: &Value| {
        let name = bitmap["name"].as_str().expect("a name").to_owned();
        let count = bitmap["count"].as_u64().expect("a number");
        (name, count, bitmap["recording"] == true)
    };
    bitmaps.map(of).collect()
}

/// The names of bitmaps, and their contexts.
const NAMES: [(&str, &str); 4] = [
    ("a", "qemu:dirty-bitmap:a"),
    ("b", "qemu:dirty-bitmap:b"),
    ("c", "qemu:dirty-bitmap:c"),
    ("d", "qemu:dirty-bitmap:d"),
];

/// One command about a bitmap, which may be impossible.
fn change(rng: &mut fastrand::Rng) -> Command {
    let name = |rng: &mut fastrand::Rng| rng.choice(NAMES).expect("there are some").0.to_owned();
    let bitmap = name(rng);
    match rng.u8(..7) {
        0 | 1 => add("disk", &bitmap, 512 << rng.u32(..12)),
        2 => remove("disk", &bitmap),
        3 => clear("disk", &bitmap),
        4 => enable("disk", &bitmap),
        5 => disable("disk", &bitmap),
        _ => {
            let sources: Vec<String> = (0..rng.u8(1..3)).map(|_| name(rng)).collect();
            merge("disk", &bitmap, json!(sources))
        }
    }
}

fn request(rng: &mut fastrand::Rng, size: u64) -> Request {
    let length = (1 << rng.u32(..18)).min(size);
    let offset = rng.u64(..=size - length);
    match rng.u8(..3) {
        0 => Request::write(offset, vec![rng.u8(..); length as usize]),
        1 => Request::zero(offset, length),
        _ => Request::trim(offset, length),
    }
}

/// Several changes at once, as the model has them; the answer is whether all were possible. A bitmap that is removed cannot be
/// used by later actions, nor its name, and QEMU disables one that it fails to enable: such lists are not made.
fn transaction(rng: &mut fastrand::Rng, book: &Book) -> (Command, Option<Book>) {
    let (mut after, mut actions) = (book.clone(), Vec::new());
    for _ in 0..rng.u8(1..5) {
        let action = change(rng);
        if action.0 != "block-dirty-bitmap-remove" && after.clone().apply(&action) {
            after.apply(&action);
            actions.push(action);
        }
    }
    let fails = actions.is_empty() || rng.bool();
    if fails {
        actions.push(("abort", json!({})));
    }
    (together(&actions), (!fails).then_some(after))
}

/// Exports the disk once more with all of its bitmaps, whose maps must be the model's.
fn look(daemon: &mut Daemon, book: &Book) -> Vec<String> {
    let names: Vec<&str> = book.bitmaps.iter().map(|bitmap| bitmap.name.as_str()).collect();
    let export = json!({
        "type": "nbd", "id": "look", "name": "look", "node-name": "disk", "bitmaps": names, "writable": true,
    });
    daemon.qmp.ok("block-export-add", export);
    let of = |bitmap: &Sketch| {
        let contexts = NAMES.iter().find(|(name, _)| bitmap.name == *name);
        contexts.expect("it has one of these names").1
    };
    let connect = Connect {
        contexts: book.bitmaps.iter().map(of).collect(),
        ..Connect::default()
    };
    let mut session = connect.open(&daemon.address(), "look");
    for bitmap in &book.bitmaps {
        let bytes = |extent: &Extent| vec![extent.flags == 1; extent.length as usize / 512];
        let told: Vec<bool> = session.status_all(of(bitmap)).iter().flat_map(bytes).collect();
        let sectors = (0..book.size).step_by(512);
        let known: Vec<bool> = sectors
            .map(|at| bitmap.dirty[(at / bitmap.granularity) as usize])
            .collect();
        assert_eq!(told, known, "the map of {}", bitmap.name);
    }
    drop(session);
    unexport(daemon, "look");
    vec!["looked".to_owned()]
}

/// The whole story on one daemon: what it answered and showed after each step, and whether that is what the model says.
fn story(mut daemon: Daemon, seed: u64) -> Vec<Vec<String>> {
    let mut rng = fastrand::Rng::with_seed(seed);
    for id in ["io0", "io1"] {
        let iothread = json!({"qom-type": "iothread", "id": id});
        daemon.qmp.ok("object-add", iothread);
    }
    open(&mut daemon, "raw", "disk", MIB);
    let mut book = Book {
        size: MIB,
        bitmaps: Vec::new(),
    };
    let mut session = Some(daemon.session("disk"));
    let mut steps = Vec::new();
    for _ in 0..150 {
        let step = match rng.u8(..20) {
            0..=9 => {
                let request = request(&mut rng, book.size);
                session.as_mut().expect("it is connected").ok(&request);
                book.wrote(request.offset, request.length);
                vec![format!(
                    "{} {} {}",
                    request.command, request.offset, request.length
                )]
            }
            10..=15 => {
                let command = change(&mut rng);
                let is_possible = book.apply(&command);
                let answers = answer(&mut daemon, &command);
                assert_eq!(answers[0].ends_with("{}"), is_possible, "{}", answers[0]);
                answers
            }
            16 | 17 => {
                let (command, after) = transaction(&mut rng, &book);
                book = after.unwrap_or(book);
                answer(&mut daemon, &command)
            }
            18 if rng.bool() => look(&mut daemon, &book),
            18 => {
                let iothread = rng.choice([json!("io0"), json!("io1"), Value::Null]);
                let arguments = json!({"node-name": "disk", "iothread": iothread, "force": true});
                answer(&mut daemon, &("x-blockdev-set-iothread", arguments))
            }
            _ => {
                drop(session.take());
                unexport(&mut daemon, "disk");
                book.size = rng.u64(1..4000) * 512;
                let size = book.size;
                book.bitmaps.iter_mut().for_each(|bitmap| bitmap.resize(size));
                let answers = answer(&mut daemon, &resize("disk", size));
                export(&mut daemon, "disk");
                session = Some(daemon.session("disk"));
                answers
            }
        };
        assert_eq!(counts(&mut daemon), book.counts(), "after {step:?}");
        steps.push(step);
        steps.push(shown(&mut daemon));
    }
    drop(session);
    daemon.quit();
    steps
}

#[test]
fn anything_in_any_order_leaves_the_bits_that_a_model_and_qemu_have() {
    let seed = seeded("dirty bitmaps").u64(..);
    beside_qemu(|daemon| story(daemon, seed));
}

/// A bitmap that would have more bits than there can be is refused, and a node does not outgrow those that it has.
#[test]
fn a_bitmap_of_too_many_bits_is_refused() {
    let mut daemon = millpond_tests::daemon::daemon().start();
    let node = json!({"driver": "null-co", "node-name": "vast", "size": 1_u64 << 60});
    daemon.qmp.ok("blockdev-add", node);
    let (command, arguments) = add("vast", "fine", 512);
    let error = daemon.qmp.refused(command, arguments);
    assert!(
        error.desc.contains("too many chunks of 512 bytes"),
        "{}",
        error.desc
    );
    ok(&mut daemon, add("vast", "coarse", 1 << 31));
    assert_eq!(shown(&mut daemon).len(), 2);
    ok(&mut daemon, remove("vast", "coarse"));
    daemon.quit();
}
