//! An NBD client: first its handshake, then its requests to a connection on an iothread.
//!
//! The handshake answers the same however its bytes are cut, and holds little. Of requests, every reply is well-formed
//! and carries the cookie of a request whose last reply has not come yet; data is the data of that very offset.

use std::collections::HashMap;
use std::future::poll_fn;
use std::io::{ErrorKind, Read, Write};
use std::net::Shutdown;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::rc::Rc;
use std::sync::mpsc::{Sender, channel};
use std::sync::{Arc, OnceLock};
use std::task::Poll;

use futures_util::future::{LocalBoxFuture, pending};
use millpond::export::backend::ExportedNode;
use millpond::export::nbd::handshake::{Contexts, Handshake, Negotiated, Progress, Tls};
use millpond::export::nbd::offer::Offer;
use millpond::export::nbd::transmission::connection::{self, Arrival};
use millpond::export::nbd::transmission::request::{Header, Limits, Verdict};
use millpond::export::nbd::{MAX_SHARED, Pool};
use millpond::iothread::{IoThread, IoThreadConfig, Local};
use millpond::node::Begun;
use millpond_messages::io::{Operation, Outcome, Value};
use millpond_messages::nbd::{
    MAGIC_EXTENDED_REPLY, MAGIC_EXTENDED_REQUEST, MAGIC_OPTION, MAGIC_REQUEST, MAGIC_SIMPLE_REPLY,
    MAGIC_STRUCTURED_REPLY, Mode, option,
};
use millpond_messages::{BlockStatus, StatusFlags};
use millpond_ring::buffer::Buffers;

/// The export's length.
const SIZE: u64 = 64 << 10;

/// The longest input, which a socket takes without waiting.
const LONGEST: usize = 16 << 10;

fn offer(name: &str, writable: bool) -> Arc<Offer> {
    Arc::new(Offer {
        name: name.to_owned(),
        description: (!writable).then(|| "text".to_owned()),
        size: SIZE,
        flags: Offer::base_flags(writable, true),
        request_alignment: 1,
        max_transfer: 0,
        allocation_depth: true,
        bitmaps: Vec::new(),
    })
}

pub(super) fn handshake(bytes: &[u8]) {
    let whole = negotiate(bytes, bytes.len());
    for piece in [1, 7] {
        assert_eq!(negotiate(bytes, piece), whole, "in pieces of {piece}");
    }
}

/// What is answered, how it ended, and how many bytes that took.
fn negotiate(bytes: &[u8], piece: usize) -> (Vec<u8>, String, usize) {
    let exports = [offer("", true), offer("disk", false)];
    let (mut all, mut out, mut used) = (Vec::new(), Vec::new(), 0);
    let mut handshake = Handshake::begin(Tls::Unavailable, &mut out);
    while let Some(rest) = bytes.get(used..).filter(|rest| !rest.is_empty()) {
        let piece = &rest[..piece.clamp(1, rest.len())];
        let (taken, progress) = handshake.feed(piece, exports.as_slice(), &mut out);
        used += taken;
        assert!(out.len() < 256 << 10, "{} bytes of output at once", out.len());
        all.append(&mut out);
        match progress {
            Progress::Continue => {}
            Progress::Chosen(chosen) => return (all, format!("{chosen:?}"), used),
            Progress::StartTls => unreachable!("there are no credentials"),
            Progress::Close(why) => return (all, why, used),
        }
    }
    (all, "more".to_owned(), used)
}

pub(super) fn handshake_seeds() -> Vec<Vec<u8>> {
    let opt = |number: u32, payload: &[u8]| {
        let length = u32::try_from(payload.len()).expect("short");
        [
            &MAGIC_OPTION.to_be_bytes()[..],
            &number.to_be_bytes(),
            &length.to_be_bytes(),
            payload,
        ]
        .concat()
    };
    let go = [0, 0, 0, 4, b'd', b'i', b's', b'k', 0, 2, 0, 1, 0, 3];
    let contexts = |list: &[&str]| {
        let mut bytes = go[..8].to_vec();
        bytes.extend(u32::try_from(list.len()).expect("few").to_be_bytes());
        for name in list {
            bytes.extend(u32::try_from(name.len()).expect("short").to_be_bytes());
            bytes.extend(name.as_bytes());
        }
        bytes
    };
    let both = contexts(&["base:allocation", "qemu:allocation-depth"]);
    [
        vec![
            opt(option::LIST, &[]),
            opt(option::STRUCTURED_REPLY, &[]),
            opt(option::SET_META_CONTEXT, &both),
            opt(option::INFO, &go),
            opt(option::GO, &go),
        ],
        vec![
            opt(option::EXTENDED_HEADERS, &[]),
            opt(option::LIST_META_CONTEXT, &contexts(&["base:", "qemu:"])),
            opt(option::STARTTLS, &[]),
            opt(option::ABORT, &[]),
        ],
        vec![opt(99, b"data"), opt(option::EXPORT_NAME, b"disk")],
    ]
    .map(|options| [3_u32.to_be_bytes().to_vec(), options.concat()].concat())
    .to_vec()
}

/// A disk of one pattern that forgets what is written. Requests that begin at an odd kilobyte take a few turns.
struct Pattern;

fn pattern(offset: u64) -> u8 {
    (offset / 7) as u8
}

impl Pattern {
    fn serve(operation: Operation<Buffers>) -> Outcome<Buffers> {
        match operation {
            Operation::Read {
                offset, mut buffers, ..
            } => {
                let bytes: Vec<u8> = (offset..offset + buffers.len() as u64).map(pattern).collect();
                buffers.copy_from_slice(0, &bytes);
                Outcome {
                    result: Ok(Value::Done),
                    buffers: Some(buffers),
                }
            }
            Operation::Write { offset, buffers, .. } => {
                assert!(offset + buffers.len() as u64 <= SIZE);
                Outcome {
                    result: Ok(Value::Done),
                    buffers: Some(buffers),
                }
            }
            Operation::WriteZeroes { range, .. } | Operation::Discard { range } => {
                assert!(range.end() <= SIZE);
                Outcome::plain(Ok(Value::Done))
            }
            Operation::BlockStatus { range, .. } | Operation::Map { range, .. } => {
                let is_map = matches!(operation, Operation::Map { .. });
                assert!(!range.is_empty() && range.end() <= SIZE);
                let (offset, len) = (range.offset(), range.len());
                let status = BlockStatus {
                    flags: StatusFlags::DATA | StatusFlags::ALLOCATED,
                    len: len.min(512 - offset % 512),
                    map: None,
                    depth: u32::from(offset % 1024 == 0),
                };
                let value = if is_map {
                    Value::Map([status].into())
                } else {
                    Value::Status(status)
                };
                Outcome::plain(Ok(value))
            }
            Operation::Flush => Outcome::plain(Ok(Value::Done)),
            other => panic!("a connection does not ask for {other:?}"),
        }
    }
}

impl ExportedNode for Pattern {
    type Pending = LocalBoxFuture<'static, Outcome<Buffers>>;

    fn begin(&self, operation: Operation<Buffers>) -> Begun<Self::Pending> {
        let turns = match &operation {
            Operation::Read { offset, .. } | Operation::Write { offset, .. } => offset / 1024 % 4,
            _ => 0,
        };
        if turns == 0 {
            return Begun::Ended(Self::serve(operation));
        }
        Begun::Pending(Box::pin(async move {
            for _ in 0..turns {
                next_turn().await;
            }
            Self::serve(operation)
        }))
    }

    fn takes_any_memory(&self) -> bool {
        true
    }

    fn is_open(&self) -> bool {
        true
    }

    fn wait_open(&self) -> impl Future<Output = ()> {
        pending()
    }

    fn has_moved(&self) -> bool {
        false
    }
}

async fn next_turn() {
    let mut again = true;
    poll_fn(move |context| {
        if std::mem::take(&mut again) {
            context.waker().wake_by_ref();
            return Poll::Pending;
        }
        Poll::Ready(())
    })
    .await;
}

type Task = Box<dyn FnOnce(&Rc<Local>) + Send>;

/// The iothread that serves every run.
fn iothread() -> &'static IoThread<Task> {
    static THREAD: OnceLock<IoThread<Task>> = OnceLock::new();
    THREAD.get_or_init(|| {
        IoThread::start(IoThreadConfig::default(), |local| {
            Box::new(move |task: Task| task(&local)) as Box<dyn Fn(Task)>
        })
        .expect("an iothread starts")
    })
}

/// The first byte says what was negotiated, the rest are requests.
pub(super) fn requests(bytes: &[u8]) {
    let Some((how, input)) = bytes.split_first() else {
        return;
    };
    let input = &input[..input.len().min(LONGEST)];
    let mode = [Mode::Simple, Mode::Structured, Mode::Extended][usize::from(how % 3)];
    let structured = mode > Mode::Simple;
    let negotiated = Negotiated {
        export: offer("disk", how & 0x80 == 0),
        mode,
        contexts: Contexts {
            base_allocation: structured && how & 0x40 == 0,
            allocation_depth: structured && how & 0x20 == 0,
            bitmaps: 0,
        },
    };
    let (mut client, server) = UnixStream::pair().expect("sockets can be made");
    let (ended, end) = channel();
    // Some bytes come along with the handshake.
    let (early, late) = input.split_at(input.len().min(usize::from(how % 16) * 4));
    begin(server, negotiated.clone(), early.to_vec(), ended);
    // A server that has closed already, for what came early, takes no more; one that closes with input unread resets.
    let _ = client.write_all(late);
    let _ = client.shutdown(Shutdown::Write);
    let mut output = Vec::new();
    if let Err(error) = client.read_to_end(&mut output) {
        assert_eq!(error.kind(), ErrorKind::ConnectionReset, "{error}");
    }
    end.recv().expect("the connection ends");
    check(&negotiated, input, &output);
}

fn begin(socket: UnixStream, negotiated: Negotiated, early: Vec<u8>, ended: Sender<()>) {
    let task: Task = Box::new(move |local| {
        let here = Rc::clone(local);
        local.spawn(async move {
            let fd = Arc::new(OwnedFd::from(socket));
            let mut pool = Pool::new(MAX_SHARED);
            let arrival = Arrival {
                link: fd,
                negotiated: &negotiated,
                received: &early,
                standing: Rc::default(),
            };
            connection::serve(here, arrival, Pattern, &mut pool).await;
            let _ = ended.send(());
        });
    });
    assert!(iothread().send(task).is_ok(), "the iothread has died");
}

/// How many replies may come for each cookie, by a reading of the input that knows only the framing.
fn asked(negotiated: &Negotiated, mut input: &[u8]) -> HashMap<u64, usize> {
    let limits = Limits {
        mode: negotiated.mode,
        size: negotiated.export.size,
        flags: negotiated.export.flags,
        contexts: negotiated.contexts,
    };
    let mut cookies = HashMap::new();
    while let Ok(Some(header)) = Header::parse(limits.mode, input) {
        input = &input[Header::length(limits.mode)..];
        let payload = match limits.judge(&header) {
            Verdict::Serve(_) => 0,
            Verdict::ServePayload(request) => request.range.len() as usize,
            Verdict::StatusPayload(n) => n,
            Verdict::Refuse(n, _) => n as usize,
            Verdict::RefuseAndClose(_) => usize::MAX,
            Verdict::Disconnect => break,
        };
        *cookies.entry(header.cookie).or_default() += 1;
        match input.get(payload..) {
            Some(rest) => input = rest,
            None => break,
        }
    }
    cookies
}

fn check(negotiated: &Negotiated, input: &[u8], mut output: &[u8]) {
    let mut open = asked(negotiated, input);
    let mode = negotiated.mode;
    while !output.is_empty() {
        let magic = number(output, 0, 4) as u32;
        let cookie = number(output, 8, 8);
        let (done, length) = match (mode, magic) {
            // What follows a simple reply, only its client knows: the next reply is told by its magic.
            (Mode::Simple, MAGIC_SIMPLE_REPLY) => (true, simple_data(output)),
            (Mode::Structured, MAGIC_SIMPLE_REPLY) => (true, 16),
            (Mode::Structured, MAGIC_STRUCTURED_REPLY) => {
                (number(output, 4, 2) & 1 == 1, 20 + number(output, 16, 4))
            }
            (Mode::Extended, MAGIC_EXTENDED_REPLY) => {
                (number(output, 4, 2) & 1 == 1, 32 + number(output, 24, 8))
            }
            _ => panic!("no reply: {}", output[..output.len().min(32)].escape_ascii()),
        };
        let head = if mode == Mode::Extended { 32 } else { 20 };
        if magic != MAGIC_SIMPLE_REPLY && number(output, 6, 2) == 1 {
            let offset = number(output, head, 8);
            let data = &output[head + 8..length as usize];
            let right = data.iter().zip(offset..).all(|(byte, at)| *byte == pattern(at));
            assert!(right, "data of another offset than {offset}");
        }
        let left = open.get_mut(&cookie).filter(|left| **left > 0);
        let left = left.unwrap_or_else(|| panic!("a reply to {cookie:#x}, which is not open"));
        *left -= usize::from(done);
        output = output
            .get(length as usize..)
            .expect("a reply is as long as it says");
    }
}

/// The length of a simple reply and its data: up to what looks like the next reply, or the end.
fn simple_data(output: &[u8]) -> u64 {
    let next = output[16..]
        .windows(4)
        .position(|window| window == MAGIC_SIMPLE_REPLY.to_be_bytes());
    next.map_or(output.len() as u64, |at| at as u64 + 16)
}

fn number(bytes: &[u8], at: usize, length: usize) -> u64 {
    let field = bytes.get(at..at + length).expect("a reply has a whole header");
    field.iter().fold(0, |all, byte| all << 8 | u64::from(*byte))
}

pub(super) fn request_seeds() -> Vec<Vec<u8>> {
    // Flags, command, offset, length.
    const REQUESTS: [(u16, u16, u64, u64); 10] = [
        (0, 0, 1024, 3000),
        (4, 0, 0, 4096),
        (0, 1, 2048, 16),
        (1, 1, 0, 8),
        (0, 3, 0, 0),
        (0, 4, 512, 512),
        (2, 6, 0, 4096),
        (16, 6, 0, 4096),
        (0, 5, 0, 4096),
        (0, 7, 0, SIZE),
    ];
    let conversation = |how: u8| {
        let mut bytes = vec![how];
        let extended = how % 3 == 2;
        for (cookie, (flags, command, offset, length)) in REQUESTS.into_iter().enumerate() {
            let flags = flags | if extended && command == 1 { 32 } else { 0 };
            let magic = if extended {
                MAGIC_EXTENDED_REQUEST
            } else {
                MAGIC_REQUEST
            };
            bytes.extend(magic.to_be_bytes());
            bytes.extend(flags.to_be_bytes());
            bytes.extend(command.to_be_bytes());
            bytes.extend((cookie as u64 + 7).to_be_bytes());
            bytes.extend(offset.to_be_bytes());
            let length_field = length.to_be_bytes();
            bytes.extend(if extended {
                &length_field[..]
            } else {
                &length_field[4..]
            });
            if command == 1 {
                bytes.extend(vec![0x77; length as usize]);
            }
        }
        bytes
    };
    [0, 1, 2, 0x80, 0x83, 0x65].map(conversation).to_vec()
}
