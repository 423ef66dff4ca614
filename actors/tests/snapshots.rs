//! Snapshots inside images as an embedder handles them, on images that are in use.
#![allow(clippy::unwrap_used, reason = "a test ends where something fails")]

mod support;

use std::future::Future;
use std::path::{Path, PathBuf};
use std::process::Command;

use millpond::graph::GraphHandle;
use millpond_messages::graph::{
    BitmapChange, BitmapEdit, BitmapName, ChangeSnapshots, EditBitmap, LoadVmState, Resize, RootRequest,
    RootUser, SaveVmState,
};
use millpond_messages::{
    ErrorKind, InternalSnapshot, IoError, Permissions, RequestFlags, SnapshotChange, SnapshotName,
};
use millpond_ring::buffer::Buffers;
use serde_json::{Value, json};

const MIB: u64 = 1 << 20;

fn with_graph<F: Future<Output = ()>>(test: impl FnOnce(GraphHandle, PathBuf) -> F) {
    let directory = tempfile::tempdir().unwrap();
    support::with_graph(|graph| test(graph, directory.path().to_owned()));
}

fn img(directory: &Path, line: &str) -> String {
    let output = Command::new("qemu-img")
        .current_dir(directory)
        .args(line.split_whitespace())
        .output();
    let output = output.unwrap_or_else(|error| panic!("qemu-img: {error}: install the package qemu-utils"));
    assert!(output.status.success(), "{line}: {output:?}");
    String::from_utf8(output.stdout).unwrap()
}

async fn add(graph: &GraphHandle, json: Value) {
    graph.add_node(json.as_object().unwrap().clone()).await.unwrap();
}

async fn add_disk(graph: &GraphHandle, directory: &Path, more: Value) {
    let file = json!({"driver": "file", "node-name": "file", "filename": directory.join("disk")});
    let mut disk = json!({"driver": "qcow2", "node-name": "disk", "file": file});
    for (name, value) in more.as_object().unwrap() {
        disk[name] = value.clone();
    }
    add(graph, disk).await;
}

async fn change(graph: &GraphHandle, change: SnapshotChange) -> millpond_messages::Result<InternalSnapshot> {
    let device = "disk".to_owned();
    graph
        .ask(ChangeSnapshots {
            device,
            change,
            any_name: false,
        })
        .await
}

fn new(name: &str) -> SnapshotChange {
    SnapshotChange::Create(InternalSnapshot {
        name: name.to_owned(),
        ..InternalSnapshot::default()
    })
}

fn apply(text: &str) -> SnapshotChange {
    SnapshotChange::Apply(text.to_owned())
}

fn user(permissions: Permissions, shared: Permissions) -> RootRequest {
    let user = RootUser::Embedder("test".to_owned());
    RootRequest {
        shared,
        ..RootRequest::new("disk", user, permissions)
    }
}

const READ_WRITE: Permissions = Permissions::CONSISTENT_READ.union(Permissions::WRITE);

#[test]
fn a_disk_goes_back_to_what_it_was_while_it_is_in_use() {
    with_graph(|graph, directory| async move {
        img(&directory, "create -q -f qcow2 disk 1M");
        add_disk(&graph, &directory, json!({})).await;
        let disk = graph.attach(user(READ_WRITE, Permissions::all())).await.unwrap();
        let write = async |byte: u8| {
            let data = vec![byte; 4096].into();
            disk.write(0, data, RequestFlags::empty()).await.0.unwrap();
        };
        write(1).await;
        let first = change(&graph, new("first")).await.unwrap();
        assert_eq!((first.id.as_str(), first.disk_size), ("1", MIB));
        write(2).await;
        let resize = Resize {
            node_name: "disk".to_owned(),
            size: 2 * MIB,
        };
        graph.ask(resize).await.unwrap();
        change(&graph, new("second")).await.unwrap();
        write(3).await;
        for (name, byte, size) in [("first", 1, MIB), ("2", 2, 2 * MIB)] {
            change(&graph, apply(name)).await.unwrap();
            let (read, found) = disk.read(0, Buffers::zeroed(4096)).await;
            read.unwrap();
            assert_eq!(found.to_vec(), [byte; 4096], "{name}");
            assert_eq!(disk.length().await, Ok(size), "{name}");
        }
        let missing = change(&graph, apply("third")).await.unwrap_err();
        assert_eq!(
            missing.to_string(),
            "Failed to load snapshot: No such file or directory"
        );
        let gone = change(&graph, SnapshotChange::Delete(SnapshotName::named("first"))).await;
        assert_eq!(gone.unwrap().id, "1");
        graph.detach(disk.root()).await.unwrap();
        graph.delete_node("disk").await.unwrap();
        img(&directory, "check disk");
        assert!(!img(&directory, "snapshot -l disk").contains("first"));
    });
}

#[test]
fn a_length_that_somebody_relies_on_is_not_changed_by_a_snapshot() {
    with_graph(|graph, directory| async move {
        img(&directory, "create -q -f qcow2 disk 1M");
        img(&directory, "snapshot -c one disk");
        img(&directory, "resize -q disk 2M");
        img(&directory, "snapshot -c two disk");
        add_disk(&graph, &directory, json!({})).await;
        let fixed = Permissions::all() - Permissions::RESIZE;
        let disk = graph.attach(user(READ_WRITE, fixed)).await.unwrap();
        let refused = change(&graph, apply("one")).await.unwrap_err();
        assert_eq!(refused.kind(), ErrorKind::Permission, "{refused}");
        change(&graph, apply("two")).await.unwrap();
        graph.detach(disk.root()).await.unwrap();
        change(&graph, apply("one")).await.unwrap();
    });
}

#[test]
fn a_read_only_node_shows_a_snapshot_and_a_format_without_them_says_so() {
    with_graph(|graph, directory| async move {
        img(&directory, "create -q -f qcow2 disk 1M");
        img(&directory, "snapshot -c one disk");
        add_disk(&graph, &directory, json!({"read-only": true})).await;
        let shown = change(&graph, SnapshotChange::Show(SnapshotName::named("one"))).await;
        assert_eq!(shown.unwrap().id, "1");
        let request = ChangeSnapshots {
            device: "file".to_owned(),
            change: apply("one"),
            any_name: false,
        };
        let refused = graph.ask(request).await.unwrap_err();
        assert_eq!(refused.to_string(), "Block driver does not support snapshots");
    });
}

#[test]
fn a_machines_state_is_kept_beside_the_disk_for_a_snapshot() {
    with_graph(|graph, directory| async move {
        img(&directory, "create -q -f qcow2 disk 1M");
        add_disk(&graph, &directory, json!({})).await;
        let node_name = "disk".to_owned();
        let load = async |len| {
            let node_name = node_name.clone();
            let request = LoadVmState {
                node_name,
                offset: 100,
                len,
            };
            graph.ask(request).await
        };
        let save = SaveVmState {
            node_name: node_name.clone(),
            offset: 100,
            state: vec![7; 200_000],
        };
        graph.ask(save).await.unwrap();
        assert_eq!(load(200_001).await.unwrap(), [vec![7; 200_000], vec![0]].concat());
        let mut taken = new("running");
        if let SnapshotChange::Create(taken) = &mut taken {
            taken.vm_state_size = 200_100;
        }
        change(&graph, taken).await.unwrap();
        assert_eq!(load(512).await.unwrap(), [0; 512]);
        change(&graph, apply("running")).await.unwrap();
        assert_eq!(load(512).await.unwrap(), [7; 512]);
        assert_eq!(
            load(1 << 40).await.unwrap_err().kind(),
            ErrorKind::InvalidArgument
        );
        let elsewhere = SaveVmState {
            node_name: "file".to_owned(),
            offset: 0,
            state: vec![1],
        };
        let refused = graph.ask(elsewhere).await.unwrap_err();
        assert_eq!(refused.kind(), ErrorKind::Io(IoError::NotSupported));
        graph.delete_node("disk").await.unwrap();
        img(&directory, "check disk");
        assert!(img(&directory, "snapshot -l disk").contains("195 KiB"));
    });
}

/// What an image comes to show is written past its bitmaps, also where a filter above it is named.
#[test]
fn a_snapshot_is_not_applied_to_a_disk_whose_writes_are_recorded() {
    with_graph(|graph, directory| async move {
        img(&directory, "create -q -f qcow2 disk 1M");
        add_disk(&graph, &directory, json!({})).await;
        change(&graph, new("first")).await.unwrap();
        add(
            &graph,
            json!({"driver": "copy-on-read", "node-name": "filter", "file": "disk"}),
        )
        .await;
        let name = || BitmapName {
            node: "disk".to_owned(),
            name: "bitmap".to_owned(),
        };
        let bitmap = async |change| {
            let bitmap = name();
            graph
                .ask(EditBitmap(BitmapEdit { bitmap, change }))
                .await
                .unwrap();
        };
        let added = BitmapChange::Add {
            granularity: None,
            persistent: false,
            disabled: false,
        };
        bitmap(added).await;
        for device in ["disk", "filter"] {
            let (device, change) = (device.to_owned(), apply("first"));
            let refused = graph
                .ask(ChangeSnapshots {
                    device,
                    change,
                    any_name: false,
                })
                .await
                .unwrap_err();
            assert_eq!(refused.to_string(), "Device has active dirty bitmaps");
        }
        bitmap(BitmapChange::Remove).await;
        change(&graph, apply("first")).await.unwrap();
    });
}
