//! What NBD's requests and replies cost as bytes: headers taken apart and judged, replies put together.
#![allow(missing_docs, reason = "criterion's macro makes a public function")]

#[allow(dead_code, reason = "other benches use other parts of it")]
#[path = "support/meter.rs"]
mod meter;

use std::hint::black_box;

use criterion::{Criterion, criterion_group, criterion_main};
use millpond::export::nbd::handshake::Contexts;
use millpond::export::nbd::transmission::reply::{Extent, To};
use millpond::export::nbd::transmission::request::{Header, Limits, WireError};
use millpond_messages::nbd::{
    CommandFlags, MAGIC_EXTENDED_REQUEST, MAGIC_REQUEST, Mode, TransmissionFlags, context,
};

use meter::Meter;

const MODES: [Mode; 3] = [Mode::Simple, Mode::Structured, Mode::Extended];
const READ: u16 = 0;
const WRITE: u16 = 1;
const BLOCK_STATUS: u16 = 7;
const BLOCK: usize = 4096;

/// A request as a client sends it.
fn request(mode: Mode, command: u16) -> Vec<u8> {
    let extended = mode == Mode::Extended;
    let magic = if extended {
        MAGIC_EXTENDED_REQUEST
    } else {
        MAGIC_REQUEST
    };
    let flags = if extended && command == WRITE {
        CommandFlags::PAYLOAD_LEN
    } else {
        CommandFlags::empty()
    };
    let mut bytes = magic.to_be_bytes().to_vec();
    bytes.extend(flags.bits().to_be_bytes());
    bytes.extend(command.to_be_bytes());
    bytes.extend(7_u64.to_be_bytes());
    bytes.extend(0x10000_u64.to_be_bytes());
    if extended {
        bytes.extend((BLOCK as u64).to_be_bytes());
    } else {
        bytes.extend((BLOCK as u32).to_be_bytes());
    }
    bytes
}

fn limits(mode: Mode) -> Limits {
    let structured = mode >= Mode::Structured;
    Limits {
        mode,
        size: 1 << 30,
        flags: TransmissionFlags::HAS_FLAGS | TransmissionFlags::SEND_FLUSH | TransmissionFlags::SEND_FUA,
        contexts: Contexts {
            base_allocation: structured,
            allocation_depth: false,
            bitmaps: 0,
        },
    }
}

fn requests(criterion: &mut Criterion<Meter>) {
    let mut group = criterion.benchmark_group("nbd request, parsed and judged");
    for mode in MODES {
        let limits = limits(mode);
        for (name, command) in [("read", READ), ("write", WRITE), ("block status", BLOCK_STATUS)] {
            let bytes = request(mode, command);
            if mode == Mode::Simple && command == BLOCK_STATUS {
                continue;
            }
            group.bench_function(format!("{name}, {mode:?}"), |b| {
                b.iter(|| {
                    let header = Header::parse(mode, black_box(&bytes)).expect("the right magic");
                    limits.judge(&header.expect("a whole header"))
                });
            });
        }
    }
    group.finish();
}

fn replies(criterion: &mut Criterion<Meter>) {
    let mut group = criterion.benchmark_group("nbd reply, put together");
    let mut out = Vec::with_capacity(1 << 16);
    let extents: Vec<Extent> = (0..64).map(|flags| Extent { len: 65536, flags }).collect();
    for mode in MODES {
        let to = To {
            mode,
            cookie: 7,
            offset: 0x10000,
        };
        let mut bench = |name: &str, write: &dyn Fn(&To, &mut Vec<u8>)| {
            group.bench_function(format!("{name}, {mode:?}"), |b| {
                b.iter(|| {
                    out.clear();
                    write(black_box(&to), &mut out);
                    black_box(&out);
                });
            });
        };
        bench("read", &|to, out| to.data(out, 0x10000, BLOCK, true));
        bench("success", &|to, out| to.success(out));
        bench("failure", &|to, out| {
            to.failure(out, WireError::Io, "reading from file failed")
        });
        if mode >= Mode::Structured {
            bench("hole", &|to, out| to.hole(out, 0x10000, BLOCK as u32, true));
            bench("64 extents", &|to, out| {
                to.extents(out, context::BASE_ALLOCATION, &extents, true);
            });
        }
    }
    group.finish();
}

criterion_group! {
    name = benches;
    config = meter::criterion();
    targets = requests, replies
}
criterion_main!(benches);
