//! Other data behind a child's edge: a driver goes on with what is there now, and what it had written back is in the old
//! image. Each image is read by QEMU's tools afterwards, and must be whole.

use std::path::{Path, PathBuf};

use millpond_tests::daemon::{Daemon, daemon_in, scratch};
use millpond_tests::image;
use millpond_tests::tool::{self, qemu_io};
use serde_json::{Value, json};
use tempfile::TempDir;

const MIB: u64 = 1 << 20;
const EIO: u32 = 5;

/// A folder with images, and what is in them.
struct Images(TempDir);

impl Images {
    fn new() -> Images {
        Images(scratch())
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    /// A qcow2 image, the first half of which is `pattern`. A first write elsewhere moves its tables to other places than
    /// those of other images.
    fn qcow2(&self, name: &str, options: &str, shift: u64, pattern: u8) -> PathBuf {
        let path = self.path(name);
        image::create(&path, "qcow2", options, 4 * MIB);
        let (shift, half) = (
            format!("write -P 9 3M {shift}k"),
            format!("write -P {pattern} 0 2M"),
        );
        qemu_io(&["-f", "qcow2", &path.display().to_string()], &[&shift, &half]);
        path
    }

    fn raw(&self, name: &str, size: u64, pattern: u8) -> PathBuf {
        let path = self.path(name);
        std::fs::write(&path, vec![pattern; usize::try_from(size).expect("small")]).expect("a file");
        path
    }

    /// A daemon with the nodes; `disk` is exported.
    fn serve(&self, nodes: &[Value], disk: &str) -> Daemon {
        let builder = nodes
            .iter()
            .fold(daemon_in(self.0.path()).nbd_unix(), |builder, node| {
                builder.blockdev(node.clone())
            });
        builder.export(disk).start()
    }
}

fn reopen(daemon: &mut Daemon, options: &[Value]) {
    daemon.qmp.ok("blockdev-reopen", json!({ "options": options }));
}

fn qcow2(name: &str, file: &str) -> Value {
    json!({"driver": "qcow2", "node-name": name, "file": file, "backing": null})
}

fn over(driver: &str, name: &str, file: &str) -> Value {
    image::over(driver, name, file)
}

/// What is in an image, by QEMU's word.
#[track_caller]
fn holds(path: &Path, reads: &[&str]) {
    qemu_io(&["-f", "qcow2", &path.display().to_string()], reads);
    image::assert_clean(path);
}

#[test]
fn two_images_that_swap_their_files_show_and_change_each_the_other() {
    for lazy in ["", "lazy_refcounts=on"] {
        let images = Images::new();
        let (a, b) = (images.qcow2("a", lazy, 64, 1), images.qcow2("b", lazy, 512, 2));
        let nodes = [
            image::file("fa", &a),
            image::file("fb", &b),
            qcow2("qa", "fa"),
            qcow2("qb", "fb"),
        ];
        let mut daemon = images.serve(&nodes, "qa");
        let mut session = daemon.session("qa");
        // Dirty tables, which must reach the image that they are of.
        session.write(2 * MIB, &[3; 65536]);
        assert_eq!(session.read(0, 4096), [1; 4096]);
        reopen(&mut daemon, &[qcow2("qa", "fb"), qcow2("qb", "fa")]);
        assert_eq!(session.read(0, 4096), [2; 4096], "the other image is shown");
        assert_eq!(session.read(2 * MIB, 4096), [0; 4096]);
        session.write(2 * MIB, &[4; 65536]);
        session.write(0, &[5; 4096]);
        assert_eq!(session.read(2 * MIB, 4096), [4; 4096]);
        // And back: what was written to each is still there.
        reopen(&mut daemon, &[qcow2("qb", "fb"), qcow2("qa", "fa")]);
        assert_eq!(session.read(0, 4096), [1; 4096]);
        assert_eq!(session.read(2 * MIB, 4096), [3; 4096]);
        session.write(MIB, &[6; 4096]);
        daemon.quit();
        holds(
            &a,
            &[
                "read -P 1 0 1M",
                "read -P 6 1M 4k",
                "read -P 3 2M 64k",
                "read -P 0 2112k 64k",
            ],
        );
        holds(&b, &["read -P 5 0 4k", "read -P 2 4k 1020k", "read -P 4 2M 64k"]);
    }
}

#[test]
fn an_image_of_another_size_and_geometry_is_taken_as_it_is() {
    let images = Images::new();
    let a = images.qcow2("a", "cluster_size=65536", 64, 1);
    let b = images.path("b");
    let base = images.raw("base", MIB, 8);
    image::create_overlay(&b, "cluster_size=512", &base, "raw", Some(8 * MIB));
    qemu_io(&["-f", "qcow2", &b.display().to_string()], &["write -P 2 0 1M"]);
    let nodes = [image::file("fa", &a), image::file("fb", &b), qcow2("q", "fa")];
    let mut daemon = images.serve(&nodes, "q");
    let mut session = daemon.session("q");
    session.write(MIB, &[3; 4096]);
    // The slice of the cache is larger than a cluster of the other image: options are looked at anew.
    let mut options = qcow2("q", "fb");
    options["l2-cache-entry-size"] = json!(4096);
    let error = daemon
        .qmp
        .refused("blockdev-reopen", json!({ "options": [options] }));
    assert!(
        error
            .desc
            .contains("L2 cache entry size must be a power of two between 512 and the cluster size (512)"),
        "{}",
        error.desc
    );
    assert_eq!(session.read(MIB, 4096), [3; 4096], "nothing has changed");
    session.write(MIB + 4096, &[4; 4096]);
    reopen(&mut daemon, &[qcow2("q", "fb")]);
    let info = |daemon: &mut Daemon| {
        let nodes = daemon.qmp.ok("query-named-block-nodes", json!({"flat": true}));
        let nodes = nodes.as_array().expect("a list").clone();
        nodes
            .into_iter()
            .find(|node| node["node-name"] == "q")
            .expect("it is there")
    };
    let shown = info(&mut daemon);
    assert_eq!(shown["image"]["virtual-size"], json!(8 * MIB));
    assert_eq!(shown["image"]["cluster-size"], json!(512));
    assert_eq!(
        shown["image"]["backing-filename"],
        json!(base.display().to_string())
    );
    assert_eq!(session.read(0, 4096), [2; 4096]);
    session.write(2 * MIB, &[5; 4096]);
    daemon.quit();
    holds(&a, &["read -P 3 1M 4k", "read -P 4 1028k 4k"]);
    holds(&b, &["read -P 2 0 1M", "read -P 5 2M 4k"]);
}

#[test]
fn what_is_no_image_is_refused_and_nothing_has_changed() {
    let images = Images::new();
    let (a, junk) = (images.qcow2("a", "", 64, 1), images.raw("junk", MIB, 7));
    let nodes = [image::file("fa", &a), image::file("fj", &junk), qcow2("q", "fa")];
    let mut daemon = images.serve(&nodes, "q");
    let mut session = daemon.session("q");
    session.write(2 * MIB, &[3; 4096]);
    let error = daemon
        .qmp
        .refused("blockdev-reopen", json!({ "options": [qcow2("q", "fj")] }));
    assert!(
        error.desc.contains("Image is not in qcow2 format"),
        "{}",
        error.desc
    );
    session.write(2 * MIB + 4096, &[4; 4096]);
    assert_eq!(session.read(2 * MIB, 4096), [3; 4096]);
    daemon.quit();
    holds(&a, &["read -P 1 0 2M", "read -P 3 2M 4k", "read -P 4 2052k 4k"]);
    assert_eq!(std::fs::read(&junk).expect("it is there"), vec![7; 1 << 20]);
}

/// The exchange is seen through filters and formats in between, and ends with the data, not with the next node.
#[test]
fn an_exchange_far_below_reaches_the_format_on_top() {
    let images = Images::new();
    let (a, b) = (images.qcow2("a", "", 64, 1), images.qcow2("b", "", 512, 2));
    let nodes = [
        image::file("fa", &a),
        image::file("fb", &b),
        over("raw", "r", "fa"),
        over("copy-on-read", "filter", "r"),
        qcow2("q", "filter"),
        over("raw", "top", "q"),
    ];
    let mut daemon = images.serve(&nodes, "top");
    let mut session = daemon.session("top");
    session.write(2 * MIB, &[3; 4096]);
    reopen(&mut daemon, &[over("raw", "r", "fb")]);
    assert_eq!(session.read(0, 4096), [2; 4096]);
    session.write(2 * MIB, &[4; 4096]);
    daemon.quit();
    holds(&a, &["read -P 1 0 2M", "read -P 3 2M 4k"]);
    holds(&b, &["read -P 2 0 2M", "read -P 4 2M 4k"]);
}

/// A filter that comes and goes is no other data: nothing is read again, as a table that is broken by then would show.
#[test]
fn a_filter_in_between_leaves_the_tables_in_memory() {
    let images = Images::new();
    let a = images.qcow2("a", "", 64, 1);
    let nodes = [image::file("fa", &a), qcow2("q", "fa")];
    let mut daemon = images.serve(&nodes, "q");
    let mut session = daemon.session("q");
    assert_eq!(session.read(0, 4096), [1; 4096]);
    let header = std::fs::read(&a).expect("it is there")[..4].to_vec();
    image::poke(&a, 0, b"none");
    daemon.qmp.ok("blockdev-add", over("preallocate", "p", "fa"));
    reopen(&mut daemon, &[qcow2("q", "p")]);
    session.write(2 * MIB, &[3; 4096]);
    assert_eq!(session.read(0, 4096), [1; 4096]);
    reopen(&mut daemon, &[qcow2("q", "fa")]);
    assert_eq!(session.read(2 * MIB, 4096), [3; 4096]);
    image::poke(&a, 0, &header);
    daemon.quit();
    holds(&a, &["read -P 1 0 2M", "read -P 3 2M 4k"]);
}

#[test]
fn sizes_and_windows_follow_what_is_there() {
    let images = Images::new();
    let (a, b, c) = (
        images.raw("a", 4 * MIB, 1),
        images.raw("b", 2 * MIB, 2),
        images.raw("c", 4096, 3),
    );
    let window =
        |file: &str| json!({"driver": "raw", "node-name": "w", "file": file, "offset": 4096, "size": MIB});
    let nodes = [
        image::file("fa", &a),
        image::file("fb", &b),
        image::file("fc", &c),
        over("raw", "r", "fa"),
        over("preallocate", "p", "r"),
        window("p"),
    ];
    let mut daemon = images.serve(&nodes, "w");
    let mut session = daemon.session("w");
    session.write(0, &[4; 4096]);
    reopen(&mut daemon, &[over("raw", "r", "fb")]);
    assert_eq!(session.read(0, 4096), [2; 4096]);
    let sizes = |daemon: &mut Daemon| -> Vec<Value> {
        let nodes = daemon.qmp.ok("query-named-block-nodes", json!({"flat": true}));
        let nodes = nodes.as_array().expect("a list").clone();
        let size = |name: &str| {
            let node = nodes.iter().find(|node| node["node-name"] == name);
            node.expect("it is there")["image"]["virtual-size"].clone()
        };
        ["r", "p", "w"].into_iter().map(size).collect()
    };
    assert_eq!(sizes(&mut daemon), [2 * MIB, 2 * MIB, MIB].map(Value::from));
    let error = daemon
        .qmp
        .refused("blockdev-reopen", json!({ "options": [over("raw", "r", "fc")] }));
    assert!(
        error.desc.contains("has to be smaller or equal"),
        "{}",
        error.desc
    );
    assert_eq!(sizes(&mut daemon), [2 * MIB, 2 * MIB, MIB].map(Value::from));
    session.write(4096, &[5; 4096]);
    daemon.quit();
    let (a, b) = (
        std::fs::read(&a).expect("it is there"),
        std::fs::read(&b).expect("it is there"),
    );
    assert_eq!((a.len() as u64, b.len() as u64), (4 * MIB, 2 * MIB));
    assert_eq!(
        (&a[4096..8192], &a[8192..12288]),
        (&[4; 4096][..], &[1; 4096][..])
    );
    assert_eq!(
        (&b[4096..8192], &b[8192..12288]),
        (&[2; 4096][..], &[5; 4096][..])
    );
}

/// Space that was set aside is given back to the file that it is in, before another takes its place.
#[test]
fn preallocated_space_does_not_stay_in_the_old_file() {
    let images = Images::new();
    let (a, b) = (images.path("a"), images.path("b"));
    for path in [&a, &b] {
        image::create(path, "qcow2", "", 64 * MIB);
    }
    let nodes = [
        image::file("fa", &a),
        image::file("fb", &b),
        over("raw", "r", "fa"),
        over("preallocate", "p", "r"),
        qcow2("q", "p"),
    ];
    let mut daemon = images.serve(&nodes, "q");
    let mut session = daemon.session("q");
    let len = |path: &Path| std::fs::metadata(path).expect("it is there").len();
    session.write(0, &[1; 65536]);
    assert!(len(&a) > 100 * MIB, "space is set aside");
    reopen(&mut daemon, &[over("raw", "r", "fb")]);
    assert!(len(&a) < MIB, "it is given back: {}", len(&a));
    session.write(0, &[2; 65536]);
    assert!(len(&b) > 100 * MIB);
    daemon.quit();
    assert!(len(&b) < MIB);
    holds(&a, &["read -P 1 0 64k"]);
    holds(&b, &["read -P 2 0 64k"]);
}

/// Whatever a snapshot puts on top of a format's file is other data, though it shows the same.
#[test]
fn an_overlay_under_a_format_is_written_and_not_what_is_below() {
    let images = Images::new();
    let (a, over_it) = (images.qcow2("a", "", 64, 1), images.path("o"));
    image::create(&over_it, "qcow2", "", 16 * MIB);
    let nodes = [
        image::file("fa", &a),
        qcow2("q", "fa"),
        image::file("fo", &over_it),
        qcow2("o", "fo"),
    ];
    let mut daemon = images.serve(&nodes, "q");
    let mut session = daemon.session("q");
    session.write(2 * MIB, &[3; 4096]);
    daemon
        .qmp
        .ok("blockdev-snapshot", json!({"node": "fa", "overlay": "o"}));
    assert_eq!(session.read(0, 4096), [1; 4096]);
    session.write(2 * MIB, &[4; 65536]);
    session.write(3 * MIB + MIB / 2, &[5; 65536]);
    assert_eq!(session.read(2 * MIB, 4096), [4; 4096]);
    daemon.quit();
    // What is below the overlay is as it was when that was put there: whole, and flushed.
    holds(&a, &["read -P 1 0 2M", "read -P 3 2M 4k", "read -P 0 3584k 64k"]);
    image::assert_clean(&over_it);
    let nested = format!(
        "json:{{'driver':'qcow2','file':{{'driver':'qcow2','file':{{'driver':'file','filename':'{}'}},'backing':{{'driver':'file','filename':'{}'}}}}}}",
        over_it.display(),
        a.display()
    );
    qemu_io(
        &[&nested],
        &["read -P 4 2M 64k", "read -P 5 3584k 64k", "read -P 1 0 2M"],
    );
    tool::run("qemu-img", &["check", &nested]);
}

#[test]
fn the_highest_offset_is_that_of_the_data_there_is() {
    let images = Images::new();
    let (a, b) = (images.raw("a", 4 * MIB, 1), images.raw("b", 4 * MIB, 2));
    let nodes = [
        image::file("fa", &a),
        image::file("fb", &b),
        over("raw", "r", "fa"),
    ];
    let mut daemon = images.serve(&nodes, "r");
    let mut session = daemon.session("r");
    let highest = |daemon: &mut Daemon| {
        let all = daemon.qmp.ok("query-blockstats", json!({"query-nodes": true}));
        let all = all.as_array().expect("a list").clone();
        let node = all
            .into_iter()
            .find(|node| node["node-name"] == "r")
            .expect("it is there");
        node["stats"]["wr_highest_offset"].as_u64().expect("a number")
    };
    session.write(3 * MIB, &[3; 4096]);
    assert_eq!(highest(&mut daemon), 3 * MIB + 4096);
    reopen(&mut daemon, &[over("raw", "r", "fb")]);
    assert_eq!(highest(&mut daemon), 0);
    session.write(0, &[3; 4096]);
    assert_eq!(highest(&mut daemon), 4096);
    reopen(&mut daemon, &[over("raw", "r", "fa")]);
    assert_eq!(session.read(3 * MIB, 4096), [3; 4096]);
    daemon.quit();
}

/// An exported disk becomes shorter under its client: what is behind the end is refused, and nothing else.
#[test]
fn a_client_of_a_disk_that_became_shorter_is_told_so() {
    let images = Images::new();
    let (a, b) = (images.raw("a", 4 * MIB, 1), images.raw("b", MIB, 2));
    let nodes = [
        image::file("fa", &a),
        image::file("fb", &b),
        over("raw", "r", "fa"),
    ];
    let mut daemon = images.serve(&nodes, "r");
    let mut session = daemon.session("r");
    reopen(&mut daemon, &[over("raw", "r", "fb")]);
    assert_eq!(session.read(0, 4096), [2; 4096]);
    let behind = millpond_tests::nbd::Request::read(2 * MIB, 4096);
    assert_eq!(session.refused(&behind), EIO);
    daemon.quit();
    assert_eq!(std::fs::metadata(&b).expect("it is there").len(), MIB);
}
