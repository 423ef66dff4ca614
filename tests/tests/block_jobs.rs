//! `block-commit` and `block-stream` beside QEMU's daemon: the same answers, texts and events, and the same images in the
//! end; then under load and with errors, where the chain shows what it showed.

use std::path::Path;
use std::time::{Duration, Instant};

use millpond_tests::beside::beside_qemu;
use millpond_tests::daemon::{Daemon, daemon};
use millpond_tests::layers::{self, LAYERS, MIB, SIZE};
use millpond_tests::model::Model;
use millpond_tests::nbd::Connect;
use millpond_tests::workload::{Load, Mix, seeded};
use millpond_tests::{image, tool};
use serde_json::{Value, json};

/// Far beyond what a job takes to begin.
const DEADLINE: Duration = Duration::from_secs(30);

/// A conversation with a daemon: all that it answered and told, with its folder's name left out.
struct Talk {
    daemon: Daemon,
    /// Events that came while something else was waited for.
    events: Vec<Value>,
    seen: Vec<String>,
}

impl Talk {
    fn new(daemon: Daemon) -> Self {
        let (events, seen) = (Vec::new(), Vec::new());
        Self { daemon, events, seen }
    }

    /// The path of a layer of the chain.
    fn layer(&self, number: usize) -> String {
        self.daemon.path(&format!("{number}.qcow2"))
    }

    fn note(&mut self, what: impl std::fmt::Display) {
        let dir = self.daemon.dir().display().to_string();
        self.seen.push(what.to_string().replace(&dir, "DIR"));
    }

    fn ask(&mut self, command: &str, arguments: Value) {
        let said = format!("{command} {arguments}");
        let answer = match self.daemon.qmp.execute(command, arguments) {
            Ok(reply) => reply.to_string(),
            Err(error) => format!("{}: {}", error.class, error.desc),
        };
        self.note(format!("{said}: {answer}"));
    }

    /// Asks for a job called `j`.
    fn job(&mut self, command: &str, mut arguments: Value) {
        arguments["job-id"] = json!("j");
        self.ask(command, arguments);
    }

    /// What is told of jobs until one is in this state.
    fn until(&mut self, status: &str) {
        self.until_event("JOB_STATUS_CHANGE", |data| data["status"] == status);
    }

    /// What is told up to such an event.
    fn until_event(&mut self, name: &str, wanted: impl Fn(&Value) -> bool) {
        self.events.extend(self.daemon.qmp.take_events());
        let fits = |event: &Value| event["event"] == name && wanted(&event["data"]);
        let told: Vec<Value> = match self.events.iter().position(fits) {
            Some(at) => self.events.drain(..=at).collect(),
            None => {
                let last = self.daemon.qmp.wait_event_where(name, &wanted);
                let mut told: Vec<Value> = self.events.drain(..).collect();
                told.extend(self.daemon.qmp.take_events());
                told.push(json!({"event": name, "data": last}));
                told
            }
        };
        for event in told {
            self.note(format!("{} {}", event["event"], event["data"]));
        }
    }

    /// Asks until the job has copied something.
    fn until_copied(&mut self) {
        let begun = Instant::now();
        while self.daemon.qmp.ok("query-block-jobs", json!({}))[0]["offset"] == 0 {
            assert!(begun.elapsed() < DEADLINE, "the job copies nothing");
        }
    }

    /// The nodes with names of their own, and what is below them.
    fn nodes(&mut self) {
        let nodes = self
            .daemon
            .qmp
            .ok("query-named-block-nodes", json!({"flat": true}));
        for node in nodes.as_array().expect("a list of nodes") {
            let name = node["node-name"].as_str().expect("a node has a name");
            if !name.starts_with('#') {
                let shown =
                    ["file", "backing_file", "backing_file_depth", "ro"].map(|key| node[key].to_string());
                self.note(format!("{name}: {shown:?}"));
            }
        }
    }

    /// Makes a chain of four images, each with data of its own, and opens it as `n0` to `n3`.
    fn open_chain(&mut self, last: Value) {
        layers::make(self.daemon.dir());
        for number in 0..LAYERS {
            let name = format!("n{number}");
            let file =
                json!({"driver": "file", "node-name": format!("f{number}"), "filename": self.layer(number)});
            let mut node = json!({"driver": "qcow2", "node-name": name, "file": file});
            if number == 0 && last.is_object() {
                let mut debug = last.clone();
                debug["image"] = file_of(&node);
                node["file"] = debug;
            }
            if number > 0 {
                node["backing"] = json!(format!("n{}", number - 1));
            }
            self.daemon.qmp.ok("blockdev-add", node);
        }
    }

    /// What the images are in the end, seen by QEMU's tools: what they show, what they name, and where they have data.
    fn finish(self) -> Vec<String> {
        self.finish_with(true, 0)
    }

    /// The same without where they have data: our commits keep zeroes that QEMU's write as data.
    fn finish_without_maps(self) -> Vec<String> {
        self.finish_with(false, 0)
    }

    /// What a guest of the images from this one on sees; a commit that was cancelled has copied to those below as much
    /// as it had the time for.
    fn finish_from(self, first: usize) -> Vec<String> {
        self.finish_with(false, first)
    }

    fn finish_with(mut self, maps: bool, first: usize) -> Vec<String> {
        self.daemon.qmp.quit();
        self.daemon.expect_clean_exit();
        for number in 0..LAYERS {
            let path = self.layer(number);
            image::assert_clean(Path::new(&path));
            let info = tool::run_json("qemu-img", &["info", "--output=json", &path]);
            let backing = ["backing-filename", "backing-filename-format", "virtual-size"];
            self.note(format!("{:?}", backing.map(|key| info[key].to_string())));
            if maps {
                self.note(format!("{:?}", image::map("qcow2", &path)));
            }
            if number >= first {
                self.note(checksum(&path));
            }
        }
        self.seen
    }
}

fn file_of(node: &Value) -> Value {
    node["file"].clone()
}

/// What an image shows, as `qemu-img checksum` would tell it.
fn checksum(path: &str) -> String {
    let raw = format!("{path}.raw");
    tool::run("qemu-img", &["convert", "-f", "qcow2", "-O", "raw", path, &raw]);
    let bytes = std::fs::read(&raw).expect("the copy is there");
    std::fs::remove_file(&raw).expect("the copy can be removed");
    let parts = bytes.chunks(64 << 10).map(|part| {
        let is_plain = part.iter().all(|byte| *byte == part[0]);
        if is_plain {
            format!("{}", part[0])
        } else {
            format!("{part:?}")
        }
    });
    parts.collect::<Vec<_>>().join(" ")
}

#[test]
fn a_stream_is_watched_held_up_and_finalized() {
    beside_qemu(|daemon: Daemon| {
        let mut talk = Talk::new(daemon);
        talk.open_chain(Value::Null);
        let slow = json!({"device": "n3", "speed": 65536, "auto-finalize": false, "auto-dismiss": false});
        talk.job("block-stream", json!({"device": "n3", "speed": -1}));
        talk.until("null");
        talk.ask("block-stream", json!({"device": "n3"}));
        talk.job("block-stream", slow);
        talk.until("running");
        talk.job("block-stream", json!({"device": "n3"}));
        talk.ask("block-stream", json!({"device": "n2", "job-id": "k"}));
        talk.ask(
            "block-commit",
            json!({"device": "n3", "job-id": "k", "top-node": "n2"}),
        );
        for name in ["n3", "n2", "n1", "n0"] {
            talk.ask("blockdev-del", json!({"node-name": name}));
            talk.ask("block_resize", json!({"node-name": name, "size": SIZE * 2}));
        }
        // The nodes that the job has to do with are drained for that.
        let reopened = json!({"driver": "qcow2", "node-name": "n1", "file": "f1", "backing": "n0"});
        talk.ask("blockdev-reopen", json!({"options": [reopened]}));
        talk.until("running");
        talk.until_copied();
        talk.ask("block-job-pause", json!({"device": "j"}));
        talk.until("paused");
        talk.ask("query-block-jobs", json!({}));
        for verb in ["pause", "cancel", "complete"] {
            talk.ask(&format!("block-job-{verb}"), json!({"device": "j"}));
        }
        talk.ask("block-job-resume", json!({"device": "j"}));
        talk.until("running");
        talk.ask("block-job-resume", json!({"device": "j"}));
        talk.ask("block-job-set-speed", json!({"device": "j", "speed": -1}));
        talk.ask("block-job-set-speed", json!({"device": "j", "speed": 0}));
        talk.until_event("BLOCK_JOB_PENDING", |_| true);
        talk.ask("query-block-jobs", json!({}));
        talk.ask("block-job-set-speed", json!({"device": "j", "speed": 0}));
        talk.ask("block-job-finalize", json!({"id": "j"}));
        talk.until("concluded");
        talk.ask("query-block-jobs", json!({}));
        talk.ask("block-job-dismiss", json!({"id": "j"}));
        talk.until("null");
        talk.nodes();
        talk.finish()
    });
}

/// Streams down to a base, above a bottom, and in the middle of a chain.
#[test]
fn a_stream_copies_from_the_images_that_it_is_told() {
    let streams = [
        json!({"device": "n3", "bottom": "n3"}),
        json!({"device": "n3", "bottom": "n2"}),
        json!({"device": "n3", "base-node": "n0", "backing-file": "other.qcow2"}),
        json!({"device": "n2", "base-node": "n0", "filter-node-name": "filter"}),
        json!({"device": "n0"}),
    ];
    beside_qemu(|daemon: Daemon| {
        let mut talk = Talk::new(daemon);
        talk.open_chain(Value::Null);
        for stream in &streams {
            talk.job("block-stream", stream.clone());
            talk.until("null");
            talk.nodes();
        }
        // There is no such file as the one that was given.
        let command = json!({"device": "n3", "image-node-name": "n3", "backing-file": talk.layer(0)});
        talk.ask("change-backing-file", command);
        talk.finish()
    });
}

#[test]
fn images_between_two_others_are_merged_and_leave_the_chain() {
    let commits = [
        json!({"device": "n3", "top-node": "n1", "base-node": "n0", "auto-finalize": false}),
        json!({"device": "n3", "top-node": "n2", "filter-node-name": "filter"}),
    ];
    beside_qemu(|daemon: Daemon| {
        let mut talk = Talk::new(daemon);
        talk.open_chain(Value::Null);
        let [first, second] = &commits;
        talk.job("block-commit", first.clone());
        talk.until_event("BLOCK_JOB_PENDING", |_| true);
        talk.ask("query-block-jobs", json!({}));
        talk.ask("job-finalize", json!({"id": "j"}));
        talk.until("null");
        talk.nodes();
        talk.job("block-commit", second.clone());
        talk.until("null");
        talk.nodes();
        let layers = [1, 2].map(|number| json!({"node-name": format!("n{number}")}));
        for layer in layers.into_iter().rev() {
            talk.ask("blockdev-del", layer);
        }
        talk.finish_without_maps()
    });
}

#[test]
fn a_cancelled_commit_leaves_the_chain_as_it_was() {
    beside_qemu(|daemon: Daemon| {
        let mut talk = Talk::new(daemon);
        talk.open_chain(Value::Null);
        let slow = json!({"device": "n3", "top-node": "n2", "base-node": "n0", "speed": 65536});
        for cancel in ["job-cancel", "block-job-cancel"] {
            talk.job("block-commit", slow.clone());
            talk.until("running");
            talk.ask(
                "block-commit",
                json!({"device": "n3", "job-id": "k", "top-node": "n2"}),
            );
            talk.ask("block-stream", json!({"device": "n3", "job-id": "k"}));
            let name = if cancel == "job-cancel" { "id" } else { "device" };
            talk.ask(cancel, json!({name: "j"}));
            // How far it came is a matter of time.
            let seen = talk.seen.len();
            talk.until("null");
            for event in &mut talk.seen[seen..] {
                event.truncate(event.find(" {\"device").unwrap_or(event.len()));
            }
        }
        talk.nodes();
        talk.finish_from(2)
    });
}

#[test]
fn what_cannot_be_streamed_or_committed_is_refused_in_the_same_words() {
    beside_qemu(|daemon: Daemon| {
        let mut talk = Talk::new(daemon);
        talk.job("block-stream", json!({"device": "missing"}));
        talk.job("block-commit", json!({"device": "missing"}));
        talk.open_chain(Value::Null);
        let alone = json!({"driver": "null-co", "node-name": "u", "read-zeroes": true});
        talk.ask("blockdev-add", alone);
        let dir = talk.daemon.dir().to_path_buf();
        for (command, arguments) in layers::refused_jobs(&dir) {
            talk.job(command, arguments);
        }
        for name in ["n1", "#1"] {
            let commit = json!({"device": "n3", "top-node": "n2", "filter-node-name": name});
            talk.job("block-commit", commit);
            talk.until("null");
        }
        talk.nodes();
        talk.finish()
    });
}

/// Nodes that were opened read-only, some of them because images name them.
#[test]
fn images_are_made_writable_for_a_job_and_read_only_again() {
    beside_qemu(|daemon: Daemon| {
        let mut talk = Talk::new(daemon);
        layers::make(talk.daemon.dir());
        let file = json!({"driver": "file", "filename": talk.layer(3)});
        let top = json!({"driver": "qcow2", "node-name": "n3", "file": file});
        talk.ask("blockdev-add", top);
        let (base, top) = (talk.layer(0), talk.layer(2));
        talk.job(
            "block-commit",
            json!({"device": "n3", "base": base, "top": top, "backing-file": base}),
        );
        talk.until("null");
        talk.nodes();
        talk.job("block-stream", json!({"device": "n3"}));
        talk.until("null");
        talk.nodes();
        talk.ask("blockdev-del", json!({"node-name": "n3"}));
        let file = json!({"driver": "file", "filename": talk.layer(3), "read-only": true});
        let top = json!({"driver": "qcow2", "node-name": "n3", "file": file, "read-only": true});
        talk.ask("blockdev-add", top);
        talk.job("block-stream", json!({"device": "n3"}));
        talk.finish_without_maps()
    });
}

/// Errors of the lowest image, once and with each policy.
#[test]
fn an_error_is_dealt_with_as_the_policy_says() {
    let rule = |event: &str, errno: u32| json!({"event": event, "errno": errno, "once": true});
    let debug = |rule: Value| json!({"driver": "blkdebug", "node-name": "b0", "inject-error": [rule]});
    for (command, event) in [("block-stream", "read_aio"), ("block-commit", "write_aio")] {
        for (errno, policy) in [
            (5, "report"),
            (5, "ignore"),
            (5, "enospc"),
            (28, "enospc"),
            (5, "stop"),
            (28, "auto"),
        ] {
            beside_qemu(|daemon: Daemon| {
                let mut talk = Talk::new(daemon);
                talk.open_chain(debug(rule(event, errno)));
                let mut job = json!({"device": "n3", "on-error": policy, "auto-dismiss": false});
                if command == "block-commit" {
                    job["top-node"] = json!("n2");
                }
                talk.job(command, job);
                let stops = policy == "stop" || errno == 28;
                if stops {
                    talk.until("paused");
                    talk.ask("query-block-jobs", json!({}));
                    talk.ask("job-resume", json!({"id": "j"}));
                    talk.until("running");
                }
                talk.until("concluded");
                talk.ask("query-block-jobs", json!({}));
                talk.ask("job-dismiss", json!({"id": "j"}));
                talk.until("null");
                talk.nodes();
                talk.finish_without_maps()
            });
        }
    }
}

/// Clients write all the time, and nodes are drained.
#[test]
fn a_guest_sees_nothing_of_the_jobs_beside_it() {
    let mut talk = Talk::new(daemon().nbd_unix().start());
    talk.open_chain(Value::Null);
    let export = json!({"type": "nbd", "id": "e", "node-name": "n3", "name": "n3", "writable": true});
    talk.daemon.qmp.ok("block-export-add", export);
    let mut rng = seeded("a_guest_sees_nothing_of_the_jobs_beside_it");
    let session = Connect::default().open(&talk.daemon.address(), "n3");
    let mut content = vec![0; SIZE as usize];
    for number in 0..LAYERS {
        let (at, byte) = (number * MIB as usize, number as u8 + 1);
        content[at..at + 2 * MIB as usize].fill(byte);
        let zero = (number + 1) * MIB as usize;
        content[zero..zero + (64 << 10)].fill(0);
    }
    let mut load = Load::new(session, Model::of(content), 0..SIZE, rng.fork(), Mix::NO_TRIM, 16);
    let jobs = [
        (
            "block-commit",
            json!({"device": "n3", "top-node": "n1", "base-node": "n0"}),
        ),
        ("block-stream", json!({"device": "n3", "base-node": "n0"})),
        ("block-stream", json!({"device": "n3"})),
    ];
    for (command, mut job) in jobs {
        job["speed"] = json!(4 * MIB);
        talk.job(command, job);
        let reopen = |read_only: bool| json!({"options": [{"driver": "qcow2", "node-name": "n0", "file": "f0", "read-only": read_only, "detect-zeroes": "on"}]});
        let mut is_over = false;
        while !is_over {
            for _ in 0..50 {
                load.step().expect("the daemon answers every request");
            }
            // Drains all that is above it, the job too.
            let drained = talk.daemon.qmp.execute("blockdev-reopen", reopen(false));
            assert!(drained.is_ok(), "{drained:?}");
            is_over = talk.daemon.qmp.ok("query-jobs", json!({})) == json!([]);
        }
    }
    let (model, _session) = load.finish().expect("the daemon answers every request");
    talk.daemon
        .qmp
        .ok("block-export-del", json!({"id": "e", "mode": "hard"}));
    talk.daemon.qmp.wait_event("BLOCK_EXPORT_DELETED");
    let path = talk.layer(3);
    talk.daemon.qmp.quit();
    talk.daemon.expect_clean_exit();
    image::assert_clean(Path::new(&path));
    let raw = format!("{path}.raw");
    tool::run("qemu-img", &["convert", "-f", "qcow2", "-O", "raw", &path, &raw]);
    assert!(std::fs::read(&raw).expect("the copy is there") == model.bytes());
}
