//! What an embedder's driver is promised without doing anything for it: ranges within its length, and no option that it does
//! not take.

use std::cell::RefCell;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use futures_util::future::LocalBoxFuture;
use millpond::graph::{Graph, GraphConfig, GraphHandle, ImplicitOpens, system_iothreads};
use millpond::node::Client;
use millpond_drivers::api::{
    Abilities, Ability, AllocationTicket, Answer, At, ChildKind, CreateRequest, Driver, DriverKind, Extent,
    Lifecycle, Moved, OpenRequest, Opened, OptionNames, Placement, Purpose, ReopenRequest, SavesState,
    Transfer,
};
use millpond_drivers::builtin::builtin;
use millpond_messages::graph::{IothreadOptions, MakeImage, Options, Reopen, RootRequest, RootUser};
use millpond_messages::io::Preallocation;
use millpond_messages::{
    Error, ErrorKind, IoError, IoResult, Limits, Permissions, Range, RequestFlags, Result, SECTOR_SIZE,
};
use millpond_ring::Engine;
use millpond_ring::buffer::{Buffer, Buffers};
use serde_json::{Value, json};

/// Bytes in memory that are as many as they are: what passes their end is a fault of whoever asked.
struct StrictKind {
    /// Ranges that passed the end.
    faults: Arc<AtomicUsize>,
    asked: Arc<AtomicUsize>,
}

const ALIGNMENT: u32 = 4096;

impl DriverKind for StrictKind {
    fn name(&self) -> &'static str {
        "strict"
    }

    fn children(&self) -> &'static [ChildKind] {
        &[]
    }

    fn is_protocol(&self) -> bool {
        true
    }

    fn option_names(&self) -> OptionNames {
        OptionNames::These(&["size", "most"])
    }

    fn create_option_names(&self) -> OptionNames {
        OptionNames::These(&["label"])
    }

    fn open(&self, request: OpenRequest) -> LocalBoxFuture<'static, Result<Opened>> {
        self.asked.fetch_add(1, Ordering::SeqCst);
        let number = |name: &str| request.options.get(name).and_then(Value::as_u64);
        let bytes = vec![0; number("size").unwrap_or(0) as usize];
        let driver = Strict {
            bytes: RefCell::new(bytes),
            most: number("most").unwrap_or(u64::MAX),
            faults: Arc::clone(&self.faults),
        };
        Box::pin(async move {
            Ok(Opened {
                driver: Rc::new(driver),
                flags: request.flags,
                backing: None,
            })
        })
    }

    fn create(&self, _: CreateRequest) -> LocalBoxFuture<'static, Result<()>> {
        self.asked.fetch_add(1, Ordering::SeqCst);
        Box::pin(async { Ok(()) })
    }
}

struct Strict {
    bytes: RefCell<Vec<u8>>,
    /// The most bytes that it can be made to have.
    most: u64,
    faults: Arc<AtomicUsize>,
}

impl Strict {
    /// The length, rounded up as the contract has it.
    fn rounded(&self) -> u64 {
        let len = self.bytes.borrow().len() as u64;
        len.next_multiple_of(SECTOR_SIZE)
            .next_multiple_of(u64::from(ALIGNMENT))
    }

    fn check(&self, offset: u64, len: u64) {
        let aligned = offset.is_multiple_of(u64::from(ALIGNMENT)) && len.is_multiple_of(u64::from(ALIGNMENT));
        if len == 0 || !aligned || offset + len > self.rounded() {
            self.faults.fetch_add(1, Ordering::SeqCst);
        }
    }
}

impl Driver for Strict {
    fn abilities(&self) -> Abilities {
        Abilities {
            limits: Limits {
                request_alignment: ALIGNMENT,
                ..Limits::default()
            },
            write_zeroes: Ability::Native,
            discard: Ability::Native,
            ..Abilities::default()
        }
    }

    fn locate(&self, _: Purpose, range: Range) -> Answer<'_, IoResult<Extent>> {
        if range.is_empty() || range.end() > self.rounded() {
            self.faults.fetch_add(1, Ordering::SeqCst);
        }
        Answer::ready(Ok(Extent::new(range.len(), At::Own)))
    }

    fn read(self: Rc<Self>, offset: u64, mut buffers: Buffers, _: RequestFlags) -> Answer<'static, Transfer> {
        self.check(offset, buffers.len() as u64);
        let bytes = self.bytes.borrow();
        let start = (offset as usize).min(bytes.len());
        let end = (start + buffers.len()).min(bytes.len());
        let len = buffers.len();
        buffers.fill_zero(0..len);
        buffers.copy_from_slice(0, &bytes[start..end]);
        drop(bytes);
        Answer::ready((Ok(()), buffers))
    }

    fn place(&self, range: Range, _: RequestFlags) -> Answer<'_, IoResult<Placement>> {
        if range.is_empty() || range.end() > self.rounded() {
            self.faults.fetch_add(1, Ordering::SeqCst);
        }
        Answer::ready(Ok(Placement::own(range.len())))
    }

    fn settle(&self, _: AllocationTicket, written: IoResult<()>) -> Answer<'_, IoResult<()>> {
        Answer::ready(written)
    }

    fn write(self: Rc<Self>, offset: u64, buffers: Buffers, _: RequestFlags) -> Answer<'static, Transfer> {
        self.check(offset, buffers.len() as u64);
        let mut bytes = self.bytes.borrow_mut();
        let start = (offset as usize).min(bytes.len());
        let end = (start + buffers.len()).min(bytes.len());
        bytes[start..end].copy_from_slice(&buffers.to_vec()[..end - start]);
        drop(bytes);
        Answer::ready((Ok(()), buffers))
    }

    fn write_zeroes(&self, range: Range, _: RequestFlags) -> Answer<'_, IoResult<()>> {
        self.check(range.offset(), range.len());
        let mut bytes = self.bytes.borrow_mut();
        let end = (range.end() as usize).min(bytes.len());
        let start = (range.offset() as usize).min(end);
        bytes[start..end].fill(0);
        Answer::ready(Ok(()))
    }

    fn discard(&self, range: Range) -> Answer<'_, IoResult<()>> {
        if range.is_empty() || range.end() > self.rounded() {
            self.faults.fetch_add(1, Ordering::SeqCst);
        }
        Answer::ready(Ok(()))
    }

    fn flush(&self) -> Answer<'_, IoResult<()>> {
        Answer::ready(Ok(()))
    }

    fn truncate(&self, size: u64, _: bool, _: Preallocation, _: RequestFlags) -> Answer<'_, Result<()>> {
        if size > self.most {
            return Answer::ready(Err(Error::io("It is full", IoError::NoSpace)));
        }
        self.bytes.borrow_mut().resize(size as usize, 0);
        Answer::ready(Ok(()))
    }

    fn length(&self) -> Answer<'_, IoResult<u64>> {
        Answer::ready(Ok(self.bytes.borrow().len() as u64))
    }

    fn allocated_size(&self) -> Answer<'_, IoResult<u64>> {
        Answer::ready(Ok(0))
    }
}

impl Lifecycle for Strict {
    fn reopen_prepare(&self, _: ReopenRequest) -> Answer<'_, Result<()>> {
        Answer::ready(Ok(()))
    }

    fn saved_state(&self) -> Option<&dyn SavesState> {
        None
    }

    fn depart(&self) -> Moved {
        unreachable!("nobody moves it")
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

/// A graph with the strict driver, of which `faults` and `asked` count.
fn with_strict<F: Future<Output = ()>>(
    test: impl FnOnce(GraphHandle, Arc<AtomicUsize>, Arc<AtomicUsize>) -> F,
) {
    actix_rt::System::new().block_on(async {
        let (faults, asked) = <(Arc<AtomicUsize>, Arc<AtomicUsize>)>::default();
        let mut registry = builtin();
        let kind = StrictKind {
            faults: Arc::clone(&faults),
            asked: Arc::clone(&asked),
        };
        registry.register(Arc::new(kind)).expect("a new name");
        let config = GraphConfig {
            registry,
            implicit: ImplicitOpens::Allow,
            iothreads: system_iothreads(Engine::Auto),
            main: IothreadOptions::named("main"),
        };
        let (_, graph) = Graph::start(config).expect("an iothread can be started");
        test(graph.clone(), faults, asked).await;
        graph.close_all().await.expect("everything closes");
    });
}

async fn attach(graph: &GraphHandle, node: &str) -> Client {
    let request = RootRequest::new(
        node,
        RootUser::Embedder("test".to_owned()),
        Permissions::CONSISTENT_READ | Permissions::WRITE,
    );
    graph.attach(request).await.expect("it is free")
}

#[test]
fn a_driver_that_does_not_grow_sees_no_range_past_its_end() {
    with_strict(|graph, faults, _| async move {
        let node = json!({"driver": "strict", "node-name": "s"});
        graph.add_node(options(node)).await.expect("it opens");
        let image = json!({"driver": "qcow2", "file": "s", "size": 8 << 20, "cluster-size": 512});
        graph.ask(MakeImage(options(image))).await.expect("it is made");
        let disk = json!({"driver": "qcow2", "node-name": "disk", "file": "s", "discard": "unmap"});
        graph.add_node(options(disk)).await.expect("it opens");
        let client = attach(&graph, "disk").await;
        let mut random = fastrand::Rng::with_seed(4);
        let mut model = vec![0_u8; 8 << 20];
        for _ in 0..200 {
            let offset = random.usize(0..(8 << 20) - 70_000);
            let len = random.usize(1..70_000);
            let (at, bytes) = (offset as u64, len as u64);
            let range = offset..offset + len;
            match random.u8(0..4) {
                0 => {
                    let zeroed = client.write_zeroes(at, bytes, RequestFlags::MAY_UNMAP).await;
                    zeroed.expect("it can be written");
                    model[range].fill(0);
                }
                1 => client.discard(at & !511, 65536).await.map_or_else(
                    |error| panic!("it can be discarded: {error}"),
                    |()| model[offset & !511..(offset & !511) + 65536].fill(0),
                ),
                _ => {
                    let byte = random.u8(1..);
                    let data = Buffers::from(Buffer::from_slice(&vec![byte; len]));
                    let written = client.write(at, data, RequestFlags::empty()).await;
                    written.0.expect("it can be written");
                    model[range].fill(byte);
                }
            }
        }
        let (read, data) = client.read(0, Buffers::zeroed(8 << 20)).await;
        read.expect("it can be read");
        assert!(data.to_vec() == model, "it reads as it was written");
        client.flush().await.expect("it can be flushed");
        graph.detach(client.root()).await.expect("it was attached");
        graph.delete_node("disk").await.expect("nobody uses it");
        graph.delete_node("s").await.expect("nobody uses it");
        assert_eq!(faults.load(Ordering::SeqCst), 0);
    });
}

#[test]
fn a_driver_that_cannot_be_made_longer_refuses_and_sees_nothing_past_its_end() {
    with_strict(|graph, faults, _| async move {
        let node = json!({"driver": "strict", "node-name": "s", "size": 4096, "most": 8192});
        graph.add_node(options(node)).await.expect("it opens");
        let image = json!({"driver": "qcow2", "file": "s", "size": 1 << 20});
        let error = graph
            .ask(MakeImage(options(image)))
            .await
            .expect_err("it is too small");
        assert_eq!(error.errno(), 28, "{error}");
        graph.delete_node("s").await.expect("nobody uses it");
        assert_eq!(faults.load(Ordering::SeqCst), 0);
    });
}

/// A driver that says nothing of options.
struct SilentKind;

impl DriverKind for SilentKind {
    fn name(&self) -> &'static str {
        "silent"
    }

    fn children(&self) -> &'static [ChildKind] {
        &[]
    }

    fn is_protocol(&self) -> bool {
        true
    }

    fn open(&self, _: OpenRequest) -> LocalBoxFuture<'static, Result<Opened>> {
        Box::pin(async { Err(Error::new(ErrorKind::Unsupported, "It was opened")) })
    }
}

#[test]
fn options_that_a_driver_does_not_take_are_refused_before_it_is_asked() {
    with_strict(|graph, _, asked| async move {
        let refused = |error: Error, name: &str| {
            assert_eq!(error.to_string(), format!("Parameter '{name}' is unexpected"));
            assert_eq!(error.kind(), ErrorKind::InvalidArgument);
        };
        let misspelt = json!({"driver": "strict", "node-name": "s", "sise": 4096});
        refused(
            graph
                .add_node(options(misspelt))
                .await
                .expect_err("it is misspelt"),
            "sise",
        );
        let below =
            json!({"driver": "raw", "node-name": "r", "file": {"driver": "strict", "size": 1, "mots": 2}});
        refused(
            graph.add_node(options(below)).await.expect_err("it is misspelt"),
            "mots",
        );
        let image = json!({"driver": "strict", "lable": "x"});
        refused(
            graph
                .ask(MakeImage(options(image)))
                .await
                .expect_err("it is misspelt"),
            "lable",
        );
        assert_eq!(asked.load(Ordering::SeqCst), 0);
        graph
            .ask(MakeImage(options(json!({"driver": "strict", "label": "x"}))))
            .await
            .expect("that is its name");
        let node = json!({"driver": "strict", "node-name": "s", "size": 4096});
        graph.add_node(options(node)).await.expect("that is its name");
        assert_eq!(asked.load(Ordering::SeqCst), 2);
        let reopened = json!({"driver": "strict", "node-name": "s", "size": 4096, "colour": 1});
        let error = graph
            .ask(Reopen(vec![options(reopened)]))
            .await
            .expect_err("there is none");
        refused(error, "colour");
        graph.delete_node("s").await.expect("nobody uses it");
    });
}

#[test]
fn a_driver_that_says_nothing_of_options_takes_none() {
    actix_rt::System::new().block_on(async {
        let mut registry = builtin();
        registry.register(Arc::new(SilentKind)).expect("a new name");
        let config = GraphConfig {
            registry,
            implicit: ImplicitOpens::Allow,
            iothreads: system_iothreads(Engine::Auto),
            main: IothreadOptions::named("main"),
        };
        let (_, graph) = Graph::start(config).expect("an iothread can be started");
        for (node, text) in [
            (
                json!({"driver": "silent", "node-name": "n", "any": 1}),
                "Parameter 'any' is unexpected",
            ),
            (json!({"driver": "silent", "node-name": "n"}), "It was opened"),
        ] {
            let error = graph.add_node(options(node)).await.expect_err("it is refused");
            assert_eq!(error.to_string(), text);
        }
        graph.close_all().await.expect("everything closes");
    });
}
