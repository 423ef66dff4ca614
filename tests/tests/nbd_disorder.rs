//! NBD clients in numbers, and options in disorder: what a scan of ports, a restart of the server, or a fuzzer does.

use std::io::{Read, Write};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use millpond_tests::daemon::{Daemon, daemon};
use millpond_tests::nbd::wire::*;
use millpond_tests::nbd::{Handshake, Request, Stream, go_data, meta_context_data};
use serde_json::json;

const MIB: u64 = 1 << 20;

/// A daemon that serves `size` bytes of zeroes.
fn zeroes(size: u64, server: &str) -> Daemon {
    daemon()
        .nbd_unix_with(server)
        .blockdev(json!({ "driver": "null-co", "node-name": "disk", "size": size, "read-zeroes": true }))
        .export("disk")
        .start()
}

/// CVE-2017-15119, just below the limit.
#[test]
fn options_of_32_mib_are_skipped_without_being_kept() {
    let daemon = zeroes(MIB, "");
    let before = daemon.resident_kib();
    let data = vec![b'n'; 32 << 20];
    for option in [OPT_GO, OPT_LIST, OPT_SET_META_CONTEXT, 1234] {
        let mut handshake = Handshake::start(&daemon.address()).expect("a greeting");
        let reply = handshake.outcome(option, &data).expect("a reply");
        assert!(reply.is_error(), "{option}: {:#x}", reply.kind);
        assert!(
            handshake.go("disk").expect("replies").is_ok(),
            "negotiation goes on after {option}"
        );
    }
    let grown = daemon.resident_kib() - before;
    assert!(grown < 8 << 10, "{grown} KiB more after options of 32 MiB");
    daemon.quit();
}

/// CVE-2017-9524, CVE-2017-7539: the connection is reset, not closed.
#[test]
fn a_port_scan_hurts_nobody() {
    let mut daemon = daemon()
        .nbd_tcp()
        .blockdev(json!({ "driver": "null-co", "node-name": "disk", "size": MIB, "read-zeroes": true }))
        .export("disk")
        .start();
    let mut bystander = daemon.session("disk");
    for greeted in [false, true] {
        for _ in 0..100 {
            let mut stream = daemon.address().connect().expect("the server listens");
            if greeted {
                stream.read_exact(&mut [0; 18]).expect("a greeting");
            }
            let Stream::Tcp(stream) = stream else {
                panic!("not TCP")
            };
            // Closed like this, the connection is reset.
            rustix::net::sockopt::set_socket_linger(&stream, Some(Duration::ZERO))
                .expect("a socket can be told so");
        }
        assert_eq!(bystander.read(0, 512), [0; 512]);
    }
    daemon.assert_running();
    drop(bystander);
    daemon.quit();
}

/// CVE-2024-7409 and QEMU #2528: the server is stopped beside open sockets.
#[test]
fn the_server_stops_and_starts_among_clients_at_every_step() {
    let mut daemon = zeroes(MIB, ",max-connections=0");
    let address = daemon.address();
    let over = AtomicBool::new(false);
    thread::scope(|scope| {
        for step in 0..4 {
            let (address, over) = (&address, &over);
            scope.spawn(move || {
                while !over.load(Ordering::Relaxed) {
                    // The server may be gone at any step, which is what is tried.
                    let Ok(mut handshake) = Handshake::start(address) else {
                        continue;
                    };
                    if step == 0 || (step > 1 && handshake.structured_replies().is_err()) {
                        continue;
                    }
                    if step == 3
                        && let Ok(Ok(mut session)) = handshake.go("disk")
                    {
                        while session.call(&Request::read(0, 4096)).is_ok() {}
                    }
                }
            });
        }
        for _ in 0..30 {
            daemon.qmp.ok("nbd-server-stop", json!({}));
            daemon.start_nbd_server();
            let export = json!({ "type": "nbd", "id": "exp-disk", "node-name": "disk", "name": "disk" });
            daemon.qmp.ok("block-export-add", export);
        }
        over.store(true, Ordering::Relaxed);
        daemon.qmp.ok("nbd-server-stop", json!({}));
    });
    daemon.assert_running();
    daemon.quit();
}

/// CVE-2019-14851.
#[test]
fn options_in_any_order_leave_negotiation_whole() {
    let daemon = zeroes(MIB, ",max-connections=0");
    let options: Vec<(u32, Vec<u8>)> = vec![
        (OPT_LIST, Vec::new()),
        (OPT_INFO, go_data("disk", &[INFO_BLOCK_SIZE])),
        (OPT_INFO, go_data("nothing", &[])),
        (OPT_GO, go_data("nothing", &[])),
        (OPT_STRUCTURED_REPLY, Vec::new()),
        (OPT_EXTENDED_HEADERS, Vec::new()),
        (OPT_STARTTLS, Vec::new()),
        (OPT_LIST_META_CONTEXT, meta_context_data("disk", &["base:"])),
        (
            OPT_SET_META_CONTEXT,
            meta_context_data("disk", &["base:allocation"]),
        ),
        (
            OPT_SET_META_CONTEXT,
            meta_context_data("nothing", &["base:allocation"]),
        ),
        (4, Vec::new()),
    ];
    for first in &options {
        for second in &options {
            for third in &options {
                let mut handshake = Handshake::start(&daemon.address()).expect("a greeting");
                let mut extended = false;
                for (option, data) in [first, second, third] {
                    let replies = handshake.option(*option, data).expect("replies");
                    let answered = replies.last().expect("at least one").kind == REP_ACK;
                    extended |= *option == OPT_EXTENDED_HEADERS && answered;
                }
                let order = [first.0, second.0, third.0];
                // What a client agreed to decides how its requests look, so go on as it did.
                let replies = handshake.option(OPT_GO, &go_data("disk", &[])).expect("replies");
                assert_eq!(replies.last().map(|reply| reply.kind), Some(REP_ACK), "{order:?}");
                let read = Request::read(0, 512).encode(7, extended);
                handshake.stream.write_all(&read).expect("the server reads");
                let mut magic = [0; 4];
                handshake.stream.read_exact(&mut magic).expect("a reply");
                let magic = u32::from_be_bytes(magic);
                let fits = if extended {
                    magic == EXTENDED_REPLY_MAGIC
                } else {
                    magic == SIMPLE_REPLY_MAGIC || magic == STRUCTURED_REPLY_MAGIC
                };
                assert!(fits, "{order:?}: {magic:#x}");
            }
        }
    }
    daemon.quit();
}
