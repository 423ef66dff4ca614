//! The fast path comes to the same as the slow one, and a node hears of exactly the ranges that are written to it.
//!
//! The same nodes are made twice and asked the same, once by whatever way is fastest and once by the way that takes
//! everything. Answers, data, counters and what nodes hear of writes must be alike.

use std::sync::Arc;

use millpond_drivers::api::DriverKind;
use millpond_drivers::builtin::builtin;
use millpond_messages::graph::Options;
use millpond_messages::io::{Operation, Outcome};
use millpond_messages::{IoResult, NodeId, NodeStatistics, OperationCount, Range, RequestFlags};
use millpond_ring::buffer::Buffers;
use proptest::prelude::*;
use serde_json::json;

use super::driver::Shape;
use super::world::{World, answer, bytes};
use crate::node::cell::observed;
use crate::node::io::fast_path;
use crate::node::{Client, IothreadOrder, NodeAddress, Order, OrderOutcome, Wiring};

/// Bytes of the nodes at the bottom.
const SIZE: u64 = 48 << 10;
/// The last offset at which requests begin: some are past the end.
const OFFSETS: u64 = SIZE + 1024;

/// What is put on top of the nodes that there are.
#[derive(Debug, Clone, Copy)]
enum Layer {
    /// Hands everything on.
    Filter,
    /// Stores in memory what is written, and shows what is below.
    Overlay,
    /// Shows what is below from an offset on.
    Window(u64),
    /// Copies up into an overlay below it, where there is one.
    CopyOnRead,
    /// A new qcow2 image, in what is below.
    Qcow2,
}

#[derive(Debug, Clone)]
enum Ask {
    Read(u64, u64, RequestFlags),
    Write(u64, u64, u8, RequestFlags),
    Zeroes(u64, u64, RequestFlags),
    Discard(u64, u64),
    Flush,
    Status(u64, u64),
}

impl Ask {
    fn operation(&self) -> Operation<Buffers> {
        let range = |offset, len| Range::new(offset, len).unwrap();
        match *self {
            Self::Read(offset, len, flags) => Operation::Read {
                offset,
                buffers: Buffers::zeroed(len as usize),
                flags,
            },
            Self::Write(offset, len, fill, flags) => Operation::Write {
                offset,
                buffers: bytes(fill, len as usize),
                flags,
            },
            Self::Zeroes(offset, len, flags) => Operation::WriteZeroes {
                range: range(offset, len),
                flags,
            },
            Self::Discard(offset, len) => Operation::Discard {
                range: range(offset, len),
            },
            Self::Flush => Operation::Flush,
            Self::Status(offset, len) => Operation::BlockStatus {
                range: range(offset, len),
                want_zero: true,
                whole_chain: true,
                base: None,
            },
        }
    }

    /// What the node that is asked hears of afterwards, if all goes well.
    fn writes(&self) -> Option<Range> {
        match *self {
            Self::Write(offset, len, ..) | Self::Zeroes(offset, len, _) => Range::new(offset, len).ok(),
            _ => None,
        }
    }
}

fn ask() -> impl Strategy<Value = Ask> {
    let flags = |more: &[RequestFlags]| {
        let mut all = vec![RequestFlags::empty(); 3];
        all.extend(more);
        prop::sample::select(all)
    };
    let whole = (0..OFFSETS / 512, 1_u64..16).prop_map(|(first, count)| (first * 512, count * 512));
    let range = prop_oneof![whole, (0..OFFSETS, 0_u64..6000)];
    let writes = [RequestFlags::FUA, RequestFlags::WRITE_UNCHANGED];
    prop_oneof![
        4 => (range.clone(), flags(&[RequestFlags::COPY_ON_READ])).prop_map(|((o, l), f)| Ask::Read(o, l, f)),
        5 => (range.clone(), 0_u8..4, flags(&writes)).prop_map(|((o, l), b, f)| Ask::Write(o, l, b, f)),
        2 => (range.clone(), flags(&[RequestFlags::MAY_UNMAP])).prop_map(|((o, l), f)| Ask::Zeroes(o, l, f)),
        1 => range.clone().prop_map(|(o, l)| Ask::Discard(o, l)),
        1 => Just(Ask::Flush),
        1 => range.prop_map(|(o, l)| Ask::Status(o, l)),
    ]
}

fn layer() -> impl Strategy<Value = Layer> {
    prop_oneof![
        Just(Layer::Filter),
        Just(Layer::Overlay),
        (0_u64..4).prop_map(|sectors| Layer::Window(sectors * 512)),
        Just(Layer::CopyOnRead),
        Just(Layer::Qcow2),
    ]
}

type Written = Vec<(NodeId, Range, IoResult<()>)>;

/// Nodes one above the other, the last one asked.
struct Chain {
    world: World,
    nodes: Vec<NodeId>,
    client: Client,
}

fn kind(name: &str) -> Arc<dyn DriverKind> {
    Arc::clone(builtin().find(name).unwrap())
}

fn options(value: serde_json::Value) -> Options {
    serde_json::from_value(value).unwrap()
}

impl Chain {
    fn new(layers: &[Layer], fast: bool) -> Self {
        let world = World::new(1);
        let mut nodes = vec![world.memory(0, if has_image(layers) { 1 << 20 } else { SIZE as usize })];
        for layer in layers {
            let below = world.address(0, *nodes.last().unwrap());
            nodes.push(put_on(&world, *layer, below));
        }
        let client = world.client(0, *nodes.last().unwrap());
        let chain = Self { world, nodes, client };
        chain.run(move || fast_path::set_off(!fast));
        chain.written();
        chain
    }

    /// Runs code on the iothread.
    fn run<T: Send + 'static>(&self, code: impl FnOnce() -> T + Send + 'static) -> T {
        answer(&self.world.task(0, move || async move { code() }))
    }

    /// Asks, and tells the answer with the data.
    fn ask(&self, operation: Operation<Buffers>) -> (String, Option<Vec<u8>>) {
        let client = self.client.clone();
        let Outcome { result, buffers } = answer(
            &self
                .world
                .task(0, move || async move { client.here().request(operation).await }),
        );
        (format!("{result:?}"), buffers.map(|buffers| buffers.to_vec()))
    }

    /// Node by node: which of them hears first is no matter.
    fn written(&self) -> Written {
        let mut written = self.run(observed::take);
        written.sort_by_key(|(node, range, _)| (node.0, range.offset()));
        written
    }

    /// What the nodes have counted, but for times.
    fn counted(&self) -> Vec<(NodeId, NodeStatistics)> {
        let order = Order::Iothread(IothreadOrder::Statistics(self.nodes.clone()));
        let OrderOutcome::Statistics(mut all) = self.world.order(0, order) else {
            panic!("another answer than was asked for")
        };
        for (_, each) in &mut all {
            each.idle_ns = None;
            let kinds: [&mut OperationCount; 8] = [
                &mut each.read,
                &mut each.write,
                &mut each.write_zeroes,
                &mut each.discard,
                &mut each.flush,
                &mut each.truncate,
                &mut each.block_status,
                &mut each.driver_discard,
            ];
            kinds.into_iter().for_each(|kind| kind.total_time_ns = 0);
        }
        all
    }

    fn requests(&self) -> u64 {
        match self.world.order(0, Order::Iothread(IothreadOrder::Counters)) {
            OrderOutcome::Counters(counters) => counters.requests,
            _ => panic!("another answer than was asked for"),
        }
    }
}

fn has_image(layers: &[Layer]) -> bool {
    layers.iter().any(|layer| matches!(layer, Layer::Qcow2))
}

fn put_on(world: &World, layer: Layer, below: NodeAddress) -> NodeId {
    match layer {
        Layer::Filter => world.filter(0, below),
        Layer::Overlay => world.open(0, world.kind(Shape::Overlay, SIZE as usize), vec![Some(below)]),
        Layer::Window(offset) => world.open_with(
            0,
            kind("raw"),
            options(json!({ "offset": offset })),
            vec![Some(below)],
        ),
        Layer::CopyOnRead => world.open(0, kind("copy-on-read"), vec![Some(below)]),
        Layer::Qcow2 => {
            let create = Wiring::Create {
                kind: kind("qcow2"),
                options: options(json!({"size": SIZE, "cluster-size": 4096})),
                file: Some(below.clone()),
                header: None,
                data_file: None,
            };
            world.done(0, Order::Wiring(create));
            let children = kind("qcow2").children().len();
            let mut below = vec![Some(below)];
            below.resize(children, None);
            world.open_with(0, kind("qcow2"), Options::new(), below)
        }
    }
}

/// The tests' overlay has blocks of its own, and a read that copies into such a node would wait for itself. No driver that is
/// built in is like that: those with something below them store in a child.
fn without_copies_into_blocks(layers: Vec<Layer>, asks: Vec<Ask>) -> (Vec<Layer>, Vec<Ask>) {
    if !layers.iter().any(|layer| matches!(layer, Layer::Overlay)) {
        return (layers, asks);
    }
    let copies = |layer: &Layer| matches!(layer, Layer::CopyOnRead);
    let asks = asks.into_iter().map(|ask| match ask {
        Ask::Read(offset, len, _) => Ask::Read(offset, len, RequestFlags::empty()),
        other => other,
    });
    (
        layers.into_iter().filter(|layer| !copies(layer)).collect(),
        asks.collect(),
    )
}

/// The ranges that a node heard of, put together; none where two overlap.
fn together(written: &Written, node: NodeId) -> Option<Range> {
    let mut ranges: Vec<Range> = written
        .iter()
        .filter(|(id, _, result)| *id == node && result.is_ok())
        .map(|(_, range, _)| *range)
        .collect();
    ranges.sort_by_key(|range| range.offset());
    let (first, last) = (ranges.first()?, ranges.last()?);
    let adjoin = ranges.windows(2).all(|pair| pair[0].end() == pair[1].offset());
    adjoin.then(|| Range::between(first.offset(), last.end()))
}

/// What a chain made of everything that it was asked.
#[derive(Debug, PartialEq)]
struct Course {
    answers: Vec<(String, Option<Vec<u8>>)>,
    written: Vec<Written>,
    counted: Vec<(NodeId, NodeStatistics)>,
    requests: u64,
    data: Vec<(String, Option<Vec<u8>>)>,
}

fn course(layers: &[Layer], asks: &[Ask], fast: bool) -> Course {
    let chain = Chain::new(layers, fast);
    let top = *chain.nodes.last().unwrap();
    let (mut answers, mut written) = (Vec::new(), Vec::new());
    for ask in asks {
        let answer = chain.ask(ask.operation());
        let heard = chain.written();
        if let Some(range) = ask
            .writes()
            .filter(|range| !range.is_empty() && answer.0.starts_with("Ok"))
        {
            assert_eq!(
                together(&heard, top),
                Some(range),
                "{ask:?} in {layers:?}: {heard:?}"
            );
        }
        answers.push(answer);
        written.push(heard);
    }
    let (counted, requests) = (chain.counted(), chain.requests());
    let read = |sector| chain.ask(Ask::Read(sector * 512, 512, RequestFlags::empty()).operation());
    Course {
        answers,
        written,
        counted,
        requests,
        data: (0..SIZE / 512).map(read).collect(),
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, ..ProptestConfig::default() })]

    #[test]
    fn the_fast_path_equals_the_slow_path(
        layers in prop::collection::vec(layer(), 0..5),
        asks in prop::collection::vec(ask(), 1..24),
    ) {
        let (layers, asks) = without_copies_into_blocks(layers, asks);
        let (fast, slow) = (course(&layers, &asks, true), course(&layers, &asks, false));
        prop_assert_eq!(fast, slow);
    }
}

/// What a discard forgets is a part of what was asked: whole blocks of the node.
#[test]
fn a_node_hears_of_what_a_discard_forgets() {
    let chain = Chain::new(&[Layer::Qcow2], true);
    let top = *chain.nodes.last().unwrap();
    let (result, _) = chain.ask(Ask::Write(0, 16384, 1, RequestFlags::empty()).operation());
    assert!(result.starts_with("Ok"), "{result}");
    chain.written();
    chain.ask(Ask::Discard(100, 9000).operation());
    let heard = chain.written();
    assert_eq!(
        together(&heard, top),
        Some(Range::between(4096, 8192)),
        "{heard:?}"
    );
}
