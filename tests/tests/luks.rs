//! LUKS volumes, QEMU's and ours: each opens what the other has made, in every cipher, mode and digest that both serve.

use std::fs;
use std::path::Path;

use millpond_tests::beside::{Command, same_answers};
use millpond_tests::daemon::{Daemon, daemon, daemon_in, scratch};
use millpond_tests::program::oracle;
use millpond_tests::{image, tool};
use serde_json::{Value, json};

/// The options of a volume, as `qemu-img create` and `blockdev-create` have them, beside those that make it quick.
const KINDS: &[&str] = &[
    "",
    "cipher-alg=aes-128",
    "cipher-alg=aes-192",
    "cipher-alg=aes-256,cipher-mode=cbc,ivgen-alg=essiv",
    "cipher-alg=aes-128,cipher-mode=cbc,ivgen-alg=essiv,ivgen-hash-alg=sha256",
    "cipher-alg=aes-256,cipher-mode=cbc,ivgen-alg=plain,hash-alg=sha1",
    "cipher-alg=aes-256,cipher-mode=ecb,hash-alg=sha512",
    "cipher-alg=aes-128,cipher-mode=ctr,hash-alg=sha224",
    "cipher-alg=aes-256,ivgen-alg=essiv",
    "cipher-alg=aes-128,hash-alg=md5",
    "cipher-alg=aes-128,cipher-mode=cbc,ivgen-alg=essiv,ivgen-hash-alg=md5,hash-alg=sm3",
    "cipher-alg=serpent-128,hash-alg=ripemd160",
    "cipher-alg=serpent-192",
    "cipher-alg=serpent-256,cipher-mode=cbc,ivgen-alg=essiv",
    "cipher-alg=serpent-256,cipher-mode=ctr",
    "cipher-alg=twofish-128,hash-alg=sha384",
    "cipher-alg=twofish-192",
    "cipher-alg=twofish-256,cipher-mode=cbc,ivgen-alg=plain64",
    "cipher-alg=cast5-128,cipher-mode=cbc,ivgen-alg=plain64",
    "cipher-alg=cast5-128,cipher-mode=ecb",
    "cipher-alg=cast5-128,cipher-mode=ctr,ivgen-alg=plain",
];

const PASSWORD: &str = "a password of some length";

/// A folder with the password in a file.
fn folder() -> tempfile::TempDir {
    let dir = scratch();
    fs::write(dir.path().join("password"), PASSWORD).expect("the password is written");
    dir
}

fn secret(dir: &Path) -> String {
    format!("--object secret,id=s,file={}/password", dir.display())
}

/// A volume of QEMU's, made quickly.
fn qemus(dir: &Path, name: &str, options: &str, size: u64) {
    let options = options.replace(',', " -o ");
    let more = if options.is_empty() {
        String::new()
    } else {
        format!("-o {options}")
    };
    tool::qemu_img(&format!(
        "create -q -f luks {} -o key-secret=s,iter-time=10 {more} {}/{name} {size}",
        secret(dir),
        dir.display()
    ));
}

/// `qemu-io` on a volume.
fn qemu_io(dir: &Path, name: &str, commands: &[&str]) {
    let file = format!("driver=luks,key-secret=s,file.filename={}/{name}", dir.display());
    let object = format!("secret,id=s,file={}/password", dir.display());
    tool::qemu_io(&["--object", &object, "--image-opts", &file], commands);
}

/// A daemon of ours in the folder, with the secret.
fn ours(dir: &Path) -> Daemon {
    let mut daemon = daemon_in(dir).nbd_unix().start();
    let secret = json!({"qom-type": "secret", "id": "s", "file": dir.join("password")});
    daemon.qmp.ok("object-add", secret);
    daemon
}

/// Opens a volume in it, and exports that.
fn export(daemon: &mut Daemon, name: &str) -> String {
    let path = daemon.dir().join(name);
    let file = json!({"driver": "file", "filename": path});
    let volume = json!({"driver": "luks", "node-name": name, "file": file, "key-secret": "s"});
    daemon.qmp.ok("blockdev-add", volume);
    let export = json!({"type": "nbd", "id": name, "node-name": name, "writable": true});
    daemon.qmp.ok("block-export-add", export);
    daemon.uri(name)
}

fn close(daemon: &mut Daemon, name: &str) {
    daemon
        .qmp
        .ok("block-export-del", json!({"id": name, "mode": "hard"}));
    daemon.qmp.wait_event("BLOCK_EXPORT_DELETED");
    daemon.qmp.ok("blockdev-del", json!({"node-name": name}));
}

#[test]
fn volumes_of_qemu_are_read_and_written() {
    let dir = folder();
    let mut daemon = ours(dir.path());
    for (number, options) in KINDS.iter().enumerate() {
        let name = format!("v{number}");
        qemus(dir.path(), &name, options, 3 << 20);
        qemu_io(
            dir.path(),
            &name,
            &["write -P 0x5a 0 1M", "write -P 0xa5 2096640 1536"],
        );
        let uri = export(&mut daemon, &name);
        let commands = [
            "read -P 0x5a 0 1M",
            "read -P 0xa5 2096640 1536",
            "write -P 0x17 1000001 70001",
            "write -z 131072 65536",
            "write -P 0x99 3145216 512",
        ];
        tool::qemu_io(&["-f", "raw", &uri], &commands);
        close(&mut daemon, &name);
        let commands = [
            "read -P 0x5a 0 131072",
            "read -P 0 131072 65536",
            "read -P 0x5a 196608 803393",
            "read -P 0x17 1000001 70001",
            "read -P 0xa5 2096640 1536",
            "read -P 0x99 3145216 512",
        ];
        qemu_io(dir.path(), &name, &commands);
    }
    daemon.quit();
}

/// The options of `blockdev-create`.
fn create_options(options: &str) -> Value {
    let mut given = json!({"driver": "luks", "key-secret": "s", "iter-time": 10});
    for option in options.split(',').filter(|option| !option.is_empty()) {
        let (name, value) = option.split_once('=').expect("an option has a value");
        given[name] = json!(value);
    }
    given
}

fn make(daemon: &mut Daemon, options: Value) -> Result<(), String> {
    daemon.qmp.run_job(
        "create",
        "blockdev-create",
        json!({"job-id": "create", "options": options}),
    )
}

/// What `qemu-img info` says of a volume, but for what differs between any two.
fn info(dir: &Path, name: &str) -> Value {
    let file = format!("driver=luks,key-secret=s,file.filename={}/{name}", dir.display());
    let object = format!("secret,id=s,file={}/password", dir.display());
    let args = [
        "info",
        "--output=json",
        "--object",
        &object,
        "--image-opts",
        &file,
    ];
    let mut info = tool::run_json("qemu-img", &args);
    let data = &mut info["format-specific"]["data"];
    assert!(data["master-key-iters"].as_u64() >= Some(1000), "{data}");
    assert!(data["slots"][0]["iters"].as_u64() >= Some(1000), "{data}");
    assert_eq!(data["uuid"].as_str().map(str::len), Some(36), "{data}");
    data["slots"][0]["iters"].take();
    for varies in ["master-key-iters", "uuid"] {
        data[varies].take();
    }
    json!([data, info["virtual-size"]])
}

/// A volume must be laid out as another.
#[track_caller]
fn is_like(dir: &Path, one: &str, other: &str) {
    assert_eq!(info(dir, one), info(dir, other), "{one} {other}");
    let len = |name: &str| fs::metadata(dir.join(name)).expect("it is there").len();
    assert_eq!(len(one), len(other), "{one} {other}");
}

#[test]
fn volumes_of_ours_are_read_and_written_by_qemu_and_known_to_cryptsetup() {
    let dir = folder();
    let mut daemon = ours(dir.path());
    for (number, options) in KINDS.iter().enumerate() {
        let [name, theirs] = ["ours", "theirs"].map(|kind| format!("{kind}{number}"));
        let path = dir.path().join(&name);
        fs::write(&path, "").expect("a file is made");
        let mut wanted = create_options(options);
        wanted["file"] = json!({"driver": "file", "filename": path});
        wanted["size"] = json!(2 << 20);
        make(&mut daemon, wanted).expect("the volume is made");
        // QEMU measures for seconds each time, so only some are held against its own.
        if number.is_multiple_of(5) {
            qemus(dir.path(), &theirs, options, 2 << 20);
            is_like(dir.path(), &name, &theirs);
        }
        qemu_io(dir.path(), &name, &["write -P 0x31 512 1M"]);
        let uri = export(&mut daemon, &name);
        let commands = ["read -P 0x31 512 1M", "write -P 0x32 4k 4k", "flush"];
        tool::qemu_io(&["-f", "raw", &uri], &commands);
        close(&mut daemon, &name);
        qemu_io(
            dir.path(),
            &name,
            &["read -P 0x31 512 3584", "read -P 0x32 4k 4k"],
        );
        // It knows no volume of this digest, which QEMU serves.
        if options.contains("hash-alg=md5") {
            continue;
        }
        let dump = tool::run("cryptsetup", &["luksDump", &path.display().to_string()]);
        assert!(
            dump.contains("Version:       \t1") && dump.contains("Key Slot 0: ENABLED"),
            "{dump}"
        );
    }
    daemon.quit();
}

#[test]
fn a_header_in_a_file_of_its_own() {
    let dir = folder();
    let path = |name: &str| dir.path().join(name);
    let mut daemon = ours(dir.path());
    for name in ["header", "data"] {
        fs::write(path(name), "").expect("a file is made");
        daemon.qmp.ok("blockdev-add", image::file(name, &path(name)));
    }
    let mut options = create_options("");
    options["header"] = json!("header");
    options["size"] = json!(1 << 20);
    options["preallocation"] = json!("full");
    let refused = make(&mut daemon, options.clone()).expect_err("there is nothing to allocate");
    assert_eq!(
        refused,
        "Parameter 'preallocation' requires 'file' to be specified for formatting LUKS disk"
    );
    options["file"] = json!("data");
    make(&mut daemon, options).expect("a header and its data are made");
    let lens = ["header", "data"].map(|name| fs::metadata(path(name)).expect("it is there").len());
    assert_eq!(lens, [2_068_480, 1 << 20]);
    let volume =
        json!({"driver": "luks", "node-name": "v", "file": "data", "header": "header", "key-secret": "s"});
    daemon.qmp.ok("blockdev-add", volume);
    let shown = daemon.qmp.ok("query-named-block-nodes", json!({"flat": true}));
    let shown = shown
        .as_array()
        .expect("nodes")
        .iter()
        .find(|node| node["node-name"] == "v");
    let specific = &shown.expect("the node is shown")["image"]["format-specific"];
    assert_eq!(specific["data"]["detached-header"], true);
    daemon.qmp.ok(
        "block-export-add",
        json!({"type": "nbd", "id": "v", "node-name": "v", "writable": true}),
    );
    tool::qemu_io(&["-f", "raw", &daemon.uri("v")], &["write -P 0x77 0 1M"]);
    daemon.quit();
    let file = format!(
        "driver=luks,key-secret=s,file.filename={},header.filename={}",
        path("data").display(),
        path("header").display()
    );
    let object = format!("secret,id=s,file={}", path("password").display());
    tool::qemu_io(
        &["--object", &object, "--image-opts", &file],
        &["read -P 0x77 0 1M"],
    );
    theirs_is_opened(dir.path());
}

/// A header that QEMU has made in a file of its own.
fn theirs_is_opened(dir: &Path) {
    let path = |name: &str| dir.join(name);
    let mut theirs = daemon_in(dir).program(oracle()).start();
    theirs.qmp.ok(
        "object-add",
        json!({"qom-type": "secret", "id": "s", "file": path("password")}),
    );
    for name in ["header2", "data2"] {
        fs::write(path(name), "").expect("a file is made");
        theirs.qmp.ok("blockdev-add", image::file(name, &path(name)));
    }
    let mut options = create_options("");
    options["header"] = json!("header2");
    options["file"] = json!("data2");
    options["size"] = json!(1 << 20);
    make(&mut theirs, options).expect("QEMU makes a header and its data");
    theirs.quit();
    let mut ours = ours(dir);
    for name in ["header2", "data2"] {
        ours.qmp.ok("blockdev-add", image::file(name, &path(name)));
    }
    let alone = json!({"driver": "luks", "node-name": "w", "file": "header2", "key-secret": "s"});
    let error = ours.qmp.refused("blockdev-add", alone);
    assert_eq!(error.desc, "LUKS payload is overlapping with the header");
    let volume =
        json!({"driver": "luks", "node-name": "v", "file": "data2", "header": "header2", "key-secret": "s"});
    ours.qmp.ok("blockdev-add", volume);
    ours.quit();
}

#[test]
fn volumes_are_opened_shown_and_refused_as_qemu_does_it() {
    let dir = folder();
    let path = |name: &str| dir.path().join(name);
    qemus(dir.path(), "volume", "", 1 << 20);
    qemus(dir.path(), "essiv", "cipher-mode=cbc,ivgen-alg=essiv", 1 << 20);
    fs::write(path("zeroes"), vec![0; 4096]).expect("a file is made");
    let add = |options: Value| -> Command { ("blockdev-add", options) };
    let file = |name: &str| {
        let path = path(name);
        add(
            json!({"driver": "file", "node-name": format!("{name}-file"), "filename": path, "locking": "off"}),
        )
    };
    let luks = |node: &str, file: &str, more: Value| {
        let mut options = json!({"driver": "luks", "node-name": node, "file": file});
        let more = more.as_object().expect("options").clone();
        options.as_object_mut().expect("options").extend(more);
        add(options)
    };
    let with = |secret: &str| json!({ "key-secret": secret });
    let secret = |id: &str, data: &str| -> Command {
        (
            "object-add",
            json!({"qom-type": "secret", "id": id, "data": data}),
        )
    };
    let reopen = |options: Value| -> Command { ("blockdev-reopen", json!({ "options": [options] })) };
    let same = json!({"driver": "luks", "node-name": "v", "file": "volume-file", "key-secret": "s"});
    let changed = |name: &str, value: Value| {
        let mut options = same.clone();
        options[name] = value;
        reopen(options)
    };
    let commands = [
        secret("s", PASSWORD),
        secret("wrong", "something else"),
        (
            "object-add",
            json!({"qom-type": "secret", "id": "binary", "data": "//4A", "format": "base64"}),
        ),
        file("volume"),
        file("essiv"),
        file("zeroes"),
        luks("v", "volume-file", json!({})),
        luks("v", "volume-file", with("missing")),
        luks("v", "volume-file", with("wrong")),
        luks("v", "volume-file", with("binary")),
        luks("v", "zeroes-file", with("s")),
        luks("v", "volume-file", json!({"key-secret": "s", "colour": 1})),
        luks(
            "v",
            "volume-file",
            json!({"key-secret": "s", "header": "zeroes-file"}),
        ),
        luks("v", "volume-file", with("s")),
        luks("again", "volume-file", with("s")),
        luks(
            "read",
            "volume-file",
            json!({"key-secret": "s", "read-only": true}),
        ),
        luks("e", "essiv-file", with("s")),
        ("query-named-block-nodes", json!({"flat": true})),
        changed("key-secret", json!("wrong")),
        changed("header", json!("zeroes-file")),
        reopen(json!({"driver": "luks", "node-name": "v", "file": "volume-file"})),
        ("blockdev-del", json!({"node-name": "again"})),
        ("blockdev-del", json!({"node-name": "read"})),
        changed("read-only", json!(true)),
        changed("read-only", json!(false)),
        ("block_resize", json!({"node-name": "v", "size": 3 << 20})),
        ("query-named-block-nodes", json!({"flat": true})),
        ("block_resize", json!({"node-name": "v", "size": 1 << 20})),
        ("object-del", json!({"id": "s"})),
    ];
    same_answers(&commands);
}

#[test]
fn the_command_line_opens_volumes() {
    let dir = folder();
    qemus(dir.path(), "disk", "", 1 << 20);
    let opened = daemon_in(dir.path())
        .option(
            "--object",
            format!("secret,id=s,file={}/password", dir.path().display()),
        )
        .option(
            "--blockdev",
            format!(
                "driver=luks,node-name=v,key-secret=s,file.driver=file,file.filename={}/disk",
                dir.path().display()
            ),
        )
        .start();
    opened.quit();
    let refused = daemon()
        .arg("--blockdev")
        .arg("driver=luks,node-name=v,file.driver=null-co")
        .refused();
    assert!(
        refused.contains("Parameter 'key-secret' is required for cipher"),
        "{refused}"
    );
}
