//! Images made here against `qemu-img`, and images made by `qemu-img` here.

#![allow(clippy::unwrap_used, reason = "tests fail by panicking")]

mod qcow2_common;

use std::path::{Path, PathBuf};
use std::rc::Rc;

use millpond_messages::io::Preallocation;
use millpond_messages::{OpenFlags, RequestFlags};
use qcow2_common::*;
use serde_json::json;

fn image(directory: &tempfile::TempDir, name: &str) -> PathBuf {
    directory.path().join(name)
}

fn sound(store: &Store, path: &Path) {
    store.save(path);
    let (corruptions, leaks, errors) = check(path);
    assert_eq!((corruptions, leaks), (0, 0), "{}: {errors}", path.display());
}

fn pattern(len: usize, seed: u64) -> Vec<u8> {
    let mut random = Random::new(seed);
    (0..len).map(|_| random.next() as u8).collect()
}

/// What `qemu-img info` says of an image, as far as it does not depend on the file.
fn info(path: &Path) -> serde_json::Value {
    let text = qemu_img(&["info", "--output=json", path.to_str().unwrap()]);
    let mut info: serde_json::Value = serde_json::from_str(&text).unwrap();
    for name in ["filename", "actual-size", "children"] {
        info.as_object_mut().unwrap().remove(name);
    }
    info
}

#[test]
fn new_images_are_like_those_of_qemu() {
    let directory = tempfile::tempdir().unwrap();
    let (ours, theirs) = (image(&directory, "ours.qcow2"), image(&directory, "theirs.qcow2"));
    let cases = [
        (json!({"size": 1 << 30}), ""),
        (json!({"size": 0}), ""),
        (json!({"size": 512}), "cluster_size=512"),
        (json!({"size": 100 << 20, "version": "v2"}), "compat=0.10"),
        (
            json!({"size": 100 << 20, "cluster-size": 512}),
            "cluster_size=512",
        ),
        (
            json!({"size": 5 << 30, "cluster-size": 2 << 20}),
            "cluster_size=2M",
        ),
        (
            json!({"size": 10 << 20, "lazy-refcounts": true}),
            "lazy_refcounts=on",
        ),
        (json!({"size": 10 << 20, "refcount-bits": 1}), "refcount_bits=1"),
        (json!({"size": 10 << 20, "refcount-bits": 64}), "refcount_bits=64"),
        (
            json!({"size": 10 << 20, "compression-type": "zstd"}),
            "compression_type=zstd",
        ),
        (
            json!({"size": 10 << 20, "preallocation": "metadata"}),
            "preallocation=metadata",
        ),
        (
            json!({"size": 10 << 20, "preallocation": "full", "cluster-size": 4096}),
            "preallocation=full,cluster_size=4k",
        ),
    ];
    let ring = ring();
    for (ours_options, theirs_options) in cases {
        let mut ours_options = options(ours_options);
        if theirs_options.starts_with("cluster_size=512") {
            ours_options.insert("cluster-size".into(), json!(512));
        }
        let size = ours_options["size"].to_string();
        let store = Store::new(Vec::new(), 1);
        block_on(&ring, create(&store, ours_options.clone(), &ring)).unwrap();
        sound(&store, &ours);
        let mut arguments = vec!["create", "-q", "-f", "qcow2"];
        if !theirs_options.is_empty() {
            arguments.extend(["-o", theirs_options]);
        }
        arguments.extend([theirs.to_str().unwrap(), &size]);
        qemu_img(&arguments);
        assert_eq!(info(&ours), info(&theirs), "{ours_options:?}");
        qemu_img(&["compare", ours.to_str().unwrap(), theirs.to_str().unwrap()]);
    }
}

#[test]
fn bad_options_for_new_images_are_named() {
    let ring = ring();
    let cases = [
        (json!({"size": 513}), "Image size must be a multiple of 512 bytes"),
        (json!({}), "Parameter 'size' is missing"),
        (
            json!({"size": 512, "colour": 1}),
            "Parameter 'colour' is unexpected",
        ),
        (
            json!({"size": 512, "cluster-size": 5000}),
            "Cluster size must be a power of two between 512 and 2048k",
        ),
        (
            json!({"size": 512, "refcount-bits": 3}),
            "Refcount width must be a power of two and may not exceed 64 bits",
        ),
        (
            json!({"size": 512, "backing-fmt": "raw"}),
            "Backing format cannot be used without backing file",
        ),
        (
            json!({"size": 512, "extended-l2": true, "cluster-size": 8192}),
            "Extended L2 entries are only supported with cluster sizes of at least 16384 bytes",
        ),
    ];
    for (bad, expected) in cases {
        let store = Store::new(Vec::new(), 1);
        let error = block_on(&ring, create(&store, options(bad), &ring)).unwrap_err();
        assert_eq!(error.to_string(), expected);
    }
}

#[test]
fn a_new_overlay_names_its_backing_file_and_copies_from_it() {
    let directory = tempfile::tempdir().unwrap();
    let (base, over) = (image(&directory, "base.raw"), image(&directory, "over.qcow2"));
    let data = pattern(300_000 / 512 * 512, 5);
    std::fs::write(&base, &data).unwrap();
    let ring = ring();
    let store = Store::new(Vec::new(), 1);
    let backing = Store::open(&base, 2);
    let mut expected = data.clone();
    expected.resize(1 << 20, 0);
    block_on(&ring, async {
        let json = json!({"size": 1 << 20, "backing-file": "base.raw", "backing-fmt": "raw"});
        create(&store, options(json), &ring).await.unwrap();
        let (disk, opened) = open(&store, Some(&backing), Default::default(), READ_WRITE, &ring)
            .await
            .unwrap();
        let link = opened.backing.unwrap();
        assert_eq!(
            (link.filename.as_str(), link.format.as_deref()),
            ("base.raw", Some("raw"))
        );
        assert_eq!(disk.read(0, 1 << 20).await.unwrap(), expected);
        for (offset, len) in [
            (1000, 100),
            (65530, 12),
            (131_072, 65536),
            (290_000, 40_000),
            (700_001, 3),
        ] {
            let bytes = pattern(len, offset);
            disk.write(offset, &bytes).await.unwrap();
            put(&mut expected, offset, &bytes);
        }
        disk.zero(200_000, 1000, RequestFlags::empty()).await.unwrap();
        expected[200_000..201_000].fill(0);
        let (from, to) = disk.discard(65536, 65536).await.unwrap();
        expected[from as usize..to as usize].fill(0);
        assert_eq!(disk.read(0, 1 << 20).await.unwrap(), expected);
        disk.close().await.unwrap();
    });
    sound(&store, &over);
    assert!(contents(&over) == expected);
}

/// Opens what `qemu-img` made, reads all of it, writes here and there, and has `qemu-img` judge the result.
fn read_and_write(path: &Path, backing: Option<&Path>, expected: &[u8]) {
    let ring = ring();
    let store = Store::open(path, 3);
    let backing = backing.map(|path| Store::open(path, 4));
    let mut expected = expected.to_vec();
    let size = expected.len() as u64;
    block_on(&ring, async {
        let (disk, _) = open(
            &store,
            backing.as_ref(),
            Default::default(),
            OpenFlags::empty(),
            &ring,
        )
        .await
        .unwrap();
        let differs = disk
            .read(0, size)
            .await
            .unwrap()
            .iter()
            .zip(&expected)
            .position(|(a, b)| a != b);
        assert_eq!(differs, None, "{}", path.display());
        disk.close().await.unwrap();
        let (disk, _) = open(&store, backing.as_ref(), Default::default(), READ_WRITE, &ring)
            .await
            .unwrap();
        let mut random = Random::new(9);
        for _ in 0..40 {
            let offset = random.below(size - 1);
            let bytes = pattern(1 + random.below(100_000.min(size - offset)) as usize, offset);
            disk.write(offset, &bytes).await.unwrap();
            put(&mut expected, offset, &bytes);
        }
        assert!(disk.read(0, size).await.unwrap() == expected);
        disk.close().await.unwrap();
    });
    sound(&store, path);
    assert!(contents(path) == expected, "{}", path.display());
}

#[test]
fn images_of_qemu_in_many_shapes() {
    let directory = tempfile::tempdir().unwrap();
    let raw = image(&directory, "data.raw");
    let size = 3 << 20;
    let mut data = vec![0; size];
    data[100_000..900_000].copy_from_slice(&pattern(800_000, 1));
    data[2_000_000..2_500_000].fill(0x55);
    std::fs::write(&raw, &data).unwrap();
    let path = image(&directory, "image.qcow2");
    let (raw, name) = (raw.to_str().unwrap(), path.to_str().unwrap());
    for shape in [
        "cluster_size=64k",
        "cluster_size=512",
        "cluster_size=2M",
        "compat=0.10,cluster_size=4k",
        "refcount_bits=1",
        "refcount_bits=2,cluster_size=1k",
        "refcount_bits=64",
        "lazy_refcounts=on",
        "preallocation=metadata",
        "preallocation=falloc,cluster_size=16k",
    ] {
        qemu_img(&["convert", "-f", "raw", "-O", "qcow2", "-o", shape, raw, name]);
        read_and_write(&path, None, &data);
    }
    for shape in [
        "compression_type=zlib",
        "compression_type=zstd",
        "cluster_size=4k,compression_type=zstd",
        "cluster_size=2M",
    ] {
        qemu_img(&[
            "convert", "-c", "-f", "raw", "-O", "qcow2", "-o", shape, raw, name,
        ]);
        read_and_write(&path, None, &data);
    }
}

#[test]
fn internal_snapshots_keep_their_data() {
    let directory = tempfile::tempdir().unwrap();
    let path = image(&directory, "image.qcow2");
    let name = path.to_str().unwrap();
    qemu_img(&["create", "-q", "-f", "qcow2", name, "2M"]);
    qemu_io(&path, &["write -P 1 0 1M", "write -z 1M 128k"]);
    qemu_img(&["snapshot", "-c", "one", name]);
    let before = contents(&path);
    read_and_write(&path, None, &before);
    qemu_img(&["snapshot", "-a", "one", name]);
    assert!(contents(&path) == before, "the snapshot changed");
}

#[test]
fn lengths_change() {
    let directory = tempfile::tempdir().unwrap();
    let path = image(&directory, "image.qcow2");
    let ring = ring();
    for cluster in [512_u64, 4096, 65536] {
        let store = Store::new(Vec::new(), 1);
        let mut expected = pattern(100 * 1024, 7);
        let json = json!({"size": expected.len(), "cluster-size": cluster});
        block_on(&ring, create(&store, options(json), &ring)).unwrap();
        block_on(&ring, async {
            let (disk, _) = open(&store, None, Default::default(), READ_WRITE, &ring)
                .await
                .unwrap();
            disk.write(0, &expected).await.unwrap();
            for (size, preallocation) in [
                (9 << 20, Preallocation::Off),
                (33_333 * 512, Preallocation::Metadata),
                (1_000 * 512, Preallocation::Off),
                (77 * 512, Preallocation::Off),
                (2_001 * 512, Preallocation::Full),
                (200 << 20, Preallocation::Off),
                (3 << 20, Preallocation::Off),
            ] {
                disk.resize(size, preallocation).await.unwrap();
                expected.resize(size as usize, 0);
                assert_eq!(disk.driver.length().await.unwrap(), size);
                assert!(disk.read(0, size).await.unwrap() == expected, "{cluster} {size}");
                let bytes = pattern(3000, size);
                disk.write(size - 3000, &bytes).await.unwrap();
                put(&mut expected, size - 3000, &bytes);
            }
            let error = disk.resize(1025, Preallocation::Off).await.unwrap_err();
            assert_eq!(error.to_string(), "The new size must be a multiple of 512");
            disk.close().await.unwrap();
        });
        sound(&store, &path);
        assert!(contents(&path) == expected, "{cluster}");
    }
}

#[test]
fn a_longer_overlay_does_not_show_a_longer_backing_file() {
    let ring = ring();
    let store = Store::new(Vec::new(), 1);
    let backing = Store::new(pattern(1 << 20, 3), 2);
    block_on(&ring, async {
        let json = json!({"size": 100 * 1024, "backing-file": "base.raw"});
        create(&store, options(json), &ring).await.unwrap();
        let (disk, _) = open(&store, Some(&backing), Default::default(), READ_WRITE, &ring)
            .await
            .unwrap();
        disk.driver
            .truncate(1 << 20, true, Preallocation::Off, RequestFlags::ZERO_WRITE)
            .await
            .unwrap();
        let data = disk.read(0, 1 << 20).await.unwrap();
        assert!(data[..100 * 1024] == backing.bytes.borrow()[..100 * 1024]);
        assert!(data[100 * 1024..].iter().all(|&byte| byte == 0));
    });
}

#[test]
fn the_backing_link_is_rewritten_and_the_rest_of_the_header_kept() {
    let directory = tempfile::tempdir().unwrap();
    let path = image(&directory, "image.qcow2");
    let ring = ring();
    let store = Store::new(Vec::new(), 1);
    let json = json!({"size": 1 << 20, "backing-file": "a-rather-long-name.raw", "backing-fmt": "raw"});
    block_on(&ring, create(&store, options(json), &ring)).unwrap();
    qemu_img(&[
        "create",
        "-q",
        "-f",
        "qcow2",
        image(&directory, "b.qcow2").to_str().unwrap(),
        "1M",
    ]);
    block_on(&ring, async {
        let (disk, _) = open(&store, None, Default::default(), READ_WRITE, &ring)
            .await
            .unwrap();
        let link = millpond_drivers::api::BackingLink {
            filename: "b.qcow2".into(),
            format: Some("qcow2".into()),
        };
        disk.driver.image().change_backing_file(Some(link)).await.unwrap();
        disk.close().await.unwrap();
    });
    sound(&store, &path);
    let info = info(&path);
    assert_eq!(
        (
            info["backing-filename"].as_str(),
            info["backing-filename-format"].as_str()
        ),
        (Some("b.qcow2"), Some("qcow2"))
    );
    block_on(&ring, async {
        let (disk, _) = open(&store, None, Default::default(), READ_WRITE, &ring)
            .await
            .unwrap();
        disk.driver.image().change_backing_file(None).await.unwrap();
        let too_long = millpond_drivers::api::BackingLink {
            filename: "x".repeat(1024),
            format: None,
        };
        assert!(
            disk.driver
                .image()
                .change_backing_file(Some(too_long))
                .await
                .is_err()
        );
        disk.close().await.unwrap();
    });
    sound(&store, &path);
    assert_eq!(self::info(&path).get("backing-filename"), None);
}

/// A failed write leaves what was there readable, and the image sound once writes work again.
#[test]
fn failed_writes_give_back_what_they_were_given() {
    let directory = tempfile::tempdir().unwrap();
    let path = image(&directory, "image.qcow2");
    let ring = ring();
    let store: Rc<Store> = Store::new(Vec::new(), 1);
    block_on(&ring, create(&store, options(json!({"size": 1 << 20})), &ring)).unwrap();
    block_on(&ring, async {
        let (disk, _) = open(&store, None, Default::default(), READ_WRITE, &ring)
            .await
            .unwrap();
        disk.write(0, &[1; 1000]).await.unwrap();
        store.fail_writes.set(true);
        assert!(disk.write(65536 * 3, &[2; 1000]).await.is_err());
        assert!(disk.flush().await.is_err());
        store.fail_writes.set(false);
        assert_eq!(disk.read(65536 * 3, 1000).await.unwrap(), vec![0; 1000]);
        disk.write(65536 * 4, &[3; 1000]).await.unwrap();
        disk.close().await.unwrap();
    });
    sound(&store, &path);
    let bytes = contents(&path);
    assert!(bytes[..1000] == [1; 1000] && bytes[65536 * 4..65536 * 4 + 1000] == [3; 1000]);
}
