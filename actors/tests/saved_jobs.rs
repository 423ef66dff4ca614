//! Jobs of a live daemon, written down as they stand: paused, stopped for want of room, changed, waiting for each other.
#![allow(
    clippy::unwrap_used,
    reason = "a test ends at the first thing that is not as it must be"
)]

use millpond::daemon::Daemon;
use millpond::graph::{GraphConfig, ImplicitOpens, system_iothreads};
use millpond::monitor::Dispatch;
use millpond::qmp::Commands;
use millpond_drivers::builtin::builtin;
use millpond_messages::graph::IothreadOptions;
use millpond_messages::saved::*;
use millpond_ring::Engine;
use serde_json::{Value, json};

const SIZE: u64 = 4 << 20;

fn start() -> Daemon {
    let config = GraphConfig {
        registry: builtin(),
        implicit: ImplicitOpens::Allow,
        iothreads: system_iothreads(Engine::Auto),
        main: IothreadOptions::named("main"),
    };
    Daemon::start_with(config, Vec::new()).unwrap().0
}

async fn ask(daemon: &Daemon, command: &str, arguments: Value) {
    let Value::Object(arguments) = arguments else {
        panic!("arguments are an object");
    };
    let answer = Commands::of(daemon).dispatch(command, arguments).await;
    assert!(answer.is_ok(), "{command}: {answer:?}");
}

/// Opens a disk, and a target that fails like this, if it does.
async fn open(daemon: &Daemon, disk: &str, target: &str, errno: Option<u32>) {
    let null =
        |name: &str| json!({"driver": "null-co", "node-name": name, "size": SIZE, "read-zeroes": false});
    ask(daemon, "blockdev-add", null(disk)).await;
    match errno {
        None => ask(daemon, "blockdev-add", null(target)).await,
        Some(errno) => {
            let rule = json!({"event": "write_aio", "errno": errno, "iotype": "write"});
            let image = null(&format!("{target}-image"));
            let debug = json!({"driver": "blkdebug", "image": image, "inject-error": [rule]});
            let raw = json!({"driver": "raw", "node-name": target, "file": debug});
            ask(daemon, "blockdev-add", raw).await;
        }
    }
}

/// The job as it is written down, once it stands so.
async fn saved_when(daemon: &Daemon, id: &str, stands: impl Fn(&SavedJob) -> bool) -> SavedJob {
    let wait = async {
        loop {
            let state = daemon.save().await.unwrap().daemon;
            let record = save(&state).unwrap();
            assert_eq!(load::<SavedDaemon>(&record).unwrap(), state);
            let job = state.jobs.into_iter().find(|job| job.id == id).unwrap();
            if stands(&job) {
                return job;
            }
            tokio::task::yield_now().await;
        }
    };
    let waited = tokio::time::timeout(std::time::Duration::from_secs(60), wait).await;
    waited.expect("the job stands as it should in time")
}

fn run(test: impl AsyncFnOnce(&Daemon)) {
    actix_rt::System::new().block_on(async {
        let daemon = start();
        test(&daemon).await;
        daemon.shut_down().await.unwrap();
    });
}

#[test]
fn a_job_that_is_full_is_saved_with_how_it_is_tried_again() {
    run(async |daemon| {
        open(daemon, "disk", "target", Some(28)).await;
        let job = json!({"job-id": "j", "device": "disk", "target": "target", "sync": "top", "speed": 1 << 30,
            "on-target-error": "enospc", "filter-node-name": "above", "auto-dismiss": false});
        ask(daemon, "blockdev-backup", job.clone()).await;
        ask(
            daemon,
            "x-millpond-job-retry",
            json!({"id": "j", "seconds": 3600}),
        )
        .await;
        let saved = saved_when(daemon, "j", |job| job.io_status == "nospace").await;
        assert!(saved.user_paused);
        assert_eq!(saved.options.options().unwrap()["on-target-error"], "enospc");
        assert_eq!((saved.retry.as_ref().unwrap().most, saved.speed), (3600, 1 << 30));
        assert_eq!((saved.manual_dismiss, saved.manual_finalize), (true, false));
        let work = SavedWork {
            filter: Some("above".to_owned()),
            sync: Some("top".to_owned()),
            ..SavedWork::default()
        };
        assert_eq!(saved.work, work);
        assert_eq!((saved.step, saved.fate), (SavedStep::AtWork, SavedFate::Open));
    });
}

#[test]
fn a_mirror_is_saved_with_the_mode_that_it_was_changed_to_and_what_its_user_wants() {
    run(async |daemon| {
        open(daemon, "disk", "target", None).await;
        let job = json!({"job-id": "j", "device": "disk", "target": "target", "sync": "none",
            "filter-node-name": "above", "copy-mode": "background"});
        ask(daemon, "blockdev-mirror", job).await;
        // A drained section, such as that of the saving itself, has a job stand by.
        let is_ready = |job: &SavedJob| job.status == "ready" || job.status == "standby";
        let saved = saved_when(daemon, "j", is_ready).await;
        assert_eq!(saved.work.copy_mode.as_deref(), Some("background"));
        assert_eq!(saved.work.filter.as_deref(), Some("above"));
        let change = json!({"id": "j", "type": "mirror", "copy-mode": "write-blocking"});
        ask(daemon, "block-job-change", change).await;
        ask(daemon, "job-pause", json!({"id": "j"})).await;
        ask(daemon, "job-complete", json!({"id": "j"})).await;
        let saved = saved_when(daemon, "j", |job| job.status == "standby").await;
        assert_eq!(saved.work.copy_mode.as_deref(), Some("write-blocking"));
        let wishes = SavedWishes {
            complete: true,
            ..SavedWishes::default()
        };
        assert_eq!((saved.wishes, saved.user_paused), (wishes, true));
        assert_eq!(saved.io_status, "ok");
    });
}

/// Jobs of a transaction that end together, and one that is alone.
#[test]
fn jobs_are_saved_with_their_groups() {
    run(async |daemon| {
        let mut actions = Vec::new();
        for id in ["a", "b"] {
            let (disk, target) = (format!("{id}-disk"), format!("{id}-target"));
            open(daemon, &disk, &target, None).await;
            let backup = json!({"job-id": id, "device": disk, "target": target, "sync": "full",
                "speed": if id == "a" { 1 } else { 0 }});
            actions.push(json!({"type": "blockdev-backup", "data": backup}));
        }
        let grouped = json!({"actions": actions, "properties": {"completion-mode": "grouped"}});
        ask(daemon, "transaction", grouped).await;
        open(daemon, "disk", "target", None).await;
        let alone = json!({"job-id": "c", "device": "disk", "target": "target", "sync": "none"});
        ask(daemon, "blockdev-backup", alone).await;
        let waiting = saved_when(daemon, "b", |job| job.status == "waiting").await;
        let [slow, alone] = [
            saved_when(daemon, "a", |_| true).await,
            saved_when(daemon, "c", |_| true).await,
        ];
        assert_eq!((waiting.group, waiting.step), (slow.group, SavedStep::Ran));
        assert_ne!(alone.group, slow.group);
        ask(daemon, "job-cancel", json!({"id": "a"})).await;
    });
}
