//! qcow2 images whose guest data is encrypted, QEMU's and ours: each reads, writes and checks what the other has made.

use std::fs;
use std::path::PathBuf;

use millpond_tests::beside::{Command, same_answers};
use millpond_tests::daemon::{Daemon, daemon_in, scratch};
use millpond_tests::nbd::Request;
use millpond_tests::{image, tool};
use serde_json::{Value, json};
use tempfile::TempDir;

const KIB: u64 = 1 << 10;
const MIB: u64 = 1 << 20;

/// Images that are encrypted in every way and mean nothing alike, as `qemu-img create` has them: clusters, refcounts,
/// versions, methods and ciphers in pairs.
const KINDS: &[(&str, &str)] = &[
    ("luks", ""),
    ("luks", "cluster_size=512,refcount_bits=4"),
    (
        "luks",
        "cluster_size=4k,refcount_bits=64,encrypt.cipher-alg=aes-128",
    ),
    (
        "luks",
        "cluster_size=2M,lazy_refcounts=on,encrypt.cipher-mode=cbc,encrypt.ivgen-alg=essiv",
    ),
    ("luks", "compat=0.10,cluster_size=64k,encrypt.hash-alg=sha512"),
    (
        "luks",
        "compression_type=zstd,refcount_bits=8,encrypt.cipher-alg=serpent-256",
    ),
    (
        "luks",
        "cluster_size=16k,encrypt.cipher-alg=twofish-128,encrypt.cipher-mode=ctr",
    ),
    ("aes", ""),
    ("aes", "cluster_size=512,refcount_bits=32"),
    ("aes", "compat=0.10,cluster_size=1M"),
    ("luks", "extended_l2=on"),
    ("luks", "extended_l2=on,cluster_size=16k,refcount_bits=32"),
    ("aes", "extended_l2=on,cluster_size=1M"),
];

const PASSWORD: &str = "longer than sixteen bytes";

/// A folder with two passwords in files.
struct Place(TempDir);

impl Place {
    fn new() -> Self {
        let dir = scratch();
        fs::write(dir.path().join("s"), PASSWORD).expect("the password is written");
        fs::write(dir.path().join("t"), "another").expect("the password is written");
        Self(dir)
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn objects(&self) -> [String; 2] {
        ["s", "t"].map(|id| format!("secret,id={id},file={}", self.path(id).display()))
    }

    /// The options by which QEMU's tools open an image.
    fn opened(&self, name: &str, method: &str) -> String {
        let path = self.path(name);
        format!(
            "driver=qcow2,encrypt.format={method},encrypt.key-secret=s,file.filename={}",
            path.display()
        )
    }

    /// Makes an image with QEMU's tool.
    fn qemus(&self, name: &str, method: &str, options: &str, size: u64) {
        let time = if method == "luks" {
            ",encrypt.iter-time=10"
        } else {
            ""
        };
        let comma = if options.is_empty() { "" } else { "," };
        let all = format!("encrypt.format={method},encrypt.key-secret=s{time}{comma}{options}");
        let [s, t] = self.objects();
        let path = self.path(name).display().to_string();
        let size = size.to_string();
        let args = [
            "create", "-q", "-f", "qcow2", "--object", &s, "--object", &t, "-o", &all, &path, &size,
        ];
        tool::run("qemu-img", &args);
    }

    /// Makes an overlay of QEMU's with a key of its own.
    fn qemus_overlay(&self, name: &str, backing: &str) {
        let [s, t] = self.objects();
        let path = self.path(name).display().to_string();
        let backing = self.path(backing).display().to_string();
        let options = "encrypt.format=luks,encrypt.key-secret=t,encrypt.iter-time=10";
        let args = [
            "create", "-q", "-f", "qcow2", "--object", &s, "--object", &t, "-o", options, "-u", "-b",
            &backing, "-F", "qcow2", &path, "2M",
        ];
        tool::run("qemu-img", &args);
    }

    fn qemu_io(&self, opened: &str, commands: &[&str]) {
        let [s, t] = self.objects();
        let args = ["--object", &s, "--object", &t, "--image-opts", opened];
        tool::qemu_io(&args, commands);
    }

    /// A command of `qemu-img` on an image that is opened by options.
    fn qemu_img(&self, command: &[&str], opened: &str) -> String {
        let [s, t] = self.objects();
        let mut args = command.to_vec();
        args.extend(["--object", &s, "--object", &t, "--image-opts", opened]);
        tool::run("qemu-img", &args)
    }

    /// A daemon of ours with the secrets.
    fn ours(&self) -> Daemon {
        let mut daemon = daemon_in(self.0.path()).nbd_unix().start();
        for id in ["s", "t"] {
            let secret = json!({"qom-type": "secret", "id": id, "file": self.path(id)});
            daemon.qmp.ok("object-add", secret);
        }
        daemon
    }
}

/// The options of a node that shows an encrypted image.
fn node(place: &Place, name: &str, method: &str, secret: &str) -> Value {
    let file = json!({"driver": "file", "filename": place.path(name), "discard": "unmap"});
    json!({"driver": "qcow2", "node-name": name, "file": file, "discard": "unmap",
        "encrypt": {"format": method, "key-secret": secret}})
}

/// Opens an image, and exports it.
fn export(daemon: &mut Daemon, options: Value) -> String {
    let name = options["node-name"].as_str().expect("a name").to_owned();
    daemon.qmp.ok("blockdev-add", options);
    let export = json!({"type": "nbd", "id": name, "node-name": name, "writable": true});
    daemon.qmp.ok("block-export-add", export);
    daemon.uri(&name)
}

fn close(daemon: &mut Daemon, name: &str) {
    daemon
        .qmp
        .ok("block-export-del", json!({"id": name, "mode": "hard"}));
    daemon.qmp.wait_event("BLOCK_EXPORT_DELETED");
    daemon.qmp.ok("blockdev-del", json!({"node-name": name}));
}

/// Patterns that no part of an encrypted image shows.
fn assert_hidden(place: &Place, name: &str, bytes: &[u8]) {
    let data = fs::read(place.path(name)).expect("the image is read");
    for byte in bytes {
        let run = [*byte; 64];
        let found = data.windows(run.len()).position(|window| window == run);
        assert_eq!(found, None, "{name}: {byte:#x} stands there as it is");
    }
}

#[test]
fn images_of_qemu_are_read_written_and_snapshotted() {
    let place = Place::new();
    let mut daemon = place.ours();
    for (number, (method, options)) in KINDS.iter().enumerate() {
        let name = format!("disk{number}");
        place.qemus(&name, method, options, 6 * MIB + 512);
        let opened = place.opened(&name, method);
        place.qemu_io(&opened, &["write -P 0x5a 0 1M", "write -P 0xa5 2096640 1536"]);
        place.qemu_img(&["snapshot", "-c", "theirs"], &opened);
        let uri = export(&mut daemon, node(&place, &name, method, "s"));
        let commands = [
            "read -P 0x5a 0 1M",
            "read -P 0xa5 2096640 1536",
            "read -P 0 2098176 1M",
            // Parts of clusters that a snapshot holds, and of clusters that are new.
            "write -P 0x17 1000001 70001",
            "write -P 0x18 3145729 700",
            "read -P 0 3146429 4096",
            "write -z 131072 65536",
            "write -P 0x99 6291456 512",
            "read -P 0 6290432 1024",
            "flush",
        ];
        tool::qemu_io(&["-f", "raw", &uri], &commands);
        let take = json!({"device": name, "name": "ours"});
        daemon.qmp.ok("blockdev-snapshot-internal-sync", take);
        tool::qemu_io(
            &["-f", "raw", &uri],
            &[
                "write -P 0x66 0 4k",
                "write -zu 512k 256k",
                "write -zu 4M 1M",
                "flush",
            ],
        );
        close(&mut daemon, &name);
        place.qemu_img(&["check", "-q"], &opened);
        let commands = [
            "read -P 0x66 0 4k",
            "read -P 0x5a 4k 124k",
            "read -P 0 131072 65536",
            "read -P 0 512k 256k",
            "read -P 0x5a 768k 213569",
            "read -P 0x17 1000001 70001",
            "read -P 0xa5 2096640 1536",
            "read -P 0x18 3145729 700",
            "read -P 0x99 6291456 512",
        ];
        let exact = ["read -P 0x17 1000448 69120", "read -P 0 3146752 1024"];
        // Only whole sectors are read by QEMU's tool.
        let commands: Vec<&str> = commands
            .into_iter()
            .filter(|line| !line.contains("213569") && !line.contains("1000001") && !line.contains(" 700"))
            .chain(exact)
            .collect();
        place.qemu_io(&opened, &commands);
        place.qemu_img(&["snapshot", "-a", "ours"], &opened);
        place.qemu_io(&opened, &["read -P 0x5a 0 128k", "read -P 0x5a 512k 256k"]);
        place.qemu_img(&["snapshot", "-a", "theirs"], &opened);
        place.qemu_io(&opened, &["read -P 0x5a 0 1M", "read -P 0 3145728 1024"]);
        place.qemu_img(&["check", "-q"], &opened);
        assert_hidden(&place, &name, &[0x5a, 0xa5, 0x17, 0x18, 0x66, 0x99]);
    }
    daemon.quit();
}

/// The options of `blockdev-create` for what `qemu-img create` is told by these.
fn create_options(method: &str, options: &str) -> Value {
    let mut given =
        json!({"driver": "qcow2", "encrypt": {"format": "luks", "key-secret": "s", "iter-time": 10}});
    if method == "aes" {
        given["encrypt"] = json!({"format": "qcow", "key-secret": "s"});
    }
    for option in options.split(',').filter(|option| !option.is_empty()) {
        let (name, value) = option.split_once('=').expect("an option has a value");
        let number = match value {
            "4k" => Some(4 * KIB),
            "16k" => Some(16 * KIB),
            "64k" => Some(64 * KIB),
            "1M" => Some(MIB),
            "2M" => Some(2 * MIB),
            other => other.parse().ok(),
        };
        let value = match (name, value) {
            ("compat", "0.10") => json!("v2"),
            (_, "on") => json!(true),
            (_, text) => number.map_or(json!(text), Value::from),
        };
        match name.strip_prefix("encrypt.") {
            Some(member) => given["encrypt"][member] = value,
            None if name == "compat" => given["version"] = value,
            None => given[name.replace('_', "-")] = value,
        }
    }
    given
}

/// What `qemu-img info` says of an image, but for what differs between any two.
fn info(place: &Place, name: &str, method: &str) -> Value {
    let text = place.qemu_img(&["info", "--output=json"], &place.opened(name, method));
    let mut info: Value = serde_json::from_str(&text).expect("JSON");
    let mut data = info["format-specific"]["data"].take();
    if method == "luks" {
        let encrypt = &mut data["encrypt"];
        assert!(encrypt["master-key-iters"].as_u64() >= Some(1000), "{encrypt}");
        encrypt["slots"][0]["iters"].take();
        for varies in ["master-key-iters", "uuid"] {
            encrypt[varies].take();
        }
    }
    json!([
        data,
        info["virtual-size"],
        info["encrypted"],
        info["cluster-size"]
    ])
}

#[test]
fn images_of_ours_are_read_written_and_checked_by_qemu() {
    let place = Place::new();
    let mut daemon = place.ours();
    for (number, (method, options)) in KINDS.iter().enumerate() {
        let [name, theirs] = ["ours", "theirs"].map(|kind| format!("{kind}{number}"));
        fs::write(place.path(&name), "").expect("a file is made");
        let mut wanted = create_options(method, options);
        wanted["file"] = json!({"driver": "file", "filename": place.path(&name)});
        wanted["size"] = json!(4 * MIB);
        let arguments = json!({"job-id": "create", "options": wanted});
        let made = daemon.qmp.run_job("create", "blockdev-create", arguments);
        made.expect("the image is made");
        place.qemus(&theirs, method, options, 4 * MIB);
        assert_eq!(
            info(&place, &name, method),
            info(&place, &theirs, method),
            "{method} {options}"
        );
        let opened = place.opened(&name, method);
        place.qemu_img(&["check", "-q"], &opened);
        let len = |name: &str| fs::metadata(place.path(name)).expect("it is there").len();
        let cluster = info(&place, &name, method)[3].as_u64().expect("a number");
        assert_eq!(
            len(&name).div_ceil(cluster),
            len(&theirs).div_ceil(cluster),
            "{method} {options}"
        );
        place.qemu_io(&opened, &["write -P 0x31 512 1M"]);
        let uri = export(&mut daemon, node(&place, &name, method, "s"));
        let commands = ["read -P 0x31 512 1M", "write -P 0x32 4k 4k", "flush"];
        tool::qemu_io(&["-f", "raw", &uri], &commands);
        close(&mut daemon, &name);
        place.qemu_io(&opened, &["read -P 0x31 512 3584", "read -P 0x32 4k 4k"]);
        place.qemu_img(&["check", "-q"], &opened);
    }
    daemon.quit();
}

#[test]
fn data_outside_of_the_image_is_encrypted_too() {
    let place = Place::new();
    let mut daemon = place.ours();
    for (number, (method, more)) in [("luks", ""), ("aes", ""), ("luks", ",extended_l2=on")]
        .iter()
        .enumerate()
    {
        let [name, data] = ["disk", "data"].map(|kind| format!("{kind}{number}"));
        let options = format!("data_file={}{more}", place.path(&data).display());
        place.qemus(&name, method, &options, 4 * MIB);
        let opened = place.opened(&name, method);
        place.qemu_io(&opened, &["write -P 0x5a 0 256k", "write -P 0xa5 1M 1536"]);
        let uri = export(&mut daemon, node(&place, &name, method, "s"));
        let commands = [
            "read -P 0x5a 0 256k",
            "read -P 0xa5 1M 1536",
            "read -P 0 1050112 64k",
            "write -P 0x17 100001 70001",
            "write -P 0x18 3145729 700",
            "read -P 0 3146429 4096",
            "write -z 196608 32k",
            "flush",
        ];
        tool::qemu_io(&["-f", "raw", &uri], &commands);
        close(&mut daemon, &name);
        place.qemu_img(&["check", "-q"], &opened);
        let commands = [
            "read -P 0x5a 0 99840",
            "read -P 0x17 100352 69632",
            "read -P 0 196608 32k",
            "read -P 0xa5 1M 1536",
            "read -P 0 3146752 1024",
        ];
        place.qemu_io(&opened, &commands);
        for file in [&name, &data] {
            assert_hidden(&place, file, &[0x5a, 0xa5, 0x17, 0x18]);
        }
    }
    daemon.quit();
}

#[test]
fn each_image_of_a_chain_has_a_key_of_its_own() {
    let place = Place::new();
    place.qemus("base", "luks", "", 2 * MIB);
    place.qemu_io(&place.opened("base", "luks"), &["write -P 0x11 0 2M"]);
    place.qemus_overlay("top", "base");
    let mut daemon = place.ours();
    daemon.qmp.ok("blockdev-add", node(&place, "base", "luks", "s"));
    let mut top = node(&place, "top", "luks", "t");
    top["backing"] = json!("base");
    let uri = export(&mut daemon, top);
    let commands = [
        "read -P 0x11 0 2M",
        "write -P 0x22 70000 5000",
        "write -z 1M 64k",
        "write -P 0x33 2096640 512",
        "read -P 0x11 65536 4464",
        "read -P 0x22 70000 5000",
        "read -P 0x11 75000 60000",
        "flush",
    ];
    tool::qemu_io(&["-f", "raw", &uri], &commands);
    close(&mut daemon, "top");
    daemon.quit();
    let opened = format!(
        "driver=qcow2,encrypt.key-secret=t,file.filename={},backing.driver=qcow2,backing.encrypt.key-secret=s,\
         backing.file.filename={}",
        place.path("top").display(),
        place.path("base").display()
    );
    let commands = [
        "read -P 0x11 65536 4096",
        "read -P 0x22 70144 4608",
        "read -P 0x11 75264 59904",
        "read -P 0 1M 64k",
        "read -P 0x33 2096640 512",
        "read -P 0x11 1114112 982528",
    ];
    place.qemu_io(&opened, &commands);
    assert_hidden(&place, "top", &[0x11, 0x22, 0x33]);
}

#[test]
fn compressed_clusters_are_read_and_none_is_stored() {
    let place = Place::new();
    place.qemus("disk", "luks", "", MIB);
    let opened = place.opened("disk", "luks");
    // QEMU stores them for all to read.
    place.qemu_io(&opened, &["write -c -P 0x44 64k 64k", "write -P 0x45 128k 64k"]);
    let mut daemon = place.ours();
    let uri = export(&mut daemon, node(&place, "disk", "luks", "s"));
    let commands = [
        "read -P 0x44 64k 64k",
        "write -P 0x46 65536 1000",
        "read -P 0x46 65536 1000",
        "read -P 0x44 66536 64536",
        "read -P 0x45 128k 64k",
    ];
    tool::qemu_io(&["-f", "raw", &uri], &commands);
    let filter = json!({"driver": "compress", "node-name": "filter", "file": "disk"});
    let refused = daemon.qmp.refused("blockdev-add", filter);
    assert!(
        refused.desc.contains("Compression is not supported"),
        "{}",
        refused.desc
    );
    close(&mut daemon, "disk");
    daemon.quit();
    place.qemu_io(&opened, &["read -P 0x44 66560 64512", "read -P 0x45 128k 64k"]);
    place.qemu_img(&["check", "-q"], &opened);
}

#[test]
fn zeroes_of_the_older_version_and_old_ends_are_zeroes() {
    let place = Place::new();
    for method in ["luks", "aes"] {
        let name = format!("{method}-disk");
        place.qemus(&name, method, "compat=0.10", MIB + 512);
        let opened = place.opened(&name, method);
        place.qemu_io(&opened, &["write -P 0x55 0 512k", "write -P 0x56 1048576 512"]);
        let mut daemon = place.ours();
        let uri = export(&mut daemon, node(&place, &name, method, "s"));
        let mut session = daemon.session(&name);
        session.ok(&Request::zero(0, 64 * KIB).flags(millpond_tests::nbd::wire::CMD_FLAG_NO_HOLE));
        session.ok(&Request::zero(100 * KIB, 8 * KIB));
        session.ok(&Request::zero(128 * KIB, 64 * KIB));
        session.disconnect().expect("a goodbye closes the connection");
        let commands = [
            "read -P 0 0 64k",
            "read -P 0x55 64k 36k",
            "read -P 0 100k 8k",
            "read -P 0x55 108k 20k",
            "read -P 0 128k 64k",
            "flush",
        ];
        tool::qemu_io(&["-f", "raw", &uri], &commands);
        close(&mut daemon, &name);
        daemon.qmp.ok("blockdev-add", node(&place, &name, method, "s"));
        let grow = json!({"node-name": name, "size": 2 * MIB});
        daemon.qmp.ok("block_resize", grow);
        daemon.quit();
        let commands = [
            "read -P 0 0 64k",
            "read -P 0x55 64k 36k",
            "read -P 0 128k 64k",
            "read -P 0x56 1048576 512",
            "read -P 0 1049088 1023k",
        ];
        place.qemu_io(&opened, &commands);
        place.qemu_img(&["check", "-q"], &opened);
    }
}

#[test]
fn bitmaps_are_stored_beside_encrypted_data() {
    let place = Place::new();
    place.qemus("disk", "luks", "", 4 * MIB);
    let opened = place.opened("disk", "luks");
    let mut daemon = place.ours();
    let uri = export(&mut daemon, node(&place, "disk", "luks", "s"));
    let bitmap = json!({"node": "disk", "name": "b", "persistent": true});
    daemon.qmp.ok("block-dirty-bitmap-add", bitmap);
    tool::qemu_io(&["-f", "raw", &uri], &["write -P 0x12 1M 128k"]);
    close(&mut daemon, "disk");
    let text = place.qemu_img(&["info", "--output=json"], &opened);
    let info: Value = serde_json::from_str(&text).expect("JSON");
    assert_eq!(info["format-specific"]["data"]["bitmaps"][0]["name"], "b");
    place.qemu_img(&["check", "-q"], &opened);
    let uri = export(&mut daemon, node(&place, "disk", "luks", "s"));
    tool::qemu_io(&["-f", "raw", &uri], &["read -P 0x12 1M 128k"]);
    let nodes = daemon.qmp.ok("query-named-block-nodes", json!({"flat": true}));
    let nodes = nodes.as_array().expect("a list").clone();
    let disk = nodes
        .iter()
        .find(|node| node["node-name"] == "disk")
        .expect("the node");
    assert_eq!(disk["dirty-bitmaps"][0]["count"], 128 * KIB);
    daemon.quit();
}

#[test]
fn images_are_opened_shown_and_refused_as_qemu_does_it() {
    let place = Place::new();
    place.qemus("luks", "luks", "", MIB);
    place.qemus("aes", "aes", "", MIB);
    image::create(&place.path("plain"), "qcow2", "", MIB);
    let secret = |id: &str, data: &str| -> Command {
        let options = json!({"qom-type": "secret", "id": id, "data": data});
        ("object-add", options)
    };
    let add = |name: &str, encrypt: Value| -> Command {
        let file = json!({"driver": "file", "filename": place.path(name), "locking": "off"});
        let mut options = json!({"driver": "qcow2", "node-name": "n", "file": file});
        if !encrypt.is_null() {
            options["encrypt"] = encrypt;
        }
        ("blockdev-add", options)
    };
    let reopen = |encrypt: Value| -> Command {
        let mut options = json!({"driver": "qcow2", "node-name": "n", "file": "f"});
        if !encrypt.is_null() {
            options["encrypt"] = encrypt;
        }
        ("blockdev-reopen", json!({ "options": [options] }))
    };
    let amend = |encrypt: Value| -> Command {
        let options = json!({"driver": "qcow2", "encrypt": encrypt});
        (
            "x-blockdev-amend",
            json!({"job-id": "j", "node-name": "n", "options": options}),
        )
    };
    let show = || -> Command { ("query-named-block-nodes", json!({"flat": true})) };
    let delete = || -> Command { ("blockdev-del", json!({"node-name": "n"})) };
    let luks = |secret: &str| json!({"format": "luks", "key-secret": secret});
    let aes = |secret: &str| json!({"format": "aes", "key-secret": secret});
    let commands = [
        secret("s", PASSWORD),
        secret("wrong", "something else"),
        (
            "object-add",
            json!({"qom-type": "secret", "id": "binary", "data": "//4A", "format": "base64"}),
        ),
        add("luks", Value::Null),
        add("luks", json!({"format": "luks"})),
        add("luks", luks("missing")),
        add("luks", luks("wrong")),
        add("luks", luks("binary")),
        add("luks", aes("s")),
        add("luks", json!({"format": "foo", "key-secret": "s"})),
        add("luks", json!({"key-secret": "s"})),
        add("luks", json!({"format": "luks", "key-secret": "s", "colour": 1})),
        add("luks", luks("s")),
        show(),
        amend(json!({"format": "luks", "state": "active", "new-secret": "s", "detached-header": true})),
        delete(),
        add("aes", Value::Null),
        add("aes", json!({"format": "aes"})),
        add("aes", luks("s")),
        add("aes", aes("missing")),
        add("aes", aes("binary")),
        add("aes", aes("s")),
        show(),
        delete(),
        add("plain", luks("s")),
        add("plain", json!({"format": "aes"})),
        (
            "blockdev-add",
            json!({"driver": "file", "node-name": "f", "filename": place.path("luks"), "locking": "off"}),
        ),
        (
            "blockdev-add",
            json!({"driver": "qcow2", "node-name": "n", "file": "f", "encrypt": luks("s")}),
        ),
        reopen(Value::Null),
        reopen(json!({"format": "luks"})),
        reopen(aes("s")),
        reopen(luks("wrong")),
        reopen(luks("s")),
        ("object-del", json!({"id": "s"})),
        show(),
    ];
    same_answers(&commands);
}
