//! What a driver can do, and what the node does in its place.

use millpond_messages::Limits;

/// How an operation is done that not every driver can do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Ability {
    /// The node refuses it: there is no way round.
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
    /// What the driver demands of requests. The node merges its children's demands in.
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
    /// The status of a range is that of the child which [`At::Child`](super::At::Child) names. True of filters and of `raw`,
    /// false of formats with allocation of their own.
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
    /// What can change the answer of [`Driver::length`](super::Driver::length).
    pub length: LengthSource,
}

/// What can change a driver's length, and so whether the driver has to be asked for it again.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum LengthSource {
    /// The length may change at any time: whoever wants to know it asks the driver.
    #[default]
    Driver,
    /// The length changes only by what the node is asked to do: writes, and changes of length.
    Requests,
    /// The length follows from the children's lengths: the driver is asked again when one of them has changed.
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
