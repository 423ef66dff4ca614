//! Writing and removing bitmaps. All of a change is written to free clusters first; the header then names the new directory,
//! and only after that the clusters of the old one are free. So a crash leaves one or the other, and leaks at most.

use millpond_messages::error::errno::EFBIG;
use millpond_messages::{ChunkSet, Error, ErrorKind, IoError, IoResult, Result};

use super::listed::{
    AUTO, Bits, FLAGS, GRANULARITY_BITS, IN_USE, Listed, MAX_BITS_BYTES, MAX_NAME, directory_of, entries_for,
};
use super::log::{Doubt, Home, Log};
use crate::api::{Answer, ImageBitmap, StoresBitmaps};
use crate::format::qcow2::header::extensions::{MAX_BITMAP_DIRECTORY, MAX_BITMAPS};
use crate::format::qcow2::header::{AUTOCLEAR_BITMAP_LOG, AUTOCLEAR_BITMAPS};
use crate::format::qcow2::image::Qcow2;
use crate::format::qcow2::layout::bytes::table_to_be;
use crate::format::qcow2::layout::space::{HostCluster, HostOffset};
use crate::format::qcow2::state::{FreeReason, State, Step};

/// Clusters that a change was given, to be given back if it fails.
type Taken = Vec<(HostCluster, u64)>;

/// Where a directory starts, and its bytes.
type Place = (HostOffset, u64);

/// The log that a directory is written with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum NextLog {
    /// There is no log, because the image is left to others.
    None,
    /// The log begins, so nothing is dirty by it.
    Empty,
    /// What is dirty by the log that there is, if there is one.
    Same,
}

fn refused<T>(text: impl Into<String>) -> Result<T> {
    Err(Error::new(ErrorKind::InvalidArgument, text.into()))
}

impl StoresBitmaps for Qcow2 {
    fn take_read(&self) -> Vec<ImageBitmap> {
        std::mem::take(&mut self.state.borrow_mut().bitmaps.read)
    }

    fn check_new(&self, name: &str, granularity: u64, beside: &[String]) -> Result<()> {
        self.state.borrow().check_new_bitmap(name, granularity, beside)
    }

    fn mark_in_use(&self) -> Answer<'_, Result<()>> {
        Answer::wait(async {
            let marked = self.activate_late().await;
            marked.map_err(|error| Error::io("Can't update bitmap directory", error))
        })
    }

    fn store(&self, bitmaps: Vec<ImageBitmap>) -> Answer<'_, Result<()>> {
        Answer::wait(self.store_bitmaps(bitmaps))
    }

    fn store_and_log(&self, bitmaps: Vec<ImageBitmap>) -> Answer<'_, Result<()>> {
        Answer::wait(Qcow2::store_and_log(self, bitmaps))
    }

    fn remove(&self, name: &str) -> Answer<'_, Result<()>> {
        let name = name.to_owned();
        Answer::wait(async move { self.remove_bitmap(&name).await })
    }
}

impl State {
    fn check_new_bitmap(&self, name: &str, granularity: u64, beside: &[String]) -> Result<()> {
        let granularities = GRANULARITY_BITS;
        let (least, most) = (1_u64 << granularities.start(), 1_u64 << granularities.end());
        let len = self.header.size;
        let lens = beside.iter().map(String::len).chain([name.len()]);
        let directory: usize = lens.map(Listed::entry_len).sum();
        if self.header.version < 3 {
            refused("Cannot store dirty bitmaps in qcow2 v2 files")
        } else if granularity > most {
            refused(format!("Granularity exceeds maximum ({most} bytes)"))
        } else if granularity < least {
            refused(format!("Granularity is under minimum ({least} bytes)"))
        } else if name.len() > MAX_NAME {
            // The parenthesis that is missing is missing in QEMU's words too.
            refused(format!("Name length exceeds maximum ({MAX_NAME} characters)"))
        } else if len.div_ceil(granularity).div_ceil(8) > MAX_BITS_BYTES {
            refused("Too much space will be occupied by the bitmap. Use larger granularity")
        } else if beside.len() >= MAX_BITMAPS as usize {
            refused("Maximum number of persistent bitmaps is already reached")
        } else if directory as u64 > MAX_BITMAP_DIRECTORY {
            refused("Not enough space in the bitmap directory")
        } else {
            Ok(())
        }
    }

    /// Takes clusters in a row, for a table, or for one cluster of bits.
    fn take_row(&mut self, count: u64) -> Step<HostCluster> {
        self.check_pressure()?;
        if count > 1 {
            return self.allocate_row(count);
        }
        let (first, count) = self.allocate(1)?;
        self.file_end = self.file_end.max((first + count).offset(&self.geometry));
        Ok(first)
    }

    /// Puts the log at the end of a directory of these bitmaps that is about to be written, if there is to be one and there is
    /// room. `bytes` are those of the directory's clusters.
    fn put_log(
        &self,
        next: NextLog,
        (offset, len): Place,
        listed: &[Listed],
        bytes: &mut Vec<u8>,
    ) -> Option<Log> {
        let (home, disk) = (Home::new(offset, len, &self.geometry), self.header.size);
        let log = match next {
            NextLog::None => None,
            NextLog::Empty => Log::new(&home, disk),
            NextLog::Same => {
                let log = self.bitmaps.log.as_ref()?;
                let is_right = log.doubt != Some(Doubt::Outdated);
                log.moved(&home, disk).filter(|_| is_right)
            }
        }?;
        bytes.truncate((log.start() - offset) as usize);
        bytes.extend_from_slice(&log.encode(&home, listed));
        Some(log)
    }

    fn give_back(&mut self, taken: Taken) {
        for (first, count) in taken {
            self.free_later(first, count, FreeReason::Other);
        }
    }

    /// The clusters of a range of the file.
    fn row_of(&self, start: HostOffset, len: u64) -> (HostCluster, u64) {
        (start.cluster(&self.geometry), self.geometry.clusters(len))
    }
}

impl Qcow2 {
    /// Calls the bitmaps in use, durably, before the image changes. Answers whether the image goes on to have bitmaps.
    pub(in crate::format::qcow2) async fn mark_bitmaps(&self) -> IoResult<bool> {
        let Some(directory) = self.state.borrow().bitmap_directory() else {
            return Ok(false);
        };
        let is_known = !self.state.borrow().bitmaps.listed.is_empty();
        if !is_known {
            match self.read_directory(directory).await? {
                Ok(listed) => self.state.borrow_mut().bitmaps.listed = listed,
                Err(fault) => {
                    tracing::warn!("The bitmaps of '{}' are given up: {fault}", self.file.name());
                    return Ok(false);
                }
            }
        }
        let mut offset = directory.offset;
        let mut marks = Vec::new();
        for listed in &self.state.borrow().bitmaps.listed {
            if listed.flags & IN_USE == 0 {
                marks.push((offset + FLAGS as u64, listed.flags));
            }
            offset += Listed::entry_len(listed.name.len()) as u64;
        }
        if let Err(error) = self.write_marks(&marks, IN_USE).await {
            // The image was not changed: whoever opens it next is to find the bitmaps as they were, if that can be had.
            if let Err(error) = self.write_marks(&marks, 0).await {
                tracing::warn!(%error, "bitmaps of '{}' may stay marked as in use", self.file.name());
            }
            return Err(error);
        }
        let bitmaps = &mut self.state.borrow_mut().bitmaps;
        bitmaps
            .listed
            .iter_mut()
            .for_each(|listed| listed.flags |= IN_USE);
        bitmaps.is_stored = false;
        Ok(true)
    }

    /// Writes the flags of bitmaps, each with where it is, and more flags for all of them; durably, if there are any.
    async fn write_marks(&self, marks: &[(HostOffset, u32)], more: u32) -> IoResult<()> {
        for (offset, flags) in marks {
            let flags = flags | more;
            self.file.write_slice(*offset, &flags.to_be_bytes()).await?;
        }
        match marks {
            [] => Ok(()),
            _ => self.file.flush().await,
        }
    }

    async fn store_bitmaps(&self, bitmaps: Vec<ImageBitmap>) -> Result<()> {
        if bitmaps.iter().all(|bitmap| bitmap.set.is_none()) {
            return Ok(());
        }
        self.without_doubt(self.write_bitmaps(bitmaps, NextLog::None).await)
            .await?;
        self.state.borrow_mut().bitmaps.is_stored = true;
        let left = self.leave_without_log().await;
        left.map_err(|error| Error::io("Could not update the image header", error))
    }

    /// Has the image list these bitmaps, in place of those of the same names; in use if a log goes with them.
    pub(super) async fn write_bitmaps(&self, bitmaps: Vec<ImageBitmap>, next: NextLog) -> Result<()> {
        let flags = if next == NextLog::None { 0 } else { IN_USE };
        let bitmaps = bitmaps
            .into_iter()
            .filter_map(|bitmap| Some((bitmap.set?, bitmap.name, bitmap.is_recording)));
        let mut taken = Taken::new();
        let mut listed = self.state.borrow().bitmaps.listed.clone();
        for (set, name, is_recording) in bitmaps {
            let written = self
                .write_bitmap(set, name.as_bytes(), is_recording, &mut taken)
                .await;
            match written.map(|new| new.with_flags(flags)) {
                Ok(new) => match listed.iter_mut().find(|old| old.name == new.name) {
                    Some(old) => *old = new,
                    None => listed.push(new),
                },
                Err(error) => {
                    self.state.borrow_mut().give_back(taken);
                    return Err(Error::io(
                        &format!("Failed to write bitmap '{name}' to file"),
                        error,
                    ));
                }
            }
        }
        self.replace_directory(listed, taken, next).await
    }

    async fn remove_bitmap(&self, name: &str) -> Result<()> {
        let mut listed = self.state.borrow().bitmaps.listed.clone();
        let before = listed.len();
        listed.retain(|listed| listed.name != name.as_bytes());
        if listed.len() == before {
            return Ok(());
        }
        let removed = self.replace_directory(listed, Taken::new(), NextLog::Same).await;
        self.without_doubt(removed).await
    }

    /// Where a change of the bitmaps has failed the header may name those that were to be, or not.
    async fn without_doubt(&self, changed: Result<()>) -> Result<()> {
        if changed.is_err() {
            self.go_on_with_log().await;
        }
        changed
    }

    /// Writes the bits of a bitmap, and the table of them.
    async fn write_bitmap(
        &self,
        mut set: ChunkSet,
        name: &[u8],
        is_recording: bool,
        taken: &mut Taken,
    ) -> IoResult<Listed> {
        let (geometry, len) = {
            let state = self.state.borrow();
            (state.geometry, state.header.size)
        };
        // Of a change of length that failed in its last flush the image has the new one, and its node has not.
        set.resize(len).map_err(|_| IoError::Os(EFBIG))?;
        let count = entries_for(set.len(), set.chunk(), &geometry);
        let mut words = set.words();
        let mut table = Vec::new();
        for _ in 0..count {
            let part: Vec<u64> = words
                .by_ref()
                .take(geometry.cluster_size() as usize / 8)
                .collect();
            let bits = self.write_bits(&part, taken).await?;
            table.push(bits.entry());
        }
        let table = self.write_row(table_to_be(&table), taken).await?;
        Ok(Listed {
            name: name.to_vec(),
            table,
            entries: u32::try_from(count).map_err(|_| IoError::Os(EFBIG))?,
            flags: if is_recording { AUTO } else { 0 },
            granularity_bits: u8::try_from(set.chunk().trailing_zeros()).map_err(|_| IoError::Invalid)?,
            is_inconsistent: false,
        })
    }

    /// Stores the bits of one cluster, where they are not all alike.
    async fn write_bits(&self, words: &[u64], taken: &mut Taken) -> IoResult<Bits> {
        let geometry = self.state.borrow().geometry;
        let is_whole = words.len() as u64 * 8 == geometry.cluster_size();
        if words.iter().all(|word| *word == 0) {
            return Ok(Bits::Zeroes);
        }
        if is_whole && words.iter().all(|word| *word == u64::MAX) {
            return Ok(Bits::Ones);
        }
        let bytes = words.iter().flat_map(|word| word.to_le_bytes()).collect();
        Ok(Bits::Cluster(self.write_row(bytes, taken).await?))
    }

    /// Stores bytes in clusters of their own.
    async fn write_row(&self, mut bytes: Vec<u8>, taken: &mut Taken) -> IoResult<HostOffset> {
        let offset = self.take_place(bytes.len() as u64, taken).await?;
        self.fill_clusters(&mut bytes);
        self.file.write(offset, bytes.into()).await?;
        Ok(offset)
    }

    /// Takes clusters for so many bytes.
    async fn take_place(&self, len: u64, taken: &mut Taken) -> IoResult<HostOffset> {
        let geometry = self.state.borrow().geometry;
        let count = geometry.clusters(len);
        let first = self.run(move |state| state.take_row(count)).await?;
        taken.push((first, count));
        Ok(first.offset(&geometry))
    }

    /// Fills bytes up to whole clusters.
    fn fill_clusters(&self, bytes: &mut Vec<u8>) {
        let geometry = self.state.borrow().geometry;
        let count = geometry.clusters(bytes.len() as u64);
        bytes.resize(geometry.bytes(count) as usize, 0);
    }

    /// Has the image list these bitmaps from now on. `taken` is what those take that it did not list before.
    async fn replace_directory(&self, listed: Vec<Listed>, mut taken: Taken, next: NextLog) -> Result<()> {
        let written = self.write_directory(&listed, &mut taken, next).await;
        let old_directory = self.state.borrow().bitmap_directory();
        let named = match written {
            Ok((directory, log)) => {
                let named = self.name_directory(directory, listed.len()).await;
                named.map(|()| log)
            }
            Err(error) => Err(error),
        };
        let log = match named {
            Ok(log) => log,
            Err(error) => {
                self.state.borrow_mut().give_back(taken);
                return Err(error);
            }
        };
        let old = {
            let bitmaps = &mut self.state.borrow_mut().bitmaps;
            bitmaps.log = log;
            std::mem::replace(&mut bitmaps.listed, listed)
        };
        if let Some(directory) = old_directory {
            let mut state = self.state.borrow_mut();
            let (first, count) = state.row_of(directory.offset, directory.size);
            state.metadata.remove(first, count);
            state.give_back(vec![(first, count)]);
        }
        self.free_replaced(old).await;
        Ok(())
    }

    /// Writes the directory with its log, and makes durable all that it leads to, and the data that it tells of. Answers where
    /// it is, and how long.
    async fn write_directory(
        &self,
        listed: &[Listed],
        taken: &mut Taken,
        next: NextLog,
    ) -> Result<(Place, Option<Log>)> {
        let mut bytes = directory_of(listed);
        let len = bytes.len() as u64;
        if listed.len() > MAX_BITMAPS as usize {
            return refused("Too many persistent bitmaps");
        }
        if len > MAX_BITMAP_DIRECTORY {
            return refused("Bitmap directory is too large");
        }
        let written = async {
            let (mut offset, mut log) = (HostOffset::default(), None);
            if len > 0 {
                offset = self.take_place(len, taken).await?;
                self.fill_clusters(&mut bytes);
                log = self
                    .state
                    .borrow()
                    .put_log(next, (offset, len), listed, &mut bytes);
                self.file.write(offset, bytes.into()).await?;
            }
            self.write_back(true).await?;
            self.file.flush().await?;
            if next == NextLog::Empty && self.state.borrow().geometry.external {
                self.data.flush().await?;
            }
            Ok(((offset, len), log))
        };
        let written: IoResult<_> = written.await;
        written.map_err(|error| Error::io("Failed to allocate space for bitmap directory", error))
    }

    /// Has the header name a directory, or none.
    async fn name_directory(&self, (offset, len): Place, count: usize) -> Result<()> {
        let mut header = self.state.borrow().header.clone();
        header.extensions.set_bitmaps(count as u32, len, offset);
        header.autoclear = match count {
            0 => header.autoclear & !(AUTOCLEAR_BITMAPS | AUTOCLEAR_BITMAP_LOG),
            _ => header.autoclear | AUTOCLEAR_BITMAPS,
        };
        let replaced = self.replace_header(header, |header, old| {
            header.autoclear = old.autoclear;
            header.extensions = old.extensions;
        });
        let replaced = replaced.await;
        replaced.map_err(|error| error.within("Failed to update bitmap extension"))?;
        self.state.borrow_mut().mark_range(offset, len);
        Ok(())
    }

    /// Frees the clusters of bitmaps that are not listed any more. What cannot be read is leaked.
    async fn free_replaced(&self, old: Vec<Listed>) {
        for old in old {
            let is_listed = self
                .state
                .borrow()
                .bitmaps
                .listed
                .iter()
                .any(|new| new.table == old.table);
            if is_listed {
                continue;
            }
            let entries = self.read_bitmap_table(&old).await.unwrap_or_else(|error| {
                tracing::warn!(%error, "qcow2: the clusters of a bitmap are leaked, since its table cannot be read");
                Vec::new()
            });
            let mut state = self.state.borrow_mut();
            let geometry = state.geometry;
            let mut freed = vec![state.row_of(old.table, u64::from(old.entries) * 8)];
            freed.extend(
                entries
                    .into_iter()
                    .filter_map(|entry| match Bits::of(entry, &geometry)? {
                        Bits::Cluster(offset) => Some((offset.cluster(&geometry), 1)),
                        Bits::Zeroes | Bits::Ones => None,
                    }),
            );
            state.give_back(freed);
        }
    }
}
