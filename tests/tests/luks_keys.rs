//! The keys of a LUKS volume, changed while it is in use: by the rules that `qemu-img amend` has, and in its words.

use std::fs;
use std::path::Path;

use millpond_tests::daemon::{Daemon, daemon_in, scratch};
use millpond_tests::nbd::Request;
use millpond_tests::tool;
use serde_json::{Value, json};

/// The passwords, by the ids of their secrets.
const PASSWORDS: [(&str, &str); 3] = [("s0", "first"), ("s1", "second"), ("s2", "third")];

fn folder() -> tempfile::TempDir {
    let dir = scratch();
    for (id, password) in PASSWORDS {
        fs::write(dir.path().join(id), password).expect("a password is written");
    }
    dir
}

/// What holds the keys.
#[derive(Clone, Copy, PartialEq)]
enum Format {
    /// A volume that is nothing else.
    Luks,
    /// An image with a header for the keys inside.
    Qcow2,
}

impl Format {
    const fn name(self) -> &'static str {
        match self {
            Self::Luks => "luks",
            Self::Qcow2 => "qcow2",
        }
    }

    /// Options about encryption by their names on command lines: those of a volume, `state=active,new-secret=s1`.
    fn dotted(self, options: &str) -> String {
        match self {
            Self::Luks => options.to_owned(),
            Self::Qcow2 => format!("encrypt.{}", options.replace(',', ",encrypt.")),
        }
    }

    /// How QEMU's tools open a volume.
    fn opened(self, dir: &Path, name: &str, secret: &str) -> String {
        let key = self.dotted(&format!("key-secret={secret}"));
        format!(
            "driver={},{key},file.filename={}/{name}",
            self.name(),
            dir.display()
        )
    }
}

fn create(format: Format, dir: &Path, name: &str) {
    let kind = if format == Format::Qcow2 {
        "format=luks,"
    } else {
        ""
    };
    let options = format.dotted(&format!("{kind}key-secret=s0,iter-time=10"));
    tool::qemu_img(&format!(
        "create -q -f {} --object secret,id=s0,file={}/s0 -o {options} {}/{name} 1M",
        format.name(),
        dir.display(),
        dir.display()
    ));
}

/// A daemon with the secrets and the volume, opened by one of them.
fn ours(format: Format, dir: &Path, secret: &str) -> Daemon {
    let mut daemon = daemon_in(dir).nbd_unix().start();
    for (id, _) in PASSWORDS {
        let options = json!({"qom-type": "secret", "id": id, "file": dir.join(id)});
        daemon.qmp.ok("object-add", options);
    }
    let file = json!({"driver": "file", "filename": dir.join("ours")});
    let volume = match format {
        Format::Luks => json!({"driver": "luks", "node-name": "v", "file": file, "key-secret": secret}),
        Format::Qcow2 => json!({"driver": "qcow2", "node-name": "v", "file": file,
            "encrypt": {"format": "luks", "key-secret": secret}}),
    };
    daemon.qmp.ok("blockdev-add", volume);
    daemon
}

/// A change of keys, as `-o` has it: `state=active,new-secret=s1`.
fn options(format: Format, change: &str) -> Value {
    let mut options = json!({});
    for option in change.split(',') {
        let (name, value) = option.split_once('=').expect("an option has a value");
        options[name] = value.parse::<i64>().map_or(json!(value), Value::from);
    }
    if format == Format::Qcow2 {
        options["format"] = json!("luks");
        return json!({"driver": "qcow2", "encrypt": options});
    }
    options["driver"] = json!("luks");
    options
}

fn amend(format: Format, daemon: &mut Daemon, change: &str, force: bool) -> String {
    let options = options(format, change);
    let arguments = json!({"job-id": "j", "node-name": "v", "options": options, "force": force});
    let amended = daemon.qmp.run_job("j", "x-blockdev-amend", arguments);
    amended.err().unwrap_or_default()
}

/// The same by `qemu-img`, on a volume of its own.
fn qemus_amend(format: Format, dir: &Path, opened_by: &str, change: &str, force: bool) -> String {
    let file = format.opened(dir, "theirs", opened_by);
    let change = &format.dotted(change);
    let objects = PASSWORDS.map(|(id, _)| format!("secret,id={id},file={}/{id}", dir.display()));
    let mut args = vec!["amend"];
    objects
        .iter()
        .for_each(|object| args.extend(["--object", object]));
    if force {
        args.push("--force");
    }
    args.extend(["--image-opts", &file, "-o", change]);
    let run = tool::try_run("qemu-img", &args);
    // The texts' own blanks at the end are part of them.
    let said = run.stderr.trim_end_matches('\n').trim_start_matches("qemu-img: ");
    said.to_owned()
}

/// Which places have a key, as the daemon shows it.
fn active(daemon: &mut Daemon) -> Vec<bool> {
    let shown = daemon.qmp.ok("query-named-block-nodes", json!({"flat": true}));
    let nodes = shown.as_array().expect("nodes");
    let node = nodes
        .iter()
        .find(|node| node["node-name"] == "v")
        .expect("the node is shown");
    slots(&node["image"])
}

/// Which places have a key, as an image is shown.
fn slots(image: &Value) -> Vec<bool> {
    let data = &image["format-specific"]["data"];
    let data = data.get("encrypt").unwrap_or(data);
    let slots = data["slots"].as_array().expect("slots").clone();
    slots.iter().map(|slot| slot["active"] == true).collect()
}

/// The same, as `qemu-img` reads it from a volume.
fn stored(dir: &Path, name: &str) -> Vec<bool> {
    let info = tool::run_json(
        "qemu-img",
        &[
            "info",
            "--output=json",
            "-U",
            &format!("{}/{name}", dir.display()),
        ],
    );
    slots(&info)
}

#[test]
fn keys_come_and_go_by_the_rules_of_qemu() {
    come_and_go(Format::Luks);
}

#[test]
fn keys_of_images_come_and_go_by_the_rules_of_qemu() {
    come_and_go(Format::Qcow2);
}

fn come_and_go(format: Format) {
    let dir = folder();
    create(format, dir.path(), "ours");
    create(format, dir.path(), "theirs");
    let mut daemon = ours(format, dir.path(), "s0");
    let mut opened_by = "s0";
    let steps = [
        ("state=active", false),
        ("state=active,new-secret=missing", false),
        ("state=active,new-secret=s1,old-secret=s0", false),
        ("state=active,new-secret=s1,keyslot=8", false),
        ("state=active,new-secret=s1,keyslot=0", false),
        ("state=active,new-secret=s1,iter-time=10", false),
        ("state=active,new-secret=s1,iter-time=10,keyslot=1", false),
        ("state=active,new-secret=s2,iter-time=10,keyslot=1", true),
        ("state=active,new-secret=s1,iter-time=10,keyslot=5", false),
        ("state=inactive", false),
        ("state=inactive,new-secret=s1", false),
        ("state=inactive,iter-time=10,keyslot=3", false),
        ("state=inactive,keyslot=3", false),
        ("state=inactive,keyslot=9", false),
        ("state=inactive,old-secret=s0,keyslot=1", false),
        ("state=inactive,old-secret=s0,keyslot=3", false),
        ("state=inactive,keyslot=1", false),
        ("state=inactive,old-secret=s2", false),
        ("open", false),
        ("state=inactive,old-secret=s0", false),
        ("state=inactive,old-secret=s1", false),
        ("state=inactive,keyslot=5", false),
        ("state=inactive,keyslot=5,old-secret=s1", false),
        ("state=active,new-secret=s1,iter-time=10", false),
        ("state=active,new-secret=s1,iter-time=10", false),
        ("state=active,new-secret=s1,iter-time=10", false),
        ("state=active,new-secret=s1,iter-time=10", false),
        ("state=active,new-secret=s1,iter-time=10", false),
        ("state=active,new-secret=s1,iter-time=10", false),
        ("state=active,new-secret=s1,iter-time=10", false),
        ("state=active,new-secret=s1,iter-time=10", false),
        ("state=inactive,old-secret=s1", false),
        ("state=inactive,old-secret=s1", true),
    ];
    for (change, force) in steps {
        if change == "open" {
            // From here on the first password opens nothing any more.
            daemon.quit();
            daemon = ours(format, dir.path(), "s1");
            opened_by = "s1";
            continue;
        }
        let said = amend(format, &mut daemon, change, force);
        let theirs = qemus_amend(format, dir.path(), opened_by, change, force);
        assert_eq!(said, theirs, "{change} {force}");
        let now = active(&mut daemon);
        assert_eq!(now, stored(dir.path(), "ours"), "{change} {force}");
        assert_eq!(now, stored(dir.path(), "theirs"), "{change} {force}");
    }
    daemon.quit();
}

#[test]
fn a_new_password_opens_the_volume_and_an_erased_one_does_not() {
    let dir = folder();
    create(Format::Luks, dir.path(), "ours");
    let mut daemon = ours(Format::Luks, dir.path(), "s0");
    let before = fs::read(dir.path().join("ours")).expect("the volume is read");
    assert_eq!(
        amend(
            Format::Luks,
            &mut daemon,
            "state=active,new-secret=s1,iter-time=10",
            false
        ),
        ""
    );
    let error = amend(
        Format::Luks,
        &mut daemon,
        "state=active,new-secret=s1,secret=s2,iter-time=10",
        false,
    );
    assert_eq!(error, "Invalid password, cannot unlock any keyslot");
    let error = amend(
        Format::Luks,
        &mut daemon,
        "state=inactive,secret=s0,keyslot=1",
        false,
    );
    assert_eq!(error, "'secret' must not be given when erasing keyslots");
    assert_eq!(
        amend(Format::Luks, &mut daemon, "state=inactive,old-secret=s0", false),
        ""
    );
    // Opened by a password that is gone: only another one gives the key now.
    let error = amend(
        Format::Luks,
        &mut daemon,
        "state=active,new-secret=s2,iter-time=10",
        false,
    );
    assert_eq!(error, "Invalid password, cannot unlock any keyslot");
    assert_eq!(
        amend(
            Format::Luks,
            &mut daemon,
            "state=active,new-secret=s2,secret=s1,iter-time=10",
            false
        ),
        ""
    );
    daemon.quit();
    let after = fs::read(dir.path().join("ours")).expect("the volume is read");
    let stripes = 4096..4096 + 256_000;
    assert_ne!(
        before[stripes.clone()],
        after[stripes],
        "the stripes of an erased key are written over"
    );
    let file = format!(
        "driver=luks,key-secret=s,file.filename={}/ours",
        dir.path().display()
    );
    for (id, _) in PASSWORDS {
        let object = format!("secret,id=s,file={}/{id}", dir.path().display());
        let run = tool::try_run(
            "qemu-io",
            &["-r", "--object", &object, "--image-opts", &file, "-c", "length"],
        );
        assert_eq!(run.code == Some(0), id != "s0", "{run:?}");
    }
    for (slot, id) in [("1", "s1"), ("0", "s2")] {
        let key = dir.path().join(id).display().to_string();
        let path = dir.path().join("ours").display().to_string();
        let dump = tool::run("cryptsetup", &["luksDump", &path]);
        assert!(
            dump.contains(&format!("Key Slot {slot}: ENABLED")),
            "{dump} {key}"
        );
    }
}

#[test]
fn requests_go_on_while_a_key_is_made() {
    let dir = folder();
    create(Format::Luks, dir.path(), "ours");
    let mut daemon = ours(Format::Luks, dir.path(), "s0");
    daemon.qmp.ok(
        "block-export-add",
        json!({"type": "nbd", "id": "v", "node-name": "v", "writable": true}),
    );
    let mut session = daemon.session("v");
    // The key takes some seconds; nothing else ends the job before.
    let change = options(Format::Luks, "state=active,new-secret=s1,iter-time=3000");
    let arguments = json!({"job-id": "j", "node-name": "v", "options": change});
    daemon.qmp.ok("x-blockdev-amend", arguments);
    let mut meanwhile = 0;
    loop {
        session.ok(&Request::write(0, vec![7; 4096]));
        assert_eq!(session.read(0, 4096), vec![7; 4096]);
        let jobs = daemon.qmp.ok("query-jobs", json!({}));
        if jobs[0]["status"] == "concluded" {
            assert!(jobs[0].get("error").is_none(), "{jobs}");
            break;
        }
        meanwhile += 1;
    }
    assert!(
        meanwhile > 20,
        "requests waited for the key: {meanwhile} were answered meanwhile"
    );
    daemon.qmp.ok("job-dismiss", json!({"id": "j"}));
    session.disconnect().expect("a goodbye closes the connection");
    daemon.quit();
}

#[test]
fn only_volumes_that_can_be_written_are_amended() {
    let dir = folder();
    create(Format::Luks, dir.path(), "ours");
    let mut daemon = ours(Format::Luks, dir.path(), "s0");
    let reopened = json!({"driver": "luks", "node-name": "v", "key-secret": "s0", "read-only": true,
        "file": {"driver": "file", "filename": dir.path().join("ours"), "read-only": true}});
    daemon.qmp.ok("blockdev-del", json!({"node-name": "v"}));
    daemon.qmp.ok("blockdev-add", reopened);
    let before = fs::read(dir.path().join("ours")).expect("the volume is read");
    let error = amend(
        Format::Luks,
        &mut daemon,
        "state=active,new-secret=s1,iter-time=10",
        false,
    );
    assert!(error.contains("read-only"), "{error}");
    assert!(fs::read(dir.path().join("ours")).expect("the volume is read") == before);
    let arguments = json!({"job-id": "j", "node-name": "v", "options": {"driver": "qcow2"}});
    let error = daemon.qmp.refused("x-blockdev-amend", arguments);
    assert_eq!(
        error.desc,
        "x-blockdev-amend doesn't support changing the block driver"
    );
    daemon.quit();
}
