//! Disks by name, as an embedder uses them, held against qemu-img.

use std::path::Path;
use std::process::Command;

use futures_executor::block_on;
use millpond::embed::{BlockLayer, BlockLayerConfig};
use millpond_messages::ErrorKind;

type Result = std::result::Result<(), Box<dyn std::error::Error>>;

fn layer() -> BlockLayer {
    block_on(BlockLayer::start(BlockLayerConfig::default())).expect("a block layer starts")
}

fn qemu(program: &str, arguments: &[&str]) -> String {
    let output = Command::new(program)
        .args(arguments)
        .output()
        .unwrap_or_else(|error| panic!("{program} is missing (package qemu-utils): {error}"));
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{program} {arguments:?}: {text}{errors}");
    text
}

fn path(folder: &Path, name: &str) -> String {
    folder.join(name).display().to_string()
}

#[test]
fn snapshots_in_other_folders_make_a_chain_that_qemu_reads() -> Result {
    let folder = tempfile::tempdir().expect("a folder");
    std::fs::create_dir(folder.path().join("later")).expect("a folder");
    let (base, overlay) = (
        path(folder.path(), "disk.raw"),
        path(folder.path(), "later/overlay.qcow2"),
    );
    let layer = layer();
    block_on(async {
        layer.create(&base, 1 << 20).format("raw").await?;
        let mut disk = layer.open(&base).format("raw").node_name("disk").await?;
        assert_eq!(disk.node_name(), "disk");
        disk.write_at(&[0x11; 4096], 0).await?;
        disk.snapshot(&overlay).await?;
        assert_ne!(disk.node_name(), "disk");
        disk.write_at(&[0x22; 4096], 4096).await?;
        let mut bytes = [0; 8192];
        disk.read_at(&mut bytes, 0).await?;
        assert_eq!(bytes[..4096], [0x11; 4096]);
        assert_eq!(bytes[4096..], [0x22; 4096]);
        disk.close().await?;
        layer.shut_down().await?;
        Result::Ok(())
    })?;
    let info = qemu("qemu-img", &["info", "--backing-chain", &overlay]);
    assert!(
        info.contains(&format!("backing file: {base}")) && info.contains("backing file format: raw"),
        "{info}"
    );
    qemu(
        "qemu-io",
        &[
            "-r",
            "-c",
            "read -P 0x11 0 4k",
            "-c",
            "read -P 0x22 4k 4k",
            &overlay,
        ],
    );
    qemu(
        "qemu-io",
        &[
            "-r",
            "-f",
            "raw",
            "-c",
            "read -P 0x11 0 4k",
            "-c",
            "read -P 0 4k 4k",
            &base,
        ],
    );
    Ok(())
}

#[test]
fn a_snapshot_that_cannot_be_made_leaves_the_disk_as_it_was() -> Result {
    let folder = tempfile::tempdir().expect("a folder");
    let base = path(folder.path(), "disk.qcow2");
    let layer = layer();
    block_on(async {
        layer.create(&base, 1 << 20).options("cluster_size=4k").await?;
        let mut disk = layer.open(&base).await?;
        let node = disk.node_name().to_owned();
        disk.write_at(b"kept", 0).await?;
        disk.snapshot(path(folder.path(), "nowhere/overlay.qcow2"))
            .await
            .expect_err("there is no such folder");
        assert_eq!(disk.node_name(), node);
        disk.write_at(b"more", 4).await?;
        let mut bytes = [0; 8];
        disk.read_at(&mut bytes, 0).await?;
        assert_eq!(&bytes, b"keptmore");
        disk.close().await?;
        layer.shut_down().await?;
        Result::Ok(())
    })?;
    assert!(qemu("qemu-img", &["info", &base]).contains("cluster_size: 4096"));
    Ok(())
}

#[test]
fn a_disk_that_is_dropped_is_closed() -> Result {
    let folder = tempfile::tempdir().expect("a folder");
    let base = path(folder.path(), "disk.qcow2");
    let layer = layer();
    block_on(async {
        layer.create(&base, 1 << 20).await?;
        for round in 0..3 {
            let mut disk = layer.open(&base).node_name("disk").await?;
            disk.snapshot(path(folder.path(), &format!("overlay{round}.qcow2")))
                .await?;
            drop(disk);
        }
        // Changes come one after the other: this one ends after those that the drop has sent.
        layer.open(&base).await?.close().await?;
        let facts = layer.graph().facts().await?;
        assert!(facts.nodes.is_empty(), "{:?}", facts.nodes);
        layer.shut_down().await?;
        Result::Ok(())
    })
}

#[test]
fn what_may_not_be_written_is_refused() -> Result {
    let folder = tempfile::tempdir().expect("a folder");
    let base = path(folder.path(), "disk.raw");
    let layer = layer();
    block_on(async {
        layer.create(&base, 1 << 20).format("raw").await?;
        // Its format would be a guess that its user could change.
        let refused = layer
            .open(&base)
            .await
            .err()
            .expect("a raw image is said to be one");
        assert_eq!(refused.kind(), ErrorKind::Permission);
        let disk = layer.open(&base).read_only().await?;
        disk.write_at(b"x", 0).await.expect_err("it is read-only");
        let mut past = [0; 16];
        disk.read_at(&mut past, (1 << 20) - 8)
            .await
            .expect_err("past the end");
        disk.close().await?;
        layer.shut_down().await?;
        Result::Ok(())
    })
}
