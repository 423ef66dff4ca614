//! Encrypted qcow2 images that lie about their encryption: refused in QEMU's words, or with an error that says what is wrong;
//! keys are never stored over what the image has, nor guest data over keys.

use std::fs;
use std::path::Path;

use millpond_tests::daemon::{Daemon, daemon_in, scratch};
use millpond_tests::tool;
use serde_json::json;
use tempfile::TempDir;

const PASSWORD: &str = "password";

/// Where the header extension begins that tells of the encryption header, which is where QEMU puts it.
const EXTENSION: usize = 112;
/// Where the encryption header and the L1 table are in the image that QEMU makes.
const KEYS: u64 = 0x4_0000;
const L1: u64 = 0x3_0000;

/// A folder with an encrypted image, and the image's bytes.
fn encrypted() -> (TempDir, Vec<u8>) {
    let dir = scratch();
    let path = dir.path().join("good");
    tool::qemu_img(&format!(
        "create -q -f qcow2 --object secret,id=s,data={PASSWORD} -o \
         encrypt.format=luks,encrypt.key-secret=s,encrypt.iter-time=10 {} 1M",
        path.display()
    ));
    let bytes = fs::read(path).expect("the image is read");
    let place = &bytes[EXTENSION..EXTENSION + 16];
    assert_eq!(place[..8], [0x05, 0x37, 0xbe, 0x77, 0, 0, 0, 16]);
    assert_eq!(place[8..], KEYS.to_be_bytes());
    (dir, bytes)
}

fn ours(dir: &Path) -> Daemon {
    let mut daemon = daemon_in(dir).nbd_unix().start();
    let secret = json!({"qom-type": "secret", "id": "s", "data": PASSWORD});
    daemon.qmp.ok("object-add", secret);
    daemon
}

/// What our daemon says of an image; empty if it is opened.
fn our_error(daemon: &mut Daemon, path: &Path, read_only: bool) -> String {
    let file = json!({"driver": "file", "filename": path});
    let encrypt = json!({"format": "luks", "key-secret": "s"});
    let options = json!({"driver": "qcow2", "node-name": "v", "file": file, "encrypt": encrypt,
        "read-only": read_only});
    match daemon.qmp.execute("blockdev-add", options) {
        Ok(_) => String::new(),
        Err(error) => error.desc,
    }
}

/// What QEMU says of an image; empty if it is opened.
fn qemus_error(path: &Path) -> String {
    let object = format!("secret,id=s,data={PASSWORD}");
    let file = format!(
        "driver=qcow2,encrypt.key-secret=s,file.filename={}",
        path.display()
    );
    let args = ["-r", "--object", &object, "--image-opts", &file, "-c", "length"];
    let run = tool::try_run("qemu-io", &args);
    let said = run.stderr.trim().trim_start_matches("qemu-io: can't open: ");
    said.to_owned()
}

fn put(bytes: &mut [u8], at: usize, new: &[u8]) {
    bytes[at..at + new.len()].copy_from_slice(new);
}

#[test]
fn wrong_places_are_refused_in_the_words_of_qemu() {
    let (dir, good) = encrypted();
    let path = dir.path().join("bad");
    let mut daemon = ours(dir.path());
    let (offset, len, keys) = (EXTENSION + 8, EXTENSION + 16, KEYS as usize);
    let number = |value: u32| value.to_be_bytes().to_vec();
    let place = |value: u64| value.to_be_bytes().to_vec();
    let cases = [
        (32, number(0)),
        (32, number(3)),
        (EXTENSION + 4, number(8)),
        (EXTENSION + 4, number(12)),
        (EXTENSION, number(0x1234_5678)),
        (offset, place(KEYS + 512)),
        (offset, place(0x100_0000)),
        (len, place(0)),
        (len, place(591)),
        (len, place(592)),
        (len, place(4096)),
        (keys, vec![0x55; 592]),
        (keys + 104, number(0)),
        (keys + 104, number(3)),
        (keys + 208 + 40, number(0)),
        (keys + 208 + 4, number(0)),
        (keys + 108, number(0xffff_fff0)),
    ];
    for (at, new) in cases {
        let mut bad = good.clone();
        put(&mut bad, at, &new);
        fs::write(&path, &bad).expect("the image is written");
        let (said, theirs) = (our_error(&mut daemon, &path, true), qemus_error(&path));
        assert_eq!(said, theirs, "{at:#x} {new:x?}");
        assert!(!said.is_empty(), "{at:#x} {new:x?}");
    }
    daemon.quit();
}

/// QEMU looks for keys there, finds none, and would store them there if there were any.
#[test]
fn keys_that_lie_on_tables_are_refused() {
    let (dir, good) = encrypted();
    let path = dir.path().join("bad");
    let mut daemon = ours(dir.path());
    let cases: [(u64, u64, &str); 6] = [
        (0, 4096, "Encryption header overlaps with the image header"),
        (
            0x1_0000,
            4096,
            "Encryption header overlaps with the refcount table",
        ),
        (L1, 0x1f_9000, "Encryption header overlaps with the L1 table"),
        (0x1_0000, 1 << 40, "Encryption header overlaps with the L1 table"),
        (
            0x7fff_ffff_ffff_0000,
            0x1f_9000,
            "Encryption header is out of range",
        ),
        (KEYS, u64::MAX, "Encryption header is out of range"),
    ];
    for (offset, len, expected) in cases {
        let mut bad = good.clone();
        put(&mut bad, EXTENSION + 8, &offset.to_be_bytes());
        put(&mut bad, EXTENSION + 16, &len.to_be_bytes());
        fs::write(&path, &bad).expect("the image is written");
        let said = our_error(&mut daemon, &path, true);
        assert_eq!(said, expected, "{offset:#x} {len:#x}");
    }
    // The refcount block is found only once the tables are read: nothing is stored over it.
    let mut bad = good.clone();
    put(&mut bad, EXTENSION + 8, &0x2_0000_u64.to_be_bytes());
    put(&mut bad, EXTENSION + 16, &0x1_0000_u64.to_be_bytes());
    fs::write(&path, &bad).expect("the image is written");
    let said = our_error(&mut daemon, &path, false);
    assert_eq!(said, "Volume is not in LUKS format");
    daemon.quit();
}

#[test]
fn guest_data_is_not_written_over_keys_nor_keys_over_tables() {
    let (dir, good) = encrypted();
    let path = dir.path().join("bad");
    let object = format!("secret,id=s,data={PASSWORD}");
    let opened = format!(
        "driver=qcow2,encrypt.key-secret=s,file.filename={}",
        path.display()
    );
    fs::write(&path, &good).expect("the image is written");
    let io = ["--object", &object, "--image-opts", &opened];
    tool::qemu_io(&io, &["write -P 1 0 128k"]);
    let mut bytes = fs::read(&path).expect("the image is read");
    let table = u64::from_be_bytes(bytes[L1 as usize..L1 as usize + 8].try_into().expect("8 bytes"));
    let table = (table & 0x00ff_ffff_ffff_fe00) as usize;
    // The guest's first cluster is said to be where the keys are.
    put(&mut bytes, table, &(KEYS | 1 << 63).to_be_bytes());
    fs::write(&path, &bytes).expect("the image is written");
    let mut daemon = ours(dir.path());
    assert_eq!(our_error(&mut daemon, &path, false), "");
    let export = json!({"type": "nbd", "id": "v", "node-name": "v", "writable": true});
    daemon.qmp.ok("block-export-add", export);
    let uri = daemon.uri("v");
    let run = tool::try_run("qemu-io", &["-f", "raw", &uri, "-c", "write -P 2 0 64k"]);
    assert!(
        run.stdout.contains("failed") || run.stderr.contains("failed"),
        "{run:?}"
    );
    let event = daemon.qmp.wait_event("BLOCK_IMAGE_CORRUPTED");
    let text = event["msg"].as_str().expect("a text");
    assert!(text.contains("Preventing invalid write on metadata"), "{text}");
    daemon.quit();
    let after = fs::read(&path).expect("the image is read");
    let keys = KEYS as usize..KEYS as usize + 0x1f_9000;
    assert!(after[keys.clone()] == bytes[keys], "the keys are as they were");
    // An L2 table is said to be where the keys are.
    let mut bytes = good;
    put(&mut bytes, L1 as usize, &(KEYS + 0x1_0000).to_be_bytes());
    fs::write(&path, &bytes).expect("the image is written");
    let mut daemon = ours(dir.path());
    assert_eq!(our_error(&mut daemon, &path, false), "");
    let encrypt = json!({"format": "luks", "state": "active", "new-secret": "s", "iter-time": 10});
    let arguments =
        json!({"job-id": "j", "node-name": "v", "options": {"driver": "qcow2", "encrypt": encrypt}});
    let refused = daemon.qmp.run_job("j", "x-blockdev-amend", arguments);
    assert_eq!(
        refused.expect_err("the tables lie on the keys"),
        "Encryption header overlaps with the image's tables"
    );
    daemon.quit();
}
