//! A device that is served for a kernel of the test's own.

mod kernel;
mod world;

use std::fs::File;
use std::os::unix::fs::FileExt;

use kernel::Mapped;
use millpond_ring::os::vduse::QueueFacts;
use world::{
    DATA, DATA_LEN, DISK, DRIVER_OK, INDIRECT, QUEUE_SIZE, QUEUES, RINGS, WRITE, World, descriptor,
    good_queue, memory, with_world,
};

use super::journal;
use crate::export::virtio::config::feature;

const IN: u32 = 0;
const OUT: u32 = 1;
const FLUSH: u32 = 4;
const GET_ID: u32 = 8;

/// Has a device served, whose driver sets up its queues.
async fn start(mut world: World) -> World {
    world.serve(true).await;
    assert!(world.set_status(DRIVER_OK).await);
    world
}

#[test]
fn requests_of_two_queues_are_served_and_told_of() {
    with_world(|world| async {
        let mut world = start(world).await;
        for queue in 0..QUEUES {
            let bytes = vec![7 + queue as u8; 4096];
            let (from, to) = (world.put(&bytes), world.put(&[0; 4096]));
            let sector = 8 * u64::from(queue);
            assert_eq!(world.request(queue, 0, OUT, sector, &[(from, 4096, 0)]).await, 0);
            assert_eq!(world.request(queue, 3, IN, sector, &[(to, 4096, WRITE)]).await, 0);
            assert_eq!(world.get(to, 4096), bytes);
            assert_eq!(world.request(queue, 6, FLUSH, 0, &[]).await, 0);
            let mut on_disk = vec![0; 4096];
            world
                .disk
                .as_file()
                .read_exact_at(&mut on_disk, sector * 512)
                .expect("the disk is read");
            assert_eq!(on_disk, bytes);
            let serial = world.put(&[0; 20]);
            assert_eq!(
                world.request(queue, 9, GET_ID, 0, &[(serial, 20, WRITE)]).await,
                0
            );
            assert_eq!(world.get(serial, 20), b"a serial number that");
            let body = u32::from(queue).to_ne_bytes();
            assert_eq!(world.tell(0, &body).await, (true, queue.into(), 4));
        }
        assert!(
            !world.tell(0, &9_u32.to_ne_bytes()).await.0,
            "there is no such queue"
        );
        assert!(!world.tell(99, &[]).await.0, "nobody knows such a message");
        world
    });
}

#[test]
fn memory_is_asked_for_when_a_request_is_there_first() {
    with_world(|world| async {
        let mut world = start(world).await;
        let in_data = |world: &World| {
            let state = world.kernel.state();
            state.asked.iter().filter(|at| **at >= DATA).count()
        };
        assert_eq!(in_data(&world), 0);
        let to = world.put(&[1; 512]);
        // The header and the data by a table that is there too.
        let status = world.put(&[0xff]);
        let header = world.header(IN, 0);
        let table = [
            descriptor(header.0, 16, 1, 1),
            descriptor(to, 512, 1 | WRITE, 2),
            descriptor(status, 1, WRITE, 0),
        ];
        let table = world.put(&table.concat());
        world.offer(0, 5, &[(table, 48, INDIRECT)]);
        world.kick(0);
        assert_eq!(world.wait(0).await, 5);
        assert_eq!(
            (world.get(status, 1), world.get(to, 512)),
            (vec![0], vec![0; 512])
        );
        assert_eq!(in_data(&world), 1);
        // The other queue was told of it.
        assert_eq!(world.request(1, 0, IN, 0, &[(to, 512, WRITE)]).await, 0);
        assert_eq!(in_data(&world), 1);
        world
    });
}

#[test]
fn a_driver_that_is_not_ready_yet_is_told_again() {
    with_world(|world| async {
        let mut world = start(world).await;
        world.kernel.state().unready = 3;
        assert_eq!(world.request(0, 0, FLUSH, 0, &[]).await, 0);
        assert_eq!(world.kernel.state().unready, 0);
        world
    });
}

#[test]
fn queues_that_cannot_be_are_refused_and_the_next_try_counts() {
    with_world(|mut world| async {
        world.serve(true).await;
        let good = good_queue(1);
        let bad = [
            QueueFacts { size: 0, ..good },
            QueueFacts { size: 3, ..good },
            QueueFacts {
                size: 2 * u32::from(QUEUE_SIZE),
                ..good
            },
            QueueFacts {
                size: 0x1_0000 + 64,
                ..good
            },
            QueueFacts {
                size: u32::MAX,
                ..good
            },
            QueueFacts {
                descriptors: u64::MAX - 15,
                ..good
            },
            QueueFacts {
                descriptors: good.descriptors + 8,
                ..good
            },
            QueueFacts {
                available: good.available + 1,
                ..good
            },
            QueueFacts {
                used: good.used + 2,
                ..good
            },
            QueueFacts {
                used: u64::MAX,
                ..good
            },
            QueueFacts {
                available: 0x4000,
                ..good
            },
            // Its end is outside.
            QueueFacts {
                used: RINGS + 0x2_0000 - 16,
                ..good
            },
        ];
        for queue in bad {
            world.kernel.state().queues[1] = queue;
            assert!(!world.set_status(DRIVER_OK).await, "{queue:?}");
        }
        world.kernel.state().queues[1] = good;
        let features = world.kernel.state().features;
        for wrong in [
            feature::ACCESS_PLATFORM,
            features | feature::CONFIG_WCE,
            features | 1 << 34,
        ] {
            world.kernel.state().features = wrong;
            assert!(!world.set_status(DRIVER_OK).await, "features 0x{wrong:x}");
        }
        world.kernel.state().features = features;
        assert!(world.set_status(0).await);
        for senseless in [(5, 4), (0, 0), (0, u64::MAX), (u64::MAX, u64::MAX)] {
            world.kernel.state().senseless = Some(senseless);
            assert!(!world.set_status(DRIVER_OK).await, "memory at {senseless:x?}");
            assert!(world.set_status(0).await);
        }
        world.kernel.state().senseless = None;
        assert!(world.set_status(DRIVER_OK).await);
        for queue in 0..QUEUES {
            assert_eq!(world.request(queue, 0, FLUSH, 0, &[]).await, 0);
        }
        world
    });
}

#[test]
fn a_request_outside_the_drivers_memory_stops_its_queue_alone_until_a_reset() {
    with_world(|world| async {
        let mut world = start(world).await;
        let header = world.header(IN, 0);
        let status = world.put(&[0xff]);
        for at in [
            DATA + DATA_LEN,
            DATA + DATA_LEN - 256,
            0,
            u64::MAX - 511,
            RINGS - 1,
        ] {
            world.offer(0, 0, &[header, (at, 512, WRITE), (status, 1, WRITE)]);
            world.kick(0);
            assert_eq!(world.request(1, 0, FLUSH, 0, &[]).await, 0);
            assert_eq!(world.answered(0), None, "0x{at:x}");
            world.reset().await;
            assert_eq!(world.get(status, 1), [0xff], "0x{at:x}");
            assert!(world.set_status(DRIVER_OK).await);
        }
        assert_eq!(world.request(0, 0, FLUSH, 0, &[]).await, 0);
        world
    });
}

#[test]
fn regions_without_number_are_refused() {
    with_world(|world| async {
        let mut world = start(world).await;
        {
            let mut state = world.kernel.state();
            for number in 0..600 {
                let start = 0x1000_0000 + 0x1000 * number;
                state.memory.push(Mapped {
                    start,
                    last: start + 0xfff,
                    file: world.data.try_clone().expect("a file can be opened twice"),
                    offset: 0,
                    is_writable: true,
                });
            }
        }
        let header = world.header(IN, 0);
        let status = world.put(&[0xff]);
        // One piece over more regions than may be mapped.
        world.offer(
            0,
            0,
            &[header, (0x1000_0000, 600 << 12, WRITE), (status, 1, WRITE)],
        );
        world.kick(0);
        world.until(|world| world.kernel.state().asked.len() > 500).await;
        world.reset().await;
        assert_eq!(world.get(status, 1), [0xff]);
        assert!(world.set_status(DRIVER_OK).await);
        assert_eq!(world.request(0, 0, FLUSH, 0, &[]).await, 0);
        world
    });
}

#[test]
fn memory_that_changes_is_used_as_it_is_then() {
    with_world(|world| async {
        let mut world = start(world).await;
        let from = world.put(&[3; 512]);
        assert_eq!(world.request(0, 0, OUT, 0, &[(from, 512, 0)]).await, 0);
        let other = memory(DATA_LEN);
        world.kernel.state().memory[1].file = other.try_clone().expect("a file can be opened twice");
        world.memory_changed(DATA, DATA + DATA_LEN - 1).await;
        let old = std::mem::replace(&mut world.data, other);
        let to = world.put(&[0; 512]);
        for queue in 0..QUEUES {
            assert_eq!(world.request(queue, 3, IN, 0, &[(to, 512, WRITE)]).await, 0);
            assert_eq!(world.get(to, 512), [3; 512]);
        }
        let mut untouched = [9; 512];
        old.read_exact_at(&mut untouched, to - DATA)
            .expect("memory is read");
        assert_eq!(untouched, [0; 512]);
        // Rings that are taken away stop their queues, and no more.
        let rings = world.kernel.state().memory.remove(0);
        world.memory_changed(0, u64::MAX).await;
        world.kernel.state().memory.insert(0, rings);
        world.reset().await;
        assert!(world.set_status(DRIVER_OK).await);
        assert_eq!(world.request(1, 0, FLUSH, 0, &[]).await, 0);
        world
    });
}

#[test]
fn memory_that_may_only_be_read_is_never_written() {
    with_world(|world| async {
        let mut world = start(world).await;
        let path = tempfile::NamedTempFile::new().expect("a file");
        path.as_file().write_all_at(&[5; 4096], 0).expect("room");
        let at = 0x2000_0000;
        world.kernel.state().memory.push(Mapped {
            start: at,
            last: at + 4095,
            file: File::open(path.path()).expect("it is there"),
            offset: 0,
            is_writable: false,
        });
        assert_eq!(world.request(0, 0, OUT, 0, &[(at, 512, 0)]).await, 0);
        let to = world.put(&[0; 512]);
        assert_eq!(world.request(0, 3, IN, 0, &[(to, 512, WRITE)]).await, 0);
        assert_eq!(world.get(to, 512), [5; 512]);
        assert_eq!(world.request(0, 6, IN, 8, &[(at, 512, WRITE)]).await, 0);
        assert_eq!(std::fs::read(path.path()).expect("it is there"), [5; 4096]);
        world
    });
}

/// Notes in a journal that requests of queue 0 are in flight, the first one the oldest, as a process leaves it that dies.
fn note(journal: &File, heads: &[u16], used: u16) {
    for (since, head) in (40_u64..).zip(heads) {
        let place = 16 + 16 * u64::from(*head);
        journal.write_all_at(&[1], place).expect("room");
        journal
            .write_all_at(&since.to_le_bytes(), place + 8)
            .expect("room");
    }
    journal.write_all_at(&used.to_le_bytes(), 14).expect("room");
}

#[test]
fn requests_in_flight_when_a_process_died_are_answered_once_and_the_rest_follows() {
    with_world(|world| async {
        let mut world = start(world).await;
        // The driver is one that is told only of what it waits for.
        world.reset().await;
        world.kernel.state().features |= feature::RING_EVENT_IDX;
        assert!(world.set_status(DRIVER_OK).await);
        assert_eq!(world.request(1, 0, FLUSH, 0, &[]).await, 0);
        world.stop_serving().await;
        assert!(world.kernel.state().kicks.iter().all(Option::is_none));
        let mut statuses = Vec::new();
        let mut texts = Vec::new();
        for number in 0_u16..5 {
            let from = world.put(&[number as u8 + 1; 512]);
            let (header, status) = (world.header(OUT, number.into()), world.put(&[0xff]));
            world.offer(0, 3 * number, &[header, (from, 512, 0), (status, 1, WRITE)]);
            statuses.push(status);
            texts.push(number as u8 + 1);
        }
        // The second one was answered; the first and the third were not; the rest was not taken.
        world.set_used(0, 1);
        let journal = File::options()
            .write(true)
            .open(world.journal())
            .expect("it is there");
        note(&journal, &[0, 6], 1);
        let told = world.kernel.state().interrupts[1];
        world.serve(false).await;
        let mut answered = Vec::new();
        for _ in 0..4 {
            answered.push(world.wait(0).await);
        }
        answered.sort_unstable();
        assert_eq!(answered, [0, 6, 9, 12]);
        for number in [0, 2, 3, 4] {
            assert_eq!(world.get(statuses[number], 1), [0]);
            let mut written = [0; 1];
            let read = world
                .disk
                .as_file()
                .read_exact_at(&mut written, 512 * number as u64);
            read.expect("the disk is read");
            assert_eq!(written[0], texts[number]);
        }
        assert_eq!(world.get(statuses[1], 1), [0xff]);
        // A driver may wait for an answer that the one who died did not tell it of.
        world
            .until(|world| world.kernel.state().interrupts[1] > told)
            .await;
        assert_eq!(world.kernel.state().capacity, Some(DISK / 512));
        assert_eq!(world.request(0, 15, FLUSH, 0, &[]).await, 0);
        assert_eq!(world.answered(0), None);
        // Nothing of that is in flight any more, nor after a reset.
        world.reset().await;
        let noted = std::fs::read(world.journal()).expect("it is there");
        assert!(noted.iter().all(|byte| *byte == 0));
        world
    });
}

#[test]
fn a_journal_is_a_file_of_this_user_alone() {
    let folder = tempfile::tempdir().expect("a folder");
    let (target, path) = (folder.path().join("target"), folder.path().join("journal"));
    std::fs::write(&target, "kept").expect("room");
    std::os::unix::fs::symlink(&target, &path).expect("a link");
    assert!(journal::open(&path, 1, true).is_err(), "it leads elsewhere");
    std::fs::remove_file(&path).expect("it is there");
    std::fs::hard_link(&target, &path).expect("a link");
    let error = journal::open(&path, 1, true).expect_err("it has another name");
    assert!(
        error.to_string().contains("not a file of this user alone"),
        "{error}"
    );
    assert_eq!(std::fs::read(&target).expect("it is there"), b"kept");
    std::fs::remove_file(&path).expect("it is there");
    journal::open(&path, 1, true).expect("there is none");
    // A journal of a new device says nothing, whatever was noted before.
    let file = File::options().write(true).open(&path).expect("it is there");
    note(&file, &[1, 2], 7);
    journal::open(&path, 1, false).expect("it is ours");
    assert!(
        std::fs::read(&path)
            .expect("it is there")
            .iter()
            .any(|byte| *byte != 0)
    );
    journal::open(&path, 1, true).expect("it is ours");
    assert!(
        std::fs::read(&path)
            .expect("it is there")
            .iter()
            .all(|byte| *byte == 0)
    );
}
