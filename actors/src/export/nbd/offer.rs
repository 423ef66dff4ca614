//! What the server tells clients of an export before any of its data moves.

use millpond_messages::nbd::TransmissionFlags;
use std::sync::Arc;

pub use super::dirty::OfferedBitmap;

/// An export as clients see it. It does not change while the export lives.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Offer {
    /// The name that clients ask for, at most 4096 bytes.
    pub name: String,
    /// Text for people, at most 4096 bytes.
    pub description: Option<String>,
    /// The length in bytes, a multiple of 512.
    pub size: u64,
    /// The transmission flags that hold for every client.
    pub flags: TransmissionFlags,
    /// What requests must be aligned to, in bytes; at least 1.
    pub request_alignment: u32,
    /// The most bytes the node takes in one request, 0 for no limit.
    pub max_transfer: u32,
    /// Whether `qemu:allocation-depth` may be chosen.
    pub allocation_depth: bool,
    /// The dirty bitmaps that may be chosen.
    pub bitmaps: Vec<OfferedBitmap>,
}

impl Offer {
    /// The flags of an export that may (or may not) be written to, and that several clients may (or may not) use at
    /// once.
    #[must_use]
    pub fn base_flags(writable: bool, multi_conn: bool) -> TransmissionFlags {
        use TransmissionFlags as F;
        let mut flags = F::HAS_FLAGS | F::SEND_FLUSH | F::SEND_FUA | F::SEND_CACHE;
        if multi_conn {
            flags |= F::CAN_MULTI_CONN;
        }
        flags
            | if writable {
                F::SEND_TRIM | F::SEND_WRITE_ZEROES | F::SEND_FAST_ZERO
            } else {
                F::READ_ONLY
            }
    }
}

/// The exports that a handshake can choose from, now.
pub trait Catalogue {
    /// The export with this name.
    fn find(&self, name: &[u8]) -> Option<Arc<Offer>>;
    /// All exports, in the order in which they were added.
    fn offers(&self) -> Vec<Arc<Offer>>;
}

impl Catalogue for [Arc<Offer>] {
    fn find(&self, name: &[u8]) -> Option<Arc<Offer>> {
        self.iter().find(|offer| offer.name.as_bytes() == name).cloned()
    }

    fn offers(&self) -> Vec<Arc<Offer>> {
        self.to_vec()
    }
}
