//! Requests that are asked to end early: those that hang in a driver, and those of one user.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use futures_channel::oneshot;
use futures_util::future::{LocalBoxFuture, join_all};
use millpond::graph::{Graph, GraphConfig, GraphHandle, ImplicitOpens, system_iothreads};
use millpond::iothread::Local;
use millpond::node::{Client, Mail};
use millpond_drivers::api::{
    Abilities, AllocationTicket, Answer, At, ChildKind, Driver, DriverKind, Extent, Lifecycle, Moved,
    OpenRequest, Opened, Placement, Purpose, ReopenRequest, SavesState, Target, Transfer,
};
use millpond_drivers::builtin::builtin;
use millpond_messages::graph::{
    CancelInFlight, DrainEnd, DrainScope, FlushAll, IothreadOptions, ListDrains, Options, RootRequest,
    RootUser,
};
use millpond_messages::io::{Operation, Preallocation};
use millpond_messages::{ErrorKind, IoError, IoResult, Permissions, Range, RequestFlags, Result};
use millpond_ring::Engine;
use millpond_ring::buffer::Buffers;
use serde_json::{Value, json};

/// Opens nodes whose reads are not answered, as over a broken connection, until they are cancelled.
struct HangKind {
    hanging: Arc<AtomicUsize>,
}

struct Hang {
    hanging: Arc<AtomicUsize>,
    waiting: RefCell<VecDeque<oneshot::Sender<()>>>,
}

impl DriverKind for HangKind {
    fn name(&self) -> &'static str {
        "hang"
    }

    fn children(&self) -> &'static [ChildKind] {
        &[]
    }

    fn is_protocol(&self) -> bool {
        true
    }

    fn open(&self, request: OpenRequest) -> LocalBoxFuture<'static, Result<Opened>> {
        let driver = Hang {
            hanging: Arc::clone(&self.hanging),
            waiting: RefCell::default(),
        };
        Box::pin(async move {
            Ok(Opened {
                driver: Rc::new(driver),
                flags: request.flags,
                backing: None,
            })
        })
    }
}

impl Driver for Hang {
    fn abilities(&self) -> Abilities {
        Abilities::default()
    }

    fn locate(&self, _: Purpose, range: Range) -> Answer<'_, IoResult<Extent>> {
        Answer::ready(Ok(Extent::new(range.len(), At::Own)))
    }

    fn read(self: Rc<Self>, _: u64, buffers: Buffers, _: RequestFlags) -> Answer<'static, Transfer> {
        let (go, cancelled) = oneshot::channel();
        self.waiting.borrow_mut().push_back(go);
        self.hanging.fetch_add(1, Ordering::SeqCst);
        Answer::wait(async move {
            cancelled.await.unwrap_or(());
            (Err(IoError::Cancelled), buffers)
        })
    }

    fn place(&self, range: Range, _: RequestFlags) -> Answer<'_, IoResult<Placement>> {
        Answer::ready(Ok(Placement {
            len: range.len(),
            target: Target::Own,
            head: 0,
            tail: 0,
            ticket: None,
        }))
    }

    fn settle(&self, _: AllocationTicket, written: IoResult<()>) -> Answer<'_, IoResult<()>> {
        Answer::ready(written)
    }

    fn write(self: Rc<Self>, _: u64, buffers: Buffers, _: RequestFlags) -> Answer<'static, Transfer> {
        Answer::ready((Ok(()), buffers))
    }

    fn write_zeroes(&self, _range: Range, _: RequestFlags) -> Answer<'_, IoResult<()>> {
        Answer::ready(Ok(()))
    }

    fn discard(&self, _range: Range) -> Answer<'_, IoResult<()>> {
        Answer::ready(Ok(()))
    }

    fn flush(&self) -> Answer<'_, IoResult<()>> {
        Answer::ready(Ok(()))
    }

    fn truncate(&self, _: u64, _: bool, _: Preallocation, _: RequestFlags) -> Answer<'_, Result<()>> {
        Answer::ready(Ok(()))
    }

    fn length(&self) -> Answer<'_, IoResult<u64>> {
        Answer::ready(Ok(1 << 20))
    }

    fn allocated_size(&self) -> Answer<'_, IoResult<u64>> {
        Answer::ready(Ok(0))
    }
}

impl Lifecycle for Hang {
    fn cancel_in_flight(&self) {
        let waiting = self.waiting.take();
        self.hanging.fetch_sub(waiting.len(), Ordering::SeqCst);
        waiting.into_iter().for_each(drop);
    }

    fn reopen_prepare(&self, _: ReopenRequest) -> Answer<'_, Result<()>> {
        Answer::ready(Ok(()))
    }

    fn saved_state(&self) -> Option<&dyn SavesState> {
        None
    }

    fn depart(&self) -> Moved {
        Moved::new(Arc::clone(&self.hanging), |hanging, _, _| {
            Rc::new(Hang {
                hanging,
                waiting: RefCell::default(),
            })
        })
    }

    fn close(&self) -> Answer<'_, Result<()>> {
        Answer::ready(Ok(()))
    }
}

fn options(json: Value) -> Options {
    let Value::Object(options) = json else {
        panic!("not an object: {json}")
    };
    options
}

/// A graph in which `top`, a raw node over `hang`, has a user; and how many reads hang.
fn with_hang<F: Future<Output = ()>>(test: impl FnOnce(GraphHandle, Client, Arc<AtomicUsize>) -> F) {
    actix_rt::System::new().block_on(async {
        let hanging = Arc::new(AtomicUsize::new(0));
        let mut registry = builtin();
        let kind = HangKind {
            hanging: Arc::clone(&hanging),
        };
        registry.register(Arc::new(kind)).expect("a new name");
        let config = GraphConfig {
            registry,
            implicit: ImplicitOpens::Allow,
            iothreads: system_iothreads(Engine::Auto),
            main: IothreadOptions::named("main"),
        };
        let (_, graph) = Graph::start(config).expect("an iothread can be started");
        let node =
            json!({"driver": "raw", "node-name": "top", "file": {"driver": "hang", "node-name": "hang"}});
        graph.add_node(options(node)).await.expect("it opens");
        let client = graph.attach(RootRequest::new(
            "top",
            RootUser::Embedder("test".to_owned()),
            Permissions::CONSISTENT_READ | Permissions::WRITE,
        ));
        let client = client.await.expect("it is free");
        test(graph.clone(), client.clone(), hanging).await;
        graph.detach(client.root()).await.expect("it was attached");
        graph.close_all().await.expect("everything closes");
    });
}

async fn until(holds: impl Fn() -> bool) {
    while !holds() {
        tokio::task::yield_now().await;
    }
}

#[test]
fn what_hangs_in_a_driver_is_cancelled_through_the_node_above_it_and_a_drain_goes_on() {
    with_hang(|graph, client, hanging| async move {
        let read = |offset| {
            let client = client.clone();
            actix_rt::spawn(async move { client.read(offset, Buffers::zeroed(512)).await })
        };
        let reads: Vec<_> = (0..4_u64).map(|at| read(at * 512)).collect();
        until(|| hanging.load(Ordering::SeqCst) == 4).await;
        // A change waits for the drain, and the drain for what hangs; cancelling waits for neither.
        let drained = graph.drain(DrainScope::All, "test");
        let mut drained = Box::pin(drained);
        assert!(futures_util::poll!(drained.as_mut()).is_pending());
        let flushed = graph.ask(FlushAll);
        assert_eq!(graph.ask(ListDrains).await.expect("an answer").len(), 1);
        graph
            .ask(CancelInFlight {
                node_name: "top".to_owned(),
                alone: false,
            })
            .await
            .expect("the node is there");
        for (result, buffers) in join_all(reads)
            .await
            .into_iter()
            .map(|read| read.expect("a task"))
        {
            assert_eq!((result, buffers.len()), (Err(IoError::Cancelled), 512));
        }
        drop(drained.await.expect("nothing hangs any more"));
        flushed.await.expect("the change has its turn");
        assert_eq!(hanging.load(Ordering::SeqCst), 0);
        // What comes later is not cancelled by it.
        let later = read(0);
        until(|| hanging.load(Ordering::SeqCst) == 1).await;
        graph
            .ask(CancelInFlight {
                node_name: "hang".to_owned(),
                alone: false,
            })
            .await
            .expect("the node is there");
        assert_eq!(later.await.expect("a task").0, Err(IoError::Cancelled));
        let error = graph
            .ask(CancelInFlight {
                node_name: "none".to_owned(),
                alone: false,
            })
            .await
            .expect_err("there is none");
        assert_eq!(error.kind(), ErrorKind::NotFound);
    });
}

#[test]
fn what_hangs_below_a_window_is_cancelled_through_it() {
    with_hang(|graph, _, hanging| async move {
        let node = json!({"driver": "raw", "node-name": "window", "size": 4096, "file": "hang"});
        graph.add_node(options(node)).await.expect("it opens");
        let client = graph.attach(RootRequest::new(
            "window",
            RootUser::Embedder("window".to_owned()),
            Permissions::CONSISTENT_READ,
        ));
        let client = client.await.expect("it is free");
        let reader = client.clone();
        let read = actix_rt::spawn(async move { reader.read(0, Buffers::zeroed(512)).await });
        until(|| hanging.load(Ordering::SeqCst) == 1).await;
        graph
            .ask(CancelInFlight {
                node_name: "window".to_owned(),
                alone: false,
            })
            .await
            .expect("the node is there");
        assert_eq!(read.await.expect("a task").0, Err(IoError::Cancelled));
        graph.detach(client.root()).await.expect("it was attached");
    });
}

/// Runs code of a test where the client's node lives.
async fn at_home<T, F>(client: &Client, code: impl FnOnce() -> F + Send + 'static) -> T
where
    T: Send + 'static,
    F: Future<Output = T> + 'static,
{
    let (send, answer) = oneshot::channel();
    let job = move || {
        let local = Local::current().expect("an iothread");
        local.spawn(async move { drop(send.send(code().await)) });
    };
    assert!(client.home().send(Mail::Run(Box::new(job))).is_ok());
    answer.await.expect("the iothread runs it")
}

fn read() -> Operation<Buffers> {
    Operation::Read {
        offset: 0,
        buffers: Buffers::zeroed(512),
        flags: RequestFlags::empty(),
    }
}

#[test]
fn a_request_that_is_parked_is_cancelled_and_one_in_flight_is_waited_for() {
    with_hang(|graph, client, hanging| async move {
        let section = graph.drain(DrainScope::Node("top".to_owned()), "test").await;
        let section = section.expect("nothing is in flight");
        let home = client.clone();
        let (waited, asked) = at_home(&client, move || async move {
            let client = home.here();
            let mut parked = client.start(read());
            assert!(
                futures_util::poll!(&mut parked).is_pending(),
                "the gate is closed"
            );
            let waited = parked.cancel().await.result;
            let mut asked = client.start(read());
            assert!(futures_util::poll!(&mut asked).is_pending());
            asked.cancel_async();
            (waited, asked.await.result)
        })
        .await;
        assert_eq!(
            (waited, asked),
            (Err(IoError::Cancelled), Err(IoError::Cancelled))
        );
        // Answered when the node has been told: what is sent there afterwards finds the gate open.
        graph
            .ask(DrainEnd(section.token()))
            .await
            .expect("it is in force");
        let (home, hangs) = (client.clone(), Arc::clone(&hanging));
        let (told, begun) = oneshot::channel();
        let in_flight = at_home(&client, move || async move {
            let mut started = home.here().start(read());
            assert!(futures_util::poll!(&mut started).is_pending());
            assert_eq!(
                hangs.load(Ordering::SeqCst),
                1,
                "the cancelled ones never reached the driver"
            );
            told.send(()).expect("the test waits for it");
            started.cancel().await
        });
        let released = async {
            begun.await.expect("it has begun");
            graph
                .ask(CancelInFlight {
                    node_name: "hang".to_owned(),
                    alone: false,
                })
                .await
                .expect("the node is there");
        };
        let (outcome, ()) = futures_util::future::join(in_flight, released).await;
        assert_eq!(outcome.result, Err(IoError::Cancelled));
        assert_eq!(
            outcome.buffers.map(|buffers| buffers.len()),
            Some(512),
            "it ended in the driver"
        );
    });
}
