//! The node cell: a driver with its children, its gate and its counters, pinned to one iothread.

use std::cell::{Cell, RefCell};
use std::rc::{Rc, Weak};
use std::sync::Arc;

use millpond_drivers::api::{Abilities, DebugEvents, Driver, DriverKind, LengthSource};
use millpond_messages::{
    ChildSlot, Error, ErrorKind, IoError, IoResult, Limits, NodeId, OpenFlags, RequestFlags, Result,
    SECTOR_SIZE,
};

use super::bitmaps::{Bitmap, Bitmaps};
use super::durability::Durability;
use super::edge::{Behind, EdgeCell};
use super::home::Home;
use super::kept::{AskedAt, Kept, Observing};
use super::prepared::Prepared;
use super::threshold::WriteThreshold;
use crate::node::gate::overlap::Tracker;
use crate::node::gate::sections::Gate;
use crate::node::gate::statistics::Counters;
use crate::node::order::outcome::{NodeSettings, OpenFacts};

/// The node that observes another's debug events, if there is one.
pub type Observer = Option<Weak<NodeCell>>;

/// A node on its iothread.
pub struct NodeCell {
    pub(super) id: NodeId,
    name: String,
    kind: Arc<dyn DriverKind>,
    /// The driver; None once the node was closed or has moved away.
    driver: RefCell<Option<Rc<dyn Driver>>>,
    /// The edges to the children that the driver declares. Requests pass over them, and the list never changes.
    edges: Vec<Rc<EdgeCell>>,
    /// The edges to the numbered children, which come and go while the node is still. Only the driver sends over them.
    numbered: RefCell<Vec<(ChildSlot, Rc<EdgeCell>)>>,
    pub(super) gate: Gate,
    tracker: Rc<Tracker>,
    pub(super) counters: Counters,
    pub(super) flags: Cell<OpenFlags>,
    pub(super) settings: Cell<NodeSettings>,
    abilities: Cell<Abilities>,
    /// How many users have turned copy-on-read on for every read.
    copy_on_read: Cell<u32>,
    /// A copy of `abilities.events`, which every request reads.
    pub(super) events: Cell<DebugEvents>,
    /// Whether requests that pass this node are tracked.
    tracks: Cell<bool>,
    /// How many root edges have requests that may be serialised against all others of the node.
    serialisers: Cell<u32>,
    /// Held while the driver handles debug events.
    observing: RefCell<Option<Observing>>,
    limits: Cell<Limits>,
    pub(super) size: Cell<u64>,
    /// What is known of the nodes below, and need not be asked again.
    pub(super) kept: Kept<Observer>,
    /// Which writes were not flushed yet, and the flush under way.
    durability: Rc<Durability>,
    /// The end of a write that is reported.
    write_threshold: WriteThreshold,
    /// What has changed since somebody began to look.
    bitmaps: Bitmaps,
    /// What a change that is under way has prepared.
    pub(super) prepared: Prepared,
    home: Rc<Home>,
}

/// What a cell is made from, at open and on arrival.
pub struct CellParts {
    pub id: NodeId,
    pub name: String,
    pub kind: Arc<dyn DriverKind>,
    pub driver: Rc<dyn Driver>,
    pub edges: Vec<Rc<EdgeCell>>,
    pub numbered: Vec<(ChildSlot, Rc<EdgeCell>)>,
    pub gate: Gate,
    pub counters: Counters,
    pub flags: OpenFlags,
    pub settings: NodeSettings,
    pub size: u64,
    /// How many users have turned copy-on-read on for every read.
    pub copy_on_read: u32,
    /// Whether something may have been written that is not durable yet.
    pub unflushed: bool,
    /// The write threshold; 0 for none.
    pub write_threshold: u64,
    pub bitmaps: Vec<Bitmap>,
}

impl NodeCell {
    /// A cell whose driver has not been asked yet what it can do: [`NodeCell::refresh`] does that.
    pub fn new(parts: CellParts, home: &Rc<Home>) -> Rc<Self> {
        Rc::new(Self {
            id: parts.id,
            name: parts.name,
            kind: parts.kind,
            driver: RefCell::new(Some(parts.driver)),
            edges: parts.edges,
            numbered: RefCell::new(parts.numbered),
            gate: parts.gate,
            tracker: Rc::default(),
            counters: parts.counters,
            flags: Cell::new(parts.flags),
            settings: Cell::new(parts.settings),
            abilities: Cell::default(),
            copy_on_read: Cell::new(parts.copy_on_read),
            events: Cell::default(),
            tracks: Cell::default(),
            serialisers: Cell::default(),
            observing: RefCell::default(),
            limits: Cell::default(),
            size: Cell::new(whole_sectors(parts.size)),
            kept: Kept::default(),
            durability: Durability::new(parts.unflushed),
            write_threshold: WriteThreshold::new(parts.write_threshold),
            bitmaps: Bitmaps::new(parts.bitmaps),
            prepared: Prepared::default(),
            home: Rc::clone(home),
        })
    }

    pub fn id(&self) -> NodeId {
        self.id
    }

    pub fn name(&self) -> &str {
        &self.name
    }

    pub fn kind(&self) -> &Arc<dyn DriverKind> {
        &self.kind
    }

    pub fn gate(&self) -> &Gate {
        &self.gate
    }

    pub fn tracker(&self) -> &Rc<Tracker> {
        &self.tracker
    }

    pub fn counters(&self) -> &Counters {
        &self.counters
    }

    pub fn edges(&self) -> &[Rc<EdgeCell>] {
        &self.edges
    }

    /// The edge to a declared child.
    pub fn edge(&self, slot: ChildSlot) -> Option<&Rc<EdgeCell>> {
        self.edges.get(slot.index())
    }

    /// The edges to numbered children, in order.
    pub fn numbered(&self) -> Vec<(ChildSlot, Rc<EdgeCell>)> {
        self.numbered.borrow().clone()
    }

    /// All edges, the numbered ones last.
    pub fn all_edges(&self) -> Vec<Rc<EdgeCell>> {
        let numbered = self.numbered.borrow();
        let numbered = numbered.iter().map(|(_, edge)| edge);
        self.edges.iter().chain(numbered).map(Rc::clone).collect()
    }

    /// Puts a node behind the edge to a child, or none. A numbered child comes and goes with its node. The caller tells the
    /// driver.
    ///
    /// # Errors
    /// The driver has no such child.
    pub fn set_edge(&self, slot: ChildSlot, behind: Behind) -> Result<()> {
        match self.edge(slot) {
            Some(edge) => edge.connect(behind),
            None if self.kind.numbered().is_none() => {
                return Err(Error::new(ErrorKind::NotFound, "The node has no such child"));
            }
            None => self.set_numbered(slot, behind),
        }
        Ok(())
    }

    fn set_numbered(&self, slot: ChildSlot, behind: Behind) {
        let mut numbered = self.numbered.borrow_mut();
        let at = numbered.binary_search_by_key(&slot, |(slot, _)| *slot);
        match (at, matches!(behind, Behind::None)) {
            (Ok(at), true) => {
                let (_, edge) = numbered.remove(at);
                edge.connect(behind);
            }
            (Ok(at), false) => {
                if let Some((_, edge)) = numbered.get(at) {
                    edge.connect(behind);
                }
            }
            (Err(_), true) => {}
            (Err(at), false) => numbered.insert(at, (slot, EdgeCell::to(behind))),
        }
    }

    /// The edge to the backing node, if the driver has such a child at all.
    pub fn backing_edge(&self) -> Option<&Rc<EdgeCell>> {
        let slot = self
            .kind
            .children()
            .iter()
            .position(|child| child.name == "backing")?;
        self.edges.get(slot)
    }

    /// The driver.
    ///
    /// # Errors
    /// The node was closed.
    pub fn driver(&self) -> IoResult<Rc<dyn Driver>> {
        self.driver.borrow().clone().ok_or(IoError::NoMedium)
    }

    /// Takes the driver out of a node that is closing or moving.
    pub fn take_driver(&self) -> Option<Rc<dyn Driver>> {
        self.driver.take()
    }

    pub fn flags(&self) -> OpenFlags {
        self.flags.get()
    }

    pub fn settings(&self) -> NodeSettings {
        self.settings.get()
    }

    pub fn abilities(&self) -> Abilities {
        self.abilities.get()
    }

    pub fn limits(&self) -> Limits {
        self.limits.get()
    }

    pub fn size(&self) -> u64 {
        self.size.get()
    }

    pub fn set_size(&self, size: u64) {
        let size = whole_sectors(size);
        if self.size.replace(size) != size {
            self.kept.changed();
            self.bitmaps.resize(size);
            self.gate.wake_waiting();
        }
    }

    /// Whether [`NodeCell::size`] is the driver's length, which need not be asked for again.
    pub fn keeps_length(&self) -> bool {
        self.kept.has_length()
    }

    /// Notes that [`NodeCell::size`] is the length that the driver answered when it was asked at `asked`. It is kept where the
    /// lengths below that it follows from are kept too.
    pub fn keep_length(&self, asked: AskedAt) {
        let is_kept = |edge: Rc<EdgeCell>| match edge.behind() {
            Behind::None => true,
            Behind::Here(child) => {
                child.abilities.get().length == LengthSource::Requests || child.keeps_length()
            }
            // Changes of a node of another iothread are not seen here.
            Behind::There(_) => false,
        };
        if self.abilities.get().length == LengthSource::Children && self.all_edges().into_iter().all(is_kept)
        {
            self.kept.keep_length(asked);
        }
    }

    /// Notes that a parent was told the length, and may keep what follows from it.
    pub fn rely_on_length(&self) {
        self.kept.rely();
    }

    pub fn is_read_only(&self) -> bool {
        self.flags.get().is_read_only()
    }

    /// The iothread where the node lives, and the way back to the graph actor.
    #[inline]
    pub fn home(&self) -> &Rc<Home> {
        &self.home
    }

    /// Which writes were not flushed yet, and the flush under way.
    #[inline]
    pub fn durability(&self) -> &Rc<Durability> {
        &self.durability
    }

    /// The offset past which a write is reported.
    #[inline]
    pub fn write_threshold(&self) -> &WriteThreshold {
        &self.write_threshold
    }

    /// What has changed since somebody began to look.
    #[inline]
    pub fn bitmaps(&self) -> &Bitmaps {
        &self.bitmaps
    }

    /// Whether requests that pass this node are tracked: the driver wants some serialised against the others, or a root
    /// edge does.
    pub fn tracks(&self) -> bool {
        self.tracks.get()
    }

    /// Whether the driver wants requests that pass this node to be tracked, whoever its users are.
    pub fn tracks_for_driver(&self) -> bool {
        !self.is_read_only() && self.abilities.get().serialise_granularity > 0
    }

    fn refresh_tracks(&self) {
        self.tracks
            .set(self.tracks_for_driver() || self.serialisers.get() > 0);
    }

    /// Counts one more root edge with requests that are serialised against all others. The node is still, because a request
    /// that was in flight untracked would be missed.
    pub fn add_serialiser(&self) {
        self.serialisers.set(self.serialisers.get() + 1);
        self.refresh_tracks();
    }

    /// Counts one such root edge less. Requests that are tracked now stay so until they end.
    pub fn remove_serialiser(&self) {
        self.serialisers.set(self.serialisers.get().saturating_sub(1));
        self.refresh_tracks();
    }

    /// Whether compressed writes are possible: a filter passes on what its child takes.
    pub fn takes_compressed(&self) -> bool {
        let mut node: Option<Rc<Self>> = None;
        loop {
            let at = node.as_deref().unwrap_or(self);
            let takes = at.abilities.get().write_compressed;
            if !takes || !at.kind.is_filter() {
                return takes;
            }
            match at.edges.first().map(|edge| edge.behind()) {
                Some(Behind::Here(child)) => node = Some(child),
                _ => return false,
            }
        }
    }

    /// What a request that must have its range to itself widens it to, so that no other request shares a cluster or a block
    /// with it.
    pub fn exclusive_unit(&self) -> u64 {
        let block = u64::from(self.limits.get().request_alignment);
        self.abilities.get().serialise_granularity.max(block).max(1)
    }

    /// Whether the transfers of the driver itself are tracked: some may become read-modify-write.
    pub fn tracks_blocks(&self) -> bool {
        !self.is_read_only() && self.limits.get().request_alignment > 1
    }

    /// Notes a write that is not durable yet.
    #[inline]
    pub fn mark_unflushed(&self) {
        self.durability.mark_unflushed();
    }

    /// Asks the driver anew what it can do, and merges the children's limits in.
    ///
    /// # Errors
    /// The driver demands what no request can be made to do. What held before still holds.
    pub fn refresh(&self) -> Result<()> {
        let Ok(driver) = self.driver() else { return Ok(()) };
        // The change that made this necessary may concern what nodes above have kept.
        self.kept.changed();
        let abilities = driver.abilities();
        let mut limits = abilities.limits;
        for edge in self.all_edges() {
            if let Some(child) = edge.limits() {
                limits.merge_child(&child);
            }
        }
        limits.request_alignment = limits.request_alignment.max(1);
        limits.mem_alignment = limits.mem_alignment.max(1);
        limits.opt_mem_alignment = limits.opt_mem_alignment.max(1);
        limits.check()?;
        self.abilities.set(abilities);
        self.events.set(abilities.events);
        self.observing
            .replace((abilities.events == DebugEvents::Handle).then(Observing::begin));
        self.limits.set(limits);
        self.refresh_tracks();
        Ok(())
    }

    /// Whether a read with these flags is copied up into this node: the read asks for it, or it was turned on for all reads.
    /// A driver without a backing child leaves it to the nodes below.
    pub fn copies_up(&self, flags: RequestFlags) -> bool {
        (flags.contains(RequestFlags::COPY_ON_READ) || self.copy_on_read.get() > 0)
            && self.abilities.get().supports_backing
    }

    /// How many users have turned copy-on-read on for every read.
    pub fn copy_on_read(&self) -> u32 {
        self.copy_on_read.get()
    }

    /// Counts one more user, or one less, that has copy-on-read turned on for every read.
    ///
    /// # Errors
    /// The node cannot be written, or nobody had asked.
    pub fn change_copy_on_read(&self, on: bool) -> Result<()> {
        let count = self.copy_on_read.get();
        if on && self.is_read_only() {
            let text = "Can't use copy-on-read on read-only device";
            return Err(Error::new(ErrorKind::ReadOnly, text));
        }
        let changed = if on {
            count.checked_add(1)
        } else {
            count.checked_sub(1)
        };
        let changed =
            changed.ok_or_else(|| Error::new(ErrorKind::InvalidArgument, "Copy-on-read is not turned on"))?;
        self.copy_on_read.set(changed);
        Ok(())
    }

    pub fn facts(&self, backing: Option<millpond_drivers::api::BackingLink>) -> OpenFacts {
        OpenFacts {
            flags: self.flags.get(),
            backing,
            data_file: self.driver().ok().and_then(|driver| driver.image().data_file()),
            size: self.size.get(),
            abilities: self.abilities.get(),
            limits: self.limits.get(),
            filename: self.driver().ok().and_then(|driver| driver.image().filename()),
            read_bitmaps: self.bitmaps.read(),
        }
    }
}

/// A node is as long as the sectors that hold its last byte: what is missing in the last one reads as zeroes.
fn whole_sectors(size: u64) -> u64 {
    size.checked_next_multiple_of(SECTOR_SIZE).unwrap_or(size)
}
