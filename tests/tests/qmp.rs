//! QMP as its users speak it: negotiation, errors, several monitors, and commands that change what is served.

use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::net::UnixStream;

use millpond_tests::PATIENCE;
use millpond_tests::beside::beside_qemu;
use millpond_tests::daemon::{Daemon, daemon, monitor_path};
use millpond_tests::image;
use millpond_tests::nbd::Connect;
use millpond_tests::nbd::wire::*;
use serde_json::{Value, json};

const MIB: u64 = 1 << 20;

fn null_node(name: &str) -> Value {
    json!({ "driver": "null-co", "node-name": name, "size": MIB, "read-zeroes": true })
}

/// A connection to the second monitor that has not negotiated yet.
struct Raw {
    stream: UnixStream,
    reader: BufReader<UnixStream>,
}

impl Raw {
    fn open(daemon: &Daemon) -> Raw {
        let stream = UnixStream::connect(monitor_path(daemon.dir(), 1)).expect("the monitor listens");
        stream
            .set_read_timeout(Some(PATIENCE))
            .expect("a socket takes a time limit");
        let reader = BufReader::new(stream.try_clone().expect("a socket can be cloned"));
        let mut raw = Raw { stream, reader };
        assert!(raw.next()["QMP"].is_object(), "the greeting comes first");
        raw
    }

    fn next(&mut self) -> Value {
        let mut line = String::new();
        self.reader.read_line(&mut line).expect("an answer");
        assert!(line.ends_with("\r\n"), "a line ends with CR LF: {line:?}");
        serde_json::from_str(&line).expect("an answer is JSON")
    }

    fn ask(&mut self, text: &str) -> Value {
        self.stream.write_all(text.as_bytes()).expect("the monitor reads");
        self.next()
    }

    fn negotiate(&mut self) {
        assert_eq!(self.ask("{'execute': 'qmp_capabilities'}")["return"], json!({}));
    }
}

#[test]
fn nothing_is_done_before_capabilities_are_negotiated() {
    let daemon = daemon().monitors(2).start();
    let mut raw = Raw::open(&daemon);
    let answer = raw.ask("{'execute': 'query-version', 'id': 7}");
    assert_eq!(answer["error"]["class"], "CommandNotFound");
    assert_eq!(
        answer["error"]["desc"],
        "Expecting capabilities negotiation with 'qmp_capabilities'"
    );
    assert_eq!(answer["id"], 7);
    raw.negotiate();
    let again = raw.ask("{'execute': 'qmp_capabilities'}");
    assert_eq!(again["error"]["class"], "CommandNotFound");
    assert!(raw.ask("{'execute': 'query-version'}")["return"]["qemu"]["major"].is_u64());
}

#[test]
fn the_greeting_tells_version_and_capabilities() {
    let daemon = daemon().start();
    let greeting = daemon.qmp.greeting();
    for part in ["major", "minor", "micro"] {
        assert!(
            greeting["QMP"]["version"]["qemu"][part].is_u64(),
            "{part} in {greeting}"
        );
    }
    assert!(greeting["QMP"]["version"]["package"].is_string());
    assert!(greeting["QMP"]["capabilities"].is_array());
}

#[test]
fn what_is_wrong_with_a_command_is_named() {
    let daemon = daemon().monitors(2).start();
    let mut raw = Raw::open(&daemon);
    raw.negotiate();
    for (text, class, part) in [
        (
            "{'execute': 'no-such-command'}",
            "CommandNotFound",
            "The command no-such-command has not been found",
        ),
        (
            "{'execute': 'query-version', 'arguments': {'x': 1}}",
            "GenericError",
            "'x'",
        ),
        (
            "{'execute': 'blockdev-add', 'arguments': {'driver': 'nonsense'}}",
            "GenericError",
            "nonsense",
        ),
        (
            "{'execute': 'blockdev-add', 'arguments': {'node-name': 'x'}}",
            "GenericError",
            "driver",
        ),
        (
            "{'execute': 'blockdev-add', 'arguments': {'driver': 'null-co', 'node-name': 'x', 'colour': 1}}",
            "GenericError",
            "colour",
        ),
        (
            "{'execute': 'blockdev-add', 'arguments': {'driver': 'null-co', 'node-name': 'x', 'size': 'big'}}",
            "GenericError",
            "size",
        ),
        ("{'execute': 'blockdev-del'}", "GenericError", "node-name"),
        (
            "{'execute': 'blockdev-del', 'arguments': []}",
            "GenericError",
            "arguments",
        ),
        ("{'execute': 7}", "GenericError", "execute"),
        ("{'arguments': {}}", "GenericError", "execute"),
        (
            "{'execute': 'query-version', 'colour': 1}",
            "GenericError",
            "colour",
        ),
        ("[]", "GenericError", "object"),
        ("{'execute' 'query-version'}", "GenericError", "JSON"),
    ] {
        let answer = raw.ask(text);
        assert_eq!(answer["error"]["class"], class, "{text}: {answer}");
        let desc = answer["error"]["desc"].as_str().unwrap_or_default();
        assert!(desc.contains(part), "{text}: {desc:?} should name {part:?}");
    }
    assert!(raw.ask("{'execute': 'query-version', 'id': {'any': ['thing']}}")["id"]["any"].is_array());
}

#[test]
fn deep_long_and_binary_input_costs_the_sender_at_most() {
    let mut daemon = daemon().monitors(2).start();
    for garbage in [
        vec![b'['; 100_000],
        b"{\"a\":".repeat(50_000),
        [&b"{\"execute\": \""[..], &vec![b'x'; 1 << 20], b"\"}"].concat(),
        vec![0; 1000],
        vec![0xff; 1000],
        b"\"unfinished".to_vec(),
        b"{\"execute\": \"\\ud800\"}".to_vec(),
        b"{\"execute\": \"query-version\", \"id\": 1e999}".to_vec(),
    ] {
        let mut stream = UnixStream::connect(monitor_path(daemon.dir(), 1)).expect("the monitor listens");
        stream
            .set_read_timeout(Some(PATIENCE))
            .expect("a socket takes a time limit");
        // The daemon may close the connection before it has read everything.
        let _ = stream.write_all(&garbage);
        let _ = stream.shutdown(std::net::Shutdown::Write);
        let _ = stream.read_to_end(&mut Vec::new());
        assert_eq!(daemon.qmp.ok("query-jobs", json!({})), json!([]));
    }
    let resident = daemon.resident_kib();
    assert!(resident < 256 << 10, "{resident} KiB");
}

#[test]
fn monitors_are_served_at_once_and_each_gets_its_own_answers() {
    let daemon = daemon().monitors(4).start();
    std::thread::scope(|scope| {
        for index in 1..4 {
            let mut monitor = daemon.monitor(index);
            scope.spawn(move || {
                for round in 0..50 {
                    let name = format!("node{index}-{round}");
                    monitor.ok("blockdev-add", null_node(&name));
                    let error = monitor.refused("blockdev-add", null_node(&name));
                    assert!(
                        error.desc.contains("Duplicate nodes with node-name"),
                        "{}",
                        error.desc
                    );
                    assert!(
                        error.desc.contains(&name),
                        "the answer to another monitor: {}",
                        error.desc
                    );
                    monitor.ok("blockdev-del", json!({ "node-name": name }));
                }
            });
        }
    });
}

#[test]
fn a_monitor_that_leaves_early_leaves_its_answers() {
    let mut daemon = daemon().monitors(2).start();
    for round in 0..30 {
        let mut raw = Raw::open(&daemon);
        raw.negotiate();
        let add = json!({ "execute": "blockdev-add", "arguments": null_node(&format!("node{round}")) });
        raw.stream
            .write_all(add.to_string().as_bytes())
            .expect("the monitor reads");
        drop(raw);
        // The next client of this monitor gets a greeting and no answer of the last one's.
        let mut raw = Raw::open(&daemon);
        raw.negotiate();
        assert_eq!(
            raw.ask("{'execute': 'query-jobs', 'id': 1}"),
            json!({ "return": [], "id": 1 })
        );
        daemon.qmp.ok("query-named-block-nodes", json!({ "flat": true }));
    }
}

#[test]
fn events_reach_every_monitor() {
    let mut daemon = daemon()
        .monitors(2)
        .nbd_unix()
        .blockdev(null_node("disk"))
        .export("disk")
        .start();
    let mut second = daemon.monitor(1);
    daemon.qmp.ok("block-export-del", json!({ "id": "exp-disk" }));
    assert_eq!(daemon.qmp.wait_event("BLOCK_EXPORT_DELETED")["id"], "exp-disk");
    assert_eq!(second.wait_event("BLOCK_EXPORT_DELETED")["id"], "exp-disk");
}

#[test]
fn nodes_in_use_are_not_deleted() {
    let mut daemon = daemon()
        .nbd_unix()
        .blockdev(null_node("base"))
        .blockdev(image::over("raw", "top", "base"))
        .start();
    let error = daemon.qmp.refused("blockdev-del", json!({ "node-name": "base" }));
    assert!(
        error.desc.contains("base") && error.desc.contains("in use"),
        "{}",
        error.desc
    );
    daemon.qmp.ok(
        "block-export-add",
        json!({ "type": "nbd", "id": "x", "node-name": "top" }),
    );
    let error = daemon.qmp.refused("blockdev-del", json!({ "node-name": "top" }));
    assert!(error.desc.contains("in use"), "{}", error.desc);
    let error = daemon.qmp.refused(
        "block-export-add",
        json!({ "type": "nbd", "id": "x", "node-name": "base" }),
    );
    assert!(error.desc.contains("is already in use"), "{}", error.desc);
    daemon.qmp.ok("block-export-del", json!({ "id": "x" }));
    daemon.qmp.wait_event("BLOCK_EXPORT_DELETED");
    daemon.qmp.ok("blockdev-del", json!({ "node-name": "top" }));
    daemon.qmp.ok("blockdev-del", json!({ "node-name": "base" }));
    assert_eq!(daemon.qmp.ok("query-named-block-nodes", json!({})), json!([]));
}

#[test]
fn bad_node_names_are_refused() {
    let mut daemon = daemon().start();
    for name in [
        "",
        "1digit",
        "with space",
        "#hash",
        "a/b",
        "x".repeat(32).as_str(),
        "\u{1b}[31m",
    ] {
        let error = daemon.qmp.refused("blockdev-add", null_node(name));
        assert!(!error.desc.is_empty(), "{name:?}");
    }
    daemon.qmp.ok("blockdev-add", null_node(&"x".repeat(31)));
    daemon.qmp.ok("blockdev-add", null_node("a-b.c_d"));
}

#[test]
fn the_nbd_server_starts_once_and_stops() {
    let mut daemon = daemon().blockdev(null_node("disk")).start();
    let error = daemon.qmp.refused("nbd-server-stop", json!({}));
    assert!(error.desc.contains("NBD server not running"), "{}", error.desc);
    let error = daemon.qmp.refused(
        "block-export-add",
        json!({ "type": "nbd", "id": "disk", "node-name": "disk" }),
    );
    assert!(error.desc.contains("NBD server not running"), "{}", error.desc);
    daemon.start_nbd_server();
    let addr = json!({ "type": "unix", "data": { "path": daemon.path("other.sock") } });
    let error = daemon.qmp.refused("nbd-server-start", json!({ "addr": addr }));
    assert!(
        error.desc.contains("NBD server already running"),
        "{}",
        error.desc
    );
    daemon.qmp.ok(
        "nbd-server-add",
        json!({ "device": "disk", "name": "old-style", "writable": true }),
    );
    let mut session = daemon.session("old-style");
    session.write(0, &[1; 512]);
    daemon.qmp.ok(
        "nbd-server-remove",
        json!({ "name": "old-style", "mode": "hard" }),
    );
    daemon.qmp.wait_event("BLOCK_EXPORT_DELETED");
    daemon.qmp.ok("nbd-server-stop", json!({}));
    daemon.start_nbd_server();
    daemon.quit();
}

#[test]
fn a_node_is_resized_while_it_is_not_exported() {
    let builder = daemon().nbd_unix();
    let path = builder.dir().join("disk.qcow2");
    image::create(&path, "qcow2", "", MIB);
    let mut daemon = builder
        .blockdev(image::file("file", &path))
        .blockdev(image::over("qcow2", "disk", "file"))
        .start();
    daemon
        .qmp
        .ok("block_resize", json!({ "node-name": "disk", "size": 4 * MIB }));
    let export = json!({ "type": "nbd", "id": "disk", "node-name": "disk", "writable": true });
    daemon.qmp.ok("block-export-add", export);
    let mut session = daemon.session("disk");
    assert_eq!(session.info.size, 4 * MIB);
    session.write(3 * MIB, &[5; 4096]);
    let error = daemon
        .qmp
        .refused("block_resize", json!({ "node-name": "disk", "size": 8 * MIB }));
    assert!(
        error.desc.contains("resize"),
        "an export holds the size: {}",
        error.desc
    );
    session.disconnect().expect("a goodbye closes the connection");
}

#[test]
fn iothreads_are_objects() {
    let mut daemon = daemon().nbd_unix().blockdev(null_node("disk")).start();
    daemon.qmp.ok(
        "object-add",
        json!({ "qom-type": "iothread", "id": "io", "poll-max-ns": 1000 }),
    );
    let get = |property: &str| json!({ "path": "/objects/io", "property": property });
    assert_eq!(daemon.qmp.ok("qom-get", get("poll-max-ns")), 1000);
    daemon.qmp.ok(
        "qom-set",
        json!({ "path": "/objects/io", "property": "poll-max-ns", "value": 0 }),
    );
    assert_eq!(daemon.qmp.ok("qom-get", get("poll-max-ns")), 0);
    let error = daemon
        .qmp
        .refused("object-add", json!({ "qom-type": "iothread", "id": "io" }));
    assert!(error.desc.contains("io"), "{}", error.desc);
    let export =
        json!({ "type": "nbd", "id": "disk", "node-name": "disk", "iothread": "io", "writable": true });
    daemon.qmp.ok("block-export-add", export);
    let mut session = daemon.session("disk");
    session.write(0, &[1; 512]);
    // Refused, or deleted once nothing uses it: in both cases the export goes on. (QEMU 10.0 lets it hang.)
    let deleted = daemon.qmp.execute("object-del", json!({ "id": "io" }));
    assert!(deleted.is_ok() || deleted.as_ref().is_err_and(|error| error.desc.contains("in use")));
    session.write(512, &[1; 512]);
    session.disconnect().expect("a goodbye closes the connection");
    daemon.qmp.ok("block-export-del", json!({ "id": "disk" }));
    daemon.qmp.wait_event("BLOCK_EXPORT_DELETED");
    daemon.qmp.ok(
        "x-blockdev-set-iothread",
        json!({ "node-name": "disk", "iothread": null }),
    );
    if deleted.is_err() {
        daemon.qmp.ok("object-del", json!({ "id": "io" }));
    }
    let error = daemon
        .qmp
        .refused("object-add", json!({ "qom-type": "nonsense", "id": "x" }));
    assert!(error.desc.contains("nonsense"), "{}", error.desc);
}

#[test]
fn a_transaction_of_options_is_all_or_nothing() {
    let mut daemon = daemon()
        .nbd_unix()
        .blockdev(null_node("one"))
        .blockdev(null_node("other"))
        .blockdev(image::over("raw", "top", "one"))
        .start();
    let top = |file: &str| image::over("raw", "top", file);
    // The second half cannot be done, so the first is not.
    let options = json!([top("other"), image::over("raw", "missing", "one")]);
    daemon
        .qmp
        .refused("blockdev-reopen", json!({ "options": options }));
    let file_of_top = |daemon: &mut Daemon| {
        let error = daemon.qmp.execute("blockdev-del", json!({ "node-name": "one" }));
        error.err().map(|error| error.desc)
    };
    assert!(
        file_of_top(&mut daemon).is_some_and(|desc| desc.contains("in use")),
        "one is still below top"
    );
}

#[test]
fn two_exports_with_different_rights_share_a_node() {
    let daemon = daemon()
        .nbd_unix()
        .blockdev(null_node("disk"))
        .option("--export", "nbd,id=w,node-name=disk,name=w,writable=on")
        .option("--export", "nbd,id=r,node-name=disk,name=r")
        .start();
    let (mut writer, reader) = (daemon.session("w"), daemon.session("r"));
    writer.write(0, &[1; 512]);
    assert_ne!(reader.info.flags & TRANSMISSION_READ_ONLY, 0);
}

#[test]
fn a_writable_export_of_a_read_only_node_is_refused() {
    let mut node = null_node("disk");
    node["read-only"] = json!(true);
    let mut daemon = daemon().nbd_unix().blockdev(node).start();
    let export = json!({ "type": "nbd", "id": "disk", "node-name": "disk", "writable": true });
    let error = daemon.qmp.refused("block-export-add", export);
    assert!(error.desc.contains("read-only"), "{}", error.desc);
}

#[test]
fn snapshot_puts_an_overlay_under_the_export() {
    let builder = daemon().nbd_unix();
    let (base, overlay) = (
        builder.dir().join("base.qcow2"),
        builder.dir().join("overlay.qcow2"),
    );
    image::create(&base, "qcow2", "", MIB);
    image::create(&overlay, "qcow2", "", MIB);
    let mut daemon = builder
        .blockdev(image::file("base-file", &base))
        .blockdev(image::over("qcow2", "base", "base-file"))
        .option(
            "--export",
            "nbd,id=disk,node-name=base,name=disk,writable=on,allocation-depth=on",
        )
        .start();
    let mut session = Connect::with_depth().open(&daemon.address(), "disk");
    session.write(0, &[1; 65536]);
    daemon
        .qmp
        .ok("blockdev-add", image::file("overlay-file", &overlay));
    let mut options = image::over("qcow2", "overlay", "overlay-file");
    options["backing"] = Value::Null;
    daemon.qmp.ok("blockdev-add", options);
    daemon.qmp.ok(
        "blockdev-snapshot",
        json!({ "node": "base", "overlay": "overlay" }),
    );
    session.write(65536, &[2; 65536]);
    let depths: Vec<u64> = session
        .status_all("qemu:allocation-depth")
        .iter()
        .map(|extent| extent.flags)
        .collect();
    assert_eq!(depths, [2, 1, 0]);
    assert_eq!(session.read(65535, 2), [1, 2]);
    assert_eq!(
        daemon.qmp.ok("query-block-exports", json!({}))[0]["node-name"],
        "overlay"
    );
    session.disconnect().expect("a goodbye closes the connection");
    for (node, overlay) in [
        ("base", "overlay"),
        ("overlay", "missing"),
        ("missing", "overlay"),
    ] {
        let error = daemon
            .qmp
            .refused("blockdev-snapshot", json!({ "node": node, "overlay": overlay }));
        assert!(!error.desc.is_empty());
    }
}

#[test]
fn an_amend_job_says_what_qemus_does() {
    let amend =
        |id: &str, node: &str, options: Value| json!({"job-id": id, "node-name": node, "options": options});
    let luks = json!({"format": "luks", "state": "active", "new-secret": "s"});
    beside_qemu(|mut daemon: Daemon| {
        let path = daemon.dir().join("amended.qcow2");
        image::create(&path, "qcow2", "", MIB);
        let qmp = &mut daemon.qmp;
        qmp.ok("blockdev-add", image::file("file", &path));
        qmp.ok("blockdev-add", image::over("qcow2", "image", "file"));
        qmp.ok("blockdev-add", null_node("null"));
        let mut seen = Vec::new();
        for arguments in [
            amend("j", "nothing", json!({"driver": "qcow2"})),
            amend("j", "null", json!({"driver": "qcow2"})),
            amend("j", "image", json!({"driver": "file", "x": 1})),
            amend("j", "image", json!({"driver": "file"})),
            amend("j", "null", json!({"driver": "null-co"})),
            amend("j", "file", json!({"driver": "file"})),
            amend("!", "file", json!({"driver": "file"})),
            amend("!", "image", json!({"driver": "qcow2"})),
        ] {
            seen.push(json!(qmp.refused("x-blockdev-amend", arguments).desc));
        }
        for options in [
            json!({"driver": "qcow2"}),
            json!({"driver": "qcow2", "encrypt": {"format": "qcow"}}),
            json!({"driver": "qcow2", "encrypt": luks}),
        ] {
            let mut arguments = amend("j", "image", options);
            arguments["force"] = json!(true);
            qmp.ok("x-blockdev-amend", arguments.clone());
            loop {
                let event = qmp.wait_event("JOB_STATUS_CHANGE");
                let concluded = event["status"] == "concluded";
                seen.push(event);
                if concluded {
                    break;
                }
            }
            seen.push(qmp.ok("query-jobs", json!({})));
            seen.push(json!(qmp.refused("x-blockdev-amend", arguments).desc));
            qmp.ok("job-dismiss", json!({"id": "j"}));
            seen.push(qmp.wait_event("JOB_STATUS_CHANGE"));
        }
        seen
    });
}

/// Commands of ours: what QEMU has in its image tool only.
#[test]
fn an_open_image_is_checked_and_grows_with_its_space_laid_out() {
    let mut daemon = daemon().start();
    let path = daemon.path("disk");
    let path = std::path::Path::new(&path);
    image::create(path, "qcow2", "", MIB);
    daemon.qmp.ok("blockdev-add", image::file("f", path));
    daemon.qmp.ok("blockdev-add", image::over("qcow2", "disk", "f"));
    let node = json!({ "node-name": "disk" });
    let before = daemon.qmp.ok("x-millpond-check", node.clone());
    assert_eq!(before["format"], "qcow2");
    assert_eq!((&before["leaks"], &before["corruptions"]), (&json!(0), &json!(0)));
    assert_eq!(
        (&before["total-clusters"], &before["allocated-clusters"]),
        (&json!(16), &json!(0))
    );
    let longer = json!({ "node-name": "disk", "size": 4 * MIB, "exact": true, "preallocation": "metadata" });
    daemon.qmp.ok("x-millpond-truncate", longer);
    let after = daemon.qmp.ok(
        "x-millpond-check",
        json!({ "node-name": "disk", "repair": "all" }),
    );
    assert_eq!(
        (&after["total-clusters"], &after["allocated-clusters"]),
        (&json!(64), &json!(48))
    );
    let refused = daemon
        .qmp
        .refused("x-millpond-check", json!({ "node-name": "f" }));
    assert_eq!(refused.desc, "This image format does not support checks");
    let refused = daemon
        .qmp
        .refused("x-millpond-check", json!({ "node-name": "none" }));
    assert_eq!(refused.desc, "Cannot find device='' nor node-name='none'");
    daemon.qmp.quit();
    daemon.expect_clean_exit();
    image::assert_clean(path);
}

/// What newer versions of QEMU answer to one command is what its older ones tell one by one.
#[test]
fn all_properties_of_several_objects_are_shown_at_once() {
    let mut daemon = daemon()
        .option("--object", "iothread,id=io")
        .option("--object", "throttle-group,id=group,x-iops-total=7")
        .start();
    let paths = ["/objects/io", "group", "/objects", "/"];
    let shown = daemon.qmp.ok("qom-list-get", json!({"paths": paths}));
    let shown = shown.as_array().expect("a list of objects").clone();
    assert_eq!(shown.len(), paths.len());
    for (path, object) in paths.iter().zip(&shown) {
        let listed = daemon.qmp.ok("qom-list", json!({"path": path}));
        let listed = listed.as_array().expect("a list of properties").clone();
        let properties = object["properties"].as_array().expect("a list of properties");
        assert_eq!(properties.len(), listed.len(), "{path}");
        for (property, listed) in properties.iter().zip(&listed) {
            assert_eq!(
                (&property["name"], &property["type"]),
                (&listed["name"], &listed["type"])
            );
            let arguments = json!({"path": path, "property": listed["name"]});
            assert_eq!(property["value"], daemon.qmp.ok("qom-get", arguments), "{path}");
        }
    }
    assert_eq!(daemon.qmp.ok("qom-list-get", json!({"paths": []})), json!([]));
    let error = daemon
        .qmp
        .refused("qom-list-get", json!({"paths": ["/objects/io", "/objects/none"]}));
    assert_eq!(error.class, "DeviceNotFound");
    assert_eq!(error.desc, "Device '/objects/none' not found");
}
