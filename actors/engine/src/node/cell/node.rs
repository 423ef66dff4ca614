//! The node cell: a driver with its children, its gate and its counters, pinned to one iothread.

use std::cell::{Cell, RefCell};
use std::rc::{Rc, Weak};
use std::sync::Arc;
use std::task::{Poll, Waker};

use futures_util::future::LocalBoxFuture;
use millpond_drivers::api::{Abilities, Child, Driver, DriverKind, Events, Exchanged, LengthSource};
use millpond_messages::{
    ChildSlot, DebugEvent, Error, ErrorKind, IoError, IoResult, Limits, NodeId, OpenFlags, RequestFlags,
    Result, SECTOR_SIZE, Token,
};

use crate::node::cell::edge::{self, Behind, EdgeCell};
use crate::node::cell::kept::{Asked, Kept, Listener};
use crate::node::entry::root::RootCell;
use crate::node::gate::overlap::Tracker;
use crate::node::gate::sections::Gate;
use crate::node::gate::statistics::Counters;
use crate::node::order::mail::{Event, NodeAddress, NodeSettings, OpenFacts};
use crate::node::table::NodeTable;

/// A node on its iothread.
pub struct NodeCell {
    id: NodeId,
    name: String,
    kind: Arc<dyn DriverKind>,
    /// None once the node was closed or has moved away.
    driver: RefCell<Option<Rc<dyn Driver>>>,
    /// Of the children that the driver declares, which requests take: the list stays as it is.
    edges: Vec<Rc<EdgeCell>>,
    /// Of the numbered children, which come and go while the node is still. Only the driver sends over them.
    numbered: RefCell<Vec<(ChildSlot, Rc<EdgeCell>)>>,
    gate: Gate,
    tracker: Rc<Tracker>,
    counters: Counters,
    flags: Cell<OpenFlags>,
    settings: Cell<NodeSettings>,
    abilities: Cell<Abilities>,
    /// How many have asked for copy-on-read.
    copy_on_read: Cell<u32>,
    /// Of the abilities, what every request looks at.
    events: Cell<Events>,
    /// Whether requests that pass this node are tracked.
    tracks: Cell<bool>,
    /// Root edges whose requests may be serialised against all others of the node.
    serialisers: Cell<u32>,
    /// While the driver hears events.
    listening: RefCell<Option<Listening>>,
    limits: Cell<Limits>,
    size: Cell<u64>,
    /// What is known of the nodes below, and need not be asked again.
    kept: Kept,
    /// Counts writes; what was flushed is durable up to the count at that time.
    written: Cell<u64>,
    flushed: Cell<u64>,
    /// Whether the driver's last flush failed.
    flush_failed: Cell<bool>,
    /// While a flush is under way: those that wait for it.
    flushing: RefCell<Option<Vec<Waker>>>,
    /// The node-level part of a prepared reopen.
    reopening: Cell<Option<(NodeSettings, OpenFlags)>>,
    /// What holds again if other data behind the edges is taken away again.
    exchanged: RefCell<Option<PutAside>>,
    roots: RefCell<Vec<Weak<RootCell>>>,
    table: Weak<NodeTable>,
}

/// What a node was before the data behind its edges was exchanged.
struct PutAside {
    driver: Exchanged,
    size: u64,
    highest_write: u64,
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
    /// How many have asked for copy-on-read.
    pub copy_on_read: u32,
    /// Whether something may have been written that is not durable yet.
    pub unflushed: bool,
}

impl NodeCell {
    /// A cell. What its driver can do is asked by [`NodeCell::refresh`].
    pub fn new(parts: CellParts, table: &Rc<NodeTable>) -> Rc<Self> {
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
            listening: RefCell::default(),
            limits: Cell::default(),
            size: Cell::new(whole_sectors(parts.size)),
            kept: Kept::default(),
            written: Cell::new(u64::from(parts.unflushed)),
            flushed: Cell::new(0),
            flush_failed: Cell::new(false),
            flushing: RefCell::default(),
            reopening: Cell::new(None),
            exchanged: RefCell::default(),
            roots: RefCell::default(),
            table: Rc::downgrade(table),
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

    /// Puts a node behind a child's edge, or none, and tells the driver. A numbered child comes and goes with its node.
    ///
    /// # Errors
    /// The driver has no such child.
    pub fn connect(&self, slot: ChildSlot, target: Option<NodeAddress>, table: &NodeTable) -> Result<()> {
        match self.edge(slot) {
            Some(edge) => edge.connect(target, table),
            None if self.kind.numbered().is_none() => {
                return Err(Error::new(ErrorKind::NotFound, "The node has no such child"));
            }
            None => self.connect_numbered(slot, target, table),
        }
        if let Ok(driver) = self.driver() {
            let children: Vec<Child> = self.all_edges().into_iter().map(edge::child).collect();
            driver.children_changed(&children);
        }
        self.refresh()
    }

    fn connect_numbered(&self, slot: ChildSlot, target: Option<NodeAddress>, table: &NodeTable) {
        let mut numbered = self.numbered.borrow_mut();
        match (numbered.binary_search_by_key(&slot, |(slot, _)| *slot), target) {
            (Ok(at), None) => {
                let (_, edge) = numbered.remove(at);
                edge.connect(None, table);
            }
            (Ok(at), target) => {
                if let Some((_, edge)) = numbered.get(at) {
                    edge.connect(target, table);
                }
            }
            (Err(_), None) => {}
            (Err(at), target) => numbered.insert(at, (slot, EdgeCell::connected(target, table))),
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

    /// Takes the driver out: the node is closing or moving.
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
        }
    }

    /// Whether [`NodeCell::size`] is the driver's length, which need not be asked for again.
    pub fn keeps_length(&self) -> bool {
        self.kept.has_length()
    }

    /// The driver was asked for its length after `asked`, and [`NodeCell::size`] is that: it is kept for parents where it
    /// follows from what is kept below.
    pub fn keep_length(&self, asked: Asked) {
        let is_kept = |edge: Rc<EdgeCell>| match edge.behind() {
            Behind::None => true,
            Behind::Here(child) => {
                child.abilities.get().length == LengthSource::Requests || child.keeps_length()
            }
            // Its changes are not seen here.
            Behind::There(_) => false,
        };
        if self.abilities.get().length == LengthSource::Children && self.all_edges().into_iter().all(is_kept)
        {
            self.kept.keep_length(asked);
        }
    }

    /// A parent is told the length, and may keep what it makes of it.
    pub fn rely_on_length(&self) {
        self.kept.rely();
    }

    pub fn is_read_only(&self) -> bool {
        self.flags.get().is_read_only()
    }

    pub fn table(&self) -> Option<Rc<NodeTable>> {
        self.table.upgrade()
    }

    /// Whether requests that pass this node are tracked: the driver wants some serialised against the others, or a root
    /// edge does.
    pub fn tracks(&self) -> bool {
        self.tracks.get()
    }

    /// Whether they are whoever uses the node: its driver wants it.
    pub fn tracks_for_driver(&self) -> bool {
        !self.is_read_only() && self.abilities.get().serialise_granularity > 0
    }

    fn refresh_tracks(&self) {
        self.tracks
            .set(self.tracks_for_driver() || self.serialisers.get() > 0);
    }

    /// One more root edge has requests that are serialised against all others. The node is still: what would be in flight
    /// untracked would be missed.
    pub fn add_serialiser(&self) {
        self.serialisers.set(self.serialisers.get() + 1);
        self.refresh_tracks();
    }

    /// One less. Whatever is tracked at the moment stays so until it ends.
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

    /// Whether the transfers of the driver itself are tracked: some may become read-modify-write.
    pub fn tracks_blocks(&self) -> bool {
        !self.is_read_only() && self.limits.get().request_alignment > 1
    }

    /// Notes that data was written up to `end`.
    pub fn wrote(&self, end: u64) {
        self.written.set(self.written.get().wrapping_add(1));
        self.counters.wrote(end);
        if end > self.size.get() {
            self.set_size(end);
        }
    }

    /// Notes the end of a write up to `end`. One that failed may have stored any part of its data, which is to
    /// be flushed and may have made the node longer.
    pub fn ended_write(&self, end: u64, result: IoResult<()>) {
        self.wrote(if result.is_ok() { end } else { 0 });
        if result.is_err() {
            self.kept.changed();
        }
    }

    /// The count of writes so far, if some of them are not known to be durable.
    pub fn unflushed(&self) -> Option<u64> {
        (self.written.get() != self.flushed.get()).then(|| self.written.get())
    }

    /// A flush that began when the count of writes was `written` has ended well.
    pub fn flushed(&self, written: u64) {
        self.flushed.set(written);
    }

    /// Notes how the driver's flush ended; answers whether the one before it failed.
    pub fn note_flush(&self, failed: bool) -> bool {
        self.flush_failed.replace(failed)
    }

    /// Waits for the flush under way, if there is one, and is the one under way until the guard is dropped. Flushes that
    /// waited together find what they wanted flushed by the first of them.
    pub async fn begin_flush(self: &Rc<Self>) -> Flushing {
        std::future::poll_fn(|context| {
            let mut flushing = self.flushing.borrow_mut();
            if let Some(waiting) = &mut *flushing {
                waiting.push(context.waker().clone());
                return Poll::Pending;
            }
            *flushing = Some(Vec::new());
            Poll::Ready(())
        })
        .await;
        Flushing(Rc::clone(self))
    }

    /// Asks the driver anew what it can do, and merges the children's limits in.
    ///
    /// # Errors
    /// It asks for more than requests can be made to do. What held before goes on to hold.
    pub fn refresh(&self) -> Result<()> {
        let Ok(driver) = self.driver() else { return Ok(()) };
        // Whatever was changed may have changed what nodes above have kept.
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
        self.listening
            .replace((abilities.events == Events::Heard).then(Listening::begin));
        self.limits.set(limits);
        self.refresh_tracks();
        Ok(())
    }

    /// The driver goes on with other data behind the edges, of this length.
    ///
    /// # Errors
    /// As [`NodeCell::refresh`]. The old data can be put back in either case.
    pub fn exchange(&self, driver: Exchanged, size: u64) -> Result<()> {
        self.exchanged.replace(Some(PutAside {
            driver,
            size: self.size.get(),
            highest_write: self.counters.highest_write(),
        }));
        self.counters.set_highest_write(0);
        // Whatever was written to the other data before is not known to be durable.
        self.wrote(0);
        self.set_size(size);
        self.refresh()
    }

    /// Nobody goes back to the old data.
    pub fn commit_exchange(&self) {
        self.exchanged.take();
    }

    /// The old data is behind the edges again.
    pub fn abort_exchange(&self) {
        if let Some(aside) = self.exchanged.take() {
            aside.driver.put_back();
            self.set_size(aside.size);
            self.counters.set_highest_write(aside.highest_write);
        }
        // It was asked the same of the old data before.
        if let Err(error) = self.refresh() {
            tracing::warn!(node = self.name(), %error, "a node goes by other limits than its driver's");
        }
    }

    /// Whether a read with these flags is copied up here: one that asks for it, or all where it was turned on. A driver
    /// with nothing below it passes the wish on.
    pub fn copies_up(&self, flags: RequestFlags) -> bool {
        (flags.contains(RequestFlags::COPY_ON_READ) || self.copy_on_read.get() > 0)
            && self.abilities.get().supports_backing
    }

    /// How many have asked for copy-on-read.
    pub fn copy_on_read(&self) -> u32 {
        self.copy_on_read.get()
    }

    /// One more asks for copy-on-read of every read, or one less.
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

    /// Whether this node, or one that it passes events to, listens to them.
    pub fn hears(&self) -> bool {
        if LISTENERS.get() == 0 {
            return false;
        }
        match self.events.get() {
            Events::Ignored => false,
            Events::Heard => true,
            Events::Passed => self.listener_below().is_some(),
        }
    }

    /// The node below that listens to this node's events. One of another iothread does not hear them.
    fn listener_below(&self) -> Option<Rc<Self>> {
        if let Some(known) = self.kept.listener() {
            return known?.upgrade();
        }
        let asked = Asked::now();
        let mut passed: Vec<Rc<Self>> = Vec::new();
        let mut behind = self.edges.first().map(|edge| edge.behind());
        let listener: Listener = loop {
            let Some(Behind::Here(node)) = behind else {
                break None;
            };
            node.kept.rely();
            match node.events.get() {
                Events::Ignored => break None,
                Events::Heard => break Some(Rc::downgrade(&node)),
                Events::Passed => {}
            }
            if let Some(known) = node.kept.listener() {
                break known;
            }
            behind = node.edges.first().map(|edge| edge.behind());
            passed.push(node);
        };
        for node in passed.iter().map(Rc::as_ref).chain([self]) {
            node.kept.keep_listener(asked, listener.clone());
        }
        listener?.upgrade()
    }

    /// Tells whoever listens of an event. Whatever it belongs to waits for the future, where there is one.
    pub fn debug_event(&self, event: DebugEvent) -> Option<LocalBoxFuture<'static, ()>> {
        if LISTENERS.get() == 0 {
            return None;
        }
        let driver = match self.events.get() {
            Events::Ignored => return None,
            Events::Heard => self.driver(),
            Events::Passed => self.listener_below()?.driver(),
        };
        driver.ok()?.debug().debug_event(event)
    }

    /// Remembers the node-level part of a reopen until it is committed.
    pub fn prepare_reopen(&self, settings: NodeSettings, flags: OpenFlags) {
        self.reopening.set(Some((settings, flags)));
    }

    /// The prepared part holds from now on.
    ///
    /// # Errors
    /// As [`NodeCell::refresh`].
    pub fn commit_reopen(&self) -> Result<()> {
        if let Some((settings, flags)) = self.reopening.take() {
            self.settings.set(settings);
            self.flags.set(flags);
        }
        self.refresh()
    }

    /// The prepared part is forgotten.
    pub fn abort_reopen(&self) {
        self.reopening.set(None);
    }

    pub fn facts(&self, backing: Option<millpond_drivers::api::BackingLink>) -> OpenFacts {
        OpenFacts {
            flags: self.flags.get(),
            backing,
            size: self.size.get(),
            abilities: self.abilities.get(),
            limits: self.limits.get(),
            filename: self.driver().ok().and_then(|driver| driver.image().filename()),
        }
    }

    pub fn add_root(&self, root: &Rc<RootCell>) {
        let mut roots = self.roots.borrow_mut();
        roots.retain(|other| other.strong_count() > 0);
        roots.push(Rc::downgrade(root));
    }

    pub fn remove_root(&self, root: &Rc<RootCell>) {
        root.stop_serialising(self);
        self.roots
            .borrow_mut()
            .retain(|other| !std::ptr::eq(other.as_ptr(), Rc::as_ptr(root)));
    }

    pub fn roots(&self) -> Vec<Rc<RootCell>> {
        self.roots.borrow().iter().filter_map(Weak::upgrade).collect()
    }

    /// Closes the gate for a section. Answers when nothing is in flight and the driver's background work has stopped.
    pub fn quiesce(self: &Rc<Self>, token: Token) {
        if self.gate.close(token) {
            self.stop_background();
        }
        self.answer_quiesce();
    }

    fn stop_background(self: &Rc<Self>) {
        let (Ok(driver), Some(table)) = (self.driver(), self.table()) else {
            self.gate.stopped();
            return;
        };
        let cell = Rc::clone(self);
        table.local().spawn(async move {
            driver.quiesce().await;
            if cell.gate.stopped() {
                driver.resume();
            }
            cell.answer_quiesce();
        });
    }

    /// Ends a section; the last one lets parked requests go on.
    pub fn resume(&self, token: Token) {
        if !self.gate.release(token) {
            return;
        }
        if self.gate.starts()
            && let Ok(driver) = self.driver()
        {
            driver.resume();
        }
        for root in self.roots() {
            root.wake_first();
        }
        self.gate.wake_waiting();
    }

    /// Tells the graph actor of every section that this node is still for, if it is.
    pub fn answer_quiesce(&self) {
        let Some(table) = self.table() else { return };
        for token in self.gate.take_answerable() {
            table.tell(Event::Quiesced(self.id, token));
        }
    }
}

/// A node is as long as the sectors that hold its last byte: what is missing in the last one reads as zeroes.
fn whole_sectors(size: u64) -> u64 {
    size.checked_next_multiple_of(SECTOR_SIZE).unwrap_or(size)
}

thread_local! {
    /// How many nodes of this thread have a driver that hears events. Mostly none, and then no request looks for one.
    static LISTENERS: Cell<usize> = const { Cell::new(0) };
}

/// Counts a node among those whose driver hears events.
struct Listening;

impl Listening {
    fn begin() -> Self {
        LISTENERS.set(LISTENERS.get() + 1);
        Self
    }
}

impl Drop for Listening {
    fn drop(&mut self) {
        LISTENERS.set(LISTENERS.get() - 1);
    }
}

/// The one flush of a node that is under way.
pub struct Flushing(Rc<NodeCell>);

impl Drop for Flushing {
    fn drop(&mut self) {
        for waker in self.0.flushing.take().into_iter().flatten() {
            waker.wake();
        }
    }
}
