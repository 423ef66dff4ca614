//! `on-cbw-error` of backups: what becomes of a guest's write whose old data the target does not take.

use millpond_tests::daemon::{Daemon, daemon};
use millpond_tests::image;
use millpond_tests::nbd::Request;
use serde_json::{Value, json};

const MIB: u64 = 1 << 20;
const SIZE: u64 = 64 * MIB;
const EIO: u32 = 5;

/// Where the target takes nothing: a job that is slow never comes there.
const BAD: u64 = 60 * MIB;

/// A target that fails at one place.
fn target(daemon: &Daemon) -> Value {
    let rule = json!({"event": "write_aio", "errno": EIO, "sector": BAD / 512});
    let file = image::file("tfile", &daemon.dir().join("target"));
    json!({"driver": "blkdebug", "node-name": "debug", "image": file, "inject-error": [rule]})
}

/// A daemon that exports the node `disk`, full of sevens, and has a target for its backup.
fn serve() -> Daemon {
    let mut daemon = daemon().nbd_unix().start();
    let dir = daemon.dir().to_owned();
    std::fs::write(dir.join("disk"), vec![7; SIZE as usize]).expect("there is room");
    std::fs::write(dir.join("target"), vec![0; SIZE as usize]).expect("there is room");
    daemon
        .qmp
        .ok("blockdev-add", image::file("disk", &dir.join("disk")));
    let export = json!({"type": "nbd", "id": "e", "node-name": "disk", "writable": true});
    daemon.qmp.ok("block-export-add", export);
    daemon
}

/// The job's arguments, with a target that a command opens or one that is open.
fn backup(daemon: &mut Daemon, command: &str, more: Value) -> Value {
    let mut arguments = json!({"job-id": "j", "device": "disk", "auto-dismiss": false});
    if command == "drive-backup" {
        let rules = format!(
            "[inject-error]\nevent = \"write_aio\"\nerrno = \"{EIO}\"\nsector = \"{}\"\n",
            BAD / 512
        );
        let path = daemon.path("rules");
        std::fs::write(&path, rules).expect("there is room");
        arguments["target"] = json!(format!("blkdebug:{path}:{}", daemon.path("target")));
        arguments["mode"] = json!("existing");
        arguments["format"] = json!("raw");
    } else {
        let raw = json!({"driver": "raw", "node-name": "target", "file": target(daemon)});
        daemon.qmp.ok("blockdev-add", raw);
        arguments["target"] = json!("target");
    }
    for (name, value) in more.as_object().expect("an object") {
        arguments[name] = value.clone();
    }
    arguments
}

fn start(daemon: &mut Daemon, command: &str, arguments: Value, in_transaction: bool) {
    match in_transaction {
        false => daemon.qmp.ok(command, arguments),
        true => daemon.qmp.ok(
            "transaction",
            json!({"actions": [{"type": command, "data": arguments}]}),
        ),
    };
}

/// How the job has ended.
fn concluded(daemon: &mut Daemon) -> Value {
    daemon
        .qmp
        .wait_event_where("JOB_STATUS_CHANGE", |data| data["status"] == "concluded");
    let errors = daemon.qmp.take_events().into_iter();
    let mut errors = errors.filter(|event| event["event"] == "BLOCK_JOB_ERROR");
    assert_eq!(errors.next(), None, "no policy of the job's is asked");
    daemon.qmp.ok("query-jobs", json!({}))[0]["error"].clone()
}

/// The guest's write goes on, and the job ends with the error: one that waits for writes, one that copies with a speed which
/// would have it wait for hours, and one whose policies would have it try again.
#[test]
fn a_write_that_breaks_the_snapshot_goes_on_and_the_job_fails() {
    let manners = [
        json!({"sync": "none"}),
        json!({"sync": "full", "speed": 1}),
        json!({"sync": "top", "speed": 1, "on-target-error": "ignore", "on-source-error": "stop"}),
    ];
    // A raw file stands on nothing, as one that is made for a command and has not all is to.
    let commands = [
        ("blockdev-backup", &manners[..]),
        ("drive-backup", &manners[1..2]),
    ];
    for (command, manners) in commands {
        for in_transaction in [false, true] {
            for manner in manners {
                let mut daemon = serve();
                let mut manner = manner.clone();
                manner["on-cbw-error"] = json!("break-snapshot");
                let arguments = backup(&mut daemon, command, manner);
                start(&mut daemon, command, arguments, in_transaction);
                let mut guest = daemon.session("disk");
                guest.write(BAD, &[1; 512]);
                assert_eq!(concluded(&mut daemon), json!("Input/output error"));
                guest.write(5 * MIB, &[2; 512]);
                assert_eq!((guest.read(BAD, 1), guest.read(5 * MIB, 1)), (vec![1], vec![2]));
                drop(guest);
                daemon.qmp.ok("job-dismiss", json!({"id": "j"}));
                daemon.qmp.quit();
                daemon.expect_clean_exit();
            }
        }
    }
}

/// Unless that is asked for, the guest's write fails, and the job knows nothing of it.
#[test]
fn a_write_that_cannot_be_kept_fails_and_the_job_goes_on() {
    for manner in [json!({}), json!({"on-cbw-error": "break-guest-write"})] {
        let mut daemon = serve();
        let mut manner = manner;
        manner["sync"] = json!("none");
        let arguments = backup(&mut daemon, "blockdev-backup", manner);
        start(&mut daemon, "blockdev-backup", arguments, false);
        let mut guest = daemon.session("disk");
        let answer = guest.call(&Request::write(BAD, vec![1; 512]));
        assert_eq!(answer.expect("an answer").error, EIO);
        guest.write(5 * MIB, &[2; 512]);
        assert_eq!(guest.read(BAD, 1), [7]);
        let jobs = daemon.qmp.ok("query-jobs", json!({}));
        assert_eq!(jobs[0]["status"], "running");
        daemon.qmp.ok("job-cancel", json!({"id": "j"}));
        concluded(&mut daemon);
        drop(guest);
        daemon.qmp.quit();
        daemon.expect_clean_exit();
    }
    let mut daemon = serve();
    let unknown = backup(
        &mut daemon,
        "blockdev-backup",
        json!({"sync": "none", "on-cbw-error": "report"}),
    );
    let refused = daemon.qmp.refused("blockdev-backup", unknown);
    assert_eq!(
        refused.desc,
        "Parameter 'on-cbw-error' does not accept value 'report'"
    );
}

/// A job that its user has paused goes on being paused, and fails when it may go on.
#[test]
fn a_paused_job_fails_once_it_is_resumed() {
    let mut daemon = serve();
    let manner = json!({"sync": "full", "speed": 1, "on-cbw-error": "break-snapshot"});
    let arguments = backup(&mut daemon, "blockdev-backup", manner);
    start(&mut daemon, "blockdev-backup", arguments, false);
    daemon.qmp.ok("job-pause", json!({"id": "j"}));
    daemon
        .qmp
        .wait_event_where("JOB_STATUS_CHANGE", |data| data["status"] == "paused");
    let mut guest = daemon.session("disk");
    guest.write(BAD, &[1; 512]);
    assert_eq!(daemon.qmp.ok("query-jobs", json!({}))[0]["status"], "paused");
    daemon.qmp.ok("job-resume", json!({"id": "j"}));
    assert_eq!(concluded(&mut daemon), json!("Input/output error"));
    drop(guest);
    daemon.qmp.quit();
    daemon.expect_clean_exit();
}
