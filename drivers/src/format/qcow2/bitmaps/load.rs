//! Reading bitmaps with their image.

use std::collections::HashSet;

use millpond_messages::error::errno::ENOMEM;
use millpond_messages::qapi::Qcow2BitmapInfo;
use millpond_messages::{ChunkSet, Error, ErrorKind, IoError, IoResult, Result};

use super::listed::{AUTO, Bits, DirectoryFault, IN_USE, ImageBitmaps, Listed, entries_for, parse};
use super::log::Log;
use crate::api::ImageBitmap;
use crate::format::qcow2::header::AUTOCLEAR_BITMAPS;
use crate::format::qcow2::header::extensions::BitmapDirectory;
use crate::format::qcow2::image::Qcow2;
use crate::format::qcow2::layout::bytes::table_from_be;
use crate::format::qcow2::state::State;

/// The bytes that all bitmaps of an image may take in memory. A crafted image has 65,535 of them, which share their clusters.
const MAX_MEMORY: u64 = 1 << 30;
/// What each 32,768 bits take in memory whatever they are, and where they are not alike.
const PAGE_BITS: u64 = 32_768;
const EMPTY_PAGE: u64 = 16;

/// The bytes that bitmaps may still take.
struct Budget(u64);

impl Budget {
    fn take(&mut self, bytes: u64) -> IoResult<()> {
        self.0 = self.0.checked_sub(bytes).ok_or(IoError::Os(ENOMEM))?;
        Ok(())
    }
}

/// The pages of a bitmap of a disk of `len` bytes.
const fn pages_of(len: u64, listed: &Listed) -> u64 {
    len.div_ceil(listed.granularity()).div_ceil(PAGE_BITS)
}

fn unreadable(listed: &Listed, error: IoError) -> Error {
    let text = format!("Could not read bitmap '{}' from image", listed.shown_name());
    Error::io(&text, error)
}

impl Qcow2 {
    /// Learns which bitmaps the image has. With `bits` they are read, for its node to take: not where the node has them already,
    /// nor where the image is inactive, because who has it may still change them.
    pub(in crate::format::qcow2) async fn load_bitmaps(&self, bits: bool) -> Result<()> {
        let (directory, is_named) = {
            let state = self.state.borrow();
            (
                state.bitmap_directory(),
                state.header.extensions.bitmaps().is_some(),
            )
        };
        let Some(directory) = directory else {
            if is_named {
                tracing::warn!(
                    "The bitmaps of '{}' are ignored, since a program that does not know of bitmaps changed the image; what \
                     belonged to them may be leaked, which `qemu-img check -r leaks` repairs",
                    self.file.name()
                );
            }
            return Ok(());
        };
        let failed = |error| Error::io("Failed to read bitmap directory", error);
        let mut listed = self.read_directory(directory).await.map_err(failed)??;
        let log = self.read_log(directory, &listed).await.map_err(failed)?;
        if log.is_some() {
            // What the file says of them and the log together is known.
            listed
                .iter_mut()
                .for_each(|listed| listed.is_inconsistent = false);
        }
        let read = match bits {
            true => self.read_bitmaps(&mut listed, log.as_ref()).await?,
            false => Vec::new(),
        };
        self.state.borrow_mut().bitmaps = ImageBitmaps {
            listed,
            read,
            log,
            is_stored: false,
        };
        Ok(())
    }

    async fn read_bitmaps(&self, listed: &mut [Listed], log: Option<&Log>) -> Result<Vec<ImageBitmap>> {
        let mut budget = Budget(MAX_MEMORY);
        let mut read = Vec::with_capacity(listed.len());
        let mut names = HashSet::with_capacity(listed.len());
        for one in listed {
            let bitmap = self.read_bitmap(one, log, &mut budget).await?;
            one.is_inconsistent = bitmap.set.is_none();
            if !names.insert(bitmap.name.clone()) {
                let text = format!("Bitmap already exists: {}", bitmap.name);
                return Err(Error::new(ErrorKind::Exists, text));
            }
            read.push(bitmap);
        }
        Ok(read)
    }

    async fn read_bitmap(
        &self,
        listed: &Listed,
        log: Option<&Log>,
        budget: &mut Budget,
    ) -> Result<ImageBitmap> {
        let len = self.state.borrow().header.size;
        let pages = pages_of(len, listed);
        let taken = budget.take(pages * EMPTY_PAGE);
        taken.map_err(|error| unreadable(listed, error))?;
        let log = log.filter(|_| listed.flags & IN_USE != 0);
        let set = match (listed.is_inconsistent, log) {
            (true, _) => None,
            (false, Some(log)) => self.read_logged(listed, log, budget).await?,
            (false, None) => {
                let entries = self.checked_table(listed, budget).await.map_err(|error| {
                    let name = listed.shown_name();
                    let text = format!("Could not read bitmap_table table from image for bitmap '{name}'");
                    Error::io(&text, error)
                })?;
                let set = self.read_bits(listed, len, &entries, budget).await;
                Some(set.map_err(|error| unreadable(listed, error))?)
            }
        };
        Ok(ImageBitmap {
            name: listed.shown_name(),
            granularity: listed.granularity(),
            is_recording: listed.flags & AUTO != 0,
            set,
        })
    }

    /// What is dirty by a bitmap that was in use when the image was left: what it was stored with, and what the log says. None
    /// where it cannot have been stored like this.
    async fn read_logged(&self, listed: &Listed, log: &Log, budget: &mut Budget) -> Result<Option<ChunkSet>> {
        let len = self.state.borrow().header.size;
        let read = async {
            budget.take(pages_of(log.disk, listed) * EMPTY_PAGE)?;
            let entries = self.checked_table(listed, budget).await?;
            let mut set = self.read_bits(listed, log.disk, &entries, budget).await?;
            set.resize(len).map_err(|_| IoError::Os(ENOMEM))?;
            if listed.flags & AUTO != 0 {
                // Of the pages of a run only the first and the last may be dirty in part.
                let runs = log.runs().count() as u64;
                let mixed = pages_of(len, listed).min(2 * runs);
                budget.take(runs * EMPTY_PAGE + mixed * PAGE_BITS / 8)?;
                log.runs().for_each(|run| set.insert(run));
            }
            Ok(set)
        };
        match read.await {
            Ok(set) => Ok(Some(set)),
            Err(error @ (IoError::Invalid | IoError::Os(ENOMEM))) => {
                let name = listed.shown_name();
                tracing::warn!(%error, "The log of bitmap '{name}' is ignored, since the bitmap cannot be read");
                Ok(None)
            }
            Err(error) => Err(unreadable(listed, error)),
        }
    }

    /// What the entries of a bitmap's table stand for, all of them possible.
    async fn checked_table(&self, listed: &Listed, budget: &mut Budget) -> IoResult<Vec<Bits>> {
        budget.take(u64::from(listed.entries) * 8)?;
        let entries = self.read_bitmap_table(listed).await?;
        let geometry = self.state.borrow().geometry;
        let entries = entries.into_iter().map(|entry| Bits::of(entry, &geometry));
        entries.collect::<Option<_>>().ok_or(IoError::Invalid)
    }

    /// The entries of a bitmap's table, as they are.
    pub(in crate::format::qcow2) async fn read_bitmap_table(&self, listed: &Listed) -> IoResult<Vec<u64>> {
        let bytes = self.file.read_vec(listed.table, listed.entries as usize * 8);
        Ok(table_from_be(&bytes.await?.into_single()))
    }

    /// The bits of a bitmap that was stored for a disk of `len` bytes.
    async fn read_bits(
        &self,
        listed: &Listed,
        len: u64,
        entries: &[Bits],
        budget: &mut Budget,
    ) -> IoResult<ChunkSet> {
        let geometry = self.state.borrow().geometry;
        if entries_for(len, listed.granularity(), &geometry) != entries.len() as u64 {
            return Err(IoError::Invalid);
        }
        let mut set = ChunkSet::new(len, listed.granularity()).map_err(|_| IoError::Os(ENOMEM))?;
        let words = geometry.cluster_size() as usize / 8;
        for (bits, index) in entries.iter().zip(0_u64..) {
            let first = geometry.bytes(index) * 8;
            match bits {
                Bits::Zeroes => {}
                Bits::Ones => set.insert_words(first, std::iter::repeat_n(u64::MAX, words)),
                Bits::Cluster(offset) => {
                    budget.take(geometry.cluster_size())?;
                    let bytes = self.file.read_vec(*offset, words * 8).await?.into_single();
                    let words = bytes.as_chunks::<8>().0.iter();
                    set.insert_words(first, words.map(|word| u64::from_le_bytes(*word)));
                }
            }
        }
        Ok(set)
    }
}

impl State {
    /// Where the image's bitmaps are listed, if it has any that belong to it: not where a program that does not know of
    /// bitmaps changed it.
    pub fn bitmap_directory(&self) -> Option<BitmapDirectory> {
        let valid = self.header.autoclear & AUTOCLEAR_BITMAPS != 0;
        self.header.extensions.bitmaps().filter(|_| valid)
    }

    /// What queries show of the bitmaps in the image.
    pub fn bitmap_infos(&self) -> Option<Vec<Qcow2BitmapInfo>> {
        let listed = self.bitmaps.listed.iter().map(Listed::info);
        Some(listed.collect()).filter(|all: &Vec<_>| !all.is_empty())
    }

    /// Refuses another length where a bitmap could not follow the disk.
    pub fn check_bitmaps_follow(&self) -> Result<()> {
        let mut listed = self.bitmaps.listed.iter();
        listed
            .find(|listed| listed.is_inconsistent)
            .map_or(Ok(()), |listed| {
                let name = listed.shown_name();
                let text = format!("Bitmap '{name}' is inconsistent and cannot be used");
                Err(Error::new(ErrorKind::Unsupported, text))
            })
    }
}

impl Qcow2 {
    /// The image's bitmaps as they are listed, or what is wrong with their directory.
    pub(in crate::format::qcow2) async fn read_directory(
        &self,
        directory: BitmapDirectory,
    ) -> IoResult<std::result::Result<Vec<Listed>, DirectoryFault>> {
        // The header's checks bound it.
        let bytes = self.file.read_vec(directory.offset, directory.size as usize);
        let bytes = bytes.await?.into_single();
        let state = self.state.borrow();
        Ok(parse(&bytes, directory.count, &state.geometry, state.header.size))
    }
}
