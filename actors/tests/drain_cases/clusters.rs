//! What frees a cluster of a qcow2 image beside writes to it, step by step, on storage that the test holds.

use std::process::Command;

use millpond::node::Client;
use millpond_messages::io::OperationKind;
use millpond_messages::{IoResult, RequestFlags};
use serde_json::json;

use super::driver::Step;
use super::world::{Sent, World, bytes, is_ready, read, sent, wait, write, writing};

const CLUSTER: u64 = 512;

/// Asks for the first cluster to be freed.
type Free = fn(Client) -> Sent<IoResult<()>>;

/// An image of 16 KiB in clusters of 512 bytes, as QEMU makes it.
fn image(directory: &std::path::Path) -> Vec<u8> {
    let path = directory.join("template.qcow2");
    let created = Command::new("qemu-img")
        .args(["create", "-q", "-f", "qcow2", "-o", "cluster_size=512"])
        .args([path.as_os_str(), "16k".as_ref()])
        .status()
        .expect("qemu-img can be run");
    assert!(created.success());
    std::fs::read(path).expect("qemu-img has made it")
}

fn chunks(image: &[u8]) -> impl Iterator<Item = (u64, &[u8])> {
    let offsets = (0_u64..).step_by(512);
    offsets.zip(image.chunks(512))
}

/// contract: shape 8
#[test]
fn a_cluster_is_not_freed_under_a_write_to_it() {
    let free: [(&str, Free); 2] = [
        ("discard", |client| {
            sent(async move { client.discard(0, CLUSTER).await })
        }),
        ("zeroes", |client| {
            sent(async move { client.write_zeroes(0, CLUSTER, RequestFlags::MAY_UNMAP).await })
        }),
    ];
    for allocated in [false, true] {
        for (name, free) in free {
            beside_a_write(allocated, name, free);
        }
    }
}

fn beside_a_write(allocated: bool, name: &str, free: Free) {
    let directory = tempfile::tempdir().expect("a directory");
    let world = World::new(&["store"]);
    world.memory("store");
    let filling = world.client("store");
    for (offset, chunk) in chunks(&image(directory.path())) {
        let mut buffers = bytes(0, 512);
        buffers.copy_from_slice(0, chunk);
        wait(filling.write(offset, buffers, RequestFlags::empty()))
            .0
            .expect("there is room");
    }
    wait(world.graph.detach(filling.root())).expect("it is attached");
    world.add(json!({"driver": "qcow2", "node-name": "disk", "file": "store", "discard": "unmap"}));
    let client = world.client("disk");
    if allocated {
        write(&client, 0, 1);
    }

    // A write to the first cluster is at the storage; freeing that cluster, and a write that needs a new one, come after.
    let store = world.node("store");
    store.hold(true);
    let first = writing(&client, 0, 2);
    let held = loop {
        let held = store
            .held
            .recv_timeout(super::world::DEADLINE)
            .expect("the write comes");
        // The tables have to be read before.
        match held.step {
            Step::Request(OperationKind::Read) => held.go.send(()).expect("the driver waits"),
            step => {
                assert_eq!(step, Step::Request(OperationKind::Write));
                break held;
            }
        }
    };
    store.hold(false);
    let mut freeing = free(client.clone());
    world.settle();
    assert!(!is_ready(&mut freeing), "{name} waits for the write under way");
    let elsewhere = writing(&client, 8 * CLUSTER, 3);
    world.settle();
    held.go.send(()).expect("the driver waits");
    assert_eq!([wait(first), wait(freeing), wait(elsewhere)], [Ok(()); 3]);

    assert_eq!(read(&client, 8 * CLUSTER), [3; 512], "nobody else's data");
    assert_eq!(read(&client, 0), [0; 512], "{name} came last");
    write(&client, 16 * CLUSTER, 4);
    assert_eq!(read(&client, 8 * CLUSTER), [3; 512]);
    wait(world.graph.detach(client.root())).expect("it is attached");
    wait(world.graph.delete_node("disk")).expect("nobody holds it");

    let stored = world.reader("store");
    let path = directory.path().join("disk.qcow2");
    let image: Vec<u8> = (0..super::world::SIZE as u64 / 512)
        .flat_map(|sector| read(&stored, sector * 512))
        .collect();
    std::fs::write(&path, image).expect("there is room");
    let check = Command::new("qemu-img")
        .args(["check", "-q", "-f", "qcow2"])
        .arg(path)
        .status()
        .expect("qemu-img can be run");
    assert!(check.success(), "{name}, allocated before: {allocated}");
}
