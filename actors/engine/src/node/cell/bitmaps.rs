//! The dirty bitmaps of a node: which parts of it have changed since each was clear.
//!
//! The bits live here, where the writes are seen, and nowhere else. Names, and who may do what with a bitmap, are the graph
//! actor's matter: it knows a bitmap by its number, and says when it records.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;

use millpond_drivers::api::ImageBitmap;
use millpond_messages::graph::DirtyRun;
use millpond_messages::saved::{SavedBits, SavedChunks};
use millpond_messages::{BitmapId, ChunkSet, Error, ErrorKind, Range, Result, TooManyChunks};

/// A dirty bitmap of a node.
#[derive(Debug, Clone)]
pub struct Bitmap {
    id: BitmapId,
    is_recording: bool,
    /// The node has become longer than the set could follow: what was written behind its end is not in it.
    is_lost: bool,
    /// The name under which the node's image stores it, if it is to.
    stored_as: Option<String>,
    /// What the image says of it is not known to be right. It is left there as it is.
    is_inconsistent: bool,
    set: ChunkSet,
    /// What has been written since it was split; `set` is what was dirty before.
    since: Option<ChunkSet>,
}

/// What a bitmap is when it comes into being.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NewBitmap {
    /// The bytes that a bit stands for.
    pub granularity: u64,
    /// Whether it records writes.
    pub is_recording: bool,
    /// The name under which the node's image is to store it, if it is.
    pub stored_as: Option<String>,
}

/// A bitmap that was read with the node's image.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FoundBitmap {
    /// Its name in the image.
    pub name: String,
    /// The bytes that a bit stands for.
    pub granularity: u64,
    /// Whether it records writes.
    pub is_recording: bool,
    /// Nobody knows what is dirty.
    pub is_inconsistent: bool,
}

/// What is told of a bitmap in queries.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BitmapFacts {
    /// The number of the bitmap.
    pub id: BitmapId,
    /// The bytes of all bits that are set, of which the last may reach past the node's end.
    pub count: u64,
    /// Not all writes are in it.
    pub is_lost: bool,
}

/// The bitmaps of one node.
#[derive(Default)]
pub struct Bitmaps {
    /// Whether any of them records: all that a write looks at where none does.
    is_recording: Cell<bool>,
    /// One that the image stores has changed otherwise than by writes, since the image was last asked to store them.
    are_changed: Cell<bool>,
    all: RefCell<Vec<Bitmap>>,
    /// Those that were read with the image and have no number yet.
    read: RefCell<VecDeque<ImageBitmap>>,
}

fn not_here() -> Error {
    Error::new(ErrorKind::NotFound, "The node has no such bitmap")
}

fn too_many(error: TooManyChunks) -> Error {
    Error::new(ErrorKind::InvalidArgument, error.to_string())
}

impl Bitmap {
    /// What is dirty, before a split and since.
    fn whole(&self) -> ChunkSet {
        let mut whole = self.set.clone();
        if let Some(since) = &self.since {
            whole.merge(since);
        }
        whole
    }
}

impl Bitmaps {
    /// The bitmaps of a node that has come from elsewhere, or none.
    pub fn new(all: Vec<Bitmap>) -> Self {
        let bitmaps = Self {
            is_recording: Cell::new(false),
            are_changed: Cell::new(true),
            all: RefCell::new(all),
            read: RefCell::default(),
        };
        bitmaps.refresh();
        bitmaps
    }

    /// Marks a range that has changed in the bitmaps that record.
    #[inline]
    pub fn mark(&self, range: Range) {
        if self.is_recording.get() {
            self.record(range);
        }
    }

    #[inline(never)]
    fn record(&self, range: Range) {
        for bitmap in self.all.borrow_mut().iter_mut() {
            if bitmap.is_recording {
                bitmap.since.as_mut().unwrap_or(&mut bitmap.set).insert(range);
            }
        }
    }

    fn refresh(&self) {
        let recording = self.all.borrow().iter().any(|bitmap| bitmap.is_recording);
        self.is_recording.set(recording);
    }

    /// Adds a bitmap of a node of `len` bytes, with nothing dirty.
    ///
    /// # Errors
    /// It would have more bits than a bitmap can have.
    pub fn add(&self, id: BitmapId, new: NewBitmap, len: u64) -> Result<()> {
        let set = ChunkSet::new(len, new.granularity).map_err(too_many)?;
        self.set_changed(true);
        self.push(Bitmap {
            id,
            is_recording: new.is_recording,
            is_lost: false,
            stored_as: new.stored_as,
            is_inconsistent: false,
            set,
            since: None,
        });
        Ok(())
    }

    fn push(&self, bitmap: Bitmap) {
        self.all.borrow_mut().push(bitmap);
        self.refresh();
    }

    /// Keeps what was read with the image until each has its number.
    pub fn keep_read(&self, read: Vec<ImageBitmap>) {
        self.read.replace(read.into());
    }

    /// What was read with the image and has no number yet.
    pub fn read(&self) -> Vec<FoundBitmap> {
        let read = self.read.borrow();
        let facts = read.iter().map(|bitmap| FoundBitmap {
            name: bitmap.name.clone(),
            granularity: bitmap.granularity,
            is_recording: bitmap.is_recording && bitmap.set.is_some(),
            is_inconsistent: bitmap.set.is_none(),
        });
        facts.collect()
    }

    /// Gives a bitmap that was read with the image of a node of `len` bytes its number.
    ///
    /// # Errors
    /// There is none of this name, or it would have more bits than a bitmap can have.
    pub fn adopt(&self, id: BitmapId, name: &str, len: u64) -> Result<()> {
        let mut read = self.read.borrow_mut();
        // They are given their numbers in order, so it is the first.
        let index = read.iter().position(|bitmap| bitmap.name == name);
        let bitmap = index.and_then(|index| read.remove(index)).ok_or_else(not_here)?;
        let is_inconsistent = bitmap.set.is_none();
        let set = match bitmap.set {
            Some(set) => set,
            None => ChunkSet::new(len, bitmap.granularity).map_err(too_many)?,
        };
        self.push(Bitmap {
            id,
            is_recording: bitmap.is_recording && !is_inconsistent,
            is_lost: false,
            stored_as: Some(bitmap.name),
            is_inconsistent,
            set,
            since: None,
        });
        Ok(())
    }

    /// The names of those that the image stores, or is to store.
    pub fn stored_names(&self) -> Vec<String> {
        let all = self.all.borrow();
        all.iter().filter_map(|bitmap| bitmap.stored_as.clone()).collect()
    }

    /// The name under which the image stores a bitmap, if it does.
    ///
    /// # Errors
    /// There is no such bitmap.
    pub fn stored_name(&self, id: BitmapId) -> Result<Option<String>> {
        self.with(id, |bitmap| bitmap.stored_as.clone())
    }

    /// What the image is to store, the newest first, as QEMU lists them. One that misses writes is left as it is there: in use.
    pub fn to_store(&self) -> Vec<ImageBitmap> {
        let all = self.all.borrow();
        let stored = all
            .iter()
            .rev()
            .filter(|bitmap| !bitmap.is_inconsistent && !bitmap.is_lost);
        let stored = stored.filter_map(|bitmap| {
            Some(ImageBitmap {
                name: bitmap.stored_as.clone()?,
                granularity: bitmap.set.chunk(),
                is_recording: bitmap.is_recording,
                set: Some(bitmap.whole()),
            })
        });
        stored.collect()
    }

    /// Whether one that the image stores has changed otherwise than by writes.
    pub fn are_changed(&self) -> bool {
        self.are_changed.get()
    }

    /// Notes whether one has changed so.
    pub fn set_changed(&self, are_changed: bool) {
        self.are_changed.set(are_changed);
    }

    /// Forgets a bitmap with its bits.
    pub fn remove(&self, id: BitmapId) {
        self.set_changed(true);
        self.all.borrow_mut().retain(|bitmap| bitmap.id != id);
        self.refresh();
    }

    /// Has a bitmap record from now on, or not.
    ///
    /// # Errors
    /// There is no such bitmap.
    pub fn set_recording(&self, id: BitmapId, is_recording: bool) -> Result<()> {
        self.with(id, |bitmap| bitmap.is_recording = is_recording)?;
        self.set_changed(true);
        self.refresh();
        Ok(())
    }

    fn with<T>(&self, id: BitmapId, act: impl FnOnce(&mut Bitmap) -> T) -> Result<T> {
        let mut all = self.all.borrow_mut();
        let found = all.iter_mut().find(|bitmap| bitmap.id == id);
        found.map(act).ok_or_else(not_here)
    }

    /// What is dirty by a bitmap now.
    ///
    /// # Errors
    /// There is no such bitmap.
    pub fn copy(&self, id: BitmapId) -> Result<ChunkSet> {
        self.with(id, |bitmap| bitmap.set.clone())
    }

    /// Has a bitmap say what another set says, at the node's length; answers what it said before.
    ///
    /// # Errors
    /// There is no such bitmap, or the set cannot follow to that length.
    pub fn replace(&self, id: BitmapId, mut set: ChunkSet, len: u64) -> Result<ChunkSet> {
        set.resize(len).map_err(too_many)?;
        self.set_changed(true);
        self.with(id, |bitmap| std::mem::replace(&mut bitmap.set, set))
    }

    /// Keeps what is written from now on apart from what is dirty now.
    ///
    /// # Errors
    /// There is no such bitmap.
    pub fn split(&self, id: BitmapId, len: u64) -> Result<()> {
        self.with(id, |bitmap| {
            bitmap.since = Some(ChunkSet::new(len, bitmap.set.chunk()).map_err(too_many)?);
            Ok(())
        })?
    }

    /// Ends a split: what has been written since is dirty, what was dirty before if it is to be, and `more`.
    ///
    /// # Errors
    /// There is no such bitmap.
    pub fn join(&self, id: BitmapId, keeps: bool, more: Option<&ChunkSet>) -> Result<()> {
        self.set_changed(true);
        self.with(id, |bitmap| {
            let whole = bitmap.whole();
            let since = bitmap.since.take();
            bitmap.set = since.filter(|_| !keeps).unwrap_or(whole);
            if let Some(more) = more {
                bitmap.set.merge(more);
            }
        })
    }

    /// Has a bitmap say that nothing is dirty; answers what it said before.
    ///
    /// # Errors
    /// There is no such bitmap.
    pub fn clear(&self, id: BitmapId, len: u64) -> Result<ChunkSet> {
        let granularity = self.with(id, |bitmap| bitmap.set.chunk())?;
        let empty = ChunkSet::new(len, granularity).map_err(too_many)?;
        self.replace(id, empty, len)
    }

    /// Whether all bitmaps could follow the node to this length.
    ///
    /// # Errors
    /// One would have more bits than a bitmap can have.
    pub fn check_len(&self, len: u64) -> Result<()> {
        let all = self.all.borrow();
        all.iter()
            .try_for_each(|bitmap| bitmap.set.check_len(len).map_err(too_many))
    }

    /// Follows the node to another length.
    pub fn resize(&self, len: u64) {
        for bitmap in self.all.borrow_mut().iter_mut() {
            let since = bitmap.since.as_mut().map_or(Ok(()), |since| since.resize(len));
            if let Err(error) = since.and(bitmap.set.resize(len)) {
                tracing::error!(bitmap = %bitmap.id, %error, "a dirty bitmap misses writes from now on");
                bitmap.is_lost = true;
            }
        }
    }

    /// Runs of bytes that are alike by a bitmap, from the start of a range on; all of the range, or `most` of them.
    ///
    /// # Errors
    /// There is no such bitmap.
    pub fn runs(&self, id: BitmapId, range: Range, most: usize) -> Result<Vec<DirtyRun>> {
        self.with(id, |bitmap| runs(&bitmap.set, range, most))
    }

    /// What queries tell of the bitmaps.
    pub fn facts(&self) -> Vec<BitmapFacts> {
        let all = self.all.borrow();
        let facts = all.iter().map(|bitmap| BitmapFacts {
            id: bitmap.id,
            count: bitmap.set.count() * bitmap.set.chunk(),
            is_lost: bitmap.is_lost,
        });
        facts.collect()
    }

    /// The bitmaps as they are now.
    pub fn all(&self) -> Vec<Bitmap> {
        self.all.borrow().clone()
    }

    /// Goes back to bitmaps as they were.
    pub fn restore(&self, all: Vec<Bitmap>) {
        self.all.replace(all);
        self.refresh();
    }

    /// Takes the bitmaps out of a node that moves.
    pub fn take(&self) -> Vec<Bitmap> {
        let all = self.all.take();
        self.refresh();
        all
    }

    /// The bitmaps, written down.
    pub fn saved(&self) -> Vec<SavedBits> {
        let all = self.all.borrow();
        let saved = all.iter().map(|bitmap| SavedBits {
            bitmap: bitmap.id,
            granularity: bitmap.set.chunk(),
            is_recording: bitmap.is_recording,
            is_lost: bitmap.is_lost,
            len: bitmap.set.len(),
            // Who comes after goes on with no backup: all of it is dirty then.
            dirty: SavedChunks::of(&bitmap.whole()),
        });
        saved.collect()
    }
}

fn runs(set: &ChunkSet, range: Range, most: usize) -> Vec<DirtyRun> {
    let mut at = range.offset();
    let run = || {
        let left = range.end().checked_sub(at).filter(|left| *left > 0)?;
        let is_dirty = set.contains(at);
        let end = if is_dirty {
            set.next_absent(at)
        } else {
            set.next(at)
        };
        let len = end.map_or(left, |end| (end - at).min(left));
        at += len;
        Some(DirtyRun { len, is_dirty })
    };
    std::iter::from_fn(run).take(most).collect()
}
