//! The story as Millpond's daemon carries it out.

use millpond_tests::bitmaps;
use millpond_tests::daemon::Daemon;
use millpond_tests::nbd::Request;
use millpond_tests::program::under_test;
use serde_json::{Value, json};

use super::image::{DataFile, Image, KEY, Kind, SIZE};
use super::story::{Act, GRANULARITY};
use super::theirs;

/// What makes an image of a kind.
fn create_options(image: &Image) -> Value {
    let kind = image.kind;
    let mut options = json!({
        "driver": "qcow2", "file": "made", "size": SIZE, "cluster-size": kind.cluster, "refcount-bits": kind.refcount_bits
    });
    if kind.is_old {
        options["version"] = json!("v2");
    }
    if kind.has_subclusters {
        options["extended-l2"] = json!(true);
    }
    if kind.is_zstd {
        options["compression-type"] = json!("zstd");
    }
    if kind.data_file != DataFile::None {
        options["data-file"] = json!("made-data");
        options["data-file-raw"] = json!(kind.data_file == DataFile::Raw);
    }
    match kind.encryption {
        Some("luks") => {
            options["encrypt"] = json!({"format": "luks", "key-secret": KEY, "iter-time": 10});
        }
        Some(_) => options["encrypt"] = json!({"format": "qcow", "key-secret": KEY}),
        None => {}
    }
    if let Some(format) = kind.backing {
        options["backing-file"] = json!(image.path("base"));
        options["backing-fmt"] = json!(format);
    }
    options
}

fn job(daemon: &mut Daemon, options: Value) {
    let made = daemon.qmp.run_job(
        "make",
        "blockdev-create",
        json!({"job-id": "make", "options": options}),
    );
    made.unwrap_or_else(|error| panic!("{options}: {error}"));
}

/// Makes the files, and the image in them.
fn create(daemon: &mut Daemon, image: &Image) {
    let mut files = vec![("made", "image")];
    if image.kind.data_file != DataFile::None {
        files.push(("made-data", "data"));
    }
    for (node, name) in &files {
        let path = image.path(name);
        job(daemon, json!({"driver": "file", "filename": path, "size": 0}));
        let file = json!({"driver": "file", "node-name": node, "filename": path});
        daemon.qmp.ok("blockdev-add", file);
    }
    job(daemon, create_options(image));
    for (node, _) in files {
        daemon.qmp.ok("blockdev-del", json!({"node-name": node}));
    }
}

/// Makes an image, and does this to it.
pub fn tell(image: &Image, acts: &[Act]) {
    theirs::make_base(image).expect("QEMU makes the backing image");
    let mut daemon = image.serve(under_test());
    create(&mut daemon, image);
    perform(daemon, image, acts);
}

/// Does this to an image that is there.
pub fn change(image: &Image, acts: &[Act]) {
    perform(image.serve(under_test()), image, acts);
}

fn perform(mut daemon: Daemon, image: &Image, acts: &[Act]) {
    daemon.qmp.ok("blockdev-add", image.node(false));
    bitmaps::export(&mut daemon, "disk");
    for act in acts {
        act_on(&mut daemon, image.kind, *act);
    }
    daemon.quit();
}

fn act_on(daemon: &mut Daemon, kind: Kind, act: Act) {
    let snapshot = |name| json!({"device": "disk", "name": name});
    match act {
        Act::Clear => request(daemon, "disk", &Request::write(0, vec![0; SIZE as usize])),
        Act::Write(offset, len, byte) => {
            request(daemon, "disk", &Request::write(offset, vec![byte; len as usize]));
        }
        Act::Compressed(offset, byte) => {
            let bytes = vec![byte; kind.cluster as usize];
            write_compressed(daemon, &Request::write(offset, bytes));
        }
        Act::Zero(offset, len) => request(daemon, "disk", &Request::zero(offset, len)),
        Act::Discard(offset, len) => request(daemon, "disk", &Request::trim(offset, len)),
        Act::Snapshot(name) => {
            daemon.qmp.ok("blockdev-snapshot-internal-sync", snapshot(name));
        }
        Act::Delete(name) => {
            daemon
                .qmp
                .ok("blockdev-snapshot-delete-internal-sync", snapshot(name));
        }
        Act::Bitmap(name) => {
            let (command, mut arguments) = bitmaps::add("disk", name, GRANULARITY);
            arguments["persistent"] = json!(true);
            daemon.qmp.ok(command, arguments);
        }
    }
}

fn request(daemon: &Daemon, node: &str, request: &Request) {
    let mut session = daemon.session(node);
    session.ok(request);
    session.disconnect().expect("a goodbye closes the connection");
}

/// Writes through a filter that is there meanwhile: an image below another node takes no snapshots.
fn write_compressed(daemon: &mut Daemon, write: &Request) {
    let filter = json!({"driver": "compress", "node-name": "packed", "file": "disk"});
    daemon.qmp.ok("blockdev-add", filter);
    bitmaps::export(daemon, "packed");
    request(daemon, "packed", write);
    bitmaps::unexport(daemon, "packed");
    daemon.qmp.ok("blockdev-del", json!({"node-name": "packed"}));
}
