//! Memory registered with a ring: the table of it, and the requests from it.
#![expect(clippy::unwrap_used, reason = "a panic is how a test fails")]

use std::fs::File;
use std::future::Future;
use std::io::Write;
use std::os::fd::OwnedFd;
use std::pin::pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};

use futures_util::future::poll_immediate;
use millpond_ring::buffer::{Buffer, Buffers, MOST_PIECE, PLACES, Region, RegionError, Regions};
use millpond_ring::{Engine, Fd, Ring, RingConfig, Wait, Wake};

const PIECE: usize = 4096;

fn ring(engine: Engine) -> Ring {
    let wake = Arc::new(Wake::new().unwrap());
    Ring::new(RingConfig {
        engine,
        ..RingConfig::new(wake)
    })
    .unwrap()
}

/// Turns the ring until the future is ready. The future may only wait for the ring.
fn run<F: Future>(ring: &Ring, future: F) -> F::Output {
    let mut future = pin!(future);
    loop {
        match future.as_mut().poll(&mut Context::from_waker(Waker::noop())) {
            Poll::Ready(output) => return output,
            Poll::Pending => drop(ring.turn(Wait::Until(None))),
        }
    }
}

fn file() -> Fd {
    Arc::new(OwnedFd::from(tempfile::tempfile().unwrap()))
}

/// Two pieces of memory that adjoin, and their region.
fn memory() -> (Buffer, Buffer, Arc<Region>) {
    let mut first = Buffer::alloc(2 * PIECE);
    let region = Arc::new(Region::of(&mut first).unwrap());
    let second = first.split_off(PIECE);
    (first, second, region)
}

/// Writes a piece and reads it back into another; gives both back.
fn copy(ring: &Ring, file: &Fd, value: u8, fua: bool, mut from: Buffer, to: Buffer) -> (Buffer, Buffer) {
    from.fill(value);
    let (written, from) = run(ring, ring.write_at(file, from.into(), 512, fua));
    assert_eq!(written.unwrap(), PIECE);
    let (read, to) = run(ring, ring.read_at(file, to.into(), 512));
    assert_eq!(read.unwrap(), PIECE);
    assert_eq!(to.to_vec(), [value; PIECE]);
    (from.into_single(), to.into_single())
}

#[test]
fn single_buffers_inside_registered_memory_are_read_and_written_as_fixed_ones() {
    let (ring, file) = (ring(Engine::Uring), file());
    let (from, to, region) = memory();
    let (from, to) = copy(&ring, &file, 1, false, from, to);
    assert_eq!(ring.stats().fixed, 0, "nobody knows the memory");
    assert!(ring.register(&region).unwrap());
    let (from, to) = copy(&ring, &file, 2, false, from, to);
    assert_eq!(ring.stats().fixed, 2);
    let (from, to) = copy(&ring, &file, 3, true, from, to);
    assert_eq!(ring.stats().fixed, 4, "with write-through too");
    copy(&ring, &file, 4, false, Buffer::alloc(PIECE), Buffer::alloc(PIECE));
    assert_eq!(ring.stats().fixed, 4, "other memory is mapped as before");
    let list: Buffers = [to, from].into_iter().collect();
    let (written, list) = run(&ring, ring.write_at(&file, list, 0, false));
    assert_eq!(written.unwrap(), 2 * PIECE);
    assert_eq!(ring.stats().fixed, 4, "so are lists");
    ring.unregister(&region);
    assert_eq!(
        Arc::strong_count(&region),
        1,
        "the ring does not keep it any more"
    );
    let mut list = list.into_iter();
    copy(&ring, &file, 5, false, list.next().unwrap(), list.next().unwrap());
    assert_eq!(ring.stats().fixed, 4, "it is forgotten");
}

#[test]
fn a_place_whose_memory_was_forgotten_serves_other_memory() {
    let (ring, file) = (ring(Engine::Uring), file());
    let (from, to, region) = memory();
    let (other_from, other_to, other) = memory();
    ring.register(&region).unwrap();
    copy(&ring, &file, 1, false, from, to);
    ring.unregister(&region);
    ring.register(&other).unwrap();
    copy(&ring, &file, 2, false, other_from, other_to);
    assert_eq!(ring.stats().fixed, 4);
}

#[test]
fn memory_is_forgotten_under_a_read_in_flight_which_ends_as_it_would_have() {
    // Queued only, or with the kernel already.
    for turns in [0, 1] {
        let ring = ring(Engine::Uring);
        let (pipe, writer) = std::io::pipe().unwrap();
        let pipe: Fd = Arc::new(pipe.into());
        let (_, to, region) = memory();
        ring.register(&region).unwrap();
        let mut read = pin!(ring.read_at(&pipe, to.into(), 0));
        for _ in 0..turns {
            ring.turn(Wait::No);
        }
        ring.unregister(&region);
        assert_eq!(Arc::strong_count(&region), 1, "the kernel was told");
        drop(region);
        // Its place is another's when the read ends.
        let (other_from, other_to, other) = memory();
        ring.register(&other).unwrap();
        run(&ring, async {
            assert!(poll_immediate(read.as_mut()).await.is_none())
        });
        File::from(OwnedFd::from(writer)).write_all(&[7; PIECE]).unwrap();
        let (count, to) = run(&ring, read);
        assert_eq!(count.unwrap(), PIECE);
        assert_eq!(to.to_vec(), [7; PIECE]);
        assert_eq!(ring.stats().fixed, 1, "it was a fixed one");
        copy(&ring, &file(), 8, false, other_from, other_to);
    }
}

#[test]
fn the_ring_keeps_what_is_registered_and_its_end_lets_go() {
    let ring = ring(Engine::Uring);
    let (from, to, region) = memory();
    let memory = Arc::downgrade(&region);
    ring.register(&region).unwrap();
    drop((from, to, region));
    assert!(memory.upgrade().is_some());
    drop(ring);
    assert!(memory.upgrade().is_none());
}

#[test]
fn threads_have_no_use_for_registered_memory() {
    let (ring, file) = (ring(Engine::Threads), file());
    let (from, to, region) = memory();
    assert!(!ring.register(&region).unwrap());
    assert_eq!(Arc::strong_count(&region), 1, "it is not kept");
    copy(&ring, &file, 1, false, from, to);
    assert_eq!(ring.stats().fixed, 0);
    ring.unregister(&region);
}

#[test]
fn a_ring_takes_no_more_regions_than_there_are_places_and_works_on() {
    let (ring, file) = (ring(Engine::Uring), file());
    let mut rest = Buffer::alloc(PIECE * (usize::from(PLACES) + 1));
    let mut parts = Vec::new();
    for _ in 0..=PLACES {
        let mut part = rest.split_to(PIECE);
        parts.push((Arc::new(Region::of(&mut part).unwrap()), part));
    }
    let (over, last) = parts.pop().unwrap();
    for (region, _) in &parts {
        assert!(ring.register(region).unwrap());
    }
    let full = ring.register(&over).unwrap_err();
    let full = full.get_ref().unwrap().downcast_ref::<RegionError>();
    assert_eq!(full, Some(&RegionError::Full));
    let (known, first) = parts.swap_remove(500);
    let (first, last) = copy(&ring, &file, 1, false, first, last);
    assert_eq!(ring.stats().fixed, 1, "the write, not the read");
    ring.unregister(&known);
    assert!(ring.register(&over).unwrap());
    copy(&ring, &file, 2, false, first, last);
    assert_eq!(ring.stats().fixed, 2, "the read, not the write");
}

#[test]
fn a_table_finds_what_lies_wholly_inside_and_takes_nothing_twice() {
    let mut all = Buffer::alloc(6 * PIECE);
    let start = all.as_ptr();
    let at = |offset: usize| start.wrapping_add(offset);
    let whole = Arc::new(Region::of(&mut all).unwrap());
    let mut parts: Vec<Buffer> = (0..5).map(|_| all.split_to(PIECE)).collect();
    let mut region = |index: usize| Arc::new(Region::of(&mut parts[index]).unwrap());
    let (low, high) = (region(1), region(3));
    let mut table = Regions::default();
    assert_eq!(table.find(at(PIECE), 1), None);
    table.insert(&high).unwrap();
    table.insert(&low).unwrap();
    assert_eq!(table.find(at(3 * PIECE), PIECE), Some(0));
    assert_eq!(table.find(at(PIECE), PIECE), Some(1));
    assert_eq!(table.find(at(2 * PIECE - 1), 1), Some(1));
    for (offset, len) in [
        (PIECE - 1, 2),
        (2 * PIECE - 1, 2),
        (0, 1),
        (2 * PIECE, 1),
        (4 * PIECE, 1),
        (0, 6 * PIECE),
    ] {
        assert_eq!(table.find(at(offset), len), None, "{len} bytes at {offset}");
    }
    for again in [&low, &high, &whole] {
        assert_eq!(table.insert(again).unwrap_err(), RegionError::Overlaps);
    }
    table.insert(&region(2)).unwrap();
    let removed = table.remove(&high);
    assert_eq!(removed.len(), 1);
    assert_eq!(table.find(at(3 * PIECE), PIECE), None);
    let late = region(4);
    assert_eq!(
        table.insert(&late).unwrap()[0].place(),
        3,
        "the place is not free yet"
    );
    for piece in removed {
        table.release(piece);
    }
    assert_eq!(table.insert(&high).unwrap()[0].place(), 0);
    assert!(Region::of(&mut Buffer::new()).is_none());
}

#[test]
fn a_large_region_takes_a_place_a_gigabyte() {
    // Zeroes that nothing touches take no room in a vector.
    let mut buffer = Buffer::from(vec![0; 2 * MOST_PIECE + PIECE]);
    let start = buffer.as_ptr();
    let region = Arc::new(Region::of(&mut buffer).unwrap());
    let mut table = Regions::default();
    let pieces = table.insert(&region).unwrap();
    let lens: Vec<_> = pieces.iter().map(|piece| piece.len()).collect();
    assert_eq!(lens, [MOST_PIECE, MOST_PIECE, PIECE]);
    assert_eq!(pieces[2].address(), start.wrapping_add(2 * MOST_PIECE));
    assert_eq!(table.find(start.wrapping_add(MOST_PIECE), MOST_PIECE), Some(1));
    assert_eq!(
        table.find(start.wrapping_add(MOST_PIECE - 1), 2),
        None,
        "it lies in two"
    );
    assert_eq!(table.iter().count(), 1);
    assert_eq!(table.remove(&region).len(), 3);
    assert!(table.is_empty());
}
