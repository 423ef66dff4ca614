//! Jobs and what users do to them, beside QEMU's daemon: the same answers, texts and events, in the same order.

use millpond_tests::beside::beside_qemu;
use millpond_tests::daemon::Daemon;
use millpond_tests::image;
use serde_json::{Value, json};

const VERBS: [&str; 6] = [
    "job-pause",
    "job-resume",
    "job-complete",
    "job-finalize",
    "job-dismiss",
    "job-cancel",
];

/// What a command is answered: the reply, or the error.
fn answer(daemon: &mut Daemon, command: &str, arguments: Value) -> Value {
    match daemon.qmp.execute(command, arguments) {
        Ok(reply) => reply,
        Err(error) => json!([format!("{}", error.class), error.desc]),
    }
}

/// The states that the job goes through from now on, up to `last`.
fn states(daemon: &mut Daemon, last: &str) -> Vec<Value> {
    let mut seen = Vec::new();
    loop {
        let event = daemon.qmp.wait_event("JOB_STATUS_CHANGE");
        let ended = event["status"] == last;
        seen.push(event);
        if ended {
            return seen;
        }
    }
}

fn create(id: &str, path: &std::path::Path) -> Value {
    let options = json!({"driver": "file", "filename": path, "size": 4096});
    json!({"job-id": id, "options": options})
}

#[test]
fn a_job_that_has_ended_takes_only_its_dismissal() {
    beside_qemu(|mut daemon: Daemon| {
        let path = daemon.dir().join("new.raw");
        let mut seen = vec![answer(&mut daemon, "blockdev-create", create("1st", &path))];
        seen.push(answer(&mut daemon, "blockdev-create", create("j", &path)));
        seen.extend(states(&mut daemon, "concluded"));
        seen.push(answer(&mut daemon, "query-jobs", json!({})));
        seen.push(answer(&mut daemon, "blockdev-create", create("j", &path)));
        for verb in VERBS.iter().filter(|verb| **verb != "job-dismiss") {
            seen.push(answer(&mut daemon, verb, json!({"id": "j"})));
        }
        for verb in VERBS {
            seen.push(answer(&mut daemon, verb, json!({"id": "k"})));
        }
        seen.push(answer(&mut daemon, "job-dismiss", json!({"id": "j"})));
        seen.extend(states(&mut daemon, "null"));
        seen.push(answer(&mut daemon, "job-dismiss", json!({"id": "j"})));
        seen.push(answer(&mut daemon, "query-jobs", json!({})));
        seen.push(answer(&mut daemon, "blockdev-create", create("j", &path)));
        seen.extend(states(&mut daemon, "concluded"));
        seen
    });
}

/// Starts a job that takes a while: it makes an image on a node that takes two requests a second.
fn slow_create(daemon: &mut Daemon) -> Vec<Value> {
    let path = daemon.dir().join("slow.qcow2");
    image::create(&path, "raw", "", 0);
    let limits = json!({"iops-total": 2});
    let group = json!({"qom-type": "throttle-group", "id": "group", "limits": limits});
    daemon.qmp.ok("object-add", group);
    daemon.qmp.ok("blockdev-add", image::file("file", &path));
    let mut slow = image::over("throttle", "slow", "file");
    slow["throttle-group"] = json!("group");
    daemon.qmp.ok("blockdev-add", slow);
    let options = json!({"driver": "qcow2", "file": "slow", "size": 1 << 20});
    daemon
        .qmp
        .ok("blockdev-create", json!({"job-id": "j", "options": options}));
    states(daemon, "running")
}

#[test]
fn a_job_under_way_is_paused_and_goes_on() {
    beside_qemu(|mut daemon: Daemon| {
        let mut seen = slow_create(&mut daemon);
        for verb in [
            "job-resume",
            "job-pause",
            "job-pause",
            "job-complete",
            "job-finalize",
            "job-dismiss",
            "job-resume",
            "job-resume",
        ] {
            seen.push(answer(&mut daemon, verb, json!({"id": "j"})));
        }
        seen.push(answer(&mut daemon, "query-jobs", json!({})));
        seen.extend(states(&mut daemon, "concluded"));
        seen.push(answer(&mut daemon, "query-jobs", json!({})));
        seen
    });
}

#[test]
fn a_job_that_is_cancelled_has_failed() {
    beside_qemu(|mut daemon: Daemon| {
        let mut seen = slow_create(&mut daemon);
        for verb in ["job-pause", "job-cancel", "job-cancel", "job-resume"] {
            seen.push(answer(&mut daemon, verb, json!({"id": "j"})));
        }
        seen.extend(states(&mut daemon, "concluded"));
        seen.push(answer(&mut daemon, "query-jobs", json!({})));
        seen
    });
}

#[test]
fn the_older_commands_see_block_jobs_only() {
    beside_qemu(|mut daemon: Daemon| {
        let path = daemon.dir().join("new.raw");
        let mut seen = vec![answer(&mut daemon, "blockdev-create", create("j", &path))];
        seen.extend(states(&mut daemon, "concluded"));
        for id in ["j", "k"] {
            for verb in ["pause", "resume", "complete", "cancel"] {
                let command = format!("block-job-{verb}");
                seen.push(answer(&mut daemon, &command, json!({"device": id})));
            }
            let speed = json!({"device": id, "speed": -1});
            seen.push(answer(&mut daemon, "block-job-set-speed", speed));
            for verb in ["finalize", "dismiss"] {
                let command = format!("block-job-{verb}");
                seen.push(answer(&mut daemon, &command, json!({"id": id})));
            }
        }
        seen.push(answer(&mut daemon, "query-block-jobs", json!({})));
        seen
    });
}
