//! LUKS headers that lie: refused in QEMU's words, or with an error that says what is wrong; never a panic, never without bound.

use std::fs;
use std::path::Path;
use std::time::Instant;

use millpond_tests::daemon::{Daemon, daemon_in, scratch};
use millpond_tests::{PATIENCE, tool};
use serde_json::json;

const PASSWORD: &str = "password";

/// Where the places for keys begin in the header, and how long one is.
const SLOTS: usize = 208;
const SLOT: usize = 48;

/// A folder with the password, and the start of a volume that it opens.
fn volume() -> (tempfile::TempDir, Vec<u8>) {
    let dir = scratch();
    fs::write(dir.path().join("password"), PASSWORD).expect("the password is written");
    let [password, path] = ["password", "good"].map(|name| dir.path().join(name));
    tool::qemu_img(&format!(
        "create -q -f luks --object secret,id=s,file={} -o key-secret=s,iter-time=10 {} 64k",
        password.display(),
        path.display()
    ));
    let bytes = fs::read(path).expect("the volume is read");
    (dir, bytes)
}

fn ours(dir: &Path) -> Daemon {
    let mut daemon = daemon_in(dir).start();
    let secret = json!({"qom-type": "secret", "id": "s", "data": PASSWORD});
    daemon.qmp.ok("object-add", secret);
    daemon
}

/// What our daemon says of a volume; empty if it is opened.
fn our_error(daemon: &mut Daemon, path: &Path) -> String {
    let file = json!({"driver": "file", "filename": path});
    let options =
        json!({"driver": "luks", "node-name": "v", "file": file, "key-secret": "s", "read-only": true});
    match daemon.qmp.execute("blockdev-add", options) {
        Ok(_) => {
            daemon.qmp.ok("blockdev-del", json!({"node-name": "v"}));
            String::new()
        }
        Err(error) => error.desc,
    }
}

/// What QEMU says of a volume; empty if it is opened.
fn qemus_error(dir: &Path, path: &Path) -> String {
    let object = format!("secret,id=s,file={}/password", dir.display());
    let file = format!("driver=luks,key-secret=s,file.filename={}", path.display());
    let args = ["-r", "--object", &object, "--image-opts", &file, "-c", "length"];
    let run = tool::try_run("qemu-io", &args);
    let said = run.stderr.trim().trim_start_matches("qemu-io: can't open: ");
    said.to_owned()
}

type Edit = (usize, Vec<u8>);

fn number(at: usize, value: u32) -> Edit {
    (at, value.to_be_bytes().to_vec())
}

fn name(at: usize, text: &str) -> Edit {
    let mut field = text.as_bytes().to_vec();
    field.resize(32, 0);
    (at, field)
}

/// Edits of a header that QEMU refuses, or takes.
fn edits() -> Vec<Edit> {
    let mut edits = vec![
        (0, b"X".to_vec()),
        (6, vec![0, 0]),
        (6, vec![0, 2]),
        (8, vec![b'a'; 32]),
        (40, vec![b'a'; 32]),
        (72, vec![b'a'; 32]),
    ];
    edits.extend(["foo", "", "AES", "des", "serpent", "cast5"].map(|cipher| name(8, cipher)));
    let modes = [
        "foo",
        "xts",
        "xts-",
        "-plain64",
        "xts-foo",
        "foo-plain64",
        "xts-plain64:",
        "xts-plain64:sha256",
        "xts-essiv",
        "xts-essiv:",
        "xts-essiv:foo",
        "cbc-plain64",
        "ecb",
        "cbc-essiv:sha256",
        "xts-essiv:sha1",
        "ctr-plain64",
        "xts-plain64-foo",
    ];
    edits.extend(modes.map(|mode| name(40, mode)));
    edits.extend(["foo", "", "sha224", "SHA256", "ripemd160", "whirlpool"].map(|hash| name(72, hash)));
    edits.extend([0, 1, 7, 8, 4039, 4041].map(|payload| number(104, payload)));
    let lens = [0, 1, 16, 24, 32, 48, 63, 65, 128, 512, 1 << 20, u32::MAX];
    edits.extend(lens.map(|len| number(108, len)));
    edits.extend([
        (112, vec![0; 20]),
        number(164, 0),
        number(164, 1),
        (168, vec![b'x'; 40]),
    ]);
    let state = |slot: usize, value: u32| number(SLOTS + slot * SLOT, value);
    edits.extend([
        state(0, 0),
        state(0, 1),
        state(0, 0xdead),
        state(7, u32::MAX),
        state(7, 0x00ac_71f3),
    ]);
    edits.push(number(SLOTS + 4, 0));
    edits.extend([0, 1, 3999, 4001, u32::MAX].map(|stripes| number(SLOTS + 44, stripes)));
    edits.push(number(SLOTS + 7 * SLOT + 44, 0));
    edits.extend([0, 1, 7, 9, 504, 512, 3536, 3540, 4040].map(|start| number(SLOTS + 40, start)));
    edits.extend([0, 8, 4035, 4040].map(|start| number(SLOTS + 7 * SLOT + 40, start)));
    edits
}

#[test]
fn wrong_headers_are_refused_in_the_words_of_qemu() {
    let (dir, good) = volume();
    let mut daemon = ours(dir.path());
    let path = dir.path().join("edited");
    for (at, bytes) in edits() {
        let mut edited = good.clone();
        edited[at..at + bytes.len()].copy_from_slice(&bytes);
        fs::write(&path, edited).expect("the volume is written");
        let ours = our_error(&mut daemon, &path);
        assert_eq!(ours, qemus_error(dir.path(), &path), "{bytes:x?} at {at}");
    }
    daemon.quit();
}

#[test]
fn volumes_cut_short_are_refused_by_what_they_lack() {
    let (dir, good) = volume();
    let mut daemon = ours(dir.path());
    let path = dir.path().join("cut");
    let mut end = good.len();
    while end > 0 {
        end = end * 3 / 4;
        fs::write(&path, &good[..end]).expect("the volume is written");
        let error = our_error(&mut daemon, &path);
        let expected = match end {
            0..592 => "Volume is not in LUKS format",
            // What is behind the end of a file reads as zeroes, as everywhere.
            592..260_096 => "Invalid password, cannot unlock any keyslot",
            260_096..2_068_480 => "Could not refresh total sector count: Input/output error",
            _ => "",
        };
        assert_eq!(error, expected, "cut at {end}");
    }
    daemon.quit();
}

#[test]
fn a_header_cannot_ask_for_hours_of_work() {
    let (dir, good) = volume();
    let mut daemon = ours(dir.path());
    let path = dir.path().join("slow");
    let cases = [
        (
            164,
            "LUKS key iteration count 4294967295 is larger than 1073741824",
        ),
        (
            SLOTS + 4,
            "Keyslot 0 iteration count 4294967295 is larger than 1073741824",
        ),
    ];
    for (at, text) in cases {
        let mut edited = good.clone();
        edited[at..at + 4].fill(0xff);
        fs::write(&path, edited).expect("the volume is written");
        let begun = Instant::now();
        assert_eq!(our_error(&mut daemon, &path), text);
        assert!(begun.elapsed() < PATIENCE);
    }
    daemon.quit();
}

#[test]
fn a_slot_that_leads_out_of_the_file_is_no_key() {
    let (dir, good) = volume();
    let mut daemon = ours(dir.path());
    let path = dir.path().join("far");
    let mut edited = good.clone();
    edited[104..108].fill(0);
    for slot in 0..8 {
        let start = u32::MAX - 8 * 504 + slot * 504;
        let at = SLOTS + slot as usize * SLOT + 40;
        edited[at..at + 4].copy_from_slice(&start.to_be_bytes());
    }
    fs::write(&path, edited).expect("the volume is written");
    let error = our_error(&mut daemon, &path);
    assert!(!error.is_empty(), "there is no key to open it with");
    daemon.assert_running();
    daemon.quit();
}
