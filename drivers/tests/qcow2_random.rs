//! Random requests, many at a time, against an oracle in memory; afterwards `qemu-img` must find the image sound and read
//! the same bytes.

#![allow(clippy::unwrap_used, reason = "tests fail by panicking")]

mod qcow2_common;

use std::cell::RefCell;
use std::path::Path;
use std::rc::Rc;

use futures_util::future::join_all;
use millpond_messages::RequestFlags;
use millpond_ring::Ring;
use qcow2_common::*;

/// What the disk must read as.
struct Oracle {
    bytes: RefCell<Vec<u8>>,
    /// Ranges that a request is busy with: what others do there meanwhile has no defined order.
    busy: RefCell<Vec<(u64, u64)>>,
}

impl Oracle {
    fn new(bytes: Vec<u8>) -> Rc<Self> {
        Rc::new(Self {
            bytes: RefCell::new(bytes),
            busy: RefCell::default(),
        })
    }

    fn try_reserve(&self, start: u64, end: u64) -> bool {
        let mut busy = self.busy.borrow_mut();
        let free = !busy.iter().any(|&(from, to)| from < end && start < to);
        if free {
            busy.push((start, end));
        }
        free
    }

    fn release(&self, start: u64, end: u64) {
        self.busy.borrow_mut().retain(|range| *range != (start, end));
    }
}

/// A range that is mostly small, sometimes large, and often on a cluster's border.
fn range(random: &mut Random, size: u64, cluster: u64) -> (u64, u64) {
    let mut start = random.below(size);
    if random.below(3) == 0 {
        start = start / cluster * cluster;
    }
    let len = match random.below(4) {
        0 => 1 + random.below(cluster * 5),
        1 => cluster * (1 + random.below(4)),
        2 => 512,
        _ => 1 + random.below(4096),
    };
    (start, (start + len).min(size))
}

async fn one_request(disk: &Disk, oracle: &Oracle, random: &mut Random, cluster: u64) {
    let size = oracle.bytes.borrow().len() as u64;
    let (start, end) = range(random, size, cluster);
    if !oracle.try_reserve(start, end) {
        yield_now().await;
        return;
    }
    let (from, to) = (start as usize, end as usize);
    match random.below(16) {
        0..6 => {
            let fill = random.next() as u8 | 1;
            let data: Vec<u8> = (0..to - from).map(|n| fill.wrapping_add(n as u8)).collect();
            disk.write(start, &data).await.unwrap();
            oracle.bytes.borrow_mut()[from..to].copy_from_slice(&data);
        }
        6..8 => {
            let unmap = random.below(2) == 0;
            let flags = if unmap {
                RequestFlags::MAY_UNMAP
            } else {
                RequestFlags::empty()
            };
            disk.zero(start, end - start, flags).await.unwrap();
            oracle.bytes.borrow_mut()[from..to].fill(0);
        }
        8..10 => {
            let (first, last) = disk.discard(start, end - start).await.unwrap();
            oracle.bytes.borrow_mut()[first as usize..last as usize].fill(0);
        }
        10 => disk.flush().await.unwrap(),
        _ => {
            let data = disk.read(start, end - start).await.unwrap();
            let bytes = oracle.bytes.borrow();
            let differs = data.iter().zip(&bytes[from..to]).position(|(a, b)| a != b);
            let shown = differs.map(|at| (at, data[at], bytes[from + at]));
            assert_eq!(shown, None, "read at {start:#x}..{end:#x} differs");
        }
    }
    oracle.release(start, end);
}

async fn hammer(disk: &Disk, oracle: &Oracle, seed: u64, workers: u64, requests: u64, cluster: u64) {
    let worker = |n: u64| {
        let mut random = Random::new(seed * 1000 + n);
        async move {
            for _ in 0..requests {
                one_request(disk, oracle, &mut random, cluster).await;
            }
        }
    };
    join_all((0..workers).map(worker)).await;
}

fn verify(path: &Path, store: &Store, oracle: &Oracle, what: &str) {
    store.save(path);
    let (corruptions, leaks, errors) = check(path);
    assert_eq!((corruptions, leaks), (0, 0), "{what}: {errors}");
    let bytes = contents(path);
    let expected = oracle.bytes.borrow();
    assert_eq!(bytes.len(), expected.len());
    let differs = bytes.iter().zip(expected.iter()).position(|(a, b)| a != b);
    assert_eq!(differs, None, "{what}: qemu-img reads something else");
}

/// The same with the data in a file of its own.
fn hammer_data_file(create: &str, json: serde_json::Value, cluster: u64, seed: u64) {
    let directory = tempfile::tempdir().unwrap();
    let (path, data_path) = (
        directory.path().join("image.qcow2"),
        directory.path().join("data.raw"),
    );
    let create = format!("data_file={}{create}", data_path.display());
    let name = path.to_str().unwrap();
    qemu_img(&["create", "-q", "-f", "qcow2", "-o", &create, name, "12345k"]);
    let (store, data) = (Store::open(&path, seed), Store::open(&data_path, seed + 1));
    let oracle = Oracle::new(vec![0; 12345 << 10]);
    let ring: Ring = ring();
    let what = format!("{create:?} {json} seed {seed}");
    block_on(&ring, async {
        for round in 0..2 {
            let opened = open_over(
                &store,
                None,
                Some(&data),
                options(json.clone()),
                READ_WRITE,
                &ring,
            );
            let (disk, _) = opened.await.unwrap();
            hammer(&disk, &oracle, seed + round, 8, 60, cluster).await;
            disk.close().await.unwrap();
        }
    });
    data.save(&data_path);
    verify(&path, &store, &oracle, &what);
    let raw = create.contains("data_file_raw=on");
    let (bytes, expected) = (data.bytes.borrow(), oracle.bytes.borrow());
    let differs = bytes.iter().zip(expected.iter()).position(|(a, b)| a != b);
    assert!(
        !raw || (differs.is_none() && bytes.len() >= expected.len()),
        "{what}: the raw data file differs at {differs:?}"
    );
}

fn hammer_image(create: &[&str], json: serde_json::Value, cluster: u64, seed: u64) {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("image.qcow2");
    let name = path.to_str().unwrap();
    let mut arguments = vec!["create", "-q", "-f", "qcow2"];
    arguments.extend(create);
    arguments.extend([name, "12345k"]);
    qemu_img(&arguments);
    let store = Store::open(&path, seed);
    let oracle = Oracle::new(vec![0; 12345 << 10]);
    let ring: Ring = ring();
    let what = format!("{create:?} {json} seed {seed}");
    block_on(&ring, async {
        for round in 0..2 {
            let (disk, _) = open(&store, None, options(json.clone()), READ_WRITE, &ring)
                .await
                .unwrap();
            hammer(&disk, &oracle, seed + round, 8, 60, cluster).await;
            disk.close().await.unwrap();
        }
    });
    verify(&path, &store, &oracle, &what);
}

#[test]
fn default_images() {
    for seed in 1..5 {
        hammer_image(&[], serde_json::json!({}), 65536, seed);
    }
}

#[test]
fn small_clusters_and_small_caches() {
    let tiny =
        serde_json::json!({"l2-cache-size": 1024, "refcount-cache-size": 1024, "l2-cache-entry-size": 512});
    for seed in 1..5 {
        hammer_image(&["-o", "cluster_size=512"], tiny.clone(), 512, seed);
        hammer_image(&["-o", "cluster_size=4096"], tiny.clone(), 4096, seed);
    }
}

#[test]
fn every_refcount_width() {
    for bits in [1, 2, 4, 8, 16, 32, 64] {
        let option = format!("cluster_size=1024,refcount_bits={bits}");
        hammer_image(
            &["-o", &option],
            serde_json::json!({"pass-discard-request": true}),
            1024,
            bits,
        );
    }
}

#[test]
fn old_images_and_preallocated_ones() {
    hammer_image(&["-o", "compat=0.10"], serde_json::json!({}), 65536, 1);
    hammer_image(
        &["-o", "compat=0.10,cluster_size=2048"],
        serde_json::json!({}),
        2048,
        2,
    );
    hammer_image(&["-o", "preallocation=metadata"], serde_json::json!({}), 65536, 3);
    hammer_image(
        &["-o", "preallocation=metadata,cluster_size=2048"],
        serde_json::json!({}),
        2048,
        4,
    );
    hammer_image(&["-o", "cluster_size=2M"], serde_json::json!({}), 2 << 20, 5);
}

#[test]
fn lazy_refcounts() {
    for seed in 1..4 {
        hammer_image(
            &["-o", "lazy_refcounts=on,cluster_size=4096"],
            serde_json::json!({}),
            4096,
            seed,
        );
    }
}

#[test]
fn encrypted_images() {
    for (seed, (method, more)) in (1..).zip([
        ("luks", "encrypt.iter-time=10"),
        ("luks", "encrypt.iter-time=10,cluster_size=4096"),
        ("luks", "encrypt.iter-time=10,compat=0.10,cluster_size=2048"),
        ("aes", "cluster_size=512"),
        ("aes", "compat=0.10"),
    ]) {
        let options = format!("encrypt.format={method},encrypt.key-secret=s,{more}");
        let object = format!("secret,id=s,data={PASSWORD}");
        let cluster = match more.rsplit_once("cluster_size=") {
            Some((_, bytes)) => bytes.parse().unwrap(),
            None => 65536,
        };
        let node = serde_json::json!({"encrypt": {"format": method, "key-secret": "s"}});
        hammer_image(&["--object", &object, "-o", &options], node, cluster, seed);
    }
}

#[test]
fn discards_may_keep_their_clusters() {
    hammer_image(
        &["-o", "cluster_size=4096"],
        serde_json::json!({"discard-no-unref": true}),
        4096,
        1,
    );
}

#[test]
fn external_data_files() {
    let tiny =
        serde_json::json!({"l2-cache-size": 1024, "refcount-cache-size": 1024, "l2-cache-entry-size": 512});
    for seed in 1..4 {
        hammer_data_file("", serde_json::json!({}), 65536, seed);
        hammer_data_file(",cluster_size=1k", tiny.clone(), 1024, seed);
        hammer_data_file(",data_file_raw=on", serde_json::json!({}), 65536, seed);
        let keep = serde_json::json!({"discard-no-unref": true});
        hammer_data_file(",data_file_raw=on,cluster_size=4k", keep.clone(), 4096, seed);
        hammer_data_file(",cluster_size=4k,lazy_refcounts=on", keep, 4096, seed);
        hammer_data_file(",preallocation=metadata", serde_json::json!({}), 65536, seed);
    }
}

#[test]
fn subclusters() {
    let tiny = serde_json::json!({"l2-cache-size": 16384, "l2-cache-entry-size": 512});
    let keep = serde_json::json!({"discard-no-unref": true, "pass-discard-request": true});
    for seed in 1..4 {
        hammer_image(
            &["-o", "extended_l2=on,cluster_size=16k"],
            tiny.clone(),
            512,
            seed,
        );
        hammer_image(
            &["-o", "extended_l2=on,cluster_size=16k"],
            keep.clone(),
            16384,
            seed,
        );
        hammer_image(&["-o", "extended_l2=on"], serde_json::json!({}), 65536, seed);
        let preallocated = "extended_l2=on,cluster_size=32k,preallocation=metadata";
        hammer_image(&["-o", preallocated], serde_json::json!({}), 2048, seed);
        let data_file = ",extended_l2=on,cluster_size=16k";
        hammer_data_file(data_file, serde_json::json!({}), 1024, seed);
        let raw = ",data_file_raw=on,extended_l2=on";
        hammer_data_file(raw, serde_json::json!({}), 4096, seed);
    }
    hammer_image(
        &["-o", "extended_l2=on,cluster_size=2M"],
        serde_json::json!({}),
        65536,
        7,
    );
    let lazy = "extended_l2=on,cluster_size=16k,lazy_refcounts=on,refcount_bits=1";
    hammer_image(&["-o", lazy], serde_json::json!({}), 16384, 8);
}
