//! Every verb in every state of a real job, twice: the answers and events are QEMU's, and the second changes nothing of what the
//! first began.

use std::fmt::Write as _;

use millpond_tests::beside::beside_qemu;
use millpond_tests::daemon::{Daemon, daemon};
use millpond_tests::nbd::{Request, Session};
use millpond_tests::{image, tool};
use serde_json::{Value, json};

const MIB: u64 = 1 << 20;
/// Bytes a second with which no job here comes to its end.
const SLOW: u64 = 65_536;

/// Which job it is, and the states that a test can hold it in.
const JOBS: [(&str, &[&str]); 3] = [
    (
        "mirror",
        &["running", "paused", "ready", "standby", "pending", "concluded"],
    ),
    ("backup", &["running", "paused", "pending", "concluded"]),
    ("commit", &["running", "paused", "pending", "concluded"]),
];

/// The commands with which users ask for verbs, and by which name they name the job.
const VERBS: [(&str, &str); 15] = [
    ("job-cancel", "id"),
    ("job-pause", "id"),
    ("job-resume", "id"),
    ("job-complete", "id"),
    ("job-finalize", "id"),
    ("job-dismiss", "id"),
    ("block-job-cancel", "device"),
    ("block-job-cancel force", "device"),
    ("block-job-pause", "device"),
    ("block-job-resume", "device"),
    ("block-job-complete", "device"),
    ("block-job-set-speed", "device"),
    ("block-job-finalize", "id"),
    ("block-job-dismiss", "id"),
    ("block-job-change", "id"),
];

fn command((verb, name): (&'static str, &str)) -> (&'static str, Value) {
    let mut arguments = json!({name: "j"});
    match verb {
        "block-job-cancel force" => arguments["force"] = json!(true),
        "block-job-set-speed" => arguments["speed"] = json!(SLOW),
        "block-job-change" => {
            arguments["type"] = json!("mirror");
            arguments["copy-mode"] = json!("write-blocking");
        }
        _ => {}
    }
    (verb.trim_end_matches(" force"), arguments)
}

/// Where a job comes to by a verb that it takes in this state, if that is another one.
fn follows(verb: &str, state: &str) -> Option<&'static str> {
    match (verb.trim_start_matches("block-"), state) {
        ("job-cancel", "ready") if verb.starts_with("block") => Some("pending"),
        ("job-cancel" | "job-cancel force", _) => Some("concluded"),
        ("job-pause", "running") => Some("paused"),
        ("job-pause", "ready") => Some("standby"),
        ("job-resume", "paused") => Some("running"),
        ("job-resume", "standby") => Some("ready"),
        ("job-complete", "ready") => Some("pending"),
        ("job-finalize", _) => Some("concluded"),
        ("job-dismiss", _) => Some("null"),
        _ => None,
    }
}

/// A job called `j`, whose nodes are its own.
struct Held<'a> {
    daemon: &'a mut Daemon,
    job: &'static str,
    /// Events that have come and were not waited for.
    events: Vec<Value>,
    told: Vec<String>,
}

impl<'a> Held<'a> {
    fn new(daemon: &'a mut Daemon, job: &'static str) -> Self {
        for (name, driver) in [
            ("base", "qcow2"),
            ("disk", "qcow2"),
            ("top", "qcow2"),
            ("target", "raw"),
        ] {
            let file = image::file(&format!("{name}-file"), &daemon.dir().join(name));
            let mut node = json!({"driver": driver, "node-name": name, "file": file});
            match name {
                "disk" => node["backing"] = json!("base"),
                "top" => node["backing"] = json!("disk"),
                _ => {}
            }
            daemon.qmp.ok("blockdev-add", node);
        }
        Self::of(daemon, job)
    }

    fn of(daemon: &'a mut Daemon, job: &'static str) -> Self {
        let (events, told) = (Vec::new(), Vec::new());
        Self {
            daemon,
            job,
            events,
            told,
        }
    }

    /// Begins the job and brings it to this state.
    fn bring_to(&mut self, state: &str) {
        let mut job = json!({"job-id": "j", "auto-finalize": false, "auto-dismiss": false});
        if matches!(state, "running" | "paused") {
            job["speed"] = json!(SLOW);
        }
        let command = match self.job {
            "commit" => {
                job["device"] = json!("top");
                job["top-node"] = json!("disk");
                "block-commit"
            }
            copies => {
                job["device"] = json!("top");
                job["target"] = json!("target");
                job["sync"] = json!("full");
                if copies == "mirror" {
                    "blockdev-mirror"
                } else {
                    "blockdev-backup"
                }
            }
        };
        self.daemon.qmp.ok(command, job);
        self.until("running");
        let is_mirror = self.job == "mirror";
        if matches!(state, "ready" | "standby") || (is_mirror && matches!(state, "pending" | "concluded")) {
            self.until("ready");
        }
        if matches!(state, "paused" | "standby") {
            self.ask("job-pause", "id");
            self.until(state);
        }
        if matches!(state, "pending" | "concluded") {
            if is_mirror {
                self.ask("job-complete", "id");
            }
            self.until("pending");
        }
        if state == "concluded" {
            self.ask("job-finalize", "id");
            self.until("concluded");
        }
    }

    fn ask(&mut self, verb: &'static str, name: &str) {
        self.note_events();
        let (command, arguments) = command((verb, name));
        self.daemon.qmp.ok(command, arguments);
    }

    /// Waits for a state.
    fn until(&mut self, state: &str) {
        self.events.extend(self.daemon.qmp.take_events());
        let is_it = |data: &Value| data["status"] == state;
        let came = self.events.iter().position(|event| is_it(&event["data"]));
        let rest = match came {
            Some(at) => self.events.split_off(at + 1),
            None => {
                let data = self.daemon.qmp.wait_event_where("JOB_STATUS_CHANGE", is_it);
                self.events.extend(self.daemon.qmp.take_events());
                self.events
                    .push(json!({"event": "JOB_STATUS_CHANGE", "data": data}));
                Vec::new()
            }
        };
        self.note_events();
        self.events = rest;
    }

    /// What was told of the job. How far it was is a matter of time, and so is whether a drained section of the daemon's own
    /// finds it at work: that pauses it for a moment.
    fn note_events(&mut self) {
        self.events.extend(self.daemon.qmp.take_events());
        for event in self.events.drain(..) {
            let word = event["data"]["status"].as_str().or(event["event"].as_str());
            let word = word.expect("an event has a name");
            if !matches!(word, "paused" | "standby") && self.told.last().is_none_or(|last| last != word) {
                self.told.push(word.to_owned());
            }
        }
    }

    /// Ends the job, and closes its nodes.
    fn end(mut self) -> String {
        loop {
            let jobs = self.daemon.qmp.ok("query-jobs", json!({}));
            match jobs[0]["status"].as_str() {
                None => break,
                Some("concluded") => {
                    self.ask("job-dismiss", "id");
                    self.until("null");
                }
                Some(_) => {
                    // It may be on its way already.
                    let _ = self.daemon.qmp.execute("job-cancel", json!({"id": "j"}));
                    self.until("concluded");
                }
            }
        }
        for name in ["top", "target", "disk", "base"] {
            self.daemon.qmp.ok("blockdev-del", json!({"node-name": name}));
        }
        self.told.join(" ")
    }
}

fn make_images(daemon: &Daemon) {
    let path = |name: &str| daemon.dir().join(name);
    image::create(&path("base"), "qcow2", "", 2 * MIB);
    image::create_overlay(&path("disk"), "", &path("base"), "qcow2", None);
    let name = daemon.path("disk");
    tool::qemu_io(&["-f", "qcow2", &name], &["write -P 7 0 2M"]);
    image::create_overlay(&path("top"), "", &path("disk"), "qcow2", None);
    image::create(&path("target"), "raw", "", 2 * MIB);
}

fn answer(answer: Result<Value, millpond_tests::qmp::QmpError>) -> String {
    match answer {
        Ok(reply) => reply.to_string(),
        Err(error) => format!("{}: {}", error.class, error.desc),
    }
}

/// One verb, and once more when the job has come to where the first has it go.
fn twice(daemon: &mut Daemon, job: &'static str, state: &str, verb: (&'static str, &str)) -> String {
    let mut held = Held::new(daemon, job);
    held.bring_to(state);
    let mut seen = format!("{job} {state} {}:", verb.0);
    held.note_events();
    for is_second in [false, true] {
        let (command, arguments) = command(verb);
        let answered = held.daemon.qmp.execute(command, arguments);
        let taken = answered.is_ok();
        write!(seen, " [{}]", answer(answered)).expect("a text takes more");
        if let (true, false, Some(next)) = (taken, is_second, follows(verb.0, state)) {
            held.until(next);
        }
    }
    seen + " " + &held.end()
}

#[test]
fn a_verb_said_twice_is_answered_as_qemu_answers_it() {
    for (job, states) in JOBS {
        beside_qemu(|mut daemon: Daemon| {
            make_images(&daemon);
            let mut seen = Vec::new();
            for state in states {
                for verb in VERBS {
                    seen.push(twice(&mut daemon, job, state, verb));
                }
            }
            daemon.quit();
            seen
        });
    }
}

/// The second comes while what the first began is under way: it is answered, and the job ends as it does by one.
#[test]
fn a_verb_said_twice_at_once_changes_nothing_of_what_the_first_began() {
    let mut daemon = daemon().start();
    make_images(&daemon);
    for (job, states) in JOBS {
        for state in states {
            for verb in VERBS {
                let told = |times: usize, daemon: &mut Daemon| {
                    let mut held = Held::new(daemon, job);
                    held.bring_to(state);
                    held.note_events();
                    let (command, arguments) = command(verb);
                    let line = json!({"execute": command, "arguments": arguments}).to_string();
                    held.daemon.qmp.send_raw(&line.repeat(times));
                    let answers: Vec<_> = (0..times).map(|_| held.daemon.qmp.answer()).collect();
                    let first = answers[0].clone().expect("the first is answered");
                    assert!(
                        answers.iter().all(Result::is_ok),
                        "{job} {state} {verb:?}: {answers:?}"
                    );
                    if let (true, Some(next)) = (first.is_ok(), follows(verb.0, state)) {
                        held.until(next);
                    }
                    (answer(first), held.end())
                };
                let once = told(1, &mut daemon);
                assert_eq!(told(3, &mut daemon), once, "{job} {state} {verb:?}");
            }
        }
    }
    daemon.quit();
}

fn export(daemon: &mut Daemon, node: &str) -> Session {
    let options = json!({"type": "nbd", "id": "e", "node-name": node, "writable": true});
    daemon.qmp.ok("block-export-add", options);
    daemon.session(node)
}

/// A request of the guest holds up a change of the source's options, and with it the drained section; then the mirror is told to
/// end, over a monitor of its own.
#[test]
fn a_mirror_is_completed_while_its_source_is_drained() {
    let told = |program: Option<millpond_tests::program::Program>| {
        let is_ours = program.is_none();
        let builder = daemon().nbd_unix().monitors(2);
        let mut daemon = match program {
            Some(program) => builder.program(program).start(),
            None => builder.start(),
        };
        let slow = json!({"driver": "null-co", "node-name": "slow", "size": MIB, "read-zeroes": true,
            "latency-ns": 500_000_000});
        daemon.qmp.ok("blockdev-add", slow);
        let disk = json!({"driver": "raw", "node-name": "disk", "file": "slow"});
        daemon.qmp.ok("blockdev-add", disk.clone());
        let target = json!({"driver": "null-co", "node-name": "target", "size": MIB, "read-zeroes": true});
        daemon.qmp.ok("blockdev-add", target);
        let mut guest = export(&mut daemon, "disk").pipelined();
        let job = json!({"job-id": "j", "device": "disk", "target": "target", "sync": "none"});
        daemon.qmp.ok("blockdev-mirror", job);
        daemon.qmp.wait_event("BLOCK_JOB_READY");
        daemon.qmp.take_events();
        let mut beside = daemon.monitor(1);
        let write = guest
            .submit(&Request::write(0, vec![1; 4096]))
            .expect("it is sent");
        // What is wrong in itself is answered at once: then the write sent before it is known to be in flight.
        let wrong = guest.submit(&Request::trim(1 << 40, 512)).expect("it is sent");
        assert_eq!(guest.complete().expect("the trim is answered").cookie, wrong);
        let reopen = json!({"execute": "blockdev-reopen", "arguments": {"options": [disk]}});
        beside.send_raw(&reopen.to_string());
        while is_ours && daemon.qmp.ok("x-millpond-query-drains", json!({})) == json!([]) {
            daemon.assert_running();
        }
        daemon.qmp.ok("job-complete", json!({"id": "j"}));
        // QEMU's monitor may have been held up until the job is gone.
        assert!(daemon.qmp.execute("job-complete", json!({"id": "j"})).is_ok() || !is_ours);
        assert!(beside.answer().expect("the reopen is answered").is_ok());
        let answered = guest.complete().expect("the write is answered");
        assert_eq!((answered.cookie, answered.error), (write, 0));
        let mut held = Held::of(&mut daemon, "mirror");
        // It comes back to that state if the section has had it stand still.
        held.told.push("ready".to_owned());
        held.until("null");
        let told = held.told.join(" ");
        drop(guest);
        daemon.quit();
        told
    };
    let theirs = told(Some(millpond_tests::program::oracle()));
    assert_eq!(told(None), theirs, "left is ours, right is QEMU's");
    assert!(
        theirs.ends_with("waiting pending BLOCK_JOB_COMPLETED concluded null"),
        "{theirs}"
    );
}
