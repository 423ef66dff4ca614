//! Dirty bitmaps as NBD metadata contexts, beside QEMU's daemon: which can be exported, what clients see, and that nobody
//! changes an exported one.

use millpond_tests::beside::{Command, beside_qemu};
use millpond_tests::bitmaps::{
    add, answer, clear, disable, enable, merge, named, ok, open, remove, shown, together, unexport,
};
use millpond_tests::daemon::Daemon;
use millpond_tests::image;
use millpond_tests::nbd::wire::{CMD_BLOCK_STATUS, CMD_FLAG_REQ_ONE};
use millpond_tests::nbd::{Address, Connect, Handshake, Request};
use millpond_tests::tool;
use serde_json::{Value, json};

const KIB: u64 = 1 << 10;
const MIB: u64 = 1 << 20;

/// Adds an export of a node with these bitmaps, called as its id.
fn with(id: &str, node: &str, bitmaps: Value, writable: bool) -> Command {
    let export = json!({
        "type": "nbd", "id": id, "name": id, "node-name": node, "bitmaps": bitmaps, "writable": writable,
    });
    ("block-export-add", export)
}

/// A chain of two images with bitmaps at either and at the file of the upper one, not exported.
fn chain(daemon: &mut Daemon) {
    open(daemon, "qcow2", "base", MIB);
    ok(daemon, add("base", "old", 4096));
    ok(daemon, add("base", "both", 64 * KIB));
    let mut session = daemon.session("base");
    session.write(0, &[1; 512]);
    session.write(300 * KIB, &[1; 50_000]);
    drop(session);
    unexport(daemon, "base");
    ok(daemon, disable("base", "old"));
    let path = daemon.dir().join("top");
    image::create(&path, "qcow2", "", MIB);
    let mut node = image::over("qcow2", "top", "");
    node["file"] = image::file("top-file", &path);
    node["backing"] = json!("base");
    daemon.qmp.ok("blockdev-add", node);
    ok(daemon, add("top", "new", 512));
    ok(daemon, add("top", "both", 4096));
    ok(daemon, add("top-file", "file", 64 * KIB));
}

#[test]
fn what_can_be_exported_and_what_can_be_done_to_it_is_as_in_qemu() {
    beside_qemu(|mut daemon| {
        chain(&mut daemon);
        let mut seen = Vec::new();
        for command in [
            with("e", "top", json!(["none"]), true),
            with("e", "top", json!(["file"]), true),
            with("e", "top", json!([named("q", "new")]), true),
            with("e", "top", json!([named("top", "none")]), true),
            with("e", "top", json!(["new"]), false),
            with("e", "top", json!(["old", "none"]), false),
            with("e", "top", json!(["old", named("top", "new")]), false),
            with("f", "top", json!(["new"]), true),
            (
                "nbd-server-add",
                json!({"device": "top", "name": "g", "bitmap": "new"}),
            ),
            (
                "nbd-server-add",
                json!({"device": "top", "name": "g", "bitmap": "none"}),
            ),
            remove("top", "new"),
            clear("top", "new"),
            enable("top", "new"),
            disable("base", "old"),
            merge("top", "new", json!(["both"])),
            merge("top", "both", json!(["new"])),
            together(&[clear("top", "both"), clear("top", "new")]),
            ("block-export-del", json!({"id": "e"})),
            clear("top", "new"),
            with("f", "top", json!(["both"]), true),
            with("h", "top", json!(["old", "both"]), true),
            ("nbd-server-remove", json!({"name": "f"})),
            disable("top", "both"),
            (
                "nbd-server-add",
                json!({"device": "top", "name": "g", "bitmap": "both"}),
            ),
            ("nbd-server-remove", json!({"name": "g"})),
        ] {
            seen.extend(answer(&mut daemon, &command));
            if matches!(command.0, "block-export-del" | "nbd-server-remove") {
                daemon.qmp.wait_event("BLOCK_EXPORT_DELETED");
                seen.extend(shown(&mut daemon));
            }
        }
        daemon.quit();
        seen
    });
}

/// What `nbdinfo` says of a context of an export: offset, length and kind of each extent.
fn map(daemon: &Daemon, export: &str, context: &str) -> Value {
    let uri = daemon.uri(export);
    tool::run_json("nbdinfo", &["--json", &format!("--map={context}"), &uri])
}

#[test]
fn clients_see_the_bits_by_nbdinfo_and_qemu_img() {
    beside_qemu(|mut daemon| {
        chain(&mut daemon);
        ok(
            &mut daemon,
            with(
                "e",
                "top",
                json!(["new", "old", "both", named("base", "both")]),
                true,
            ),
        );
        let mut session = daemon.session("e");
        let mut seen = Vec::new();
        for request in [
            Request::write(0, vec![1; 512]),
            Request::zero(100 * KIB, 4096),
            Request::trim(64 * KIB, 64 * KIB),
            Request::write(MIB - 512, vec![1; 512]),
        ] {
            session.ok(&request);
            for context in ["new", "old", "both"] {
                let context = format!("qemu:dirty-bitmap:{context}");
                seen.push(map(&daemon, "e", &context).to_string());
            }
        }
        let listed = tool::run("nbdinfo", &["--json", &daemon.uri("e")]);
        let listed: Value = serde_json::from_str(&listed).expect("it is JSON");
        seen.push(listed["exports"][0]["contexts"].to_string());
        let Address::Unix(socket) = daemon.address() else {
            panic!("it listens on a unix socket")
        };
        let client = json!({
            "driver": "nbd",
            "server": {"type": "unix", "path": socket},
            "export": "e",
            "x-dirty-bitmap": "qemu:dirty-bitmap:new",
        });
        let image = format!("json:{}", json!({"driver": "raw", "file": client}));
        seen.push(tool::run("qemu-img", &["map", "--output=json", &image]));
        drop(session);
        daemon.quit();
        seen
    });
}

/// The names and ids of contexts that a server tells of for some queries.
#[test]
fn queries_name_the_contexts_that_they_name_in_qemu() {
    let queries: [&[&str]; 8] = [
        &[],
        &["qemu:"],
        &["qemu:dirty-bitmap:"],
        &["qemu:dirty-bitmap:both", "qemu:dirty-bitmap:old"],
        &[
            "qemu:dirty-bitmap:none",
            "qemu:dirty-bitmap",
            "qemu:dirty-bitmap:bot",
            "dirty-bitmap:old",
        ],
        &[
            "base:allocation",
            "qemu:dirty-bitmap:both",
            "base:allocation",
            "qemu:dirty-bitmap:both",
        ],
        &["qemu:dirty-bitmap:", "qemu:allocation-depth"],
        &["base:"],
    ];
    beside_qemu(|mut daemon| {
        chain(&mut daemon);
        let (command, mut arguments) = with(
            "e",
            "top",
            json!(["old", "new", named("base", "both"), "both"]),
            true,
        );
        arguments["allocation-depth"] = json!(true);
        ok(&mut daemon, (command, arguments));
        let mut seen = Vec::new();
        for queries in queries {
            let mut handshake = Handshake::start(&daemon.address()).expect("the server greets");
            assert!(handshake.structured_replies().expect("it answers"));
            seen.push(handshake.list_contexts("e", queries).expect("it answers"));
            handshake.set_contexts("e", queries).expect("it answers");
            let session = handshake
                .go("e")
                .expect("it answers")
                .expect("the export is there");
            seen.push(
                session
                    .info
                    .contexts
                    .iter()
                    .map(|(id, name)| format!("{id} {name}"))
                    .collect(),
            );
        }
        daemon.quit();
        seen
    });
}

/// Several contexts in one reply, one extent where the client wants one, and those of a chosen payload alone.
#[test]
fn block_status_tells_of_each_bitmap_that_was_chosen() {
    beside_qemu(|mut daemon| {
        chain(&mut daemon);
        ok(&mut daemon, with("e", "top", json!(["new", "old", "both"]), true));
        let mut seen = Vec::new();
        for extended in [false, true] {
            let connect = Connect {
                extended,
                contexts: vec!["qemu:dirty-bitmap:new", "qemu:dirty-bitmap:old"],
                ..Connect::default()
            };
            let mut session = connect.open(&daemon.address(), "e");
            session.write(4096, &[7; 8192]);
            for (offset, length) in [(0, MIB), (4096, 512), (8 * KIB, 300 * KIB), (MIB - 512, 512)] {
                for flags in [0, CMD_FLAG_REQ_ONE] {
                    let status = Request::new(CMD_BLOCK_STATUS, offset, length);
                    seen.push(session.ok(&status.flags(flags)).extents);
                }
            }
        }
        daemon.quit();
        seen
    });
}
