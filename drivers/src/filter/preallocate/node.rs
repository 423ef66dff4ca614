//! An open node: how it makes the file grow ahead, and how it gives back what was not used.

use std::cell::{Cell, RefCell};
use std::rc::Rc;

use millpond_messages::graph::Options;
use millpond_messages::io::Preallocation;
use millpond_messages::{Error, IoResult, Range, RequestFlags, Result};

use super::ends::{Ends, Need};
use super::options::Room;
use crate::api::{Child, Exchanged, PassThrough};
use crate::replica::copies::{Held, Ranges, Use};

/// What becomes of the ends when prepared permissions are committed.
#[derive(Debug, Clone, Copy)]
pub(super) enum Pending {
    Begin(Ends),
    Keep,
    Forget,
}

/// A node of the driver that is open.
pub(super) struct Preallocate {
    pub options: RefCell<Options>,
    pub room: Cell<Room>,
    pub below: PassThrough,
    /// The ends, as long as nobody but this node can change them.
    pub ends: Cell<Option<Ends>>,
    pub pending: Cell<Option<Pending>>,
    pub reopening: RefCell<Option<(Options, Room)>>,
    /// Whether the file is about to be given up, so that it grows no more than it must.
    pub leaving: Cell<bool>,
    /// The ranges whose length is being changed: one change of length runs at a time.
    growing: Ranges,
    /// How many writes are under way for which no room was made.
    unplanned: Cell<usize>,
}

/// Counts a write for which no room was made.
pub(super) struct Unplanned<'a>(&'a Cell<usize>);

impl Drop for Unplanned<'_> {
    fn drop(&mut self) {
        self.0.set(self.0.get().saturating_sub(1));
    }
}

impl Preallocate {
    pub fn new(options: Options, room: Room, below: PassThrough, ends: Option<Ends>) -> Self {
        Self {
            options: RefCell::new(options),
            room: Cell::new(room),
            below,
            ends: Cell::new(ends),
            pending: Cell::default(),
            reopening: RefCell::default(),
            leaving: Cell::default(),
            growing: Ranges::default(),
            unplanned: Cell::default(),
        }
    }

    /// The child that is made longer.
    pub fn file(&self) -> &Child {
        self.below.child()
    }

    fn change<T>(&self, change: impl FnOnce(&mut Ends) -> T) -> Option<T> {
        let mut ends = self.ends.get()?;
        let answer = change(&mut ends);
        self.ends.set(Some(ends));
        Some(answer)
    }

    async fn alone(&self) -> Held<'_> {
        self.growing.hold(0, 1, Use::Write).await
    }

    /// Makes room for a write. Answers whether it is needed no more, since it wants zeroes where zeroes are.
    pub async fn make_room(&self, offset: u64, end: u64, zeroes: bool) -> bool {
        match self.change(|ends| ends.written(offset, end, zeroes)) {
            None | Some(Need::Nothing) => false,
            Some(Need::Covered) => true,
            Some(Need::Room) => {
                let _alone = self.alone().await;
                // A change of length may have come first.
                self.change(|ends| ends.data = ends.data.max(end));
                self.grow(offset, end, zeroes).await
            }
        }
    }

    /// Counts a write that may make the file longer by itself, until the answer is dropped.
    pub fn begin_write(&self, end: u64) -> Option<Unplanned<'_>> {
        self.ends.get().filter(|ends| ends.grows(end))?;
        self.unplanned.set(self.unplanned.get().saturating_add(1));
        Some(Unplanned(&self.unplanned))
    }

    /// Adds zeroes to the file, unless somebody has done so meanwhile.
    async fn grow(&self, offset: u64, end: u64, zeroes: bool) -> bool {
        // A write under way beyond the file's end must not be zeroed.
        if self.leaving.get() || self.unplanned.get() > 0 {
            return false;
        }
        if self.learn_end().await.is_err() {
            return false;
        }
        let Some(ends) = self.ends.get() else { return false };
        let need = ends.need(offset, end, zeroes);
        let (Need::Room, Some(file)) = (need, ends.file) else {
            return need == Need::Covered;
        };
        let alignment = u64::from(self.file().limits().request_alignment).max(1);
        let first = if zeroes { offset.min(file) } else { file };
        let (Some(start), Some(until)) = (
            first.checked_next_multiple_of(alignment),
            self.room.get().beyond(end),
        ) else {
            return false;
        };
        let ahead = Range::between(start, until);
        let done = self.file().write_zeroes(ahead, RequestFlags::NO_FALLBACK).await;
        self.change(|ends| ends.file = done.is_ok().then_some(until));
        zeroes && done.is_ok()
    }

    /// Finds out where the file ends, if that is not known.
    async fn learn_end(&self) -> IoResult<()> {
        if self.ends.get().is_some_and(|ends| ends.file.is_none()) {
            let length = self.file().length().await?;
            self.change(|ends| ends.file = Some(length));
        }
        Ok(())
    }

    /// Has writes beyond the data wait for whoever is alone: they would be cut off else.
    fn hold_back_growth(&self) {
        self.change(|ends| ends.file = None);
    }

    /// Cuts the file where the data ends.
    pub async fn give_back(&self) -> Result<()> {
        let _alone = self.alone().await;
        self.cut().await
    }

    async fn cut(&self) -> Result<()> {
        let learnt = self.learn_end().await;
        learnt.map_err(|error| Error::io("Failed to get file length", error))?;
        let Some(ends) = self.ends.get().filter(|ends| ends.file > Some(ends.data)) else {
            return Ok(());
        };
        self.hold_back_growth();
        let flags = RequestFlags::empty();
        let cut = self
            .file()
            .resize(ends.data, true, Preallocation::Off, flags)
            .await;
        self.change(|now| now.file = cut.is_ok().then_some(ends.data));
        cut
    }

    /// Another file is there, from which nothing was taken yet.
    pub async fn learn_other_file(self: Rc<Self>) -> Result<Exchanged> {
        let alignment = self.file().limits().request_alignment;
        let reopening = self
            .reopening
            .borrow()
            .as_ref()
            .map(|(options, _)| options.clone());
        let options = reopening.unwrap_or_else(|| self.options.borrow().clone());
        Room::parse(options, alignment)?;
        let length = self.file().length().await;
        let length = length.map_err(|error| Error::io("Failed to get file length", error))?;
        if let Some(Pending::Begin(_)) = self.pending.get() {
            self.pending.set(Some(Pending::Begin(Ends::of(length))));
        }
        let old = self.ends.get();
        self.ends.set(old.map(|_| Ends::of(length)));
        Ok(Exchanged::with_old_state(move || self.ends.set(old)))
    }

    /// Changes the length. What was set aside becomes a part of the data, or goes.
    pub async fn resize(
        &self,
        size: u64,
        exact: bool,
        preallocation: Preallocation,
        flags: RequestFlags,
    ) -> Result<()> {
        let _alone = self.alone().await;
        if let Some(ends) = self.ends.get().filter(|ends| size > ends.data) {
            let is_there = ends.file.is_some_and(|file| size <= file);
            if preallocation == Preallocation::Falloc && is_there {
                self.change(|ends| ends.data = size);
                return Ok(());
            }
            if preallocation != Preallocation::Falloc {
                self.cut().await.map_err(|error| {
                    error.within("preallocate-filter: failed to drop write-zero preallocation")
                })?;
            }
        }
        self.hold_back_growth();
        let resized = self.file().resize(size, exact, preallocation, flags).await;
        if self.ends.get().is_some() {
            // Whatever it left there counts as data.
            let length = self.file().length().await.ok();
            self.ends.set(length.map(Ends::of));
        }
        resized
    }
}
