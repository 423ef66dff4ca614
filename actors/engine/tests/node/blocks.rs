//! Requests whose pieces share blocks with others, on drivers that store what they are given and ask for whole blocks: none
//! of them waits for itself.

use std::sync::atomic::Ordering;

use crossbeam_channel::unbounded;
use futures_executor::block_on;
use millpond_engine::node::Client;
use millpond_messages::RequestFlags;
use millpond_messages::io::Operation;
use millpond_ring::buffer::Buffers;

use super::driver::Shape;
use super::world::{World, answer, bytes};
use super::{PLAIN, read};

/// What a request comes to. The test fails where it does not end.
fn ended<T: Send + 'static>(request: impl Future<Output = T> + Send + 'static) -> T {
    let (sender, end) = unbounded();
    std::thread::spawn(move || sender.send(block_on(request)));
    answer(&end)
}

fn copying_read(client: &Client, offset: u64, len: usize) -> Vec<u8> {
    let client = client.clone();
    let outcome = ended(async move {
        let operation = Operation::Read {
            offset,
            buffers: Buffers::zeroed(len),
            flags: RequestFlags::COPY_ON_READ,
        };
        client.request(operation).await
    });
    let (result, buffers) = outcome.into_parts();
    result.unwrap();
    buffers.expect("they come back").to_vec()
}

/// An overlay of blocks of 512 bytes over some bytes, clients of both.
fn overlay(world: &World, clusters: u32) -> (Client, Client) {
    let below = world.memory(0, 4096);
    world.control.clusters.store(clusters, Ordering::SeqCst);
    let kind = world.kind(Shape::Overlay, 4096);
    let above = world.open(0, kind, vec![Some(world.address(0, below))]);
    (world.client(0, below), world.client(0, above))
}

#[test]
fn a_read_that_is_copied_up_does_not_wait_for_its_own_copy() {
    for clusters in [0, 1024] {
        let world = World::new(1);
        let (below, above) = overlay(&world, clusters);
        block_on(below.write(0, bytes(7, 4096), PLAIN)).0.unwrap();
        for (offset, len) in [(0, 512), (700, 100), (1500, 1000)] {
            assert_eq!(copying_read(&above, offset, len), vec![7; len]);
        }
        block_on(below.write(0, bytes(9, 4096), PLAIN)).0.unwrap();
        assert_eq!(
            read(&above, 512, 2048),
            [7; 2048],
            "the blocks are the overlay's own"
        );
        assert_eq!(read(&above, 3072, 512), [9; 512]);
    }
}

#[test]
fn nor_does_one_of_zeroes() {
    for clusters in [0, 1024] {
        let world = World::new(1);
        let (below, above) = overlay(&world, clusters);
        assert_eq!(copying_read(&above, 700, 100), [0; 100]);
        block_on(below.write(0, bytes(9, 4096), PLAIN)).0.unwrap();
        assert_eq!(read(&above, 512, 512), [0; 512], "the block is the overlay's own");
    }
}

#[test]
fn zero_writes_and_discards_on_clusters_of_blocks_end() {
    let world = World::new(1);
    world.control.alignment.store(512, Ordering::SeqCst);
    world.control.clusters.store(1024, Ordering::SeqCst);
    let memory = world.memory(0, 4096);
    let filter = world.filter(0, world.address(0, memory));
    for node in [memory, filter] {
        let client = world.client(0, node);
        block_on(client.write(0, bytes(7, 4096), PLAIN)).0.unwrap();
        let (zeroing, discarding) = (client.clone(), client.clone());
        ended(async move { zeroing.write_zeroes(700, 1000, PLAIN).await }).unwrap();
        ended(async move { discarding.discard(2048, 1024).await }).unwrap();
        assert_eq!(read(&client, 699, 1002), [&[7][..], &[0; 1000], &[7]].concat());
    }
}
