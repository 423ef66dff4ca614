//! qcow2: an image format with allocation on write, backing files, zero clusters, compression and refcounts.
//!
//! # How it works
//! An image's tables live in [`state::State`], which changes only in synchronous steps. A step that misses something
//! (a table that is not cached, a cluster that another write was given) changes nothing and says what it needs; the
//! driver gets that and tries again. So no lock is held across a wait, and the common case answers at once.
//!
//! ```text
//!   locate ----> state.locate ----------> Extent
//!   place  ----> state.place  ----------> Placement, ticket
//!   settle ----> state.link / give_back
//!                  | Need(Slice | Refblock | Table | Writeback | Ticket)
//!                  v
//!                satisfy: load, make, write back or wait; then the step again
//! ```
//!
//! # What reaches the file, and when
//! Changed tables stay in memory until a flush, the cache's bounds, or the close. A write-back takes a snapshot of all
//! that changed at one moment and writes it in this order, so that a crash at any point leaves at most leaked clusters:
//!
//! 1. refcount blocks, then the refcount table's entries for new ones;
//! 2. a flush, which also makes data durable that was copied to new clusters;
//! 3. L2 slices, a flush, and L1 entries;
//! 4. where references were dropped: a flush, and only then the refcounts go down and the clusters may be used again.
//!
//! The format is described in QEMU's `docs/interop/qcow2.txt`.

mod activate;
mod allocate;
mod amend;
mod bitmaps;
mod bytes;
mod cache;
mod census;
mod check;
mod compress;
mod create;
mod driver;
mod entry;
mod exchange;
mod extensions;
mod fields;
mod gate;
mod geometry;
mod header;
mod index;
mod info;
mod kind;
mod load;
mod locate;
mod options;
mod overlap;
mod packed;
mod preallocation;
mod refcount;
mod repair;
mod state;
mod table;
mod truncate;
mod writeback;
mod zero_discard;

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::time::Instant;

use millpond_messages::graph::Options;
use millpond_messages::{IoResult, OpenFlags};

use crate::api::{Answer, Child};
use activate::Prepared;
use compress::LastCluster;
use gate::{Gates, Key};
use millpond_ring::Ring;
use state::{Need, State, Stop, Try};

pub use kind::Qcow2Kind;

/// An open qcow2 image.
pub(crate) struct Qcow2 {
    file: Child,
    backing: Child,
    ring: Ring,
    state: RefCell<State>,
    gates: Gates,
    /// The cluster decompressed last.
    last: RefCell<Option<LastCluster>>,
    /// What the node was opened with, or reopened last. Settings depend on the image too, which may be exchanged.
    given: RefCell<Given>,
    /// A reopen between its preparation and its end.
    prepared: RefCell<Option<Prepared>>,
    /// When unused tables were last dropped.
    cleaned: Cell<Instant>,
}

/// What a node is opened with.
#[derive(Debug, Clone, Default)]
struct Given {
    options: Options,
    flags: OpenFlags,
}

impl Qcow2 {
    fn new(file: Child, backing: Child, ring: Ring, state: State, given: Given) -> Rc<Self> {
        let cleaned = Cell::new(ring.now());
        Rc::new(Self {
            file,
            backing,
            ring,
            state: RefCell::new(state),
            gates: Gates::default(),
            last: RefCell::default(),
            given: RefCell::new(given),
            prepared: RefCell::default(),
            cleaned,
        })
    }

    /// Runs a step until it happens: at once if nothing is missing.
    fn run<'a, T: 'a>(&'a self, mut step: impl FnMut(&mut State) -> Try<T> + 'a) -> Answer<'a, IoResult<T>> {
        let result = step(&mut self.state.borrow_mut());
        match result {
            Ok(value) => Answer::ready(Ok(value)),
            Err(Stop::Fail(error)) => Answer::ready(Err(error)),
            Err(mut stop) => Answer::wait(async move {
                loop {
                    self.satisfy(stop).await?;
                    let result = step(&mut self.state.borrow_mut());
                    match result {
                        Ok(value) => return Ok(value),
                        Err(next) => stop = next,
                    }
                }
            }),
        }
    }

    /// Does what a step needs, or fails as it failed.
    async fn satisfy(&self, stop: Stop) -> IoResult<()> {
        match stop {
            Stop::Fail(error) => Err(error),
            Stop::Corrupt(corruption) => Err(self.found_corruption(corruption).await),
            Stop::Need(Need::Slice(key)) => self.load_slice(key).await,
            Stop::Need(Need::Refblock(index)) => self.load_refblock(index).await,
            Stop::Need(Need::Ticket(id)) => {
                self.gates.wait(Key::Ticket(id)).await;
                Ok(())
            }
            Stop::Need(Need::Activation) => self.activate_late().await,
            Stop::Need(Need::Preallocation) => self.detect_preallocation().await,
            Stop::Need(Need::Thaw) => {
                self.gates.wait(Key::Resize).await;
                Ok(())
            }
            Stop::Need(Need::Table(index)) => self.make_table(index).await,
            Stop::Need(Need::Writeback) => self.write_back(true).await,
        }
    }
}
