//! Secrets beside QEMU's own: what makes one, what is refused and how, and that nobody is told what one is.

use std::fs;

use millpond_tests::beside::{Command, same_answers};
use millpond_tests::daemon::{daemon, scratch};
use millpond_tests::image;
use serde_json::{Value, json};

fn secret(id: &str, mut options: Value) -> Command {
    options["qom-type"] = json!("secret");
    options["id"] = json!(id);
    ("object-add", options)
}

/// A key of 32 bytes in base64: the numbers from 0.
const KEY: &str = "AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8=";
/// A vector of 16 bytes in base64.
const IV: &str = "MDAwMDAwMDAwMDAwMDAwMA==";
/// A block in base64 that is no password encrypted with that key.
const JUNK: &str = "MTExMTExMTExMTExMTExMQ==";

#[test]
fn what_makes_a_secret_and_what_does_not_is_as_qemu_has_it() {
    let dir = scratch();
    let path = |name: &str| dir.path().join(name).display().to_string();
    fs::write(path("password"), "from a file\n").expect("a file is written");
    let wrapped = |data: &str, iv: &str| json!({"data": data, "keyid": "key", "iv": iv, "format": "base64"});
    let commands = [
        secret("plain", json!({"data": "abc"})),
        secret("plain", json!({"data": "again"})),
        secret("nothing", json!({})),
        secret("both", json!({"data": "x", "file": path("password")})),
        secret("missing", json!({"file": path("missing")})),
        secret("folder", json!({"file": dir.path()})),
        secret("file", json!({"file": path("password")})),
        secret("wrong", json!({"data": "!!!", "format": "base64"})),
        secret("wrong", json!({"data": "YW Jj", "format": "base64"})),
        secret("unpadded", json!({"data": "YWJ", "format": "base64"})),
        secret("lines", json!({"data": "YWJj\nYWJj\n", "format": "base64"})),
        secret("wrong", json!({"data": "YWJj", "format": "hex"})),
        secret("wrong", json!({"data": 1})),
        secret("key", json!({"data": KEY, "format": "base64"})),
        secret("wrapped", json!({"data": "YWJj", "keyid": "nokey"})),
        secret("wrapped", json!({"data": "YWJj", "keyid": "key"})),
        secret("wrapped", wrapped("YWJj", "AAAA")),
        secret("wrapped", wrapped("YWJj", IV)),
        secret("wrapped", wrapped(JUNK, IV)),
        secret("iv-alone", json!({"data": "YWJj", "iv": "!!"})),
        ("qom-list", json!({"path": "/objects/plain"})),
        ("qom-list-properties", json!({"typename": "secret"})),
        ("qom-list-properties", json!({"typename": "secret_keyring"})),
        ("qom-get", json!({"path": "plain", "property": "format"})),
        ("qom-get", json!({"path": "plain", "property": "iv"})),
        ("object-add", json!({"qom-type": "secret_keyring", "id": "k"})),
        (
            "object-add",
            json!({"qom-type": "secret_keyring", "id": "k", "serial": 123}),
        ),
        (
            "object-add",
            json!({"qom-type": "secret_keyring", "id": "k", "serial": 1_u64 << 33}),
        ),
        ("object-del", json!({"id": "key"})),
        ("object-del", json!({"id": "key"})),
    ];
    same_answers(&commands);
}

#[test]
fn the_bytes_of_a_secret_are_those_that_qemu_takes() {
    // A volume that QEMU has made for the bytes opens with ours, whatever form they are given in. What is wrapped was wrapped
    // by OpenSSL: `printf secret | openssl enc -aes-256-cbc -K 0001..1f -iv 30..30 -a`.
    let dir = scratch();
    let path = dir.path().join("volume.luks");
    let password = dir.path().join("password");
    fs::write(&password, "secret").expect("a file is written");
    millpond_tests::tool::qemu_img(&format!(
        "create -q -f luks --object secret,id=s,file={} -o key-secret=s,iter-time=10 {} 1M",
        password.display(),
        path.display()
    ));
    let mut daemon = daemon().start();
    daemon.qmp.ok("blockdev-add", image::file("file", &path));
    let (_, key) = secret("key", json!({"data": KEY, "format": "base64"}));
    daemon.qmp.ok("object-add", key);
    let forms = [
        json!({"data": "secret"}),
        json!({"data": "c2VjcmV0", "format": "base64"}),
        json!({"file": password}),
        json!({"data": WRAPPED, "format": "base64", "keyid": "key", "iv": IV}),
    ];
    for (number, form) in forms.into_iter().enumerate() {
        let id = format!("s{number}");
        let (_, options) = secret(&id, form);
        daemon.qmp.ok("object-add", options);
        let volume = json!({"driver": "luks", "node-name": id, "file": "file", "key-secret": id});
        daemon.qmp.ok("blockdev-add", volume);
        // The node goes on without the secret.
        daemon.qmp.ok("object-del", json!({"id": id}));
        daemon.qmp.ok("blockdev-del", json!({"node-name": id}));
    }
    let (_, wrong) = secret("wrong", json!({"data": "secret\n"}));
    daemon.qmp.ok("object-add", wrong);
    let volume = json!({"driver": "luks", "node-name": "v", "file": "file", "key-secret": "wrong"});
    let error = daemon.qmp.refused("blockdev-add", volume);
    assert_eq!(error.desc, "Invalid password, cannot unlock any keyslot");
    daemon.quit();
}

/// `secret`, encrypted with the key and the vector above.
const WRAPPED: &str = "KndgcuRyifxIHnsva8C3yg==";

#[test]
fn nobody_is_told_what_a_secret_is() {
    const PASSWORD: &str = "correct-horse-battery-staple";
    let mut daemon = daemon().arg("-T").arg("trace").start();
    let (_, options) = secret("s", json!({"data": PASSWORD}));
    daemon.qmp.ok("object-add", options);
    let error = daemon
        .qmp
        .refused("qom-get", json!({"path": "s", "property": "data"}));
    assert_eq!(error.desc, "Property 'secret.data' is not readable");
    let set = json!({"path": "s", "property": "data", "value": "other"});
    let error = daemon.qmp.refused("qom-set", set);
    assert_eq!(error.desc, "Property 'secret.data' is not writable");
    let shown = daemon.qmp.ok("qom-list-get", json!({"paths": ["/objects/s"]}));
    assert!(shown.to_string().contains("\"data\"") && !shown.to_string().contains(PASSWORD));
    let record = daemon.path("record");
    daemon
        .qmp
        .ok("x-millpond-flight-record", json!({ "filename": record }));
    let record = fs::read(record).expect("a record is written");
    let has = |bytes: &[u8]| {
        bytes
            .windows(PASSWORD.len())
            .any(|part| part == PASSWORD.as_bytes())
    };
    assert!(
        !record.is_empty() && !has(&record),
        "the flight record has the secret"
    );
    assert!(!has(daemon.log().as_bytes()), "the log has the secret");
    daemon.quit();
}
