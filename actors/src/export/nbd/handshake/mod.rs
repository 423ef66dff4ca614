//! The server's side of the NBD handshake as a state machine: bytes in, bytes out, and how it ended.
//!
//! ```text
//!   greeting ->  ClientFlags -> Header -> (the option's own steps | Skip) -> Header -> ...
//!                                   EXPORT_NAME, GO -> Chosen        ABORT, a broken client -> Close
//! ```
//! Each step asks for a bounded number of bytes (at most [`MAX_STRING`]), so a client cannot make the server hold more
//! than that, whatever lengths it announces. The texts and the order of checks are those of QEMU's server.

mod answer;
pub(super) mod negotiate;
mod option;
mod tls;

use millpond_messages::nbd::{
    Cursor, HandshakeFlags, MAGIC_OPTION, MAGIC_SERVER, MAX_PAYLOAD, MAX_STRING, Mode,
};
use std::sync::Arc;

use super::offer::{Catalogue, Offer};
use option::Step;
pub use tls::Tls;

/// The metadata contexts that a client chose.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Contexts {
    /// The client has chosen `base:allocation`.
    pub base_allocation: bool,
    /// The client has chosen `qemu:allocation-depth`.
    pub allocation_depth: bool,
    /// The bitmaps that it has chosen as `qemu:dirty-bitmap:NAME`: a bit for each of the export's, the first one lowest.
    pub bitmaps: u64,
}

impl Contexts {
    /// Whether it has chosen the bitmap at this place among the export's.
    #[must_use]
    pub const fn has_bitmap(self, place: usize) -> bool {
        place < 64 && self.bitmaps & (1 << place) != 0
    }

    /// How many were chosen.
    #[must_use]
    pub fn count(self) -> u32 {
        u32::from(self.base_allocation) + u32::from(self.allocation_depth) + self.bitmaps.count_ones()
    }
}

/// What the two sides agreed on.
#[derive(Debug, Clone)]
pub struct Negotiated {
    /// The export that the client has chosen.
    pub export: Arc<Offer>,
    /// How replies are framed.
    pub mode: Mode,
    /// The contexts that BLOCK_STATUS answers for.
    pub contexts: Contexts,
}

/// Where the handshake stands after some input.
#[derive(Debug)]
pub enum Progress {
    /// More input is needed, or the output must be sent first.
    Continue,
    /// Transmission begins with the next byte of input, once the output is sent.
    Chosen(Negotiated),
    /// Send the output, then go on inside TLS: what comes next out of that is the next input. Input that remains came
    /// in the clear, and is none of the client's any more.
    StartTls,
    /// Send the output, then close; the text says why.
    Close(String),
}

/// Output after which no more input is looked at until the output was taken.
const OUTPUT_PAUSE: usize = 64 * 1024;

/// The handshake with one client, without I/O.
#[derive(Debug)]
pub struct Handshake {
    step: Step,
    /// Bytes of a step that came in pieces.
    partial: Vec<u8>,
    /// The flags that the client has answered with.
    flags: HandshakeFlags,
    mode: Mode,
    /// The contexts chosen, and the export they were chosen for.
    contexts: Option<(Arc<Offer>, Contexts)>,
    /// The export that the client asked for last and that is not there.
    missing: Option<String>,
    /// The client has ended it, as it may.
    aborted: bool,
    tls: Tls,
}

/// Why a client is dropped.
struct Drop(String);

/// Where a step has led: never to [`Progress::Close`], which [`Drop`] stands for.
type Stepped = Result<Progress, Drop>;

impl Handshake {
    /// A handshake about to begin; writes the greeting to `out`.
    #[must_use]
    pub fn begin(tls: Tls, out: &mut Vec<u8>) -> Self {
        let flags = HandshakeFlags::all();
        out.extend_from_slice(&MAGIC_SERVER.to_be_bytes());
        out.extend_from_slice(&MAGIC_OPTION.to_be_bytes());
        // The server's field is 16 bits wide.
        out.extend_from_slice(&(flags.bits() as u16).to_be_bytes());
        Self {
            step: Step::ClientFlags,
            partial: Vec::new(),
            flags: HandshakeFlags::empty(),
            mode: Mode::Simple,
            contexts: None,
            missing: None,
            aborted: false,
            tls,
        }
    }

    /// Why the client had no use for the server, if it has left now: an export that it asked for is not there.
    #[must_use]
    pub fn missing(&self) -> Option<&str> {
        self.missing.as_deref()
    }

    /// Whether the client has ended the handshake, as it may.
    #[must_use]
    pub fn was_aborted(&self) -> bool {
        self.aborted
    }

    /// Takes `input`, writes replies to `out`; returns how many bytes of `input` were used and where that led.
    ///
    /// Input may remain although there is nothing wrong: after the last option (it belongs to the transmission phase),
    /// and when `out` is so long that it should be sent first. To go on, call again with what remained.
    pub fn feed(
        &mut self,
        input: &[u8],
        exports: &(impl Catalogue + ?Sized),
        out: &mut Vec<u8>,
    ) -> (usize, Progress) {
        let mut rest = input;
        while out.len() < OUTPUT_PAUSE {
            if let Step::Skip(skip) = &mut self.step
                && skip.left > 0
            {
                let n = rest.len().min(skip.left as usize);
                // `n <= left`, a u32.
                skip.left -= n as u32;
                rest = &rest[n..];
                if skip.left > 0 {
                    break;
                }
            }
            let Some(stepped) = self.take_step(&mut rest, exports, out) else {
                break;
            };
            match stepped {
                Ok(Progress::Continue) => {}
                Ok(progress) => return (input.len() - rest.len(), progress),
                Err(Drop(why)) => return (input.len() - rest.len(), Progress::Close(why)),
            }
        }
        (input.len() - rest.len(), Progress::Continue)
    }

    /// Runs the current step if its bytes are there; `None` if not, with what there was kept.
    fn take_step(
        &mut self,
        rest: &mut &[u8],
        exports: &(impl Catalogue + ?Sized),
        out: &mut Vec<u8>,
    ) -> Option<Stepped> {
        let need = self.step.need();
        debug_assert!(need <= MAX_STRING);
        let missing = need.saturating_sub(self.partial.len());
        let Some((data, tail)) = rest.split_at_checked(missing) else {
            self.partial.extend_from_slice(rest);
            *rest = &[];
            return None;
        };
        *rest = tail;
        if self.partial.is_empty() {
            return Some(self.step(data, exports, out));
        }
        let mut whole = std::mem::take(&mut self.partial);
        whole.extend_from_slice(data);
        let stepped = self.step(&whole, exports, out);
        whole.clear();
        self.partial = whole;
        Some(stepped)
    }

    fn step(&mut self, data: &[u8], exports: &(impl Catalogue + ?Sized), out: &mut Vec<u8>) -> Stepped {
        match std::mem::replace(&mut self.step, Step::Header) {
            Step::ClientFlags => self.client_flags(data).map(|()| Progress::Continue),
            Step::Header => {
                let (option, length) = option_header(data)?;
                self.option(option, length, exports, out)
            }
            step => self.option_step(step, data, exports, out),
        }
    }

    fn client_flags(&mut self, data: &[u8]) -> Result<(), Drop> {
        let bits = Cursor(data).u32().unwrap_or_default();
        self.flags = HandshakeFlags::from_bits(bits)
            .ok_or_else(|| Drop(format!("Unknown client flags 0x{bits:x} received")))?;
        Ok(())
    }
}

/// An option's number and length.
fn option_header(data: &[u8]) -> Result<(u32, u32), Drop> {
    let mut fields = Cursor(data);
    let header = (fields.u64(), fields.u32(), fields.u32());
    let (Some(MAGIC_OPTION), Some(option), Some(length)) = header else {
        return Err(Drop("Bad magic received".to_owned()));
    };
    if length > MAX_PAYLOAD {
        return Err(Drop(format!(
            "len ({length}) is larger than max len ({MAX_PAYLOAD})"
        )));
    }
    Ok((option, length))
}
