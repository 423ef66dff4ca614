//! The NBD server's side of the protocol, step by step, as a correct client sees it.

use millpond_tests::daemon::{Daemon, daemon};
use millpond_tests::nbd::wire::*;
use millpond_tests::nbd::{Connect, Handshake, Request, go_data, meta_context_data};
use serde_json::json;

const SIZE: u64 = 1 << 20;

fn null_export() -> Daemon {
    daemon()
        .nbd_unix()
        .blockdev(json!({ "driver": "null-co", "node-name": "disk", "size": SIZE, "read-zeroes": true }))
        .export("disk")
        .start()
}

#[test]
fn go_tells_size_flags_and_block_sizes() {
    let daemon = null_export();
    let session = daemon.session("disk");
    assert_eq!(session.info.size, SIZE);
    let always = TRANSMISSION_HAS_FLAGS
        | TRANSMISSION_SEND_FLUSH
        | TRANSMISSION_SEND_FUA
        | TRANSMISSION_SEND_TRIM
        | TRANSMISSION_SEND_WRITE_ZEROES
        | TRANSMISSION_SEND_DF
        | TRANSMISSION_CAN_MULTI_CONN
        | TRANSMISSION_SEND_CACHE
        | TRANSMISSION_SEND_FAST_ZERO;
    assert_eq!(session.info.flags, always, "flags {:#b}", session.info.flags);
    let [minimum, preferred, maximum] = session.info.block_size.expect("block sizes were asked for");
    assert_eq!((minimum, preferred, maximum), (1, 4096, 32 << 20));
    session.disconnect().expect("a goodbye closes the connection");
}

#[test]
fn info_answers_and_leaves_negotiation_open() {
    let daemon = null_export();
    let mut handshake = Handshake::start(&daemon.address()).expect("a greeting");
    let replies = handshake
        .option(OPT_INFO, &go_data("disk", &[INFO_NAME, INFO_DESCRIPTION]))
        .expect("replies");
    let kinds: Vec<u16> = replies
        .iter()
        .filter(|reply| reply.kind == REP_INFO)
        .map(|reply| u16::from_be_bytes([reply.data[0], reply.data[1]]))
        .collect();
    assert!(kinds.contains(&INFO_EXPORT) && kinds.contains(&INFO_NAME) && kinds.contains(&INFO_BLOCK_SIZE));
    assert!(
        !kinds.contains(&INFO_DESCRIPTION),
        "an export without description sends none"
    );
    let mut session = handshake.go("disk").expect("replies").expect("the export exists");
    assert_eq!(session.read(0, 512), [0; 512]);
}

#[test]
fn an_unknown_export_is_refused_by_name_and_negotiation_goes_on() {
    let daemon = null_export();
    let mut handshake = Handshake::start(&daemon.address()).expect("a greeting");
    let refusal = handshake
        .outcome(OPT_GO, &go_data("nothing", &[]))
        .expect("a reply");
    assert_eq!(refusal.kind, REP_ERR_UNKNOWN);
    assert_eq!(refusal.text(), "export 'nothing' not present");
    handshake.go("disk").expect("replies").expect("the export exists");
}

#[test]
fn list_names_every_export_with_its_description() {
    let daemon = daemon()
        .nbd_unix()
        .blockdev(json!({ "driver": "null-co", "node-name": "disk", "size": SIZE }))
        .option(
            "--export",
            "nbd,id=one,node-name=disk,name=first,description=a disk of nothing",
        )
        .option("--export", "nbd,id=two,node-name=disk,name=second")
        .start();
    let mut handshake = Handshake::start(&daemon.address()).expect("a greeting");
    let mut names = handshake.list().expect("a list");
    names.sort();
    assert_eq!(
        names[0], "firsta disk of nothing",
        "the description follows the name"
    );
    assert_eq!(names[1], "second");
}

#[test]
fn export_name_enters_transmission_without_a_reply() {
    let daemon = null_export();
    let handshake = Handshake::start(&daemon.address()).expect("a greeting");
    let mut session = handshake.export_name("disk").expect("transmission");
    assert_eq!(session.info.size, SIZE);
    assert_eq!(session.read(4096, 100), [0; 100]);
    session.disconnect().expect("a goodbye closes the connection");
}

#[test]
fn abort_is_acknowledged_and_closes() {
    let daemon = null_export();
    let mut handshake = Handshake::start(&daemon.address()).expect("a greeting");
    let reply = handshake.outcome(OPT_ABORT, &[]).expect("a reply");
    assert_eq!(reply.kind, REP_ACK);
    handshake.stream.wait_closed().expect("the server closes");
}

#[test]
fn unknown_options_are_unsupported_and_their_data_skipped() {
    let daemon = null_export();
    let mut handshake = Handshake::start(&daemon.address()).expect("a greeting");
    for option in [0, 4, 99, u32::MAX] {
        let reply = handshake.outcome(option, &[7; 1000]).expect("a reply");
        assert_eq!(reply.kind, REP_ERR_UNSUP, "option {option}");
    }
    handshake.go("disk").expect("replies").expect("the export exists");
}

#[test]
fn structured_replies_and_extended_headers_are_granted_once() {
    let daemon = null_export();
    let mut handshake = Handshake::start(&daemon.address()).expect("a greeting");
    assert!(handshake.structured_replies().expect("a reply"));
    assert_eq!(
        handshake
            .outcome(OPT_STRUCTURED_REPLY, &[])
            .expect("a reply")
            .kind,
        REP_ERR_INVALID
    );
    assert!(handshake.extended_headers().expect("a reply"));
    assert_eq!(
        handshake
            .outcome(OPT_EXTENDED_HEADERS, &[])
            .expect("a reply")
            .kind,
        REP_ERR_INVALID
    );
    assert_eq!(
        handshake
            .outcome(OPT_STRUCTURED_REPLY, &[])
            .expect("a reply")
            .kind,
        REP_ERR_EXT_HEADER_REQD
    );
}

#[test]
fn contexts_are_listed_by_namespace_and_granted_by_name() {
    let daemon = daemon()
        .nbd_unix()
        .blockdev(json!({ "driver": "null-co", "node-name": "disk", "size": SIZE }))
        .option("--export", "nbd,id=one,node-name=disk,name=plain")
        .option(
            "--export",
            "nbd,id=two,node-name=disk,name=deep,allocation-depth=on",
        )
        .start();
    let mut handshake = Handshake::start(&daemon.address()).expect("a greeting");
    let early = handshake
        .outcome(OPT_SET_META_CONTEXT, &meta_context_data("deep", &["base:"]))
        .expect("a reply");
    assert_eq!(early.kind, REP_ERR_INVALID, "contexts need structured replies");
    handshake.structured_replies().expect("a reply");
    let mut list = |export: &str, queries: &[&str]| handshake.list_contexts(export, queries).expect("a list");
    assert_eq!(list("plain", &[]), ["base:allocation"]);
    assert_eq!(list("plain", &["base:"]), ["base:allocation"]);
    assert_eq!(list("plain", &["qemu:"]), [""; 0]);
    assert_eq!(list("deep", &[]), ["base:allocation", "qemu:allocation-depth"]);
    assert_eq!(list("deep", &["qemu:"]), ["qemu:allocation-depth"]);
    assert_eq!(list("deep", &["base:nonsense", "other:"]), [""; 0]);
    let mut set = |queries: &[&str]| handshake.set_contexts("deep", queries).expect("contexts");
    assert_eq!(
        set(&["base:allocation", "qemu:allocation-depth"]),
        ["base:allocation", "qemu:allocation-depth"]
    );
    assert_eq!(set(&[]), [""; 0], "an empty selection selects nothing");
}

#[test]
fn every_command_is_served_with_each_kind_of_header() {
    let builder = daemon().nbd_unix();
    let path = builder.dir().join("disk.raw");
    std::fs::write(&path, vec![0x55; SIZE as usize]).expect("an image can be written");
    let daemon = builder
        .blockdev(json!({ "driver": "file", "node-name": "disk", "filename": path, "discard": "unmap" }))
        .export("disk")
        .start();
    for (connect, fill) in [
        (Connect::simple(), 1),
        (Connect::default(), 2),
        (Connect::extended(), 3),
    ] {
        let mut session = connect.open(&daemon.address(), "disk");
        session.write(1000, &[fill; 5000]);
        session.ok(&Request::write(70_000, vec![fill; 4096]).flags(CMD_FLAG_FUA));
        session.flush();
        session.ok(&Request::new(CMD_CACHE, 0, 65536));
        assert_eq!(
            session.read(999, 5002),
            [&[0x55][..], &[fill; 5000], &[0x55]].concat()
        );
        // Not to fragment is only a promise where replies have pieces.
        let whole = if session.info.structured { CMD_FLAG_DF } else { 0 };
        assert_eq!(
            session.ok(&Request::read(70_000, 4096).flags(whole)).data,
            [fill; 4096]
        );
        session.ok(&Request::zero(1000, 5000).flags(CMD_FLAG_NO_HOLE));
        assert_eq!(session.read(1000, 5000), [0; 5000]);
        session.ok(&Request::zero(131_072, 65_536));
        assert_eq!(session.read(131_072, 65_536), vec![0; 65_536]);
        session.ok(&Request::trim(131_072, 65_536));
        session.ok(&Request::write(1000, vec![0x55; 5000]));
        session.disconnect().expect("a goodbye closes the connection");
    }
}

#[test]
fn requests_out_of_range_or_with_unknown_flags_fail_alone() {
    let daemon = null_export();
    for connect in [Connect::simple(), Connect::default(), Connect::extended()] {
        let mut session = connect.open(&daemon.address(), "disk");
        assert_eq!(session.refused(&Request::read(SIZE, 1)), EINVAL);
        assert_eq!(session.refused(&Request::read(SIZE - 1, 2)), EINVAL);
        assert_eq!(session.refused(&Request::read(u64::MAX, 2)), EINVAL);
        // The specification asks for ENOSPC; QEMU 10.0 sends EINVAL for whatever it finds wrong with a header.
        let beyond = |error: u32| matches!(error, ENOSPC | EINVAL);
        assert!(beyond(session.refused(&Request::write(SIZE - 1, vec![0; 2]))));
        assert!(beyond(session.refused(&Request::zero(SIZE - 1, 2))));
        assert_eq!(session.refused(&Request::trim(SIZE, 512)), EINVAL);
        assert_eq!(session.refused(&Request::read(0, 512).flags(1 << 14)), EINVAL);
        assert_eq!(session.refused(&Request::new(77, 0, 512)), EINVAL);
        assert_eq!(session.read(SIZE - 512, 512), [0; 512], "the session goes on");
    }
}

#[test]
fn a_read_only_export_refuses_every_change() {
    let daemon = daemon()
        .nbd_unix()
        .blockdev(json!({ "driver": "null-co", "node-name": "disk", "size": SIZE, "read-zeroes": true }))
        .export_read_only("disk")
        .start();
    let mut session = daemon.session("disk");
    assert_ne!(session.info.flags & TRANSMISSION_READ_ONLY, 0);
    assert_eq!(
        session.info.flags & (TRANSMISSION_SEND_TRIM | TRANSMISSION_SEND_WRITE_ZEROES),
        0
    );
    // The specification asks for EPERM; QEMU 10.0 sends EINVAL for whatever it finds wrong with a header.
    let forbidden = |error: u32| matches!(error, EPERM | EINVAL);
    assert!(forbidden(session.refused(&Request::write(0, vec![1; 512]))));
    assert!(forbidden(session.refused(&Request::zero(0, 512))));
    assert!(forbidden(session.refused(&Request::trim(0, 512))));
    assert_eq!(session.read(0, 512), [0; 512]);
}

#[test]
fn a_sparse_read_sends_holes_and_df_sends_one_piece() {
    let builder = daemon().nbd_unix();
    let path = builder.dir().join("sparse.raw");
    let image = std::fs::File::create(&path).expect("an image can be made");
    image.set_len(SIZE).expect("a file can grow");
    std::os::unix::fs::FileExt::write_all_at(&image, &[9; 65536], 65536).expect("an image can be written");
    let daemon = builder
        .blockdev(json!({ "driver": "file", "node-name": "disk", "filename": path }))
        .export_read_only("disk")
        .start();
    let mut session = daemon.session("disk");
    let answer = session.ok(&Request::read(0, 196_608));
    let pieces = [(0, 65536, true), (65536, 65536, false), (131_072, 65536, true)];
    assert_eq!(answer.pieces, pieces);
    assert_eq!(answer.data, [[0; 65536], [9; 65536], [0; 65536]].concat());
    let whole = session.ok(&Request::read(0, 196_608).flags(CMD_FLAG_DF));
    assert_eq!(whole.pieces, [(0, 196_608, false)]);
    assert_eq!(whole.data, answer.data);
}

#[test]
fn extended_headers_take_lengths_beyond_32_bits() {
    const HUGE: u64 = 8 << 30;
    let daemon = daemon()
        .nbd_unix()
        .blockdev(json!({ "driver": "null-co", "node-name": "disk", "size": HUGE, "read-zeroes": true }))
        .export("disk")
        .start();
    let mut session = Connect::extended().open(&daemon.address(), "disk");
    let answer = session.ok(&Request::new(CMD_BLOCK_STATUS, 0, HUGE));
    let (_, extents) = &answer.extents[0];
    assert_eq!(extents.iter().map(|extent| extent.length).sum::<u64>(), HUGE);
    session.ok(&Request::zero(0, HUGE));
    session.ok(&Request::trim(0, HUGE));
    session.disconnect().expect("a goodbye closes the connection");
}

#[test]
fn req_one_limits_block_status_to_one_extent_within_the_range() {
    let builder = daemon().nbd_unix();
    let path = builder.dir().join("sparse.raw");
    let image = std::fs::File::create(&path).expect("an image can be made");
    image.set_len(SIZE).expect("a file can grow");
    std::os::unix::fs::FileExt::write_all_at(&image, &[9; 65536], 65536).expect("an image can be written");
    let daemon = builder
        .blockdev(json!({ "driver": "file", "node-name": "disk", "filename": path }))
        .export_read_only("disk")
        .start();
    let mut session = daemon.session("disk");
    let answer = session.ok(&Request::new(CMD_BLOCK_STATUS, 0, SIZE).flags(CMD_FLAG_REQ_ONE));
    let extents = &answer.extents[0].1;
    assert_eq!(extents.len(), 1);
    assert_eq!(
        (extents[0].length, extents[0].flags),
        (65536, STATE_HOLE | STATE_ZERO)
    );
    let short = session.ok(&Request::new(CMD_BLOCK_STATUS, 0, 4096).flags(CMD_FLAG_REQ_ONE));
    assert_eq!(short.extents[0].1[0].length, 4096);
    let flags: Vec<u64> = session
        .status_all("base:allocation")
        .iter()
        .map(|extent| extent.flags)
        .collect();
    assert_eq!(flags, [3, 0, 3]);
}

#[test]
fn fast_zero_is_refused_where_zeroing_would_mean_writing() {
    let daemon = daemon()
        .nbd_unix()
        .blockdev(json!({ "driver": "null-co", "node-name": "disk", "size": SIZE }))
        .export("disk")
        .start();
    let mut session = daemon.session("disk");
    session.ok(&Request::zero(0, 65536));
    let answer = session
        .call(&Request::zero(0, 65536).flags(CMD_FLAG_FAST_ZERO))
        .expect("an answer");
    assert!(
        matches!(answer.error, 0 | ENOTSUP),
        "fast zero succeeds or says ENOTSUP, not {}",
        answer.error
    );
}

#[test]
fn several_exports_on_one_server_have_their_own_content() {
    let daemon = daemon()
        .nbd_tcp()
        .blockdev(json!({ "driver": "null-co", "node-name": "one", "size": SIZE, "read-zeroes": true }))
        .blockdev(json!({ "driver": "null-co", "node-name": "two", "size": 2 * SIZE, "read-zeroes": true }))
        .export("one")
        .export_read_only("two")
        .start();
    assert_eq!(daemon.session("one").info.size, SIZE);
    assert_eq!(daemon.session("two").info.size, 2 * SIZE);
    daemon.quit();
}

#[test]
fn a_hundred_requests_in_flight_are_all_answered_once() {
    let daemon = null_export();
    let mut session = daemon.session("disk").pipelined();
    let mut sent = std::collections::HashSet::new();
    for index in 0..100 {
        sent.insert(
            session
                .submit(&Request::read(index * 4096, 4096))
                .expect("the server reads"),
        );
    }
    for _ in 0..100 {
        let answer = session.complete().expect("an answer");
        assert!(sent.remove(&answer.cookie), "answered twice");
        assert_eq!(answer.data, [0; 4096]);
    }
    assert!(sent.is_empty());
}
