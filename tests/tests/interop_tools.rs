//! Other people's NBD clients against the daemon: on null, raw and qcow2 nodes, over unix sockets and TCP.

use std::path::PathBuf;

use millpond_tests::daemon::{Daemon, daemon, daemon_in, scratch};
use millpond_tests::image;
use millpond_tests::tool::{qemu_img, qemu_io, run, run_json, try_run};
use serde_json::json;
use tempfile::TempDir;

const SIZE: u64 = 16 << 20;

/// A daemon and the image it serves.
struct Served {
    daemon: Daemon,
    image: PathBuf,
    format: &'static str,
    dir: TempDir,
}

impl Served {
    fn uri(&self) -> String {
        self.daemon.uri("disk")
    }

    /// Stops the daemon and requires that the image is sound and holds what `commands` of `qemu-io` verify. Returns the
    /// folder, which still has everything.
    fn verify_offline(self, commands: &[&str]) -> TempDir {
        self.daemon.quit();
        if self.format == "qcow2" {
            image::assert_clean(&self.image);
        }
        qemu_io(&["-f", self.format, &self.image.display().to_string()], commands);
        self.dir
    }
}

/// Serves a new image of `format` as export `disk`.
fn serve(format: &'static str, tcp: bool) -> Served {
    let dir = scratch();
    let builder = daemon_in(dir.path());
    let image = dir.path().join("disk.img");
    image::create(&image, format, "", SIZE);
    let builder = if tcp {
        builder.nbd_tcp()
    } else {
        builder.nbd_unix()
    };
    let mut protocol = image::file("protocol", &image);
    protocol["discard"] = json!("unmap");
    let mut disk = image::over(format, "disk", "protocol");
    disk["discard"] = json!("unmap");
    let daemon = builder.blockdev(protocol).blockdev(disk).export("disk").start();
    Served {
        daemon,
        image,
        format,
        dir,
    }
}

/// Runs `check` on each format and transport.
fn on_every_kind(check: impl Fn(Served)) {
    for format in ["raw", "qcow2"] {
        for tcp in [false, true] {
            check(serve(format, tcp));
        }
    }
}

#[test]
fn qemu_io_patterns_come_back_and_reach_the_image() {
    on_every_kind(|served| {
        let uri = served.uri();
        qemu_io(
            &["-f", "raw", "-d", "unmap", &uri],
            &[
                "write -P 0x11 0 1M",
                "write -P 0x22 64k 4k",
                "write -f -P 0x33 100000 3000",
                "write -z 256k 128k",
                "write -z -u 512k 64k",
                "discard 768k 64k",
                "aio_write -P 0x44 2M 1M",
                "aio_write -P 0x55 3M 1M",
                "aio_flush",
                "flush",
                "read -P 0x11 0 64k",
                "read -P 0x22 64k 4k",
                "read -P 0x33 100000 3000",
                "read -P 0x00 256k 128k",
                "read -P 0x00 512k 64k",
                "read -P 0x44 2M 1M",
                "read -P 0x55 3M 1M",
                "read -P 0x00 8M 8M",
            ],
        );
        served.verify_offline(&[
            "read -P 0x11 0 64k",
            "read -P 0x22 64k 4k",
            "read -P 0x33 100000 3000",
            "read -P 0x00 256k 128k",
            "read -P 0x44 2M 1M",
        ]);
    });
}

#[test]
fn qemu_io_is_refused_writing_to_a_read_only_export() {
    let daemon = daemon()
        .nbd_unix()
        .blockdev(json!({ "driver": "null-co", "node-name": "disk", "size": SIZE, "read-zeroes": true }))
        .export_read_only("disk")
        .start();
    let run = try_run("qemu-io", &["-f", "raw", &daemon.uri("disk"), "-c", "write 0 4k"]);
    assert_ne!(run.code, Some(0), "{}", run.stdout);
    assert!(run.stderr.contains("Permission denied"), "{}", run.stderr);
    qemu_io(&["-r", "-f", "raw", &daemon.uri("disk")], &["read -P 0 0 1M"]);
}

#[test]
fn qemu_img_info_and_map_see_the_disk() {
    on_every_kind(|served| {
        let uri = served.uri();
        qemu_io(
            &["-f", "raw", &uri],
            &["write -P 1 1M 64k", "write -P 2 4M 2M", "flush"],
        );
        let info = run_json("qemu-img", &["info", "--output=json", &uri]);
        assert_eq!(info["virtual-size"], SIZE);
        assert_eq!(info["format"], "raw");
        let map = image::map("raw", &uri);
        // qemu-img gives the first block of a raw file its space, which is no concern of this test.
        let data: Vec<(u64, u64)> = map
            .iter()
            .filter(|part| part.2 && part.0 > 0)
            .map(|(start, length, ..)| (*start, *length))
            .collect();
        assert_eq!(
            data,
            [(1 << 20, 64 << 10), (4 << 20, 2 << 20)],
            "{}: {map:?}",
            served.format
        );
        assert!(
            map.iter().all(|(_, _, data, zero)| data != zero),
            "holes read as zeroes: {map:?}"
        );
    });
}

#[test]
fn qemu_img_convert_compare_and_bench_run_over_nbd() {
    on_every_kind(|served| {
        let uri = served.uri();
        let source = served.daemon.path("source.qcow2");
        let copy = served.daemon.path("copy.qcow2");
        image::create(source.as_ref(), "qcow2", "cluster_size=4k", SIZE);
        qemu_io(
            &["-f", "qcow2", &source],
            &["write -P 7 5000 300000", "write -P 8 9M 1M", "write -z 9500k 64k"],
        );
        qemu_img(&format!("convert -n -W -m 8 -f qcow2 -O raw {source} {uri}"));
        image::assert_identical(("qcow2", &source), ("raw", &uri));
        qemu_img(&format!("convert -f raw -O qcow2 -c {uri} {copy}"));
        image::assert_identical(("qcow2", &copy), ("raw", &uri));
        qemu_img(&format!("bench -f raw -c 500 -d 32 -s 4096 {uri}"));
        qemu_img(&format!(
            "bench -f raw -w --pattern=9 -c 256 -d 16 -s 65536 {uri}"
        ));
        qemu_img(&format!(
            "bench -f raw -w --flush-interval=16 -c 64 -d 16 -s 4096 -o 8388608 {uri}"
        ));
        served.verify_offline(&["read -P 9 0 64k"]);
    });
}

#[test]
fn qemu_img_check_of_an_nbd_export_holding_qcow2() {
    let served = serve("raw", false);
    let uri = served.uri();
    qemu_img(&format!("create -q -f qcow2 {uri} 4M"));
    qemu_io(&["-f", "qcow2", &uri], &["write -P 5 1M 1M", "discard 1M 64k"]);
    qemu_img(&format!("check -f qcow2 {uri}"));
    qemu_img(&format!("info -f qcow2 {uri}"));
}

#[test]
fn nbdinfo_tells_what_the_server_can() {
    on_every_kind(|served| {
        let uri = served.uri();
        let info = run_json("nbdinfo", &["--json", &uri]);
        assert_eq!(info["protocol"], "newstyle-fixed");
        assert_eq!(info["structured"], true);
        let export = &info["exports"][0];
        assert_eq!(export["export-name"], "disk");
        assert_eq!(export["export-size"], SIZE);
        assert_eq!(export["is_read_only"], false);
        for ability in [
            "can_cache",
            "can_df",
            "can_fast_zero",
            "can_flush",
            "can_fua",
            "can_multi_conn",
            "can_trim",
            "can_zero",
        ] {
            assert_eq!(export[ability], true, "{ability}");
        }
        assert_eq!(export["contexts"][0], "base:allocation");
        let list = run_json("nbdinfo", &["--list", "--json", &uri]);
        assert_eq!(list["exports"].as_array().map(Vec::len), Some(1));
        let map = run_json("nbdinfo", &["--map", "--json", &uri]);
        let sum: u64 = map
            .as_array()
            .expect("a list")
            .iter()
            .filter_map(|part| part["length"].as_u64())
            .sum();
        assert_eq!(sum, SIZE);
    });
}

#[test]
fn nbdcopy_copies_there_and_back() {
    on_every_kind(|served| {
        let uri = served.uri();
        let source = served.daemon.path("source.raw");
        let copy = served.daemon.path("copy.raw");
        image::create(source.as_ref(), "raw", "", SIZE);
        qemu_io(
            &["-f", "raw", &source],
            &["write -P 3 123456 1234567", "write -P 4 10M 512k"],
        );
        run(
            "nbdcopy",
            &["--connections=4", "--requests=32", "--flush", &source, &uri],
        );
        run("nbdcopy", &["--connections=4", &uri, &copy]);
        let same = std::fs::read(&source).expect("the source") == std::fs::read(&copy).expect("the copy");
        assert!(same, "what came back from {uri} is not what was sent");
        let image = served.image.display().to_string();
        let format = served.format;
        let _dir = served.verify_offline(&["read -P 4 10M 512k"]);
        image::assert_identical((format, &image), ("raw", &source));
    });
}

/// Uses what no other client here uses: many asynchronous commands, contexts by callback, and each flag.
const NBDSH_SCRIPT: &str = r#"
import os
uri, size = os.environ["URI"], int(os.environ["SIZE"])
h.add_meta_context("base:allocation")
h.set_request_block_size(True)
h.connect_uri(uri)
assert h.get_size() == size
assert h.get_structured_replies_negotiated()
assert h.can_meta_context("base:allocation")
assert h.get_block_size(nbd.SIZE_MAXIMUM) >= 1 << 20

pattern = bytes(range(256)) * 16
done = []
def finish(error):
    done.append(error.value)
    return 1
for index in range(200):
    h.aio_pwrite(nbd.Buffer.from_bytearray(bytearray(pattern)), index * 8192, completion=finish)
while len(done) < 200:
    h.poll(-1)
assert done == [0] * 200, done
h.flush()
buffers = [nbd.Buffer(4096) for _ in range(200)]
for index, buffer in enumerate(buffers):
    h.aio_pread(buffer, index * 8192, completion=finish)
while len(done) < 400:
    h.poll(-1)
assert all(buffer.to_bytearray() == pattern for buffer in buffers)

h.pwrite(pattern, 5 << 20, nbd.CMD_FLAG_FUA)
h.zero(2048, 5 << 20, nbd.CMD_FLAG_NO_HOLE | nbd.CMD_FLAG_FUA)
assert h.pread_structured(4096, 5 << 20, lambda *part: None, nbd.CMD_FLAG_DF) == bytes(2048) + pattern[2048:]
h.trim(65536, 6 << 20, nbd.CMD_FLAG_FUA)
h.cache(1 << 20, 0)
parts = []
def part(data, offset, status, error):
    parts.append((offset, len(data), status))
assert h.pread_structured(1 << 20, 5 << 20, part)[:4096] == bytes(2048) + pattern[2048:]
assert sum(length for _, length, _ in parts) == 1 << 20
extents = []
def status(context, offset, entries, error):
    assert context == "base:allocation"
    extents.append(entries)
h.block_status(size, 0, status)
assert sum(extents[0][0::2]) <= size and len(extents[0]) % 2 == 0
h.shutdown()
"#;

#[test]
fn nbdsh_drives_every_command_and_flag() {
    on_every_kind(|served| {
        let script = NBDSH_SCRIPT
            .replace("os.environ[\"URI\"]", &format!("{:?}", served.uri()))
            .replace("os.environ[\"SIZE\"]", &SIZE.to_string());
        run("nbdsh", &["-c", &script]);
        served.verify_offline(&["read 0 64k"]);
    });
}

#[test]
fn fio_verifies_what_it_wrote() {
    on_every_kind(|served| {
        let uri = served.uri();
        let run = try_run(
            "fio",
            &[
                "--name=verify".to_owned(),
                "--ioengine=nbd".into(),
                format!("--uri={uri}"),
                "--rw=randwrite".into(),
                "--bssplit=4k/50:512/20:64k/30".into(),
                "--blockalign=512".into(),
                "--size=8M".into(),
                "--iodepth=32".into(),
                "--verify=crc32c".into(),
                "--verify_fatal=1".into(),
                "--do_verify=1".into(),
                "--verify_state_save=0".into(),
                "--minimal".into(),
            ],
        );
        assert_eq!(run.code, Some(0), "{}\n{}{}", run.line, run.stdout, run.stderr);
        served.verify_offline(&["read 0 64k"]);
    });
}

#[test]
fn fio_mixes_reads_and_writes_on_a_null_node() {
    for driver in ["null-co", "null-aio"] {
        let daemon = daemon()
            .nbd_unix()
            .blockdev(
                json!({ "driver": driver, "node-name": "disk", "size": 1_u64 << 30, "latency-ns": 100_000 }),
            )
            .export("disk")
            .start();
        let uri = format!("--uri={}", daemon.uri("disk"));
        run(
            "fio",
            &[
                "--name=mix",
                "--ioengine=nbd",
                &uri,
                "--rw=randrw",
                "--bs=4k",
                "--size=8M",
                "--iodepth=64",
                "--minimal",
            ],
        );
    }
}
