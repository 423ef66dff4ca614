//! The handshake answers every sequence of options with the very bytes that QEMU's server answers with.
#![allow(clippy::unwrap_used, reason = "a panic is how a test fails")]

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;

use millpond::export::nbd::handshake::{Handshake, Progress, Tls};
use millpond::export::nbd::offer::Offer;
use millpond_messages::nbd::{MAGIC_OPTION, option};

/// A storage daemon to compare with, ended when dropped.
struct Oracle {
    daemon: Child,
    socket: PathBuf,
}

impl Oracle {
    fn start(dir: &Path) -> Self {
        let socket = dir.join("nbd.sock");
        let pidfile = dir.join("pid");
        let daemon = Command::new("qemu-storage-daemon")
            .args(["--blockdev", "null-co,node-name=a,size=1049000,read-zeroes=on"])
            .args(["--blockdev", "null-co,node-name=b,size=1048576"])
            .args(["--blockdev", "null-co,node-name=c0,size=1048576"])
            .args([
                "--blockdev",
                "blkdebug,node-name=c,image=c0,align=4096,max-transfer=65536",
            ])
            .arg("--nbd-server")
            .arg(format!("addr.type=unix,addr.path={}", socket.display()))
            .args([
                "--export",
                "nbd,id=a,node-name=a,name=ro,description=some text,allocation-depth=on",
            ])
            .args(["--export", "nbd,id=b,node-name=b,name=rw,writable=on"])
            .args(["--export", "nbd,id=c,node-name=c,name=aligned,writable=on"])
            .arg("--pidfile")
            .arg(&pidfile)
            .stdin(Stdio::null())
            .spawn()
            .expect(
                "qemu-storage-daemon does not run: install the package qemu-utils (Debian: from backports)",
            );
        let mut oracle = Self { daemon, socket };
        // The pidfile is written once exports and server exist.
        while !pidfile.exists() {
            assert!(
                oracle.daemon.try_wait().unwrap().is_none(),
                "the oracle ended at once"
            );
            std::thread::yield_now();
        }
        oracle
    }

    /// What it answers to `input`, from greeting to close.
    fn answer(&self, input: &[u8]) -> Vec<u8> {
        let mut socket = UnixStream::connect(&self.socket).unwrap();
        let mut output = vec![0; 18];
        socket.read_exact(&mut output).unwrap();
        // It may close before it has read all.
        let _ = socket.write_all(input);
        let _ = socket.shutdown(std::net::Shutdown::Write);
        let mut chunk = [0; 4096];
        while let Ok(n @ 1..) = socket.read(&mut chunk) {
            output.extend_from_slice(&chunk[..n]);
        }
        output
    }
}

impl Drop for Oracle {
    fn drop(&mut self) {
        let _ = self.daemon.kill();
        let _ = self.daemon.wait();
    }
}

/// The same exports as the oracle's.
fn exports() -> Vec<Arc<Offer>> {
    let offer = |name: &str, writable| Offer {
        name: name.to_owned(),
        description: None,
        size: 1 << 20,
        flags: Offer::base_flags(writable, true),
        request_alignment: 1,
        max_transfer: 0,
        allocation_depth: false,
        bitmaps: Vec::new(),
    };
    let described = Some("some text".to_owned());
    vec![
        Arc::new(Offer {
            description: described,
            allocation_depth: true,
            size: 1_049_088,
            ..offer("ro", false)
        }),
        Arc::new(offer("rw", true)),
        Arc::new(Offer {
            request_alignment: 4096,
            max_transfer: 65536,
            ..offer("aligned", true)
        }),
    ]
}

/// What ours answers to `input` that comes in pieces of `piece` bytes.
fn ours(input: &[u8], piece: usize) -> Vec<u8> {
    let exports = exports();
    let mut output = Vec::new();
    let mut handshake = Handshake::begin(Tls::Unavailable, &mut output);
    for piece in input.chunks(piece) {
        let mut rest = piece;
        while !rest.is_empty() {
            let mut out = Vec::new();
            let (used, progress) = handshake.feed(rest, exports.as_slice(), &mut out);
            rest = &rest[used..];
            output.append(&mut out);
            match progress {
                Progress::Continue => {}
                Progress::Chosen(_) | Progress::StartTls | Progress::Close(_) => return output,
            }
        }
    }
    output
}

fn opt(number: u32, payload: &[u8]) -> Vec<u8> {
    let mut bytes = MAGIC_OPTION.to_be_bytes().to_vec();
    bytes.extend(number.to_be_bytes());
    bytes.extend((payload.len() as u32).to_be_bytes());
    bytes.extend(payload);
    bytes
}

fn string(text: &[u8]) -> Vec<u8> {
    [&(text.len() as u32).to_be_bytes()[..], text].concat()
}

/// The payload of INFO and GO.
fn info(name: &[u8], wanted: &[u16]) -> Vec<u8> {
    let mut bytes = string(name);
    bytes.extend((wanted.len() as u16).to_be_bytes());
    wanted.iter().for_each(|kind| bytes.extend(kind.to_be_bytes()));
    bytes
}

/// The payload of the metadata options.
fn meta(name: &[u8], queries: &[&[u8]]) -> Vec<u8> {
    let mut bytes = string(name);
    bytes.extend((queries.len() as u32).to_be_bytes());
    queries.iter().for_each(|query| bytes.extend(string(query)));
    bytes
}

/// Options, one or more a case, that follow the client's flags.
fn option_cases() -> Vec<Vec<Vec<u8>>> {
    let structured = || opt(option::STRUCTURED_REPLY, &[]);
    let extended = || opt(option::EXTENDED_HEADERS, &[]);
    let go = |name: &[u8]| opt(option::GO, &info(name, &[3]));
    let set = |name: &[u8], queries: &[&[u8]]| opt(option::SET_META_CONTEXT, &meta(name, queries));
    let list = |name: &[u8], queries: &[&[u8]]| opt(option::LIST_META_CONTEXT, &meta(name, queries));
    let long = vec![b'x'; 5000];
    let almost = vec![b'y'; 4096];
    let mut cases = vec![
        vec![],
        vec![opt(option::ABORT, &[])],
        vec![opt(option::ABORT, b"bye")],
        vec![opt(option::LIST, &[])],
        vec![opt(option::LIST, b"what"), opt(option::LIST, &[])],
        vec![opt(option::STARTTLS, &[]), opt(option::STARTTLS, b"x")],
        vec![opt(4, &[]), opt(99, b"abc"), opt(0, &[]), opt(u32::MAX, b"")],
        vec![structured(), structured(), extended(), extended(), structured()],
        vec![
            opt(option::STRUCTURED_REPLY, b"z"),
            opt(option::EXTENDED_HEADERS, b"z"),
            structured(),
        ],
        vec![opt(option::EXPORT_NAME, b"rw")],
        vec![opt(option::EXPORT_NAME, b"ro")],
        vec![opt(option::EXPORT_NAME, b"")],
        vec![opt(option::EXPORT_NAME, b"absent")],
        vec![opt(option::EXPORT_NAME, &long)],
        vec![structured(), opt(option::EXPORT_NAME, b"rw")],
        vec![
            structured(),
            set(b"rw", &[b"base:allocation"]),
            opt(option::EXPORT_NAME, b"rw"),
        ],
        vec![extended(), opt(option::EXPORT_NAME, b"rw")],
        vec![opt(option::GO, &info(b"absent", &[]))],
        vec![
            opt(option::GO, &info(&almost, &[])),
            opt(option::GO, &info(&long, &[])),
        ],
        vec![
            opt(option::GO, &info(&[b'n'; 79], &[])),
            opt(option::GO, &info(&[b'n'; 80], &[])),
        ],
        vec![opt(option::GO, &info(b"r\0w", &[]))],
        vec![opt(option::GO, b"")],
        vec![opt(option::GO, &[0, 0, 0])],
        vec![opt(option::GO, &[0, 0, 0, 9, b'r'])],
        vec![opt(option::GO, &[255, 255, 255, 255])],
        vec![opt(option::GO, &string(b"rw"))],
        vec![opt(option::GO, &[string(b"rw"), vec![0, 5, 0, 1]].concat())],
        vec![
            opt(option::GO, &[info(b"rw", &[]), b"rest".to_vec()].concat()),
            go(b"rw"),
        ],
        vec![
            structured(),
            set(b"rw", &[b"base:allocation"]),
            set(b"absent", &[b"base:"]),
            go(b"rw"),
        ],
        vec![structured(), set(b"rw", &[b"base:allocation"]), go(b"ro")],
        vec![
            extended(),
            set(b"rw", &[b"base:allocation"]),
            opt(option::INFO, &info(b"ro", &[])),
            go(b"rw"),
        ],
        vec![extended(), set(b"rw", &[b"base:allocation"]), go(b"ro")],
        vec![extended(), set(b"rw", &[]), go(b"rw")],
        vec![set(b"rw", &[b"base:allocation"]), go(b"rw")],
        vec![
            structured(),
            opt(
                option::SET_META_CONTEXT,
                &[meta(b"rw", &[b"base:allocation"]), b"zz".to_vec()].concat(),
            ),
            go(b"rw"),
        ],
        vec![structured(), opt(option::SET_META_CONTEXT, b"")],
        vec![structured(), opt(option::SET_META_CONTEXT, &string(b"rw"))],
        vec![
            structured(),
            opt(
                option::SET_META_CONTEXT,
                &[string(b"rw"), vec![0, 0, 0, 2, 0, 0, 0, 0]].concat(),
            ),
        ],
        vec![
            structured(),
            opt(
                option::SET_META_CONTEXT,
                &[string(b"rw"), vec![0, 0, 0, 1, 0, 0, 0, 9]].concat(),
            ),
        ],
        vec![structured(), set(b"ro", &[b"base:all\0cation"])],
        vec![
            structured(),
            set(
                b"ro",
                &[&long, b"base:allocation", &almost, b"qemu:allocation-depth"],
            ),
            go(b"ro"),
        ],
        vec![
            structured(),
            set(b"rw", &[b"base:", b"qemu:", b"other:x", b"base:allocationx"]),
            go(b"rw"),
        ],
        vec![
            structured(),
            set(b"rw", &[b"qemu:allocation-depth", b"qemu:dirty-bitmap:"]),
            go(b"rw"),
        ],
        vec![
            structured(),
            set(b"ro", &[b"qemu:allocation-depth"]),
            set(b"ro", &[]),
            go(b"ro"),
        ],
    ];
    for name in [b"ro".as_slice(), b"rw", b"aligned", b"absent", &long] {
        cases.push(vec![list(name, &[])]);
        cases.push(vec![
            list(name, &[b"base:"]),
            list(name, &[b"qemu:"]),
            list(name, &[b"qemu:dirty-bitmap:"]),
        ]);
        cases.push(vec![
            structured(),
            list(name, &[b"qemu:allocation-depth", b"base:allocation", b"base:x"]),
        ]);
        for wanted in [&[][..], &[0], &[1], &[2], &[3], &[1, 3, 2, 0, 77], &[3, 3, 3]] {
            cases.push(vec![
                opt(option::INFO, &info(name, wanted)),
                opt(option::GO, &info(name, wanted)),
            ]);
            cases.push(vec![structured(), opt(option::GO, &info(name, wanted))]);
            cases.push(vec![extended(), opt(option::GO, &info(name, wanted))]);
        }
    }
    cases
}

/// Whole inputs: what the options above cannot say.
fn raw_cases() -> Vec<Vec<u8>> {
    let mut cases: Vec<_> = [0_u32, 1, 2, 3, 4, 0x8000_0001]
        .map(|flags| flags.to_be_bytes().to_vec())
        .to_vec();
    for flags in [0_u32, 1, 2] {
        cases.push([&flags.to_be_bytes()[..], &opt(option::EXPORT_NAME, b"rw")].concat());
        cases.push([&flags.to_be_bytes()[..], &opt(option::LIST, b"")].concat());
        cases.push([&flags.to_be_bytes()[..], &opt(option::GO, &info(b"rw", &[]))].concat());
    }
    let mut huge = [&3_u32.to_be_bytes()[..], &opt(option::LIST, b"")].concat();
    huge[16..20].copy_from_slice(&((32 << 20) + 1_u32).to_be_bytes());
    cases.push(huge);
    cases.push([&3_u32.to_be_bytes()[..], &[0x55; 40]].concat());
    cases
}

#[test]
fn every_sequence_of_options_is_answered_as_qemu_does() {
    let dir = tempfile::tempdir().unwrap();
    let oracle = Oracle::start(dir.path());
    let sequences = option_cases()
        .into_iter()
        .map(|case| [3_u32.to_be_bytes().to_vec(), case.concat()].concat());
    for input in sequences.chain(raw_cases()) {
        let theirs = oracle.answer(&input);
        for piece in [1, 7, input.len().max(1)] {
            let ours = ours(&input, piece);
            assert_eq!(
                String::from_utf8_lossy(&ours).escape_debug().to_string(),
                String::from_utf8_lossy(&theirs).escape_debug().to_string(),
                "for {:?} in pieces of {piece}",
                String::from_utf8_lossy(&input).escape_debug().to_string(),
            );
        }
    }
}
