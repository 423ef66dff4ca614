//! Whatever bytes come: nothing panics, nothing grows, and how the bytes were cut does not matter.
#![allow(clippy::unwrap_used, reason = "a panic is how a test fails")]

use std::sync::Arc;

use millpond::export::nbd::handshake::{Contexts, Handshake, Progress, Tls};
use millpond::export::nbd::offer::Offer;
use millpond::export::nbd::transmission::reply::{Extent, MAX_DATA_HEADER, To};
use millpond::export::nbd::transmission::request::{
    Command, Header, Limits, MAX_STATUS_PAYLOAD, Verdict, WireError,
};
use millpond_messages::RequestFlags;
use millpond_messages::nbd::{MAGIC_OPTION, MAX_PAYLOAD, Mode};
use proptest::collection::vec;
use proptest::prelude::*;

fn exports() -> Vec<Arc<Offer>> {
    ["", "disk"]
        .map(|name| {
            Arc::new(Offer {
                name: name.to_owned(),
                description: (!name.is_empty()).then(|| "text".repeat(1024)),
                size: 1 << 30,
                flags: Offer::base_flags(true, true),
                request_alignment: 512,
                max_transfer: 0,
                allocation_depth: true,
                bitmaps: Vec::new(),
            })
        })
        .to_vec()
}

/// Options that are well-formed in parts: a plausible number, a length near the payload's, a payload with plausible
/// fields.
fn options() -> impl Strategy<Value = Vec<u8>> {
    let name = prop_oneof![Just(b"disk".to_vec()), Just(Vec::new()), vec(any::<u8>(), 0..200)];
    let payload = (name, any::<Option<u8>>(), vec(any::<u8>(), 0..40)).prop_map(|(name, lie, rest)| {
        let length = name.len() as u32 ^ u32::from(lie.unwrap_or(0));
        [&length.to_be_bytes()[..], &name, &rest].concat()
    });
    let option = (0_u32..13, any::<Option<u8>>(), payload).prop_map(|(option, lie, payload)| {
        let length = payload.len() as u32 ^ u32::from(lie.unwrap_or(0));
        [
            &MAGIC_OPTION.to_be_bytes()[..],
            &option.to_be_bytes(),
            &length.to_be_bytes(),
            &payload,
        ]
        .concat()
    });
    vec(option, 0..20).prop_map(|options| [&3_u32.to_be_bytes()[..], &options.concat()].concat())
}

/// Runs a handshake, going on inside TLS as if that were nothing; its output, how it ended, and how much input that took.
fn run(tls: Tls, input: &[u8], cut: usize) -> (Vec<u8>, String, usize) {
    let exports = exports();
    let (mut all, mut out, mut used) = (Vec::new(), Vec::new(), 0);
    let mut handshake = Handshake::begin(tls, &mut out);
    while used < input.len() {
        let end = input.len().min(used + cut);
        let (n, progress) = handshake.feed(&input[used..end], exports.as_slice(), &mut out);
        used += n;
        assert!(out.len() < 256 * 1024, "{} bytes of output at once", out.len());
        all.append(&mut out);
        match progress {
            Progress::Continue | Progress::StartTls => {}
            Progress::Chosen(chosen) => return (all, format!("{chosen:?}"), used),
            Progress::Close(why) => return (all, why, used),
        }
    }
    (all, "more".to_owned(), used)
}

const TLS: [Tls; 3] = [Tls::Unavailable, Tls::Required, Tls::Established];

fn modes() -> impl Strategy<Value = Mode> {
    prop_oneof![Just(Mode::Simple), Just(Mode::Structured), Just(Mode::Extended)]
}

proptest! {
    #[test]
    fn a_handshake_does_not_depend_on_how_its_bytes_are_cut(input in options(), cut in 1_usize..40) {
        for tls in TLS {
            prop_assert_eq!(run(tls, &input, cut), run(tls, &input, input.len().max(1)));
        }
    }

    #[test]
    fn a_handshake_survives_any_bytes(input in vec(any::<u8>(), 0..600), flags in 0_u32..5) {
        for tls in TLS {
            run(tls, &[&flags.to_be_bytes()[..], &input].concat(), 7);
            run(tls, &input, 600);
        }
    }

    #[test]
    fn a_request_that_is_accepted_lies_in_the_export(
        mode in modes(),
        flags in prop_oneof![0_u16..64, any::<u16>()],
        command in prop_oneof![0_u16..9, any::<u16>()],
        cookie: u64,
        offset in prop_oneof![0_u64..(1 << 21), any::<u64>()],
        len in prop_oneof![0_u64..(1 << 21), any::<u64>()],
        writable: bool,
        payload in vec(any::<u8>(), MAX_STATUS_PAYLOAD),
    ) {
        let limits = Limits {
            mode,
            size: 1 << 20,
            flags: Offer::base_flags(writable, true),
            contexts: Contexts { base_allocation: true, allocation_depth: false, bitmaps: 0 },
        };
        let mut bytes = match mode {
            Mode::Extended => 0x21e4_1c71_u32,
            _ => 0x2560_9513,
        }.to_be_bytes().to_vec();
        bytes.extend(flags.to_be_bytes());
        bytes.extend(command.to_be_bytes());
        bytes.extend(cookie.to_be_bytes());
        bytes.extend(offset.to_be_bytes());
        match mode {
            Mode::Extended => bytes.extend(len.to_be_bytes()),
            _ => bytes.extend((len as u32).to_be_bytes()),
        }
        prop_assert_eq!(Header::parse(mode, &bytes[..bytes.len() - 1]), Ok(None));
        let header = Header::parse(mode, &bytes).unwrap().unwrap();
        let (request, refusal) = match limits.judge(&header) {
            Verdict::Serve(request) => (Some(request), None),
            Verdict::ServePayload(request) => {
                prop_assert!(request.range.len() <= u64::from(MAX_PAYLOAD));
                (Some(request), None)
            }
            Verdict::StatusPayload(n) => {
                prop_assert!(n <= MAX_STATUS_PAYLOAD);
                match limits.status_payload(&header, &payload[..n]) {
                    Ok(request) => (Some(request), None),
                    Err(refusal) => (None, Some(refusal)),
                }
            }
            Verdict::Refuse(skip, refusal) => {
                prop_assert!(skip <= MAX_PAYLOAD);
                (None, Some(refusal))
            }
            Verdict::RefuseAndClose(refusal) => (None, Some(refusal)),
            Verdict::Disconnect => (None, None),
        };
        if let Some(request) = request {
            prop_assert_eq!(request.cookie, cookie);
            prop_assert!(request.range.end() <= limits.size);
            let changes = match request.command {
                Command::Write { flags } => {
                    prop_assert!(RequestFlags::FUA.contains(flags));
                    true
                }
                Command::Trim { .. } | Command::WriteZeroes { .. } => true,
                Command::Read { .. } | Command::Cache => {
                    prop_assert!(request.range.len() <= u64::from(MAX_PAYLOAD));
                    false
                }
                Command::Flush | Command::BlockStatus { .. } => false,
            };
            prop_assert!(writable || !changes);
        }
        if let Some(refusal) = refusal {
            prop_assert_eq!((refusal.cookie, refusal.offset), (cookie, offset));
        }
    }

    #[test]
    fn a_reply_announces_what_it_carries(
        mode in modes(),
        cookie: u64,
        offset: u64,
        len in 0_usize..100_000,
        extents in vec((1_u64..u64::from(u32::MAX), 0_u64..4), 1..20),
        text in "\\PC{0,5000}",
        done: bool,
    ) {
        let to = To { mode, cookie, offset };
        let mut data = Vec::new();
        to.data(&mut data, offset, len, done);
        prop_assert!(data.len() <= MAX_DATA_HEADER);
        check(mode, cookie, &data, len)?;
        let mut success = Vec::new();
        to.success(&mut success);
        check(Mode::Simple.max(if mode == Mode::Extended { mode } else { Mode::Simple }), cookie, &success, 0)?;
        let mut failure = Vec::new();
        to.failure(&mut failure, WireError::Io, &text);
        check(mode, cookie, &failure, 0)?;
        prop_assert!(failure.len() < 4200);
        if mode > Mode::Simple {
            let extents: Vec<_> = extents.iter().map(|(len, flags)| Extent { len: *len, flags: *flags }).collect();
            let mut status = Vec::new();
            to.extents(&mut status, 0, &extents, done);
            check(mode, cookie, &status, 0)?;
            let mut hole = Vec::new();
            to.hole(&mut hole, offset, 7, done);
            check(mode, cookie, &hole, 0)?;
        }
    }
}

/// A header's cookie, and that what it announces is what follows: its own rest, and `data` bytes.
fn check(mode: Mode, cookie: u64, reply: &[u8], data: usize) -> Result<(), TestCaseError> {
    let field = |at: usize, n: usize| {
        reply[at..at + n]
            .iter()
            .fold(0_u64, |all, byte| all << 8 | u64::from(*byte))
    };
    prop_assert_eq!(field(8, 8), cookie);
    match mode {
        Mode::Simple => prop_assert_eq!(reply.len(), 16),
        Mode::Structured => prop_assert_eq!(field(16, 4) as usize, reply.len() - 20 + data),
        Mode::Extended => prop_assert_eq!(field(24, 8) as usize, reply.len() - 32 + data),
    }
    Ok(())
}
