//! Attacks that hit other block layers and servers, by the number under which each is known, and the test that shows
//! that Millpond withstands it.
//!
//! Tests are named by file and function; a file without a folder lies in `tests/tests`. Hashes are commits of QEMU.
//!
//! NBD:
//!
//! | attack | what it did | tests |
//! | --- | --- | --- |
//! | CVE-2017-15118 (51ae4f8455), CVE-2022-26495, CVE-2022-26496 | an export's name that is longer than its buffer | `nbd_hostile.rs::names_of_any_length_are_answered_or_refused` `nbd_hostile.rs::what_cannot_be_answered_ends_that_connection` |
//! | CVE-2017-15119 (fdad35ef6c) | an option of 4 GiB is read to its end | `nbd_hostile.rs::what_cannot_be_answered_ends_that_connection` `actors/tests/nbd_handshake.rs::every_sequence_of_options_is_answered_as_qemu_does` |
//! | CVE-2020-10761 (5c4fe018c0) | a long name makes an error that is too long | `nbd_hostile.rs::names_of_any_length_are_answered_or_refused` |
//! | CVE-2017-7539, CVE-2017-9524 (df8ad9f128, 0c9390d978), CVE-2013-7441 | a client that leaves during negotiation ends the server | `nbd_hostile.rs::clients_that_die_after_any_byte` |
//! | CVE-2024-7409 (c8a76dbd90, b9b72cb3ce) | silent clients use up the server; it is stopped beside them | `nbd_hostile.rs::clients_that_stall_in_negotiation_are_closed_after_the_time_limit` `nbd_hostile.rs::more_connections_than_allowed_wait_or_are_closed` `nbd_hostile.rs::silent_connections_cost_little_and_go_with_the_server` |
//! | CVE-2019-14850 (nbdkit) | each connection opens the disk before it has said anything | `attacks.rs::a_client_in_negotiation_opens_and_reads_nothing` |
//! | CVE-2019-14851 (nbdkit) | options in an order that nobody expects | `actors/tests/nbd_handshake.rs::every_sequence_of_options_is_answered_as_qemu_does` `actors/tests/nbd_hostile_bytes.rs::a_handshake_survives_any_bytes` |
//! | CVE-2021-3716 (nbdkit), CVE-2019-14842 (libnbd) | what was said before STARTTLS counts after it | `actors/src/export/nbd/handshake/tls.rs::nothing_that_was_agreed_on_in_the_clear_holds_inside_tls` `tls_hostile.rs::clients_that_lie_inside_tls_hurt_only_themselves` |
//! | TLS stripping | somebody on the way has a client go on without TLS | `tls.rs::who_is_let_in_and_who_is_not_is_as_qemu_has_it` |
//! | CVE-2009-3555, CVE-2011-1473 | an agreement made anew under a client, or a thousand times | `tls_hostile.rs::old_protocols_and_new_agreements_are_refused_and_nothing_is_resumed` |
//! | records too long | a client that announces more than a record holds | `tls_hostile.rs::clients_that_lie_inside_tls_hurt_only_themselves` |
//! | slow TLS handshakes | silent clients use up the server | `tls_hostile.rs::clients_that_stall_in_the_handshake_hold_up_nobody_and_are_closed` `tls_hostile.rs::the_server_stops_beside_handshakes_under_way` |
//! | names that look like others | a certificate's name with a comma is taken for two parts of one | `actors/src/tls/name.rs::names_are_in_the_certificates_order_and_no_part_looks_like_two` |
//! | CVE-2025-47711, CVE-2025-47712 (nbdkit) | block status whose length or rounding overflows | `attacks.rs::block_status_never_tells_more_than_was_asked_for` |
//! | CVE-2008-0928 | requests beyond the end | `nbd_protocol.rs::requests_out_of_range_or_with_unknown_flags_fail_alone` `attacks.rs::block_status_never_tells_more_than_was_asked_for` |
//! | CVE-2023-5088 | a request that was cancelled reaches sector 0 | `attacks.rs::writes_of_a_client_that_left_land_at_their_own_offset_or_nowhere` `actors/tests/cancel.rs::a_request_that_is_parked_is_cancelled_and_one_in_flight_is_waited_for` |
//!
//! Images:
//!
//! | attack | what it did | tests |
//! | --- | --- | --- |
//! | CVE-2024-4467 (bd385a5298) | looking at an image opens the data file that it names | `attacks.rs::what_an_image_calls_its_data_file_is_a_path_and_nothing_else` |
//! | CVE-2008-2004 (38f3ef574b), GHSA-jmr4-g2hv-mjj6 | a guest makes its raw disk into a qcow2 image with a backing file | `actors/tests/open.rs::nobody_makes_an_image_that_was_guessed_to_be_raw_into_another_format` `actors/tests/open.rs::a_guessed_image_is_guarded_below_other_nodes_too` `cli.rs::plain_millpond_takes_the_format_of_an_image_from_its_contents_or_asks` |
//! | backing names as SSRF | an image makes the host read a file or connect somewhere | `attacks.rs::no_name_in_an_image_makes_a_connection` `attacks.rs::a_backing_file_that_is_left_out_is_never_opened` `actors/tests/open.rs::names_in_images_are_followed_only_where_that_is_allowed` `images_hostile.rs::backing_names_that_lead_elsewhere` |
//! | CVE-2014-0142 to 0148, 0222, 0223 | sizes and offsets of tables that overflow | `images_hostile.rs::each_header_field_out_of_range` `images_hostile.rs::refusals_name_what_is_wrong` `images_hostile.rs::metadata_with_any_bits_changed` `drivers/tests/qcow2_hostile.rs::wrong_headers_are_refused_in_the_words_of_qemu` `drivers/tests/qcow2_hostile.rs::mutated_images_never_panic` |
//! | CVE-2014-0143, CVE-2014-0146 | the table of snapshots lies | `attacks.rs::entries_of_the_snapshot_table_that_lie` `drivers/tests/qcow2_snapshot_hostile.rs::an_l1_table_that_cannot_be_is_found_when_it_is_used` `images_hostile.rs::each_header_field_out_of_range` |
//! | tables that point at metadata | a write to the disk goes over the header | `images_hostile.rs::tables_that_point_at_themselves_are_never_written_over` |
//! | tables outside of the file | clusters that are not there | `drivers/tests/qcow2_hostile.rs::metadata_that_cannot_be_makes_the_image_unusable` `images_hostile.rs::images_cut_short_anywhere` |
//! | looping backing files (bfb8aa6d58) | a chain without an end | `images_hostile.rs::backing_files_in_a_circle` |
//! | deep backing files | the stack or the descriptors run out | `attacks.rs::a_chain_too_deep_for_the_descriptors_is_refused_and_leaves_nothing` `images_hostile.rs::a_chain_of_two_hundred_is_read_and_asked_about` |
//! | LUKS headers that lie | keys that lie over data, names without an end, hours of work | `luks_hostile.rs::wrong_headers_are_refused_in_the_words_of_qemu` `luks_hostile.rs::volumes_cut_short_are_refused_by_what_they_lack` `luks_hostile.rs::a_header_cannot_ask_for_hours_of_work` `luks_hostile.rs::a_slot_that_leads_out_of_the_file_is_no_key` |
//! | encryption headers in qcow2 that lie | keys that lie on tables, guest data over keys | `qcow2_encryption_hostile.rs::wrong_places_are_refused_in_the_words_of_qemu` `qcow2_encryption_hostile.rs::keys_that_lie_on_tables_are_refused` `qcow2_encryption_hostile.rs::guest_data_is_not_written_over_keys_nor_keys_over_tables` |
//! | compression that shows what is encrypted | a compressed cluster is stored as it is | `qcow2_encryption.rs::compressed_clusters_are_read_and_none_is_stored` |
//! | a LUKS volume locked for ever | the last key is erased by mistake | `luks_keys.rs::keys_come_and_go_by_the_rules_of_qemu` `luks_keys.rs::keys_of_images_come_and_go_by_the_rules_of_qemu` |
//! | secrets on show | a password is read from a query, a log or a record | `secrets.rs::nobody_is_told_what_a_secret_is` |
//! | decompression bombs, RUSTSEC-2026-0041 | a cluster that unpacks to gigabytes | `attacks.rs::a_compressed_cluster_gives_no_more_than_a_cluster` |
//!
//! QMP and files:
//!
//! | attack | what it did | tests |
//! | --- | --- | --- |
//! | replies to somebody else | an answer goes to the next client | `qmp.rs::monitors_are_served_at_once_and_each_gets_its_own_answers` `qmp.rs::a_monitor_that_leaves_early_leaves_its_answers` `actors/tests/nbd_connection.rs::replies_of_a_client_that_left_early_go_to_nobody_else` |
//! | world-readable snapshots | anybody reads the disk from the new image | `attacks.rs::new_files_are_open_to_nobody_to_whom_qemus_are_not` `attacks.rs::the_temporary_file_of_a_snapshot_is_its_owners` |
//! | CVE-2012-2652 | a link planted where a temporary file will be | `attacks.rs::the_temporary_file_of_a_snapshot_is_its_owners` `actors/tests/open.rs::a_snapshot_takes_the_writes_and_goes` |
//! | images made over others | an image is lost by making one of its name | `attacks.rs::an_image_in_use_is_not_made_anew` `attacks.rs::plain_create_leaves_what_is_there` |
//! | RUSTSEC-2025-0055 | control characters in a name reach a terminal | `attacks.rs::names_with_control_characters_reach_no_terminal` `attacks.rs::names_in_images_reach_no_terminal` `qmp.rs::bad_node_names_are_refused` |
//! | nesting | deep JSON or deep options use up the stack | `qmp.rs::deep_long_and_binary_input_costs_the_sender_at_most` `attacks.rs::nodes_nested_as_deeply_as_a_command_can` |
//!
//! Not here, since what they hit is not: attacks by a server on its client (CVE-2017-2630, CVE-2021-20286, CVE-2022-0485,
//! CVE-2023-5871, CVE-2024-7383, CVE-2020-1711, CVE-2013-0249), the other image formats, IDE and vhost-user.

use std::fs;
use std::io::ErrorKind;
use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::process::{Command, Stdio};

use millpond_tests::daemon::{Daemon, daemon, scratch, wait_for};
use millpond_tests::image::{self, backed_by, poke};
use millpond_tests::nbd::wire::{CMD_BLOCK_STATUS, CMD_FLAG_REQ_ONE, OPT_INFO};
use millpond_tests::nbd::{Connect, Handshake, Request, go_data};
use millpond_tests::program::{millpond, oracle};
use millpond_tests::tool::{qemu_img, qemu_io};
use rustix::fs::inotify;
use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};

const MIB: u64 = 1 << 20;

#[test]
fn every_attack_names_tests_that_exist() {
    let workspace = Path::new(env!("CARGO_MANIFEST_DIR"))
        .parent()
        .expect("tests/ lies in the workspace");
    let rows = include_str!("attacks.rs")
        .lines()
        .filter_map(|line| line.strip_prefix("//! | "))
        .filter(|row| !row.starts_with("attack |") && !row.starts_with("---"));
    let mut count = 0;
    for row in rows {
        let named: Vec<_> = row.split('`').filter_map(|part| part.split_once("::")).collect();
        assert!(!named.is_empty(), "no test is named by: {row}");
        for (file, test) in named {
            let path = if file.contains('/') {
                workspace.join(file)
            } else {
                workspace.join("tests/tests").join(file)
            };
            let source =
                fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
            assert!(
                source.contains(&format!("fn {test}(")),
                "{file} has no test {test}"
            );
            count += 1;
        }
    }
    assert!(count > 40, "only {count} tests are named");
}

/// A file that nobody may open, and the watch on it.
struct Secret {
    path: std::path::PathBuf,
    watch: std::os::fd::OwnedFd,
}

impl Secret {
    fn new(dir: &Path) -> Secret {
        let path = dir.join("secret");
        fs::write(&path, vec![0x5e; 1 << 20]).expect("a file can be made");
        let watch = inotify::init(inotify::CreateFlags::NONBLOCK).expect("inotify is there");
        inotify::add_watch(&watch, &path, inotify::WatchFlags::OPEN).expect("a file can be watched");
        Secret { path, watch }
    }

    fn was_opened(&self) -> bool {
        let mut events = [0; 4096];
        match rustix::io::read(&self.watch, &mut events) {
            Ok(length) => length > 0,
            Err(error) => {
                assert_eq!(error, rustix::io::Errno::AGAIN, "the watch cannot be read");
                false
            }
        }
    }

    /// Nobody has opened it; and if somebody had, this would have seen it.
    #[track_caller]
    fn assert_never_opened(&self, what: &str) {
        assert!(!self.was_opened(), "{what}: the file was opened");
        drop(fs::File::open(&self.path).expect("it is there"));
        assert!(self.was_opened(), "the watch sees nothing");
    }
}

fn node(path: &Path) -> Value {
    json!({ "driver": "qcow2", "node-name": "image", "read-only": true,
            "file": { "driver": "file", "filename": path } })
}

/// What `millpond IMAGE` says that cannot be served.
fn plain_refused(arguments: &[&str]) -> String {
    let mut child = Command::new(millpond())
        .args(arguments)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("it can be run");
    let status = wait_for(&mut child).unwrap_or_else(|| panic!("{arguments:?} is served"));
    let output = child.wait_with_output().expect("it has ended");
    assert!(!status.success(), "{arguments:?} was served");
    String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr)
}

#[test]
fn what_an_image_calls_its_data_file_is_a_path_and_nothing_else() {
    let dir = scratch();
    let (secret, path) = (Secret::new(dir.path()), dir.path().join("crafted.qcow2"));
    let secret_path = secret.path.display().to_string();
    let mut daemon = daemon().start();
    for name in [
        json!({ "driver": "file", "filename": secret_path }).to_string(),
        format!("json:{}", json!({ "driver": "file", "filename": secret_path })),
        format!("file:{secret_path}"),
    ] {
        image::create(&path, "qcow2", "", MIB);
        let mut extension = 0x4441_5441_u32.to_be_bytes().to_vec();
        extension.extend(u32::try_from(name.len()).expect("short").to_be_bytes());
        extension.extend(name.as_bytes());
        extension.resize(extension.len().next_multiple_of(8) + 8, 0);
        poke(&path, 112, &extension);
        // The incompatible feature "external data file".
        poke(&path, 79, &[4]);
        for read_only in [true, false] {
            let mut options = node(&path);
            options["read-only"] = json!(read_only);
            let error = daemon.qmp.refused("blockdev-add", options);
            assert_eq!(
                error.desc,
                format!("Could not open '{name}': No such file or directory")
            );
        }
        let told = plain_refused(&[&path.display().to_string(), "--read-only"]);
        assert!(told.contains("No such file"), "{told}");
    }
    secret.assert_never_opened("a data file");
    daemon.quit();
}

#[test]
fn a_backing_file_that_is_left_out_is_never_opened() {
    let dir = scratch();
    let (secret, path) = (Secret::new(dir.path()), dir.path().join("crafted.qcow2"));
    let secret_path = secret.path.display().to_string();
    let mut daemon = daemon()
        .nbd_unix()
        .blockdev(json!({ "driver": "null-co", "node-name": "base", "size": MIB }))
        .start();
    for name in [
        secret_path.clone(),
        format!("json:{}", json!({ "driver": "file", "filename": secret_path })),
    ] {
        for format in [Some("raw"), Some("qcow2"), None] {
            backed_by(&path, &name, format);
            let mut options = node(&path);
            options["backing"] = Value::Null;
            options["read-only"] = json!(false);
            daemon.qmp.ok("blockdev-add", options);
            daemon.qmp.ok("query-named-block-nodes", json!({}));
            daemon.qmp.ok("query-named-block-nodes", json!({ "flat": true }));
            daemon
                .qmp
                .ok("blockdev-snapshot", json!({ "node": "base", "overlay": "image" }));
            let export = json!({ "type": "nbd", "id": "image", "node-name": "image" });
            daemon.qmp.ok("block-export-add", export);
            let mut session = Connect::default().open(&daemon.address(), "image");
            assert_eq!(session.read_all(), vec![0; MIB as usize]);
            session.disconnect().expect("a goodbye closes the connection");
            daemon.qmp.ok("block-export-del", json!({ "id": "image" }));
            daemon.qmp.wait_event("BLOCK_EXPORT_DELETED");
            daemon.qmp.ok("blockdev-del", json!({ "node-name": "image" }));
        }
    }
    secret.assert_never_opened("a backing file");
    daemon.quit();
}

#[test]
fn no_name_in_an_image_makes_a_connection() {
    let dir = scratch();
    let path = dir.path().join("crafted.qcow2");
    let tcp = TcpListener::bind("127.0.0.1:0").expect("a port is free");
    let port = tcp.local_addr().expect("it is bound").port();
    let socket = dir.path().join("s");
    let unix = UnixListener::bind(&socket).expect("a socket can be made");
    let socket = socket.display();
    let mut names: Vec<String> = [
        "http", "https", "ftp", "ftps", "nbd", "ssh", "iscsi", "gluster", "nfs",
    ]
    .map(|scheme| format!("{scheme}://127.0.0.1:{port}/x"))
    .to_vec();
    names.extend([
        format!("nbd:127.0.0.1:{port}"),
        format!("nbd:unix:{socket}"),
        format!("nbd+unix:///x?socket={socket}"),
        format!(r#"json:{{"driver":"nbd","server":{{"type":"unix","path":"{socket}"}}}}"#),
        format!(r#"json:{{"driver":"raw","file":{{"driver":"nbd","server":{{"type":"inet","host":"127.0.0.1","port":"{port}"}}}}}}"#),
        format!(r#"json:{{"driver":"http","url":"http://127.0.0.1:{port}/x"}}"#),
        format!(r#"json:{{"file.driver":"http","file.url":"http://127.0.0.1:{port}/x","driver":"qcow2"}}"#),
    ]);
    let mut daemon = daemon().start();
    for name in names {
        for format in [Some("raw"), Some("qcow2"), None] {
            backed_by(&path, &name, format);
            let error = daemon.qmp.refused("blockdev-add", node(&path));
            assert!(!error.desc.is_empty(), "{name}: an error must say something");
        }
        plain_refused(&[&path.display().to_string()]);
    }
    tcp.set_nonblocking(true).expect("a socket takes it");
    unix.set_nonblocking(true).expect("a socket takes it");
    let kinds = [tcp.accept().map(drop), unix.accept().map(drop)].map(|result| result.map_err(|e| e.kind()));
    assert_eq!(kinds, [Err(ErrorKind::WouldBlock); 2], "somebody connected");
    daemon.quit();
}

/// Bytes of a fixed Huffman block of deflate: `A` for ever, in 13 bits per 258 bytes.
fn deflate_bomb(length: usize) -> Vec<u8> {
    let mut bytes = vec![0; length];
    // The last block, fixed codes; then the literal `A`; codes come with their highest bit first.
    let mut bits: Vec<bool> = [1, 1, 0, 0, 1, 1, 1, 0, 0, 0, 1].map(|bit| bit == 1).to_vec();
    // Length 258 at distance 1.
    let again = [1, 1, 0, 0, 0, 1, 0, 1, 0, 0, 0, 0, 0].map(|bit| bit == 1);
    while bits.len() + again.len() < length * 8 {
        bits.extend(again);
    }
    for (place, bit) in bits.into_iter().enumerate() {
        bytes[place / 8] |= u8::from(bit) << (place % 8);
    }
    bytes
}

/// A frame of zstd with this byte for its window: `A` for ever, in 4 bytes per 64 KiB.
fn zstd_bomb(window: u8, length: usize) -> Vec<u8> {
    let mut bytes = vec![0x28, 0xb5, 0x2f, 0xfd, 0, window];
    let block = (64_u32 << 10) << 3 | 1 << 1;
    while bytes.len() + 4 < length {
        bytes.extend(&block.to_le_bytes()[..3]);
        bytes.push(b'A');
    }
    bytes
}

#[test]
fn a_compressed_cluster_gives_no_more_than_a_cluster() {
    const CLUSTER: usize = 64 << 10;
    const PACKED: usize = 64 << 10;
    let dir = scratch();
    let path = dir.path().join("bomb.qcow2");
    let mut daemon = daemon().nbd_unix().start();
    for (what, options, packed, readable) in [
        ("deflate", "", deflate_bomb(PACKED), true),
        ("zstd", "compression_type=zstd", zstd_bomb(0x30, PACKED), true),
        (
            "a window of 128 MiB",
            "compression_type=zstd",
            zstd_bomb(0x88, PACKED),
            true,
        ),
        (
            "a window of 2 TiB",
            "compression_type=zstd",
            zstd_bomb(0xf8, PACKED),
            false,
        ),
        ("noise", "", vec![0xff; PACKED], false),
    ] {
        image::create(&path, "qcow2", options, MIB);
        let name = path.display().to_string();
        qemu_io(&["-f", "qcow2", &name], &["write -P 1 0 64k"]);
        let bytes = fs::read(&path).expect("the image");
        let number = |at: usize| u64::from_be_bytes(bytes[at..at + 8].try_into().expect("eight bytes"));
        let table = number(number(40) as usize) & !(1 << 63);
        let end = (bytes.len() as u64).next_multiple_of(512);
        poke(&path, end, &packed);
        // A compressed cluster of so many sectors, which begins at the file's old end.
        let entry = 1 << 62 | (PACKED as u64 / 512 - 1) << 54 | end;
        poke(&path, table, &entry.to_be_bytes());
        let before = daemon.resident_kib();
        daemon.qmp.ok("blockdev-add", node(&path));
        daemon.qmp.ok(
            "block-export-add",
            json!({ "type": "nbd", "id": "image", "node-name": "image" }),
        );
        let mut session = Connect::default().open(&daemon.address(), "image");
        if readable {
            for _ in 0..20 {
                let data = session.read(0, MIB / 2);
                assert_eq!(data[..CLUSTER], [b'A'; CLUSTER], "{what}");
                assert!(data[CLUSTER..].iter().all(|byte| *byte == 0), "{what}");
            }
            session.disconnect().expect("a goodbye closes the connection");
        } else {
            // An answer that has begun can only be broken off, with the connection.
            let answer = session.call(&Request::read(0, MIB / 2));
            assert!(
                answer.is_err() || answer.is_ok_and(|answer| answer.error != 0),
                "{what}"
            );
        }
        daemon
            .qmp
            .ok("block-export-del", json!({ "id": "image", "mode": "hard" }));
        daemon.qmp.wait_event("BLOCK_EXPORT_DELETED");
        daemon.qmp.ok("blockdev-del", json!({ "node-name": "image" }));
        let grown = daemon.resident_kib().saturating_sub(before);
        assert!(grown < 48 << 10, "{what} took {grown} KiB");
    }
    daemon.quit();
}

#[test]
fn entries_of_the_snapshot_table_that_lie() {
    let dir = scratch();
    let (good, path) = (dir.path().join("good.qcow2"), dir.path().join("crafted.qcow2"));
    image::create(&good, "qcow2", "cluster_size=4k", MIB);
    let name = good.display().to_string();
    qemu_io(&["-f", "qcow2", &name], &["write -P 1 0 64k"]);
    qemu_img(&format!("snapshot -c one {name}"));
    qemu_io(&["-f", "qcow2", &name], &["write -P 2 0 4k"]);
    let bytes = fs::read(&good).expect("the image");
    let table = u64::from_be_bytes(bytes[64..72].try_into().expect("eight bytes"));
    let mut ours = daemon().start();
    let mut theirs = daemon().program(oracle()).start();
    let extremes = [
        0,
        !0xfff,
        1,
        0x7fff,
        0xffff,
        0x7fff_ffff,
        u64::from(u32::MAX),
        1 << 40,
        i64::MAX as u64,
        u64::MAX,
    ];
    // Offset and length of: the L1 table's offset and size, the lengths of id and name, of the state and of what more is said.
    for (field, size) in [
        (0, 8),
        (8, 4),
        (12, 2),
        (14, 2),
        (32, 4),
        (36, 4),
        (40, 8),
        (48, 8),
    ] {
        for value in extremes {
            for read_only in [true, false] {
                let mut answers = [&mut ours, &mut theirs].map(|daemon| {
                    fs::copy(&good, &path).expect("an image can be copied");
                    poke(&path, table + field, &value.to_be_bytes()[8 - size..]);
                    let mut options = node(&path);
                    options["read-only"] = json!(read_only);
                    let answer = daemon.qmp.execute("blockdev-add", options).map(drop);
                    if answer.is_ok() {
                        daemon.qmp.ok("query-named-block-nodes", json!({}));
                        daemon.qmp.ok("blockdev-del", json!({ "node-name": "image" }));
                    }
                    answer.map_err(|error| error.desc)
                });
                let [ours, theirs] = &mut answers;
                assert!(
                    theirs.is_ok() || ours.is_err(),
                    "{value:#x} at {field} was opened; QEMU says {theirs:?}"
                );
            }
        }
    }
    let resident = ours.resident_kib();
    assert!(resident < 256 << 10, "{resident} KiB");
    ours.quit();
}

/// Images that are one file each, and each backed by the one before.
fn chain(dir: &Path, depth: usize) -> std::path::PathBuf {
    let level = |index: usize| dir.join(format!("{index}.qcow2"));
    backed_by(&level(1), "0.qcow2", Some("qcow2"));
    image::create(&level(0), "qcow2", "cluster_size=4k", MIB);
    let mut bytes = fs::read(level(1)).expect("the image");
    for index in 2..=depth {
        let name = format!("{}.qcow2", index - 1);
        bytes[2048..2048 + name.len()].copy_from_slice(name.as_bytes());
        bytes[16..20].copy_from_slice(&u32::try_from(name.len()).expect("short").to_be_bytes());
        fs::write(level(index), &bytes).expect("an image can be made");
    }
    level(depth)
}

#[test]
fn a_chain_too_deep_for_the_descriptors_is_refused_and_leaves_nothing() {
    let dir = scratch();
    let top = chain(dir.path(), 1500);
    let mut daemon = daemon().start();
    let limit = rustix::process::Rlimit {
        current: Some(512),
        maximum: Some(512),
    };
    let pid = Pid::from_raw(i32::try_from(daemon.pid()).expect("a process id"));
    rustix::process::prlimit(pid, rustix::process::Resource::Nofile, limit).expect("limits can be lowered");
    let before = open_files(&daemon);
    for _ in 0..2 {
        let error = daemon.qmp.refused("blockdev-add", node(&top)).desc;
        assert!(error.len() < 64 << 10, "an error of {} bytes", error.len());
        assert!(error.contains("Too many open files"), "{:.300}", error);
        let nodes = daemon.qmp.ok("query-named-block-nodes", json!({}));
        assert_eq!(nodes, json!([]), "nothing is left of what was refused");
    }
    assert_eq!(open_files(&daemon), before, "files are left open");
    let fine = node(&dir.path().join("100.qcow2"));
    daemon.qmp.ok("blockdev-add", fine);
    daemon.quit();
}

fn open_files(daemon: &Daemon) -> usize {
    // Each thread of the pool is woken by an eventfd of its own.
    let is_counted = |entry: &std::io::Result<fs::DirEntry>| {
        let link = fs::read_link(entry.as_ref().expect("it runs").path());
        link.is_ok_and(|target| target != Path::new("anon_inode:[eventfd]"))
    };
    fs::read_dir(format!("/proc/{}/fd", daemon.pid()))
        .expect("it runs")
        .filter(is_counted)
        .count()
}

#[test]
fn nodes_nested_as_deeply_as_a_command_can() {
    let mut daemon = daemon().nbd_unix().start();
    for depth in [100, 1000, 20_000] {
        let mut text = String::from(r#"{"driver":"null-co","size":1048576,"read-zeroes":true}"#);
        for _ in 0..depth {
            text = format!(r#"{{"driver":"raw","file":{text}}}"#);
        }
        let named = text.replacen('{', r#"{"node-name":"deep","#, 1);
        daemon.qmp.send_raw(&format!(
            "{{\"execute\":\"blockdev-add\",\"arguments\":{named}}}\n"
        ));
        let line = daemon.qmp.receive_line().expect("an answer");
        if line.contains("\"error\"") {
            assert!(line.len() < 4096, "an error of {} bytes", line.len());
            continue;
        }
        daemon.qmp.ok(
            "block-export-add",
            json!({ "type": "nbd", "id": "deep", "node-name": "deep" }),
        );
        let mut session = Connect::default().open(&daemon.address(), "deep");
        assert_eq!(session.read(4096, 512), [0; 512]);
        session.ok(&Request::new(CMD_BLOCK_STATUS, 0, MIB));
        session.disconnect().expect("a goodbye closes the connection");
        daemon.qmp.ok("block-export-del", json!({ "id": "deep" }));
        daemon.qmp.wait_event("BLOCK_EXPORT_DELETED");
        daemon.qmp.ok("blockdev-del", json!({ "node-name": "deep" }));
    }
    daemon.quit();
}

#[test]
fn a_client_in_negotiation_opens_and_reads_nothing() {
    let dir = scratch();
    let path = dir.path().join("disk");
    fs::write(&path, vec![7; MIB as usize]).expect("a file can be made");
    let daemon = daemon()
        .nbd_unix()
        .blockdev(image::file("disk", &path))
        .export_read_only("disk")
        .start();
    let watch = inotify::init(inotify::CreateFlags::NONBLOCK).expect("inotify is there");
    let wanted = inotify::WatchFlags::OPEN | inotify::WatchFlags::ACCESS;
    inotify::add_watch(&watch, &path, wanted).expect("a file can be watched");
    let seen = || rustix::io::read(&watch, &mut [0_u8; 4096]).is_ok();
    let before = open_files(&daemon);
    let mut waiting = Vec::new();
    for _ in 0..50 {
        let mut handshake = Handshake::start(&daemon.address()).expect("a greeting");
        handshake
            .outcome(OPT_INFO, &go_data("disk", &[]))
            .expect("a reply");
        handshake.list().expect("a list");
        waiting.push(handshake);
    }
    assert!(
        !seen(),
        "the disk was opened or read for a client that has not chosen it"
    );
    assert_eq!(open_files(&daemon), before + 50, "a connection is one descriptor");
    drop(waiting);
    assert_eq!(daemon.session("disk").read(0, 512), [7; 512]);
    daemon.quit();
}

#[test]
fn block_status_never_tells_more_than_was_asked_for() {
    let dir = scratch();
    let odd = dir.path().join("odd");
    fs::write(&odd, vec![3; 70_001]).expect("a file can be made");
    let largest = 1_u64 << 62;
    let daemon = daemon()
        .nbd_unix()
        .blockdev(json!({ "driver": "null-co", "node-name": "large", "size": largest, "read-zeroes": true }))
        .blockdev(image::file("odd", &odd))
        .export_read_only("large")
        .export_read_only("odd")
        .start();
    for name in ["large", "odd"] {
        for connect in [Connect::default(), Connect::extended()] {
            let mut session = connect.open(&daemon.address(), name);
            let (size, extended) = (session.info.size, session.info.extended);
            let offsets = [
                0,
                1,
                511,
                size / 2,
                size - 512,
                size - 1,
                size,
                size + 1,
                1 << 63,
                u64::MAX - 511,
                u64::MAX,
            ];
            let lengths = [
                0,
                1,
                511,
                512,
                513,
                65535,
                1 << 31,
                0xffff_fe00,
                0xffff_ffff,
                1 << 32,
                size,
                size + 1,
                1 << 63,
                u64::MAX - 511,
                u64::MAX,
            ];
            for offset in offsets {
                for length in lengths
                    .into_iter()
                    .filter(|length| extended || u32::try_from(*length).is_ok())
                {
                    for flags in [0, CMD_FLAG_REQ_ONE] {
                        let request = Request::new(CMD_BLOCK_STATUS, offset, length).flags(flags);
                        let answer = session.call(&request).expect("an answer");
                        let what = format!("{name}: {length:#x} at {offset:#x}, {flags}: {answer:?}");
                        let within = offset.checked_add(length).is_some_and(|end| end <= size) && length > 0;
                        assert!(within || answer.error != 0, "{what}");
                        for (_, extents) in &answer.extents {
                            assert!(extents.iter().all(|extent| extent.length > 0), "{what}");
                            let told: u128 = extents.iter().map(|extent| u128::from(extent.length)).sum();
                            let end = u128::from(offset) + told;
                            assert!(end <= u128::from(size), "{what}");
                            assert!(
                                flags == 0 || (extents.len() == 1 && told <= u128::from(length)),
                                "{what}"
                            );
                        }
                    }
                }
            }
            session.disconnect().expect("a goodbye closes the connection");
        }
    }
    daemon.quit();
}

#[test]
fn writes_of_a_client_that_left_land_at_their_own_offset_or_nowhere() {
    const BLOCK: u64 = 4096;
    const BLOCKS: u64 = 200;
    for aio in ["threads", "io_uring"] {
        let dir = scratch();
        let path = dir.path().join("disk.qcow2");
        image::create(&path, "qcow2", "", 2 * BLOCKS * BLOCK);
        let file = json!({ "driver": "file", "node-name": "file", "filename": path, "aio": aio });
        let mut daemon = daemon()
            .nbd_unix_with(",max-connections=0")
            .blockdev(file)
            .blockdev(image::over("qcow2", "disk", "file"))
            .start();
        let export = json!({ "type": "nbd", "id": "disk", "node-name": "disk", "writable": true });
        for round in 0..20 {
            daemon.qmp.ok("block-export-add", export.clone());
            let mut leaving = Connect::default().open(&daemon.address(), "disk");
            // Every other block, so that what lands beside its place is seen.
            for index in 0..BLOCKS {
                let request = Request::write((2 * index + 1) * BLOCK, vec![index as u8 + 1; BLOCK as usize]);
                leaving
                    .send_bytes(request.encode(index, false))
                    .expect("it is taken");
                if index == 10 * round {
                    break;
                }
            }
            drop(leaving);
            daemon
                .qmp
                .ok("block-export-del", json!({ "id": "disk", "mode": "hard" }));
            // Nothing of it is under way any more.
            daemon.qmp.wait_event("BLOCK_EXPORT_DELETED");
        }
        daemon.qmp.ok("block-export-add", export);
        let bytes = daemon.session("disk").read_all();
        for (block, bytes) in (0_u64..).zip(bytes.chunks(BLOCK as usize)) {
            let own = if block % 2 == 1 { (block / 2) as u8 + 1 } else { 0 };
            let whole = bytes.iter().all(|byte| *byte == bytes[0]) && (bytes[0] == 0 || bytes[0] == own);
            assert!(whole, "block {block} has {:?}, {aio}", &bytes[..8]);
        }
        assert!(bytes.iter().any(|byte| *byte != 0), "nothing was written at all");
        daemon.quit();
        image::assert_clean(&path);
    }
}

/// The permissions of everything that lies in a folder, by name.
fn modes(dir: &Path) -> Vec<(String, u32)> {
    let entries = fs::read_dir(dir)
        .expect("the folder is there")
        .map(|entry| entry.expect("an entry"));
    let mut modes: Vec<_> = entries
        .map(|entry| {
            let mode = entry.metadata().expect("it is there").permissions().mode();
            (entry.file_name().to_string_lossy().into_owned(), mode)
        })
        .filter(|(name, _)| !name.starts_with("log"))
        .collect();
    modes.sort();
    modes
}

#[test]
fn new_files_are_open_to_nobody_to_whom_qemus_are_not() {
    let run = |builder: millpond_tests::daemon::Builder| {
        let dir = builder.dir().to_owned();
        let mut daemon = builder
            .nbd_unix()
            .option("--pidfile", dir.join("pid").display().to_string())
            .start();
        let raw = daemon.path("raw");
        for (id, options) in [
            ("raw", json!({ "driver": "file", "filename": raw, "size": MIB })),
            (
                "file",
                json!({ "driver": "file", "filename": daemon.path("image"), "size": 0 }),
            ),
            ("image", json!({ "driver": "qcow2", "file": "file", "size": MIB })),
        ] {
            let job = json!({ "job-id": id, "options": options });
            daemon
                .qmp
                .run_job(id, "blockdev-create", job)
                .expect("an image can be made");
            if id == "file" {
                let file = image::file("file", Path::new(&daemon.path("image")));
                daemon.qmp.ok("blockdev-add", file);
            }
        }
        let found = modes(&dir);
        daemon.quit();
        found
    };
    let ours = run(daemon());
    assert!(ours.len() >= 5, "{ours:?}");
    assert_eq!(ours, run(daemon().program(oracle())));
}

#[test]
fn the_temporary_file_of_a_snapshot_is_its_owners() {
    let dir = scratch();
    let (disk, temporary) = (dir.path().join("disk"), dir.path().join("temporary"));
    fs::write(&disk, vec![1; MIB as usize]).expect("a file can be made");
    fs::create_dir(&temporary).expect("a folder can be made");
    let socket = dir.path().join("s").display().to_string();
    let mut child = Command::new(millpond())
        .args([
            &disk.display().to_string(),
            "--format",
            "raw",
            "--snapshot",
            "--socket",
            &socket,
        ])
        .env("TMPDIR", &temporary)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .expect("it can be run");
    let mut line = String::new();
    let output = child.stdout.as_mut().expect("a pipe");
    std::io::BufRead::read_line(&mut std::io::BufReader::new(output), &mut line)
        .expect("it tells what it serves");
    let links = fs::read_dir(format!("/proc/{}/fd", child.id())).expect("it runs");
    let mut found = 0;
    for link in links.map(|link| link.expect("an entry").path()) {
        let name = fs::read_link(&link).expect("a link").display().to_string();
        if name.contains("/vl.") {
            let mode = fs::metadata(&link).expect("it is open").permissions().mode();
            assert_eq!(mode & 0o777, 0o600, "{name}");
            found += 1;
        }
    }
    assert!(found > 0, "there is no temporary file");
    assert_eq!(
        fs::read_dir(&temporary).expect("a folder").count(),
        0,
        "it has a name"
    );
    kill_process(Pid::from_child(&child), Signal::INT).expect("it runs");
    assert!(wait_for(&mut child).is_some_and(|status| status.success()));
}

#[test]
fn an_image_in_use_is_not_made_anew() {
    let run = |builder: millpond_tests::daemon::Builder, other: millpond_tests::daemon::Builder| {
        let path = builder.dir().join("disk");
        fs::write(&path, vec![9; MIB as usize]).expect("a file can be made");
        let holder = builder
            .blockdev(image::file("disk", &path))
            .nbd_unix()
            .export("disk")
            .start();
        let mut other = other.start();
        let options = json!({ "driver": "file", "filename": path, "size": MIB });
        let job = json!({ "job-id": "make", "options": options });
        let refused = other.qmp.run_job("make", "blockdev-create", job);
        assert_eq!(fs::read(&path).expect("it is there"), vec![9; MIB as usize]);
        holder.quit();
        refused
            .expect_err("an image in use")
            .replace(&path.display().to_string(), "disk")
    };
    let ours = run(daemon(), daemon());
    assert_eq!(ours, run(daemon().program(oracle()), daemon().program(oracle())));
}

#[test]
fn plain_create_leaves_what_is_there() {
    let dir = scratch();
    let (disk, link) = (dir.path().join("disk.qcow2"), dir.path().join("link.qcow2"));
    fs::write(&disk, vec![9; MIB as usize]).expect("a file can be made");
    std::os::unix::fs::symlink(&disk, &link).expect("a link can be made");
    for path in [&disk, &link] {
        let told = plain_refused(&[&path.display().to_string(), "--create", "1M"]);
        assert!(told.contains("exists already"), "{told}");
    }
    assert_eq!(fs::read(&disk).expect("it is there"), vec![9; MIB as usize]);
}

const RED: &str = "a\u{1b}[31mred\u{7}\u{9b}31m\nforged line";

/// No character of what was written can move a cursor or change a colour.
#[track_caller]
fn assert_harmless(log: &str) {
    let control = log.chars().find(|c| c.is_control() && *c != '\n' && *c != '\t');
    assert_eq!(control, None, "a control character in {log:?}");
}

#[test]
fn names_with_control_characters_reach_no_terminal() {
    let mut daemon = daemon()
        .nbd_unix_with(",max-connections=0")
        .option("--trace", "*")
        .blockdev(json!({ "driver": "null-co", "node-name": "disk", "size": MIB }))
        .start();
    let file = json!({ "driver": "file", "node-name": "file", "filename": RED });
    daemon.qmp.refused("blockdev-add", file);
    daemon
        .qmp
        .refused("blockdev-add", json!({ "driver": RED, "node-name": "x" }));
    daemon
        .qmp
        .refused("blockdev-add", json!({ "driver": "null-co", "node-name": RED }));
    daemon.qmp.refused("blockdev-del", json!({ "node-name": RED }));
    daemon.qmp.refused(RED, json!({}));
    daemon
        .qmp
        .refused("object-add", json!({ "qom-type": "iothread", "id": RED }));
    let create = json!({ "driver": "file", "filename": format!("/nonexistent/{RED}"), "size": 1 });
    let job = json!({ "job-id": "make", "options": create });
    assert!(daemon.qmp.run_job("make", "blockdev-create", job).is_err());
    // Names of exports are free; clients may name what they like.
    let export = json!({ "type": "nbd", "id": "red", "node-name": "disk", "name": RED, "description": RED });
    daemon.qmp.ok("block-export-add", export);
    assert_eq!(daemon.session(RED).read(0, 512).len(), 512);
    for name in [RED, "\u{1b}]0;title\u{7}"] {
        let mut handshake = Handshake::start(&daemon.address()).expect("a greeting");
        handshake
            .outcome(OPT_INFO, &go_data(&format!("absent{name}"), &[]))
            .expect("a reply");
        drop(handshake.export_name(&format!("absent{name}")));
    }
    daemon
        .qmp
        .ok("block-export-del", json!({ "id": "red", "mode": "hard" }));
    daemon.qmp.wait_event("BLOCK_EXPORT_DELETED");
    let dump = json!({ "filename": format!("/nonexistent/{RED}") });
    assert!(daemon.qmp.execute("x-millpond-flight-record", dump).is_err());
    let log = daemon.log();
    assert_harmless(&log);
    assert!(!log.lines().any(|line| line.starts_with("forged")), "{log:?}");
    daemon.quit();
}

#[test]
fn names_in_images_reach_no_terminal() {
    let dir = scratch();
    let path = dir.path().join("crafted.qcow2");
    for (name, format) in [
        (format!("/nonexistent/{RED}"), Some("raw")),
        (format!("{RED}:x"), None),
        (format!("json:{}", json!({ "driver": RED })), None),
        ("base".to_owned(), Some("\u{1b}[31mred")),
    ] {
        backed_by(&path, &name, format);
        let refused = daemon().blockdev(node(&path)).refused();
        assert!(refused.contains("red"), "the error names it: {refused:?}");
        assert_harmless(&refused);
        assert_harmless(&plain_refused(&[&path.display().to_string()]));
    }
}
