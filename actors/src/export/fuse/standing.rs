//! What an export is at the moment, for its iothread, which changes it, and for the control thread, which looks.

use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};

use millpond_messages::saved::SavedFuseAgreement;

use super::attributes::{Ownership, Rules};
use super::wire::MAX_TRANSFER;

/// The state of an export that goes with it from iothread to iothread. Only the one that serves it writes here.
#[derive(Debug)]
pub(super) struct Standing {
    rules: Rules,
    mode: AtomicU32,
    uid: AtomicU32,
    gid: AtomicU32,
    /// The kernel has asked for an agreement, and got it.
    agreed: AtomicBool,
    /// Reads and writes pass the kernel's cache by.
    direct: AtomicBool,
    in_flight: AtomicU32,
}

impl Standing {
    pub(super) fn new(rules: Rules) -> Self {
        let Ownership { mode, uid, gid } = Ownership::new(rules);
        Self {
            rules,
            mode: AtomicU32::new(mode),
            uid: AtomicU32::new(uid),
            gid: AtomicU32::new(gid),
            agreed: AtomicBool::new(false),
            direct: AtomicBool::new(false),
            in_flight: AtomicU32::new(0),
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

    /// An agreement with the kernel was made.
    pub(super) fn agree(&self, direct: bool) {
        self.direct.store(direct, Ordering::Relaxed);
        self.agreed.store(true, Ordering::Release);
    }

    /// What was agreed on, if it was.
    pub(super) fn agreement(&self) -> Option<SavedFuseAgreement> {
        self.agreed.load(Ordering::Acquire).then(|| SavedFuseAgreement {
            max_write: MAX_TRANSFER,
            direct: self.is_direct(),
        })
    }

    pub(super) fn is_direct(&self) -> bool {
        self.direct.load(Ordering::Relaxed)
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
