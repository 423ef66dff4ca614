//! Monitors over real sockets: several at once, one client after the other, and clients that do not read.
#![allow(
    clippy::unwrap_used,
    reason = "a test ends at the first thing that is not as it must be"
)]

use futures_util::FutureExt;
use futures_util::future::LocalBoxFuture;
use millpond::monitor::chardev::{Address, Backend, Chardev, ChardevOptions, Socket};
use millpond::monitor::{Dispatch, EventBus, Finish, Monitor};
use millpond_messages::qapi::schema::COMMANDS;
use millpond_messages::qapi::{JobStatus, JsonText, Object, QmpError, QmpEvent, parse_json};
use serde_json::{Value, json};
use std::cell::RefCell;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::time::Duration;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::UnixStream;
use tokio::sync::oneshot;

/// Answers at once, but for `blockdev-del`, which waits until the test lets it go.
#[derive(Default)]
struct Commands {
    names: Vec<&'static str>,
    held: RefCell<Vec<oneshot::Sender<()>>>,
    started: RefCell<Vec<String>>,
    events: EventBus,
}

impl Commands {
    fn new() -> Rc<Self> {
        let names = COMMANDS.iter().map(|command| command.name).collect();
        Rc::new(Self {
            names,
            ..Self::default()
        })
    }
}

/// The monitor wants an owner of its own; the test looks at the same commands.
struct Shared(Rc<Commands>);

impl Dispatch for Shared {
    fn commands(&self) -> &[&'static str] {
        &self.0.names
    }

    fn dispatch(
        &self,
        command: &str,
        arguments: Object,
    ) -> LocalBoxFuture<'static, Result<JsonText, QmpError>> {
        self.0.started.borrow_mut().push(command.to_owned());
        let events = self.0.events.clone();
        match command {
            "blockdev-del" => {
                let (go, wait) = oneshot::channel();
                self.0.held.borrow_mut().push(go);
                async move {
                    let _ = wait.await;
                    Ok(json!({}).into())
                }
                .boxed_local()
            }
            "blockdev-create" => async move {
                let id = arguments["job-id"].as_str().unwrap_or_default().to_owned();
                events.emit(QmpEvent::JobStatusChange {
                    id: id.clone(),
                    status: JobStatus::Created,
                });
                let later = events.clone();
                actix_rt::spawn(async move {
                    later.emit(QmpEvent::JobStatusChange {
                        id,
                        status: JobStatus::Concluded,
                    });
                });
                Ok(json!({}).into())
            }
            .boxed_local(),
            _ => async { Ok(json!("done").into()) }.boxed_local(),
        }
    }
}

struct Client {
    reader: BufReader<tokio::net::unix::OwnedReadHalf>,
    writer: tokio::net::unix::OwnedWriteHalf,
}

impl Client {
    async fn connect(path: &Path) -> Self {
        let (reader, writer) = UnixStream::connect(path).await.unwrap().into_split();
        Self {
            reader: BufReader::new(reader),
            writer,
        }
    }

    async fn negotiated(path: &Path) -> Self {
        let mut client = Self::connect(path).await;
        assert!(client.receive().await["QMP"].is_object());
        assert_eq!(
            client.ask("{'execute':'qmp_capabilities'}").await,
            json!({"return": {}})
        );
        client
    }

    async fn send(&mut self, text: &str) {
        self.writer.write_all(text.as_bytes()).await.unwrap();
    }

    async fn receive(&mut self) -> Value {
        let mut line = String::new();
        let read = tokio::time::timeout(Duration::from_secs(20), self.reader.read_line(&mut line));
        assert_ne!(
            read.await.expect("an answer").unwrap(),
            0,
            "the monitor closed the connection"
        );
        parse_json(line.trim_end()).unwrap()
    }

    async fn ask(&mut self, text: &str) -> Value {
        self.send(text).await;
        self.receive().await
    }
}

async fn monitor(dir: &Path, name: &str, commands: &Rc<Commands>) -> (PathBuf, actix::Addr<Monitor>) {
    let path = dir.join(name);
    let address = Address::Unix {
        path: path.display().to_string(),
        is_abstract: false,
        tight: true,
    };
    let options = ChardevOptions::new(name, Backend::Socket(Socket::server(address)));
    let chardev = Chardev::open(&options, |_| {}).await.unwrap();
    let dispatch = Rc::new(Shared(commands.clone()));
    let monitor = Monitor::new(chardev, dispatch, commands.events.clone(), false);
    (path, actix::Actor::start(monitor))
}

/// Lets all tasks run until a condition holds.
async fn until(mut holds: impl FnMut() -> bool) {
    while !holds() {
        tokio::task::yield_now().await;
    }
}

#[actix::test]
async fn a_waiting_command_holds_up_its_own_monitor_only() {
    let dir = tempfile::tempdir().unwrap();
    let commands = Commands::new();
    let (first, _keep) = monitor(dir.path(), "a", &commands).await;
    let (second, _keep_too) = monitor(dir.path(), "b", &commands).await;
    let mut a = Client::negotiated(&first).await;
    let mut b = Client::negotiated(&second).await;
    a.send("{'execute':'blockdev-del','arguments':{'node-name':'n'},'id':1}{'execute':'query-block','id':2}")
        .await;
    until(|| commands.held.borrow().len() == 1).await;
    for _ in 0..10 {
        assert_eq!(b.ask("{'execute':'query-jobs'}").await, json!({"return": "done"}));
    }
    assert!(!commands.started.borrow().contains(&"query-block".to_owned()));
    commands.held.borrow_mut().pop().unwrap().send(()).unwrap();
    assert_eq!(a.receive().await["id"], 1);
    assert_eq!(a.receive().await["id"], 2);
}

#[actix::test]
async fn a_command_goes_on_when_its_client_leaves_and_the_next_client_comes_after_it() {
    let dir = tempfile::tempdir().unwrap();
    let commands = Commands::new();
    let (path, _keep) = monitor(dir.path(), "a", &commands).await;
    let mut gone = Client::negotiated(&path).await;
    gone.send("{'execute':'blockdev-del','arguments':{'node-name':'n'},'id':'gone'}")
        .await;
    until(|| commands.held.borrow().len() == 1).await;
    // It resets the connection rather than end it, so that nothing more can be sent to it.
    drop(gone);
    let go = commands.held.borrow_mut().pop().unwrap();
    let mut next = UnixStream::connect(&path).await.unwrap();
    next.write_all(b"{'execute':'qmp_capabilities'}{'execute':'query-block','id':'next'}")
        .await
        .unwrap();
    // Nothing of the next client's commands has begun while the first's is still running.
    for _ in 0..1000 {
        tokio::task::yield_now().await;
    }
    assert_eq!(*commands.started.borrow(), ["blockdev-del"]);
    go.send(()).unwrap();
    let mut lines = BufReader::new(next).lines();
    let mut ids = Vec::new();
    while let Some(line) = lines.next_line().await.unwrap() {
        let reply = parse_json(line.trim_end()).unwrap();
        if let Some(id) = reply.get("id") {
            ids.push(id.clone());
            break;
        }
    }
    assert_eq!(ids, ["next"]);
}

#[actix::test]
async fn events_keep_their_place_around_the_answer_and_wait_for_negotiation() {
    let dir = tempfile::tempdir().unwrap();
    let commands = Commands::new();
    let (path, _keep) = monitor(dir.path(), "a", &commands).await;
    let mut early = Client::connect(&path).await;
    assert!(early.receive().await["QMP"].is_object());
    commands
        .events
        .emit(QmpEvent::BlockExportDeleted { id: "before".into() });
    assert_eq!(
        early.ask("{'execute':'qmp_capabilities'}").await,
        json!({"return": {}})
    );
    let create = "{'execute':'blockdev-create','arguments':{'job-id':'j','options':{'driver':'file',\
                  'filename':'x','size':1}}}";
    for _ in 0..50 {
        assert_eq!(early.ask(create).await["data"]["status"], "created");
        assert_eq!(early.receive().await, json!({"return": {}}));
        assert_eq!(early.receive().await["data"]["status"], "concluded");
    }
}

#[actix::test]
async fn a_client_that_does_not_read_loses_events_and_holds_up_nobody() {
    let dir = tempfile::tempdir().unwrap();
    let commands = Commands::new();
    let (path, _keep) = monitor(dir.path(), "a", &commands).await;
    let (other, _keep_too) = monitor(dir.path(), "b", &commands).await;
    let mut slow = Client::negotiated(&path).await;
    let mut quick = Client::negotiated(&other).await;
    let emitted = 40_000_usize;
    let text = "x".repeat(200);
    for index in 0..emitted {
        commands.events.emit(QmpEvent::BlockExportDeleted {
            id: format!("{index} {text}"),
        });
        if index % 500 == 0 {
            // The quick client keeps up.
            quick.send("{'execute':'query-jobs','id':0}").await;
            while quick.receive().await.get("id").is_none() {}
        }
    }
    // The slow client has not lost its session, and what it was sent is bounded.
    slow.send("{'execute':'query-jobs','id':'still here'}").await;
    let mut received = 0;
    loop {
        let reply = slow.receive().await;
        if reply.get("id").is_some() {
            break;
        }
        received += 1;
    }
    let most = (4 << 20) / text.len();
    assert!(received < most && received < emitted, "{received}");
    assert!(received > 0);
}

#[actix::test]
async fn requests_of_a_client_that_does_not_read_are_left_in_the_socket() {
    let dir = tempfile::tempdir().unwrap();
    let commands = Commands::new();
    let (path, _keep) = monitor(dir.path(), "a", &commands).await;
    let mut slow = Client::negotiated(&path).await;
    let id = "i".repeat(1000);
    let request = format!("{{'execute':'query-jobs','id':'{id}'}}\n");
    let mut sent = 0;
    // It ends when the monitor has stopped reading and the socket is full.
    while let Ok(done) = tokio::time::timeout(
        Duration::from_millis(500),
        slow.writer.write_all(request.as_bytes()),
    )
    .await
    {
        done.unwrap();
        sent += 1;
        assert!(sent < 100_000, "the monitor takes requests without end");
    }
    assert!(commands.started.borrow().len() < 10_000);
    // When it reads at last, everything it sent whole is answered.
    let mut answers = 0;
    while answers < sent {
        let mut line = String::new();
        slow.reader.read_line(&mut line).await.unwrap();
        answers += 1;
    }
}

#[actix::test]
async fn what_is_owed_is_sent_before_the_end() {
    let dir = tempfile::tempdir().unwrap();
    let commands = Commands::new();
    let (path, monitor) = monitor(dir.path(), "a", &commands).await;
    let mut client = Client::negotiated(&path).await;
    commands
        .events
        .emit(QmpEvent::BlockExportDeleted { id: "last".into() });
    let ended = monitor.send(Finish);
    let mut rest = Vec::new();
    let (_, read) = futures_util::join!(ended, client.reader.read_to_end(&mut rest));
    read.unwrap();
    assert!(!path.exists());
    drop(rest);
}
