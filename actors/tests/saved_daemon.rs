//! The state of a live daemon, written down: its objects, its NBD server with exports and clients, and a job.
#![allow(
    clippy::unwrap_used,
    reason = "a test ends at the first thing that is not as it must be"
)]

#[path = "support/nbd_client.rs"]
mod nbd_client;

use std::io::{Read, Write};
use std::os::unix::net::UnixStream as Blocking;
use std::path::{Path, PathBuf};
use std::time::Duration;

use futures_channel::oneshot;
use futures_util::FutureExt;
use futures_util::future::LocalBoxFuture;
use millpond::daemon::{Daemon, DaemonState};
use millpond::export::nbd::offer::Offer;
use millpond::graph::{GraphConfig, GraphHandle, ImplicitOpens, system_iothreads};
use millpond::job::{Job, JobOptions, Pace};
use millpond::monitor::Dispatch;
use millpond::qmp::Commands;
use millpond_drivers::builtin::builtin;
use millpond_messages::graph::{DrainScope, IothreadOptions, Options, RootUser};
use millpond_messages::nbd::option;
use millpond_messages::qapi::JobType;
use millpond_messages::saved::*;
use millpond_ring::Engine;
use nbd_client::{Client, READ, WRITE, asked, request};
use openssl::ssl::{Ssl, SslContext, SslMethod, SslStream, SslVersion};
use serde_json::{Value, json};

const DEADLINE: Duration = Duration::from_secs(60);

fn object(json: Value) -> Options {
    match json {
        Value::Object(options) => options,
        other => panic!("not an object: {other}"),
    }
}

/// Work that goes on until it is told to end.
struct Waits {
    ended: Option<oneshot::Receiver<()>>,
}

impl Job for Waits {
    fn kind(&self) -> JobType {
        JobType::Commit
    }

    fn options(&self) -> SavedOptions {
        SavedOptions::of(&object(json!({"top": "disk"})))
    }

    fn saved_work(&self) -> SavedWork {
        SavedWork {
            filter: Some("above".to_owned()),
            ..SavedWork::default()
        }
    }

    fn run(&mut self, pace: Pace) -> LocalBoxFuture<'static, millpond_messages::Result<()>> {
        let ended = self.ended.take().unwrap();
        async move {
            pace.progress(3, 10);
            let _ = ended.await;
            Ok(())
        }
        .boxed_local()
    }
}

/// A client that chooses the export `disk` inside TLS, and reads. It blocks, so it is for a thread of its own.
fn inside_tls(path: &Path) -> SslStream<Blocking> {
    let mut socket = Blocking::connect(path).unwrap();
    socket.read_exact(&mut [0; 18]).unwrap();
    let begin = [3_u32.to_be_bytes().as_slice(), &asked(option::STARTTLS, b"")].concat();
    socket.write_all(&begin).unwrap();
    socket.read_exact(&mut [0; 20]).unwrap();
    let mut context = SslContext::builder(SslMethod::tls_client()).unwrap();
    context.set_max_proto_version(Some(SslVersion::TLS1_2)).unwrap();
    context.set_cipher_list("aNULL:@SECLEVEL=0").unwrap();
    let mut stream = Ssl::new(&context.build()).unwrap().connect(socket).unwrap();
    let chosen = [asked(option::EXPORT_NAME, b"disk"), request(READ)].concat();
    stream.write_all(&chosen).unwrap();
    // The export's size, flags and zeroes by which it is chosen in the old way, and the answer.
    stream.read_exact(&mut [0; 10 + 16 + 1000]).unwrap();
    stream
}

fn start() -> (Daemon, GraphHandle) {
    let config = GraphConfig {
        registry: builtin(),
        implicit: ImplicitOpens::Allow,
        iothreads: system_iothreads(Engine::Auto),
        main: IothreadOptions::named("main"),
    };
    Daemon::start_with(config, Vec::new()).unwrap()
}

/// Makes objects, nodes, the server and two exports, as clients of a monitor would.
async fn set_up(daemon: &Daemon, path: &Path) {
    let address = json!({"type": "unix", "data": {"path": path}});
    let commands = [
        (
            "object-add",
            json!({"qom-type": "iothread", "id": "io0", "poll-max-ns": 0}),
        ),
        (
            "object-add",
            json!({"qom-type": "throttle-group", "id": "limits", "limits": {"iops-total": 500}}),
        ),
        (
            "blockdev-add",
            json!({"driver": "null-co", "node-name": "data", "size": 1 << 20}),
        ),
        (
            "blockdev-add",
            json!({"driver": "null-co", "node-name": "other", "size": 4096}),
        ),
        ("nbd-server-start", json!({"addr": address, "max-connections": 5})),
        (
            "block-export-add",
            json!({"type": "nbd", "id": "e", "node-name": "data", "name": "disk", "writable": true, "iothread": "io0"}),
        ),
        (
            "block-export-add",
            json!({"type": "nbd", "id": "f", "node-name": "other"}),
        ),
    ];
    carry_out(daemon, &commands).await;
}

async fn carry_out(daemon: &Daemon, commands: &[(&str, Value)]) {
    let monitor = Commands::of(daemon);
    for (command, arguments) in commands {
        let done = monitor.dispatch(command, object(arguments.clone())).await;
        done.unwrap_or_else(|error| panic!("{command}: {error}"));
    }
}

/// The state once the clients of the first export stand as they should.
async fn saved_when(daemon: &Daemon, stand: impl Fn(&[&SavedStanding]) -> bool) -> DaemonState {
    let wait = async {
        loop {
            let state = daemon.save().await.unwrap();
            let SavedExportKind::Nbd(export) = &state.daemon.exports[0].kind else {
                panic!("an export on the NBD server was saved as another kind");
            };
            let connections = export.connections.iter();
            if stand(
                &connections
                    .map(|connection| &connection.standing)
                    .collect::<Vec<_>>(),
            ) {
                return state;
            }
            tokio::task::yield_now().await;
        }
    };
    let state = tokio::time::timeout(DEADLINE, wait).await;
    state.expect("the clients stand as they should in time")
}

fn between(received: &[u8]) -> SavedStanding {
    let received = received.to_vec();
    SavedStanding::Between { received }
}

/// What the record must have of the exports, with these clients of the first.
fn exports(graph: &SavedGraph, connections: Vec<SavedConnection>) -> Vec<SavedExport> {
    let root = |id: &str| {
        let mut roots = graph.roots.iter();
        roots
            .find(|root| root.user == RootUser::Export(id.to_owned()))
            .unwrap()
            .id
    };
    let mut iothreads = graph.iothreads.iter();
    let iothread = iothreads.find(|iothread| iothread.id.as_deref() == Some("io0"));
    let nbd = |name: &str, size, writable, connections| {
        SavedExportKind::Nbd(SavedNbdExport {
            name: name.to_owned(),
            size,
            flags: Offer::base_flags(writable, true).bits(),
            request_alignment: 1,
            max_transfer: 0,
            bitmaps: Vec::new(),
            connections,
        })
    };
    let first = json!({"type": "nbd", "name": "disk", "id": "e", "iothread": "io0", "node-name": "data", "writable": true});
    let second = json!({"type": "nbd", "id": "f", "node-name": "other"});
    vec![
        SavedExport {
            id: "e".to_owned(),
            node_name: "data".to_owned(),
            options: SavedOptions::of(&object(first)),
            root: root("e"),
            iothreads: vec![iothread.unwrap().number],
            shutting_down: false,
            kind: nbd("disk", 1 << 20, true, connections),
        },
        SavedExport {
            id: "f".to_owned(),
            node_name: "other".to_owned(),
            options: SavedOptions::of(&object(second)),
            root: root("f"),
            iothreads: Vec::new(),
            shutting_down: false,
            kind: nbd("other", 4096, false, Vec::new()),
        },
    ]
}

/// The clients of [`a_daemon_is_written_down_with_its_exports_clients_and_jobs`], standing so.
fn clients(descriptors: [u32; 2], standing: [SavedStanding; 2], first: u64) -> Vec<SavedConnection> {
    let (process, user) = (std::process::id(), rustix::process::getuid().as_raw());
    let [one, other] = standing;
    let structured = SavedConnection {
        id: first,
        descriptor: descriptors[0],
        peer: format!("process {process} of user {user}"),
        replies: SavedReplies::Structured,
        base_allocation: true,
        allocation_depth: false,
        dirty_bitmaps: 0,
        standing: one,
        shutting_down: false,
    };
    let simple = SavedConnection {
        id: first + 1,
        descriptor: descriptors[1],
        replies: SavedReplies::Simple,
        base_allocation: false,
        standing: other,
        ..structured.clone()
    };
    vec![structured, simple]
}

fn first_connection(state: &DaemonState) -> &SavedConnection {
    let SavedExportKind::Nbd(export) = &state.daemon.exports[0].kind else {
        panic!("an export on the NBD server was saved as another kind");
    };
    &export.connections[0]
}

/// Holds what is not the exports' matter against what was made.
fn check_the_rest(daemon: &SavedDaemon, path: &Path) {
    let server = daemon.nbd_server.as_ref().unwrap();
    let address = json!({"type": "unix", "path": path});
    assert_eq!(
        server.options.options().unwrap(),
        object(json!({"addr": address, "max-connections": 5}))
    );
    let objects: Vec<_> = daemon
        .objects
        .iter()
        .map(|object| (&*object.id, &*object.kind))
        .collect();
    assert_eq!(objects, [("io0", "iothread"), ("limits", "throttle-group")]);
    let tuning = daemon.objects[0].options.options().unwrap();
    assert_eq!(tuning["poll-max-ns"], 0);
    let limits = daemon.objects[1].options.options().unwrap();
    assert_eq!(limits["limits"]["iops-total"], 500);
    assert_eq!(daemon.throttle_groups[0].rates[3].average, 500);
    let job = SavedJob {
        id: "job0".to_owned(),
        kind: "commit".to_owned(),
        status: "running".to_owned(),
        options: SavedOptions::of(&object(json!({"top": "disk"}))),
        current_progress: 3,
        total_progress: 10,
        error: None,
        speed: 0,
        manual_finalize: true,
        manual_dismiss: false,
        user_paused: false,
        io_status: "ok".to_owned(),
        retry: None,
        wishes: SavedWishes::default(),
        group: 1,
        step: SavedStep::AtWork,
        fate: SavedFate::Open,
        roots: Vec::new(),
        work: SavedWork {
            filter: Some("above".to_owned()),
            ..SavedWork::default()
        },
    };
    assert_eq!(daemon.jobs, [job]);
    let own = daemon.graph.sections.last().unwrap();
    assert_eq!(
        (&own.cover, &*own.user),
        (&SavedSectionCover::All, "saving the state")
    );
    let record = save(daemon).unwrap();
    assert_eq!(&load::<SavedDaemon>(&record).unwrap(), daemon);
}

/// Which socket a descriptor of the record is: the path that it is bound to.
fn bound_to(state: &DaemonState, descriptor: u32) -> PathBuf {
    let socket = state.descriptors[descriptor as usize].try_clone().unwrap();
    let address = Blocking::from(socket).local_addr().unwrap();
    address.as_pathname().unwrap().to_owned()
}

#[test]
fn a_daemon_is_written_down_with_its_exports_clients_and_jobs() {
    actix_rt::System::new().block_on(async {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("nbd.sock");
        let (daemon, graph) = start();
        set_up(&daemon, &path).await;
        let context = b"\0\0\0\x04disk\0\0\0\x01\0\0\0\x0fbase:allocation";
        let structured: &[(u32, &[u8])] = &[
            (option::STRUCTURED_REPLY, b""),
            (option::SET_META_CONTEXT, context),
        ];
        let mut one = Client::connect(&path, structured).await;
        let mut other = Client::connect(&path, &[]).await;
        let (end, ended) = oneshot::channel();
        let options = JobOptions {
            auto_finalize: false,
            auto_dismiss: true,
            speed: 0,
        };
        let job = Waits { ended: Some(ended) };
        daemon.jobs().start("job0", options, || job).await.unwrap();

        // Both wait between two requests, of which nothing has come.
        let idle = saved_when(&daemon, |all| {
            all.iter().all(|standing| **standing == between(b""))
        })
        .await;
        let first = first_connection(&idle).id;
        let server = idle.daemon.nbd_server.as_ref().unwrap();
        assert_eq!(
            (server.descriptors.as_slice(), idle.descriptors.len()),
            ([0].as_slice(), 3)
        );
        let standing = [between(b""), between(b"")];
        assert_eq!(
            idle.daemon.exports,
            exports(&idle.daemon.graph, clients([1, 2], standing, first))
        );
        check_the_rest(&idle.daemon, &path);
        assert_eq!(bound_to(&idle, 0), path);

        // Half of a write's data has come: there is no going on elsewhere.
        other.send(&[request(WRITE), vec![1; 500]].concat()).await;
        saved_when(&daemon, |all| *all[1] == SavedStanding::Inside).await;

        // A request that finds its node drained has not begun, and goes along.
        let drained = graph
            .drain(DrainScope::Node("data".to_owned()), "a test")
            .await
            .unwrap();
        one.send(&request(READ)).await;
        let held = saved_when(&daemon, |all| *all[0] == between(&request(READ))).await;
        let standing = [between(&request(READ)), SavedStanding::Inside];
        assert_eq!(
            held.daemon.exports,
            exports(&held.daemon.graph, clients([1, 2], standing, first))
        );
        assert_eq!(held.daemon.graph.sections.len(), 2);
        drop(drained);

        // Both requests are served, as if nobody had looked.
        other.send(&[1; 500]).await;
        assert_eq!(other.take(16).await[4..8], [0; 4]);
        let chunk = one.take(20).await;
        let length = u32::from_be_bytes(chunk[16..].try_into().unwrap());
        one.take(length as usize).await;
        saved_when(&daemon, |all| matches!(all[1], SavedStanding::Between { .. })).await;

        // Each client is at the other end of the descriptor that its record names.
        for (client, descriptor) in [(&mut one, 1), (&mut other, 2)] {
            let socket = idle.descriptors[descriptor].try_clone().unwrap();
            Blocking::from(socket).write_all(&[descriptor as u8; 40]).unwrap();
            let end = client.take(40).await;
            assert_eq!(end.last(), Some(&(descriptor as u8)));
        }
        drop((one, other, end));
        daemon.shut_down().await.unwrap();
    });
}

#[test]
fn a_client_inside_tls_stays_with_its_daemon() {
    actix_rt::System::new().block_on(async {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("nbd.sock");
        let (daemon, _graph) = start();
        let address = json!({"type": "unix", "data": {"path": path}});
        let commands = [
            (
                "object-add",
                json!({"qom-type": "tls-creds-anon", "id": "t", "endpoint": "server"}),
            ),
            (
                "blockdev-add",
                json!({"driver": "null-co", "node-name": "data", "size": 4096}),
            ),
            ("nbd-server-start", json!({"addr": address, "tls-creds": "t"})),
            (
                "block-export-add",
                json!({"type": "nbd", "id": "e", "node-name": "data", "name": "disk"}),
            ),
        ];
        carry_out(&daemon, &commands).await;
        let client = tokio::task::spawn_blocking(move || inside_tls(&path))
            .await
            .unwrap();
        // It has been served, and waits between two requests. In the clear that is where it could go on elsewhere.
        let state = daemon.save().await.unwrap();
        assert_eq!(first_connection(&state).standing, SavedStanding::Inside);
        drop(client);
        daemon.shut_down().await.unwrap();
    });
}
