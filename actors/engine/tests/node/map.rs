//! Maps of chains: each extent as it is asked for alone, by asking the chain only what its layers can tell anew.

use std::sync::atomic::Ordering;

use futures_executor::block_on;
use millpond_engine::node::Client;
use millpond_messages::io::Operation;
use millpond_messages::{BlockStatus, Range, StatusFlags};

use super::driver::Shape;
use super::world::{World, bytes};
use super::{PLAIN, read};

const SECTOR: u64 = 512;

/// A chain of overlays over some bytes. Each has one sector, another than all others; one sector at the end no overlay has.
/// Which sector that of depth `depth` has is not in the order of the chain.
struct Chain {
    client: Client,
    layers: usize,
}

fn sector_of(depth: usize, layers: usize) -> usize {
    depth * 7 % layers
}

impl Chain {
    /// `place` says of a depth on which iothread it is, and whether a filter is above it.
    fn new(world: &World, layers: usize, place: impl Fn(usize) -> (usize, bool)) -> Self {
        let size = (layers + 1) * SECTOR as usize;
        let mut at = (place(layers + 1).0, world.memory(place(layers + 1).0, size));
        for depth in (1..=layers).rev() {
            let (iothread, is_filtered) = place(depth);
            let below = world.address(at.0, at.1);
            let overlay = world.open(iothread, world.kind(Shape::Overlay, size), vec![Some(below)]);
            let sector = sector_of(depth, layers) as u64;
            let client = world.client(iothread, overlay);
            block_on(client.write(sector * SECTOR, bytes(1, 512), PLAIN))
                .0
                .unwrap();
            at = (iothread, overlay);
            if is_filtered {
                at.1 = world.filter(iothread, world.address(iothread, overlay));
            }
        }
        let client = world.client(at.0, at.1);
        Self { client, layers }
    }

    fn end(&self) -> u64 {
        (self.layers as u64 + 1) * SECTOR
    }

    /// The whole map by as many requests as it takes; how many those were.
    fn map(&self) -> (Vec<BlockStatus>, usize) {
        let (mut extents, mut at, mut requests) = (Vec::new(), 0, 0);
        while at < self.end() {
            let operation = Operation::Map {
                range: Range::between(at, self.end()),
                want_zero: true,
                whole_chain: true,
            };
            let part = block_on(self.client.request(operation)).into_map().unwrap();
            at += part.iter().map(|extent| extent.len).sum::<u64>();
            extents.extend(part);
            requests += 1;
        }
        assert_eq!(at, self.end());
        (extents, requests)
    }

    /// The same, asked for extent by extent.
    fn one_by_one(&self) -> Vec<BlockStatus> {
        let (mut extents, mut at) = (Vec::new(), 0);
        while at < self.end() {
            let status = block_on(self.client.block_status(at, self.end() - at, true, true)).unwrap();
            extents.push(status);
            at += status.len;
        }
        extents
    }
}

#[test]
fn a_map_tells_of_each_extent_what_is_told_of_it_alone() {
    type Place = fn(usize) -> (usize, bool);
    let places: [(&str, Place); 4] = [
        ("one iothread", |_| (0, false)),
        ("another iothread below", |depth| (usize::from(depth > 40), false)),
        ("iothreads in turn", |depth| (depth % 2, false)),
        ("filters between", |depth| (0, depth == 1 || depth % 30 == 0)),
    ];
    for (what, place) in places {
        let world = World::new(2);
        let chain = Chain::new(&world, 100, place);
        let (map, _) = chain.map();
        assert_eq!(map.len(), 101, "{what}");
        assert_eq!(map, chain.one_by_one(), "{what}");
        assert!(map.last().unwrap().flags.contains(StatusFlags::EOF), "{what}");
    }
}

#[test]
fn what_a_chain_is_asked_for_its_map_grows_as_the_chain_does() {
    for layers in [10, 100, 999] {
        let world = World::new(1);
        let chain = Chain::new(&world, layers, |_| (0, false));
        world.control.located.store(0, Ordering::SeqCst);
        let (map, requests) = chain.map();
        let located = world.control.located.load(Ordering::SeqCst) as usize;
        assert_eq!(map.len(), layers + 1);
        for (sector, extent) in map.iter().take(layers).enumerate() {
            let depth = extent.depth as usize;
            assert_eq!(sector_of(depth, layers), sector, "of {layers} layers");
        }
        assert_eq!(map[layers].depth as usize, layers + 1);
        assert!(
            located <= 5 * (layers + 1),
            "{layers} layers were asked {located} times"
        );
        assert!(requests <= 3, "{requests} requests for {layers} layers");
    }
}

/// A layer that is shorter than the one above it has zeroes behind its end, and so have those that are left out no say there.
#[test]
fn a_map_goes_on_behind_the_end_of_a_short_layer() {
    let world = World::new(1);
    let below = world.memory(0, 4 * SECTOR as usize);
    let short = world.open(
        0,
        world.kind(Shape::Overlay, 2 * SECTOR as usize),
        vec![Some(world.address(0, below))],
    );
    let top = world.open(
        0,
        world.kind(Shape::Overlay, 4 * SECTOR as usize),
        vec![Some(world.address(0, short))],
    );
    let client = world.client(0, top);
    block_on(client.write(3 * SECTOR, bytes(1, 512), PLAIN))
        .0
        .unwrap();
    let chain = Chain { client, layers: 3 };
    let (map, _) = chain.map();
    let shown: Vec<(u64, u32)> = map.iter().map(|extent| (extent.len, extent.depth)).collect();
    assert_eq!(shown, [(1024, 3), (512, 2), (512, 1)]);
    assert_eq!(map, chain.one_by_one());
    assert_eq!(read(&chain.client, 2 * SECTOR, 512), [0; 512]);
}
