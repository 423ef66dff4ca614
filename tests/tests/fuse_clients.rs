//! Programs that people use on FUSE exports: qemu-io, fio, a loop device with a file system, and memory that is mapped.

use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};

use millpond_tests::daemon::{Daemon, daemon_in, scratch};
use millpond_tests::fuse::Mount;
use millpond_tests::{fuse, image, tool};
use serde_json::{Value, json};

const MIB: u64 = 1 << 20;

/// A daemon with an image of this format, which is mounted on an iothread of its own.
fn mounted(folder: &Path, format: &str, size: u64, more: &Value) -> (Daemon, Mount) {
    fuse::require();
    let builder = daemon_in(folder);
    let path = folder.join("image");
    image::create(&path, format, "", size);
    let builder = builder
        .option("--object", "iothread,id=io")
        .blockdev(image::file("file", &path));
    let mut daemon = builder.blockdev(image::over(format, "disk", "file")).start();
    let more = image::with(json!({"writable": true, "iothread": "io"}), more);
    let path = fuse::mount(&mut daemon, "disk", &more);
    (daemon, path)
}

fn qemu_io_reads_what_it_wrote() {
    let folder = scratch();
    let (daemon, path) = mounted(folder.path(), "qcow2", 16 * MIB, &json!({}));
    let path = path.display().to_string();
    for cache in ["none", "writeback"] {
        let options = ["-f", "raw", "-t", cache, &path];
        tool::qemu_io(
            &options,
            &[
                "write -P 7 1M 2M",
                "write -P 9 4000 100",
                "write -z 2M 64k",
                "flush",
                "discard 8M 1M",
            ],
        );
        tool::qemu_io(
            &options,
            &[
                "read -P 7 1M 1M",
                "read -P 0 2M 64k",
                "read -P 7 2112k 960k",
                "read -P 9 4000 100",
            ],
        );
    }
    let [map, image] = [path.clone(), daemon.path("image")].map(|path| {
        let format = if path.ends_with("image") { "qcow2" } else { "raw" };
        let args = ["map", "-U", "--output=json", "-f", format, &path];
        extents(&tool::run_json("qemu-img", &args))
    });
    assert_eq!(map, image, "data and holes are where the image has them");
    daemon.quit();
}

/// Where a map has data and where it has none, neighbours joined.
fn extents(map: &Value) -> Vec<(u64, u64, bool)> {
    let mut all: Vec<(u64, u64, bool)> = Vec::new();
    for extent in map.as_array().expect("a map is a list") {
        let number = |name: &str| extent[name].as_u64().expect("an extent has numbers");
        let (start, len, data) = (number("start"), number("length"), extent["data"] == true);
        match all.last_mut().filter(|last| last.2 == data) {
            Some(last) => last.1 += len,
            None => all.push((start, len, data)),
        }
    }
    all
}

fn fio_verifies_what_it_wrote() {
    for (engine, direct) in [("libaio", "1"), ("io_uring", "1"), ("psync", "0"), ("mmap", "0")] {
        let folder = scratch();
        let (daemon, path) = mounted(folder.path(), "raw", 32 * MIB, &json!({}));
        let args = [
            "--name=fuse".to_owned(),
            format!("--filename={}", path.display()),
            format!("--ioengine={engine}"),
            format!("--direct={direct}"),
            "--rw=randwrite".into(),
            "--bsrange=4k-128k".into(),
            "--iodepth=32".into(),
            "--size=32m".into(),
            "--verify=crc32c".into(),
            "--verify_fatal=1".into(),
            "--verify_state_save=0".into(),
            "--fsync=64".into(),
        ];
        tool::run("fio", &args);
        daemon.quit();
    }
}

/// A loop device over a file, let go of on drop.
struct Loop(String);

impl Loop {
    fn over(path: &Path) -> Self {
        let args = ["--find", "--show", "--direct-io=on", &path.display().to_string()];
        Self(tool::run("losetup", &args).trim().to_owned())
    }
}

impl Drop for Loop {
    fn drop(&mut self) {
        let _ = Command::new("losetup").args(["--detach", &self.0]).status();
    }
}

fn a_file_system_on_an_export_is_whole() {
    let folder = scratch();
    let (daemon, path) = mounted(folder.path(), "qcow2", 64 * MIB, &json!({}));
    let mounted_at = daemon.dir().join("folder");
    fs::create_dir(&mounted_at).expect("a folder can be made");
    let device = Loop::over(&path);
    tool::run("mkfs.ext4", &["-q", &device.0]);
    for round in 0..2 {
        tool::run("mount", &[&device.0, &mounted_at.display().to_string()]);
        for index in 0..200_usize {
            let file = mounted_at.join(format!("file-{index}"));
            let bytes = vec![index as u8; index * 97];
            match round {
                0 => fs::write(&file, &bytes).expect("a file can be written"),
                _ => assert_eq!(fs::read(&file).expect("a file can be read"), bytes),
            }
        }
        tool::run("umount", &[&mounted_at]);
        tool::run("fsck.ext4", &["-f", "-n", &device.0]);
    }
    drop(device);
    let image = daemon.path("image");
    daemon.quit();
    tool::run("qemu-img", &["check", "-q", &image]);
}

fn mapped_memory_is_the_disk() {
    let folder = scratch();
    let (daemon, path) = mounted(folder.path(), "raw", MIB, &json!({"growable": false}));
    let script = "
import mmap, os, sys
fd = os.open(sys.argv[1], os.O_RDWR)
shared = mmap.mmap(fd, 65536, mmap.MAP_SHARED)
shared[100:106] = b'mapped'
shared.flush()
assert os.pread(fd, 6, 100) == b'mapped'
os.pwrite(fd, b'written', 5000)
assert shared[5000:5007] == b'written'
shared[60000:60006] = b'closed'
private = mmap.mmap(fd, 65536, mmap.MAP_PRIVATE)
private[0:5] = b'never'
shared.close()
os.close(fd)
# What swtpm_setup does: a new file in the place of the old one.
fd = os.open(sys.argv[1], os.O_RDWR | os.O_CREAT | os.O_TRUNC)
assert os.fstat(fd).st_size == 1048576
assert os.pread(fd, 6, 60000) == b'closed'
assert os.pread(fd, 5, 0) == bytes(5)
";
    tool::run("python3", &["-c", script, &path.display().to_string()]);
    daemon.quit();
}

fn what_is_mapped_is_written_before_an_export_is_gone() {
    let folder = scratch();
    let (mut daemon, path) = mounted(folder.path(), "raw", MIB, &json!({}));
    let script = "
import mmap, os, sys
fd = os.open(sys.argv[1], os.O_RDWR)
shared = mmap.mmap(fd, 65536, mmap.MAP_SHARED)
os.close(fd)
shared[100:106] = b'mapped'
del shared
";
    tool::run("python3", &["-c", script, &path.display().to_string()]);
    daemon.qmp.ok("block-export-del", json!({"id": "fuse"}));
    let image = daemon.path("image");
    daemon.quit();
    let bytes = fs::read(image).expect("the image is there");
    assert_eq!(&bytes[100..106], b"mapped");
}

fn users_who_die_leave_an_export_that_works() {
    let folder = scratch();
    let (daemon, path) = mounted(folder.path(), "raw", 8 * MIB, &json!({}));
    for _ in 0..20 {
        let mut client = Command::new("dd")
            .arg("if=/dev/urandom")
            .arg(format!("of={}", path.display()))
            .args(["bs=64k", "count=128", "conv=notrunc", "status=none"])
            .stderr(Stdio::null())
            .spawn()
            .expect("dd is there");
        let mut first = [0];
        // It has opened the export, or is about to.
        std::os::unix::fs::FileExt::read_at(&fs::File::open(&path).expect("it opens"), &mut first, 0)
            .expect("it is read");
        client.kill().expect("it can be killed");
        client.wait().expect("it ends");
    }
    let path = path.display().to_string();
    tool::qemu_io(&["-f", "raw", &path], &["write -P 3 0 8M", "read -P 3 0 8M"]);
    daemon.quit();
}

millpond_tests::over_each_transport!(
    qemu_io_reads_what_it_wrote,
    fio_verifies_what_it_wrote,
    a_file_system_on_an_export_is_whole,
    mapped_memory_is_the_disk,
    what_is_mapped_is_written_before_an_export_is_gone,
    users_who_die_leave_an_export_that_works,
);
