//! An open file or device: what goes along when its node moves, and what a change has prepared.

use std::cell::{Cell, RefCell};
use std::sync::Arc;

use futures_channel::oneshot;
use millpond_messages::graph::Options;
use millpond_messages::{IoError, IoResult, OpenFlags, Permissions};
use millpond_ring::{AioMode, Fd, Ring};

use super::known_data::KnownData;
use super::lane::Lane;
use super::open::{Handle, Kind, errno};
use super::ops::Ops;
use super::options::FileOptions;
use crate::api::Answer;

/// What a node was opened with.
#[derive(Debug, Clone)]
pub(super) struct Config {
    pub(super) driver: &'static str,
    pub(super) options: Options,
    pub(super) parsed: FileOptions,
    pub(super) flags: OpenFlags,
    /// Whether other processes are kept away by locks.
    pub(super) locking: bool,
}

/// How the node's parents use it.
#[derive(Debug, Clone, Copy)]
pub(super) struct Usage {
    pub(super) taken: Permissions,
    pub(super) shared: Permissions,
}

impl Usage {
    /// No parent takes any permission, and all are shared.
    pub(super) const NONE: Self = Self {
        taken: Permissions::empty(),
        shared: Permissions::all(),
    };
}

/// The operations that the file system has not refused yet. One that it has refused is not tried again.
#[derive(Debug, Clone, Copy)]
pub(super) struct Caps {
    pub(super) zero_range: bool,
    pub(super) punch_hole: bool,
    pub(super) allocate: bool,
}

impl Caps {
    pub(super) const ALL: Self = Self {
        zero_range: true,
        punch_hole: true,
        allocate: true,
    };
}

/// All of an open file that goes along when its node moves to another iothread.
#[derive(Debug)]
pub(super) struct State {
    pub(super) config: Config,
    pub(super) handle: Handle,
    pub(super) used: Usage,
    pub(super) caps: Caps,
    /// The error of a flush that failed. The kernel may have dropped what it could not write, so no later flush may succeed.
    pub(super) flush_error: Option<IoError>,
    pub(super) releases: Vec<Release>,
}

/// Locks that a thread, which may hang, is giving up. It resolves when they are given up.
pub(super) type Release = oneshot::Receiver<()>;

/// An open file or device.
pub(super) struct File {
    pub(super) ring: Ring,
    pub(super) config: RefCell<Config>,
    pub(super) handle: RefCell<Handle>,
    /// The descriptors of `handle`, ready for use.
    pub(super) ops: RefCell<Ops>,
    pub(super) used: Cell<Usage>,
    /// What a reopen or a change of permissions has prepared.
    pub(super) pending: RefCell<Option<Pending>>,
    /// The releases that must have ended before locks are taken again.
    pub(super) releases: RefCell<Vec<Release>>,
    pub(super) caps: Cell<Caps>,
    pub(super) flush_error: Cell<Option<IoError>>,
    pub(super) known_data: KnownData,
    /// Offloaded copies into the file.
    pub(super) copies: Lane,
}

impl File {
    pub(super) fn new(state: State, ring: Ring) -> Self {
        let State {
            config,
            handle,
            used,
            caps,
            flush_error,
            releases,
        } = state;
        let ops = Ops::new(&ring, &handle, config.parsed.aio());
        Self {
            ring,
            config: RefCell::new(config),
            handle: RefCell::new(handle),
            ops: RefCell::new(ops),
            used: Cell::new(used),
            pending: RefCell::default(),
            releases: RefCell::new(releases),
            caps: Cell::new(caps),
            flush_error: Cell::new(flush_error),
            known_data: KnownData::default(),
            copies: Lane::default(),
        }
    }

    pub(super) fn fd(&self) -> Fd {
        Arc::clone(&self.handle.borrow().fd)
    }

    pub(super) fn kind(&self) -> Kind {
        self.handle.borrow().kind
    }

    pub(super) fn aio(&self) -> AioMode {
        self.config.borrow().parsed.aio()
    }

    pub(super) fn may_unmap(&self) -> bool {
        self.config.borrow().flags.contains(OpenFlags::UNMAP)
    }

    /// The length of the file now, in bytes. A file system of this machine answers from memory.
    pub(super) fn length_now(&self) -> IoResult<u64> {
        end_of(&self.handle.borrow().fd)
    }

    /// The length of the file now. Where the file system may hang, a thread of the pool asks for it.
    pub(super) fn end(&self) -> Answer<'_, IoResult<u64>> {
        if self.handle.borrow().may_hang {
            let fd = self.fd();
            return Answer::wait(self.ring.blocking(move || end_of(&fd)));
        }
        Answer::ready(self.length_now())
    }
}

/// A prepared change. A transaction commits both parts, or none.
#[derive(Debug, Default)]
pub(super) struct Pending {
    pub(super) reopen: Option<Config>,
    pub(super) usage: Option<Usage>,
    /// The descriptor that replaces the one in use with the first commit.
    pub(super) handle: Option<Handle>,
}

/// The length of a file, in bytes. It may block.
pub(super) fn end_of(fd: &Fd) -> IoResult<u64> {
    rustix::fs::seek(fd, rustix::fs::SeekFrom::End(0)).map_err(errno)
}
