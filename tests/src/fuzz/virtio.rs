//! A virtual machine's driver: what it puts onto a ring of a virtio block device, and into the tables that lead there.
//!
//! Each request is answered once, or its ring is broken and its front end disconnected; the daemon serves the next one.

use std::collections::HashMap;
use std::os::fd::AsFd;
use std::path::PathBuf;
use std::sync::OnceLock;
use std::sync::mpsc::channel;

use millpond::daemon::Daemon;
use millpond_drivers::builtin::builtin;
use millpond_messages::graph::AddNode;
use serde_json::{Value, json};

use crate::vhost::{
    DATA, FrontEnd, GUEST, Guest, INDIRECT, MEMORY, NEXT, Piece, QUEUE_SIZE, Queue, USER, WRITE, kind,
    message, state, words,
};

/// Bytes of the disk.
const SIZE: u64 = 1 << 20;
/// Where what is behind the descriptors of an input comes to lie.
const BEHIND: u64 = DATA;
/// Where a request may have its data.
const BODY: u64 = DATA + (64 << 10);

/// The socket of a daemon that lives as long as the process.
fn socket() -> &'static PathBuf {
    static SOCKET: OnceLock<PathBuf> = OnceLock::new();
    SOCKET.get_or_init(|| {
        let (ready, is_ready) = channel();
        let folder = tempfile::tempdir().expect("a folder can be made").keep();
        let socket = folder.join("vhost.sock");
        let path = socket.clone();
        std::thread::spawn(move || {
            actix_rt::System::new().block_on(async {
                let daemon = Daemon::start(builtin(), Vec::new()).expect("a daemon starts");
                let node = json!({"driver": "null-co", "node-name": "disk", "size": SIZE, "read-zeroes": true});
                let Value::Object(node) = node else { unreachable!("an object") };
                daemon.graph(AddNode(node)).await.expect("a node is added");
                let export = json!({"type": "vhost-user-blk", "id": "exp", "node-name": "disk", "writable": true,
                    "addr": {"type": "unix", "path": path}});
                let export = serde_json::from_value(export).expect("the options of an export");
                daemon.exports().add(&export).await.expect("an export is added");
                ready.send(()).expect("somebody waits");
                std::future::pending::<()>().await;
            });
        });
        is_ready.recv().expect("a daemon starts");
        socket
    })
}

/// An input: whether interrupts are suppressed that nobody awaits, the numbers of the first descriptors, the table of
/// descriptors, and what comes behind it.
struct Input<'a> {
    event_idx: bool,
    heads: Vec<u16>,
    table: &'a [u8],
    behind: &'a [u8],
}

impl<'a> Input<'a> {
    fn of(bytes: &'a [u8]) -> Option<Self> {
        let (flags, rest) = bytes.split_first()?;
        let (count, rest) = rest.split_first()?;
        let (heads, rest) = rest.split_at_checked(2 * usize::from(*count % 64))?;
        let (table, behind) = rest.split_at(rest.len().min(16 * usize::from(QUEUE_SIZE)));
        let heads = heads.chunks_exact(2);
        Some(Self {
            event_idx: flags & 1 != 0,
            heads: heads.map(|head| u16::from_le_bytes([head[0], head[1]])).collect(),
            table,
            behind: &behind[..behind.len().min((BODY - BEHIND) as usize)],
        })
    }
}

pub(super) fn run(bytes: &[u8]) {
    let Some(input) = Input::of(bytes) else { return };
    let mut front_end = FrontEnd::connect_with(socket(), Guest::default(), input.event_idx);
    pass_memory(&mut front_end);
    front_end.guest.write(GUEST, input.table);
    front_end.guest.write(BEHIND, input.behind);
    let mut queue = front_end.start_queue(0);
    let mut offered = HashMap::<u16, i32>::new();
    for head in &input.heads {
        queue.offer(&front_end.guest, *head);
        *offered.entry(*head).or_default() += 1;
    }
    queue.kick();
    let stopped = front_end.try_ask(message::GET_VRING_BASE, 1, &state(0, 0), &[]);
    let answers = answers(&mut queue, &front_end.guest);
    for head in &answers {
        let left = offered.get_mut(head).expect("what is answered was offered");
        *left -= 1;
        assert!(*left >= 0, "request {head} is answered once too often");
    }
    let goes_on = front_end.try_ask(message::GET_FEATURES, 1, &[], &[]).is_ok();
    if let Ok((stopped, _)) = stopped
        && goes_on
    {
        let taken = u32::from_le_bytes(stopped[4..8].try_into().expect("four bytes"));
        assert_eq!(taken as usize, answers.len(), "what was taken was answered");
    }
}

/// Passes the guest's memory so that no request has its data in the ring of requests or of answers: those lie at an address of
/// their own. Else a driver may have the device write there what it likes, and nothing could be said of the answers.
fn pass_memory(front_end: &mut FrontEnd) {
    /// Where the ring of requests begins from the memory's first byte, and what is behind that of answers.
    const RINGS: (u64, u64) = (0x4000, 0x1_0000);
    /// Where the guest has them.
    const APART: u64 = 0x7a5b_1234_5678_0000;
    let (begin, end) = RINGS;
    let table = words(&[
        3,
        GUEST,
        begin,
        USER,
        0,
        APART,
        end - begin,
        USER + begin,
        begin,
        GUEST + end,
        MEMORY - end,
        USER + end,
        end,
    ]);
    let file = front_end.guest.file().try_clone();
    let file = file.expect("a file can be opened twice");
    front_end.tell(message::SET_MEM_TABLE, &table, &[file.as_fd(); 3]);
}

/// The first descriptors of all that was answered.
fn answers(queue: &mut Queue, guest: &Guest) -> Vec<u16> {
    // What is written to the ring by a request cannot make it longer than this.
    let most = usize::from(QUEUE_SIZE);
    std::iter::from_fn(|| queue.answer(guest).map(|(head, _)| head))
        .take(most)
        .collect()
}

fn header(kind: u32, sector: u64) -> Vec<u8> {
    [&kind.to_le_bytes()[..], &[0; 4], &sector.to_le_bytes()].concat()
}

fn descriptor((address, len, flags): Piece, next: u16) -> Vec<u8> {
    [
        &address.to_le_bytes()[..],
        &len.to_le_bytes(),
        &flags.to_le_bytes(),
        &next.to_le_bytes(),
    ]
    .concat()
}

/// An input with requests of these kinds, each of a header, data that the device writes or reads, and room for a status; or
/// all that in a table of its own.
fn requests(kinds: &[(u32, u32, u16)], is_indirect: bool) -> Vec<u8> {
    let mut bytes = vec![1, kinds.len() as u8];
    let (mut table, mut headers, mut tables) = (Vec::new(), Vec::new(), Vec::new());
    for (number, (kind, len, flags)) in (0_u16..).zip(kinds) {
        let at = BEHIND + 16 * u64::from(number);
        headers.extend(header(*kind, 8));
        let first = if is_indirect { 0 } else { 3 * number };
        let pieces = [
            descriptor((at, 16, NEXT), first + 1),
            descriptor((BODY, *len, NEXT | flags), first + 2),
            descriptor((BODY + SIZE, 1, WRITE), 0),
        ]
        .concat();
        if is_indirect {
            bytes.extend(number.to_le_bytes());
            let at = BEHIND + 16 * kinds.len() as u64 + 48 * u64::from(number);
            table.extend(descriptor((at, 48, INDIRECT), 0));
            tables.extend(pieces);
        } else {
            bytes.extend(first.to_le_bytes());
            table.extend(pieces);
        }
    }
    table.resize(16 * usize::from(QUEUE_SIZE), 0);
    [bytes, table, headers, tables].concat()
}

pub(super) fn seeds() -> Vec<Vec<u8>> {
    let all = [
        (kind::IN, 4096, WRITE),
        (kind::OUT, 4096, 0),
        (kind::GET_ID, 20, WRITE),
        (kind::DISCARD, 16, 0),
        (kind::WRITE_ZEROES, 32, 0),
        (kind::FLUSH, 1, 0),
        (99, 512, WRITE),
    ];
    [
        requests(&all, false),
        requests(&all, true),
        requests(&all[..1], false),
        requests(&all[1..2], true),
    ]
    .to_vec()
}
