//! Reading bitmaps with their image.

use std::collections::HashSet;

use millpond_messages::error::errno::ENOMEM;
use millpond_messages::qapi::Qcow2BitmapInfo;
use millpond_messages::{ChunkSet, Error, ErrorKind, IoError, IoResult, Result};

use super::listed::{AUTO, Bits, DirectoryFault, ImageBitmaps, Listed, entries_for, parse};
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
        let listed = self.read_directory(directory).await;
        let listed = listed.map_err(|error| Error::io("Failed to read bitmap directory", error))??;
        let read = match bits {
            true => self.read_bitmaps(&listed).await?,
            false => Vec::new(),
        };
        self.state.borrow_mut().bitmaps = ImageBitmaps {
            listed,
            read,
            is_stored: false,
        };
        Ok(())
    }

    async fn read_bitmaps(&self, listed: &[Listed]) -> Result<Vec<ImageBitmap>> {
        let mut budget = Budget(MAX_MEMORY);
        let mut read = Vec::with_capacity(listed.len());
        let mut names = HashSet::with_capacity(listed.len());
        for one in listed {
            let bitmap = self.read_bitmap(one, &mut budget).await?;
            if !names.insert(bitmap.name.clone()) {
                let text = format!("Bitmap already exists: {}", bitmap.name);
                return Err(Error::new(ErrorKind::Exists, text));
            }
            read.push(bitmap);
        }
        Ok(read)
    }

    async fn read_bitmap(&self, listed: &Listed, budget: &mut Budget) -> Result<ImageBitmap> {
        let pages = self
            .state
            .borrow()
            .header
            .size
            .div_ceil(listed.granularity())
            .div_ceil(PAGE_BITS);
        let taken = budget.take(pages * EMPTY_PAGE);
        taken.map_err(|error| unreadable(listed, error))?;
        let set = match listed.is_inconsistent {
            true => None,
            false => {
                let entries = self.checked_table(listed, budget).await.map_err(|error| {
                    let name = listed.shown_name();
                    let text = format!("Could not read bitmap_table table from image for bitmap '{name}'");
                    Error::io(&text, error)
                })?;
                let set = self.read_bits(listed, &entries, budget).await;
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

    async fn read_bits(&self, listed: &Listed, entries: &[Bits], budget: &mut Budget) -> IoResult<ChunkSet> {
        let (geometry, len) = {
            let state = self.state.borrow();
            (state.geometry, state.header.size)
        };
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
