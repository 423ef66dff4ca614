//! The daemon is killed while it writes: what was flushed is there, and the image has leaks at most.

use std::collections::HashMap;
use std::path::Path;

use millpond_tests::daemon::{Daemon, daemon_in, scratch};
use millpond_tests::image;
use millpond_tests::nbd::wire::*;
use millpond_tests::nbd::{Connect, Request, Session};
use millpond_tests::tool::qemu_img;
use millpond_tests::workload::seeded;
use serde_json::json;

const BLOCK: u64 = 4096;
const BLOCKS: u64 = 2048;
const DEPTH: usize = 32;

/// A block that says which it is and which version of it. Version 0 is a block never written.
fn stamp(block: u64, version: u64) -> Vec<u8> {
    let mut word = block.to_le_bytes().to_vec();
    word.extend(version.to_le_bytes());
    word.repeat(BLOCK as usize / word.len())
}

/// The version of each sector of a block; fails on anything that was never written there.
#[track_caller]
fn versions(block: u64, bytes: &[u8]) -> Vec<u64> {
    bytes
        .chunks(512)
        .map(|sector| {
            let (id, version) = sector[..16].split_at(8);
            let number = |bytes: &[u8]| u64::from_le_bytes(bytes.try_into().expect("eight bytes"));
            let version = number(version);
            if version > 0 {
                assert_eq!(
                    number(id),
                    block,
                    "block {block} holds what was written to another"
                );
            }
            assert!(
                sector.chunks(16).all(|word| word == &sector[..16]),
                "a sector of block {block} is torn"
            );
            version
        })
        .collect()
}

/// What is known of each block: the newest version sent, acknowledged, and made durable.
#[derive(Debug, Clone, Copy, Default)]
struct Known {
    sent: u64,
    acknowledged: u64,
    durable: u64,
}

/// What a request in flight will have shown once it is answered.
enum Meaning {
    Write {
        block: u64,
        version: u64,
        fua: bool,
    },
    /// Everything acknowledged when the flush was sent is durable.
    Flush(Vec<u64>),
}

struct Writer {
    session: Session,
    known: Vec<Known>,
    in_flight: HashMap<u64, Meaning>,
    next_version: u64,
}

impl Writer {
    /// Writes at random until `count` requests were answered, with flushes among them.
    fn write(&mut self, rng: &mut fastrand::Rng, count: u32) {
        for _ in 0..count {
            while self.in_flight.len() < DEPTH {
                self.submit(rng);
            }
            let answer = self.session.complete().expect("the daemon answers");
            assert_eq!(answer.error, 0, "{}", answer.message);
            match self
                .in_flight
                .remove(&answer.cookie)
                .expect("the session matched it")
            {
                Meaning::Write { block, version, fua } => {
                    let known = &mut self.known[block as usize];
                    known.acknowledged = known.acknowledged.max(version);
                    if fua {
                        known.durable = known.durable.max(version);
                    }
                }
                Meaning::Flush(acknowledged) => {
                    for (known, version) in self.known.iter_mut().zip(acknowledged) {
                        known.durable = known.durable.max(version);
                    }
                }
            }
        }
    }

    fn submit(&mut self, rng: &mut fastrand::Rng) {
        if rng.u8(0..20) == 0 {
            let acknowledged = self.known.iter().map(|known| known.acknowledged).collect();
            let cookie = self.session.submit(&Request::flush()).expect("it is sent");
            self.in_flight.insert(cookie, Meaning::Flush(acknowledged));
            return;
        }
        let block = rng.u64(0..BLOCKS);
        // Two writes of one block in flight would have no order.
        let busy =
            |meaning: &Meaning| matches!(meaning, Meaning::Write { block: other, .. } if *other == block);
        if self.in_flight.values().any(busy) {
            return;
        }
        self.next_version += 1;
        let (version, fua) = (self.next_version, rng.u8(0..10) == 0);
        let request =
            Request::write(block * BLOCK, stamp(block, version)).flags(if fua { CMD_FLAG_FUA } else { 0 });
        self.known[block as usize].sent = version;
        let cookie = self.session.submit(&request).expect("it is sent");
        self.in_flight
            .insert(cookie, Meaning::Write { block, version, fua });
    }
}

/// Requires of a disk's content that each block is as new as it must be, and no newer than it can be. From then on
/// what was found is what is known.
#[track_caller]
fn verify(content: &[u8], known: &mut [Known]) {
    for (block, (bytes, known)) in content.chunks(BLOCK as usize).zip(known).enumerate() {
        let found = versions(block as u64, bytes);
        for version in &found {
            assert!(
                (known.durable..=known.sent).contains(version),
                "block {block}: version {version}, but {} was durable and {} the last sent",
                known.durable,
                known.sent
            );
        }
        let newest = found.into_iter().max().unwrap_or_default();
        *known = Known {
            sent: newest.max(known.sent),
            acknowledged: known.durable,
            durable: known.durable,
        };
    }
}

fn start(dir: &Path, image: &Path, cache_direct: bool) -> Daemon {
    let mut file = image::file("file", image);
    file["discard"] = json!("unmap");
    file["cache"] = json!({ "direct": cache_direct });
    let mut disk = image::over("qcow2", "disk", "file");
    disk["cache"] = json!({ "direct": cache_direct });
    daemon_in(dir)
        .nbd_unix()
        .blockdev(file)
        .blockdev(disk)
        .export("disk")
        .start()
}

/// Kills the daemon in the middle of its work, some times over on the same image.
fn survives(what: &str, options: &str, backing: bool, cache_direct: bool) {
    let mut rng = seeded(what);
    // Direct access needs a file system that has it, which a temporary folder in memory has not.
    let dir = if cache_direct {
        tempfile::Builder::new()
            .prefix("crash-")
            .tempdir_in(env!("CARGO_TARGET_TMPDIR"))
            .expect("a folder")
    } else {
        scratch()
    };
    let image = dir.path().join("disk.qcow2");
    if backing {
        let base = dir.path().join("base.raw");
        image::create(&base, "raw", "", BLOCKS * BLOCK);
        image::create_overlay(&image, options, &base, "raw", None);
    } else {
        image::create(&image, "qcow2", options, BLOCKS * BLOCK);
    }
    let mut known = vec![Known::default(); BLOCKS as usize];
    let mut next_version = 0;
    for _ in 0..5 {
        let mut daemon = start(dir.path(), &image, cache_direct);
        let session = Connect::default().open(&daemon.address(), "disk").pipelined();
        let mut writer = Writer {
            session,
            known,
            in_flight: HashMap::new(),
            next_version,
        };
        let count = rng.u32(20..700);
        writer.write(&mut rng, count);
        daemon.kill();
        image::wait_released(&image);
        (known, next_version) = (writer.known, writer.next_version);
        if !options.contains("lazy_refcounts=on") {
            image::assert_at_most_leaks(&image);
            let raw = dir.path().join("content.raw");
            qemu_img(&format!(
                "convert -f qcow2 -O raw {} {}",
                image.display(),
                raw.display()
            ));
            verify(&std::fs::read(&raw).expect("it was just converted"), &mut known);
        }
        // And as the daemon itself finds it.
        let daemon = start(dir.path(), &image, cache_direct);
        verify(&daemon.session("disk").read_all(), &mut known);
        daemon.quit();
        image::assert_at_most_leaks(&image);
    }
}

#[test]
fn kill_while_allocating() {
    survives("kill_while_allocating", "", false, false);
}

#[test]
fn kill_while_copying_on_write_from_a_backing_file() {
    survives("kill_while_copying_on_write", "cluster_size=64k", true, false);
}

#[test]
fn kill_with_small_clusters_and_narrow_refcounts() {
    survives(
        "kill_with_small_clusters",
        "cluster_size=4k,refcount_bits=1",
        false,
        false,
    );
}

#[test]
fn kill_with_lazy_refcounts() {
    survives("kill_with_lazy_refcounts", "lazy_refcounts=on", false, false);
}

#[test]
fn kill_an_old_format_image() {
    survives(
        "kill_an_old_format_image",
        "compat=0.10,cluster_size=16k",
        false,
        false,
    );
}

#[test]
fn kill_without_the_page_cache() {
    survives("kill_without_the_page_cache", "cluster_size=64k", false, true);
}
