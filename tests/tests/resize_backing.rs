//! What a disk gained by a resize reads as zeroes, whatever its backing file has there.

use millpond_tests::daemon::{daemon_in, scratch};
use millpond_tests::image;
use millpond_tests::tool::qemu_io;
use serde_json::json;

const MIB: u64 = 1 << 20;

#[test]
fn a_resize_does_not_bring_the_backing_file_to_light() {
    let dir = scratch();
    let (base, disk) = (dir.path().join("base.raw"), dir.path().join("disk.qcow2"));
    image::create(&base, "raw", "", 2 * MIB);
    let (base_name, disk_name) = (base.display().to_string(), disk.display().to_string());
    qemu_io(&["-f", "raw", &base_name], &["write -P 0x5a 0 2M"]);
    image::create_overlay(&disk, "", &base, "raw", Some(2 * MIB));
    let mut daemon = daemon_in(dir.path())
        .blockdev(image::file("file", &disk))
        .blockdev(image::over("qcow2", "disk", "file"))
        .start();
    for size in [MIB, 3 * MIB] {
        daemon
            .qmp
            .ok("block_resize", json!({"node-name": "disk", "size": size}));
    }
    daemon.quit();
    let commands = ["read -P 0x5a 0 1M", "read -P 0 1M 2M"];
    qemu_io(&["-f", "qcow2", &disk_name], &commands);
    image::assert_clean(&disk);
}
