//! An open image as its driver has it: the state, the waits, and the loop that repeats a step until it happens.

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::time::Instant;

use millpond_messages::graph::Options;
use millpond_messages::{IoResult, OpenFlags};

use super::encryption::PreparedKeys;
use super::file::{BackingFile, ImageFile};
use super::options::Settings;
use super::state::{Blocked, Need, State, Step};
use super::wait::{Key, KeyedWait};
use crate::api::{Answer, Child};
use crate::secret::Secrets;
use millpond_ring::Ring;

/// A node's children: the file, the backing file, and the external data file.
pub(super) type Children = [Child; 3];

/// An open qcow2 image.
pub(crate) struct Qcow2 {
    pub file: ImageFile,
    /// The file with the guest's data: the image's own, or an external data file.
    pub data: ImageFile,
    pub backing: BackingFile,
    pub ring: Ring,
    pub state: RefCell<State>,
    pub waits: KeyedWait,
    /// The cluster decompressed last.
    pub last: RefCell<Option<LastCluster>>,
    /// The options and flags of the last open or reopen. Settings depend on the image too, which may be exchanged.
    pub given: RefCell<GivenOptions>,
    /// A reopen that was prepared, and is neither committed nor aborted.
    pub prepared: RefCell<Option<Prepared>>,
    /// Where passwords are found.
    pub secrets: Secrets,
    /// A change of the keys that only has to be written.
    pub prepared_keys: RefCell<Option<PreparedKeys>>,
    /// When unused tables were last dropped.
    pub cleaned: Cell<Instant>,
}

/// What a node is opened with.
#[derive(Debug, Clone, Default)]
pub(super) struct GivenOptions {
    pub options: Options,
    pub flags: OpenFlags,
    /// Where the secret is found that the options name.
    pub secrets: Secrets,
}

/// Options of a reopen that were checked, and what they change.
pub(super) struct Prepared {
    pub given: GivenOptions,
    pub settings: Settings,
    pub writable: bool,
}

/// A decompressed cluster, known by its L2 entry.
pub(super) struct LastCluster {
    pub entry: u64,
    pub data: Rc<Vec<u8>>,
}

impl Qcow2 {
    pub fn new(children: Children, ring: Ring, state: State, given: GivenOptions) -> Rc<Self> {
        let cleaned = Cell::new(ring.now());
        let [file, backing, data_file] = children;
        let data = if state.geometry.external {
            data_file
        } else {
            file.clone()
        };
        Rc::new(Self {
            file: ImageFile::new(file),
            data: ImageFile::new(data),
            backing: BackingFile::new(backing),
            ring,
            state: RefCell::new(state),
            waits: KeyedWait::default(),
            last: RefCell::default(),
            secrets: given.secrets.clone(),
            given: RefCell::new(given),
            prepared: RefCell::default(),
            prepared_keys: RefCell::default(),
            cleaned,
        })
    }

    /// Runs a step until it happens: at once if nothing is missing.
    pub fn run<'a, T: 'a>(
        &'a self,
        mut step: impl FnMut(&mut State) -> Step<T> + 'a,
    ) -> Answer<'a, IoResult<T>> {
        let result = step(&mut self.state.borrow_mut());
        match result {
            Ok(value) => Answer::ready(Ok(value)),
            Err(Blocked::Fail(error)) => Answer::ready(Err(error)),
            Err(mut blocked) => Answer::wait(async move {
                loop {
                    self.satisfy(blocked).await?;
                    let result = step(&mut self.state.borrow_mut());
                    match result {
                        Ok(value) => return Ok(value),
                        Err(next) => blocked = next,
                    }
                }
            }),
        }
    }

    /// Does what a blocked step needs, or fails with the step's error.
    pub async fn satisfy(&self, blocked: Blocked) -> IoResult<()> {
        match blocked {
            Blocked::Fail(error) => Err(error),
            Blocked::Corrupt(corruption) => Err(self.found_corruption(corruption).await),
            Blocked::Need(Need::Slice(key)) => self.load_slice(key).await,
            Blocked::Need(Need::Refblock(index)) => self.load_refblock(index).await,
            Blocked::Need(Need::Allocation(id)) => {
                self.waits.wait(Key::Allocation(id)).await;
                Ok(())
            }
            Blocked::Need(Need::Activation) => self.activate_late().await,
            Blocked::Need(Need::Preallocation) => self.detect_preallocation().await,
            Blocked::Need(Need::Thaw) => {
                self.waits.wait(Key::Resize).await;
                Ok(())
            }
            Blocked::Need(Need::Table(index)) => self.make_table(index).await,
            Blocked::Need(Need::Writeback) => self.write_back(true).await,
        }
    }
}
