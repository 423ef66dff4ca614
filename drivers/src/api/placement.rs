//! Where data is, and where a write goes: what a driver answers instead of transferring bytes itself.

use millpond_messages::ChildSlot;

/// Why a driver is asked where a range is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Purpose {
    /// To read it: what the answer says of the first byte must hold, how far is as the driver pleases.
    Read,
    /// To report its status. `want_zero` asks to look for zeroes at the cost of a system call.
    Status {
        /// Tell data from zeroes, rather than only allocated from unallocated.
        want_zero: bool,
    },
}

/// Where a range's bytes are found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum At {
    /// The driver itself stores them: [`Driver::read`](super::Driver::read) reads them.
    Own,
    /// A child stores them as they are, at this offset.
    Child {
        /// Which of the declared children.
        slot: ChildSlot,
        /// The offset of the range's first byte there.
        offset: u64,
    },
    /// The driver knows that they are zeroes. Storage may be reserved for them.
    Zero {
        /// The storage reserved, for reports.
        reserved: Option<(ChildSlot, u64)>,
    },
    /// The driver has nothing: the backing child's bytes show through, or zeroes.
    Unallocated,
    /// The driver has them in a form that only [`Driver::read`](super::Driver::read) can read (compressed, encrypted).
    Special,
}

/// The answer to [`Driver::locate`](super::Driver::locate), for the first `len` bytes of the range asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Extent {
    /// How many bytes this holds for: at least 1, at most what was asked.
    pub len: u64,
    /// Where these bytes are.
    pub at: At,
    /// The child may know that the data is zeroes (space preallocated by an image's maker).
    pub recurse: bool,
}

impl Extent {
    /// An extent about whose child nothing more is known.
    #[must_use]
    pub const fn new(len: u64, at: At) -> Self {
        Self {
            len,
            at,
            recurse: false,
        }
    }
}

/// Names what a driver has allocated for a write, to be settled when the write ends.
#[derive(Debug, PartialEq, Eq)]
#[must_use = "a ticket must be settled, else what it holds is never released"]
pub struct AllocationTicket(pub u64);

/// Where a write goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Target {
    /// The write goes to [`Driver::write`](super::Driver::write).
    Own,
    /// To a child. `offset` is where the first byte goes, the head (see [`Placement::head`]) included.
    Child {
        /// Which of the declared children.
        slot: ChildSlot,
        /// The offset at that child.
        offset: u64,
    },
}

/// The answer to [`Driver::place`](super::Driver::place), for the first `len` bytes of the write.
///
/// With a head or a tail, the node reads `head` bytes before the range and `tail` bytes behind it *from the node as
/// it is now* (so from the backing chain where nothing is allocated), and writes head, data and tail to the target in
/// one request: copy-on-write.
#[derive(Debug, PartialEq, Eq)]
pub struct Placement {
    /// How many bytes of the write this holds for: at least 1, at most what was asked.
    pub len: u64,
    /// Where these bytes are to go.
    pub target: Target,
    /// How many bytes in front of the write are copied along.
    pub head: u64,
    /// How many bytes behind the write are copied along. Never past the node's length: beyond it the node writes zeroes.
    pub tail: u64,
    /// What the driver wants back in [`Driver::settle`](super::Driver::settle) once the data is written, or has failed to be.
    pub ticket: Option<AllocationTicket>,
}

impl Placement {
    /// The write goes to [`Driver::write`](super::Driver::write) as it is, and nobody is told of its end.
    #[must_use]
    pub const fn own(len: u64) -> Self {
        Self {
            len,
            target: Target::Own,
            head: 0,
            tail: 0,
            ticket: None,
        }
    }
}
