//! What a driver can do, and what the node does in its place.

use millpond_messages::Limits;

/// How a driver stands to something it may be asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Ability {
    /// Refused, with no way round.
    #[default]
    None,
    /// The node does it by other means: zeroes by writing them, FUA by a flush.
    Emulated,
    /// The driver does it.
    Native,
}

/// What a driver can do. The node asks after open, after reopen and after a change of children or length.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Abilities {
    /// What it demands of requests, its children's demands not merged in.
    pub limits: Limits,
    /// Zero writes. `Emulated` writes buffers of zeroes.
    pub write_zeroes: Ability,
    /// Zero writes may deallocate.
    pub zero_unmap: bool,
    /// Discards. `Emulated` and `None` both succeed without effect.
    pub discard: Ability,
    /// Writes with FUA. `Emulated` flushes after the write.
    pub fua: Ability,
    /// Writes with WRITE_COMPRESSED. A filter says that it passes them on: whether that is of use is up to what it filters.
    pub write_compressed: bool,
    /// What [`At::Child`](super::At::Child) leads to is all there is to say: allocation and zeroes are the child's. True of filters and of
    /// `raw`, false of formats with allocation of their own.
    pub transparent: bool,
    /// Unallocated ranges are read from the `backing` child.
    pub supports_backing: bool,
    /// Zero writes and discards wait for, and hold back, requests that overlap the range widened to this power of
    /// two (a format's cluster). 0 where they need not.
    pub serialise_granularity: u64,
    /// A new image of this length reads as zeroes.
    pub has_zero_init: bool,
    /// Writes and zero writes of a parent may pass the end: what is written there makes the driver longer. A transparent
    /// driver need not say so, since its child decides.
    pub grows: bool,
    /// What becomes of debug events that the node and its parents raise.
    pub events: DebugEvents,
    /// What [`Driver::length`](super::Driver::length) goes by.
    pub length: LengthSource,
}

/// What a driver's length goes by: whether it has to be asked for again.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum LengthSource {
    /// It may change at any time: whoever wants to know it asks the driver.
    #[default]
    Driver,
    /// It changes only by what the node is asked to do: writes, and changes of length.
    Requests,
    /// It follows from the children's lengths, and is asked for again when one of them has changed.
    Children,
}

/// What a driver does with [`DebugEvent`](millpond_messages::DebugEvent)s.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum DebugEvents {
    /// They end here: no node below sees them.
    #[default]
    Ignore,
    /// They go on to the first child.
    Forward,
    /// They go to [`DebugPoints::debug_event`](super::DebugPoints::debug_event).
    Handle,
}
