//! What an export is at the moment, for its iothread, which changes it, and for the control thread, which looks.

use std::sync::atomic::{AtomicU32, Ordering};

use millpond_messages::saved::SavedFuseAgreement;

use super::attributes::{Ownership, Rules};
use super::lengths::Lengths;

/// What was agreed on with the kernel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Agreement {
    /// Reads and writes pass the kernel's cache by.
    pub(super) direct: bool,
    /// The most bytes of one read or write.
    pub(super) max_transfer: u32,
}

/// The state of an export, for the iothreads that serve it. The kernel has one change of the owner under way at a
/// time.
#[derive(Debug)]
pub(super) struct Standing {
    rules: Rules,
    agreement: Agreement,
    mode: AtomicU32,
    uid: AtomicU32,
    gid: AtomicU32,
    in_flight: AtomicU32,
    /// The way to who changes the length.
    pub(super) lengths: Lengths,
}

impl Standing {
    pub(super) fn new(rules: Rules, agreement: Agreement, lengths: Lengths) -> Self {
        let Ownership { mode, uid, gid } = Ownership::new(rules);
        Self {
            rules,
            agreement,
            mode: AtomicU32::new(mode),
            uid: AtomicU32::new(uid),
            gid: AtomicU32::new(gid),
            in_flight: AtomicU32::new(0),
            lengths,
        }
    }

    pub(super) const fn rules(&self) -> Rules {
        self.rules
    }

    pub(super) fn ownership(&self) -> Ownership {
        Ownership {
            mode: self.mode.load(Ordering::Relaxed),
            uid: self.uid.load(Ordering::Relaxed),
            gid: self.gid.load(Ordering::Relaxed),
        }
    }

    pub(super) fn set_ownership(&self, of: Ownership) {
        self.mode.store(of.mode, Ordering::Relaxed);
        self.uid.store(of.uid, Ordering::Relaxed);
        self.gid.store(of.gid, Ordering::Relaxed);
    }

    /// What was agreed on, written down.
    pub(super) fn agreement(&self) -> SavedFuseAgreement {
        SavedFuseAgreement {
            max_write: self.max_transfer(),
            direct: self.is_direct(),
        }
    }

    pub(super) const fn is_direct(&self) -> bool {
        self.agreement.direct
    }

    pub(super) const fn max_transfer(&self) -> u32 {
        self.agreement.max_transfer
    }

    /// A request was taken.
    pub(super) fn begun(&self) {
        self.in_flight.fetch_add(1, Ordering::Relaxed);
    }

    /// A request is answered, as far as others can know.
    pub(super) fn ended(&self) {
        self.in_flight.fetch_sub(1, Ordering::Relaxed);
    }

    /// How many requests were taken and not answered.
    pub(super) fn in_flight(&self) -> u32 {
        self.in_flight.load(Ordering::Relaxed)
    }
}
