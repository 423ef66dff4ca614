//! Functions that take any bytes and must survive them: what `cargo fuzz` drives, and what a bounded test repeats.
//!
//! Each [`Target`] checks more than that nothing panics: its module says what. `tests/tests/fuzz.rs` runs every target
//! on its seeds, on what fuzzing found to reach other code (`tests/fuzz/corpus`), on the inputs that once broke something
//! (`tests/fuzz/regressions`), and on mutations of them all. `tests/fuzz/run` fuzzes one target for as long as it is told.

mod frames;
mod nbd;
mod options;
mod qcow2;
mod qmp;
mod virtio;

use std::path::PathBuf;

/// Something that takes bytes from outside.
#[derive(Debug, Clone, Copy)]
pub struct Target {
    /// Its name, which is also that of its folder of regressions.
    pub name: &'static str,
    /// Takes the bytes; panics if it takes them badly.
    pub run: fn(&[u8]),
    /// Good inputs to begin with.
    pub seeds: fn() -> Vec<Vec<u8>>,
    /// How many mutations a bounded test tries: as many as take a few seconds.
    pub mutations: usize,
}

/// All there are.
pub const TARGETS: &[Target] = &[
    Target {
        name: "qcow2",
        run: qcow2::run,
        seeds: qcow2::seeds,
        mutations: 1500,
    },
    Target {
        name: "nbd_handshake",
        run: nbd::handshake,
        seeds: nbd::handshake_seeds,
        mutations: 10_000,
    },
    Target {
        name: "nbd_requests",
        run: nbd::requests,
        seeds: nbd::request_seeds,
        mutations: 5000,
    },
    Target {
        name: "qmp",
        run: qmp::run,
        seeds: qmp::seeds,
        mutations: 5000,
    },
    Target {
        name: "options",
        run: options::run,
        seeds: options::seeds,
        mutations: 20_000,
    },
    Target {
        name: "frames",
        run: frames::run,
        seeds: frames::seeds,
        mutations: 20_000,
    },
    Target {
        name: "virtio",
        run: virtio::run,
        seeds: virtio::seeds,
        mutations: 5000,
    },
];

/// The target of this name.
#[must_use]
pub fn target(name: &str) -> Option<&'static Target> {
    TARGETS.iter().find(|target| target.name == name)
}

impl Target {
    /// Where inputs are kept that once broke something.
    #[must_use]
    pub fn regressions(&self) -> PathBuf {
        self.folder("fuzz/regressions")
    }

    /// Where inputs are kept that reach code which no seed reaches.
    #[must_use]
    pub fn corpus(&self) -> PathBuf {
        self.folder("fuzz/corpus")
    }

    fn folder(&self, kind: &str) -> PathBuf {
        [env!("CARGO_MANIFEST_DIR"), kind, self.name].iter().collect()
    }
}

/// `input` with a few changes of the kinds that find mistakes: bits, extreme numbers, parts lost, doubled or taken from
/// another input.
#[must_use]
pub fn mutate(rng: &mut fastrand::Rng, input: &[u8], other: &[u8]) -> Vec<u8> {
    let mut bytes = input.to_vec();
    for _ in 0..rng.u8(1..6) {
        let at = rng.usize(0..=bytes.len());
        let end = (at + rng.usize(1..9)).min(bytes.len());
        match rng.u8(0..8) {
            0 => bytes.truncate(at),
            1 => drop(bytes.drain(at..end)),
            2 => {
                let part = bytes[at..end].to_vec();
                bytes.splice(at..at, part);
            }
            3 => {
                let from = rng.usize(0..=other.len());
                let to = (from + rng.usize(1..40)).min(other.len());
                bytes.splice(at..end, other[from..to].iter().copied());
            }
            4 => bytes[at..end].iter_mut().for_each(|byte| *byte = rng.u8(..)),
            5 => {
                const EXTREMES: [u64; 8] = [
                    0,
                    1,
                    0x7fff_ffff,
                    0x8000_0000,
                    u32::MAX as u64,
                    1 << 62,
                    1 << 63,
                    u64::MAX,
                ];
                let extreme = EXTREMES[rng.usize(0..8)].to_be_bytes();
                let count = end - at;
                bytes[at..end].copy_from_slice(&extreme[8 - count..]);
            }
            _ => {
                if let Some(byte) = bytes.get_mut(at) {
                    *byte ^= 1 << rng.u8(0..8);
                }
            }
        }
    }
    bytes
}
