//! Persistent bitmaps. They are not kept up to date yet: before an image changes, each of its bitmaps is marked as one
//! that may be wrong. So they stay listed, with all that belongs to them, until somebody removes them.

use millpond_messages::{Error, ErrorKind, IoResult, Result as OpenResult};

use super::header::AUTOCLEAR_BITMAPS;
use super::header::extensions::BitmapDirectory;
use super::image::Qcow2;
use super::layout::bytes::{be32, be64};
use super::layout::space::HostOffset;
use super::state::State;

/// Bytes of the largest table of a bitmap.
const MAX_TABLE: u64 = 32 << 20;
/// Bytes of a directory's entry without its texts.
const ENTRY: usize = 24;
/// The offset of the flags in an entry.
const FLAGS: usize = 12;
/// The bitmap was not stored as a change of the image left it.
const IN_USE: u32 = 1;

/// A bitmap as the directory lists it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Bitmap {
    /// The offset of its entry in the directory.
    at: usize,
    end: usize,
    /// The offset of its table in the file.
    pub table: HostOffset,
    /// How many entries the table has.
    pub entries: u32,
    flags: u32,
}

/// The entries of a directory, or what is wrong with it.
fn parse(bytes: &[u8], count: u32) -> Result<Vec<Bitmap>, &'static str> {
    let mut bitmaps = Vec::new();
    let mut at = 0;
    while at < bytes.len() {
        if bitmaps.len() >= count as usize {
            return Err("More bitmaps found than specified in header extension");
        }
        let bitmap = entry(bytes, at).ok_or("Broken bitmap directory")?;
        bitmaps.push(bitmap);
        at = bitmap.end;
    }
    if bitmaps.len() < count as usize {
        return Err("Less bitmaps found than specified in header extension");
    }
    Ok(bitmaps)
}

/// The entry that starts at `at`, if it is whole and what it says is possible.
fn entry(bytes: &[u8], at: usize) -> Option<Bitmap> {
    let entry = bytes.get(at..).filter(|entry| entry.len() >= ENTRY)?;
    let (entries, name, extra) = (be32(entry, 8), be32(entry, 16) & 0xffff, be32(entry, 20));
    let texts = (name as usize).checked_add(extra as usize)?;
    let end = (at + ENTRY).checked_add(texts)?.checked_next_multiple_of(8)?;
    let possible = u64::from(entries) * 8 <= MAX_TABLE && end <= bytes.len();
    possible.then(|| Bitmap {
        at,
        end,
        table: HostOffset::new(be64(entry, 0)),
        entries,
        flags: be32(entry, FLAGS),
    })
}

impl State {
    /// Where the image's bitmaps are listed, if it has any that belong to it: not where a program that does not know of
    /// bitmaps changed it.
    pub fn bitmap_directory(&self) -> Option<BitmapDirectory> {
        let valid = self.header.autoclear & AUTOCLEAR_BITMAPS != 0;
        self.header.extensions.bitmaps().filter(|_| valid)
    }
}

impl Qcow2 {
    /// The image's bitmaps, or what is wrong with their directory.
    pub(super) async fn bitmaps(
        &self,
        directory: BitmapDirectory,
    ) -> IoResult<Result<Vec<Bitmap>, &'static str>> {
        // The header's checks bound it.
        let bytes = self
            .file
            .read_vec(directory.offset, directory.size as usize)
            .await?;
        Ok(parse(&bytes.into_single(), directory.count))
    }

    /// Refuses an image whose bitmaps cannot be told apart.
    pub(super) async fn check_bitmaps(&self) -> OpenResult<()> {
        let (directory, listed) = {
            let state = self.state.borrow();
            (state.bitmap_directory(), state.header.extensions.bitmaps())
        };
        let Some(directory) = directory else {
            if listed.is_some() {
                tracing::warn!(
                    "The bitmaps of '{}' are ignored, since a program that does not know of bitmaps changed the image; what \
                     belonged to them may be leaked, which `qemu-img check -r leaks` repairs",
                    self.file.name()
                );
            }
            return Ok(());
        };
        let bitmaps = self.bitmaps(directory).await;
        let bitmaps = bitmaps.map_err(|error| Error::io("Failed to read bitmap directory", error))?;
        bitmaps.map_err(|text| Error::new(ErrorKind::InvalidArgument, text))?;
        Ok(())
    }

    /// Says of each bitmap that it may be wrong, durably. Answers whether the image goes on to have bitmaps.
    pub(super) async fn retire_bitmaps(&self) -> IoResult<bool> {
        let directory = self.state.borrow().bitmap_directory();
        let Some(directory) = directory else {
            return Ok(false);
        };
        let image = self.file.name();
        let bitmaps = match self.bitmaps(directory).await? {
            Err(text) => {
                tracing::warn!("The bitmaps of '{image}' are given up: {text}");
                return Ok(false);
            }
            Ok(bitmaps) => bitmaps,
        };
        let mut retired = bitmaps
            .into_iter()
            .filter(|bitmap| bitmap.flags & IN_USE == 0)
            .peekable();
        if retired.peek().is_none() {
            return Ok(true);
        }
        tracing::warn!(
            "The bitmaps of '{image}' become invalid: the image is opened for writing, which bitmaps do not record yet"
        );
        for bitmap in retired {
            let offset = directory.offset + (bitmap.at + FLAGS) as u64;
            let flags = bitmap.flags | IN_USE;
            self.file.write_slice(offset, &flags.to_be_bytes()).await?;
        }
        self.file.flush().await?;
        Ok(true)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(table: u64, entries: u32, name: &[u8]) -> Vec<u8> {
        let mut bytes = table.to_be_bytes().to_vec();
        bytes.extend_from_slice(&entries.to_be_bytes());
        bytes.extend_from_slice(&2_u32.to_be_bytes());
        bytes.extend_from_slice(&[1, 16]);
        bytes.extend_from_slice(&(name.len() as u16).to_be_bytes());
        bytes.extend_from_slice(&0_u32.to_be_bytes());
        bytes.extend_from_slice(name);
        bytes.resize(bytes.len().next_multiple_of(8), 0);
        bytes
    }

    #[test]
    fn a_directory_is_read_entry_by_entry() {
        let bytes = [entry(0x50000, 1, b"first"), entry(0x60000, 2, b"b")].concat();
        let bitmaps = parse(&bytes, 2).unwrap();
        let found: Vec<_> = bitmaps
            .iter()
            .map(|one| (one.at, one.table, one.entries, one.flags))
            .collect();
        assert_eq!(
            found,
            [
                (0, HostOffset::new(0x50000), 1, 2),
                (32, HostOffset::new(0x60000), 2, 2)
            ]
        );
    }

    #[test]
    fn directories_that_contradict_themselves_are_not_read() {
        let bytes = entry(0x50000, 1, b"first");
        let text = |bytes: &[u8], count| parse(bytes, count).unwrap_err();
        assert!(text(&bytes, 2).starts_with("Less bitmaps found"));
        assert!(text(&bytes, 0).starts_with("More bitmaps found"));
        assert_eq!(text(&bytes[..20], 1), "Broken bitmap directory");
        let mut endless = bytes.clone();
        endless[20..24].copy_from_slice(&u32::MAX.to_be_bytes());
        assert_eq!(text(&endless, 1), "Broken bitmap directory");
        assert_eq!(
            text(&entry(0x50000, u32::MAX, b"x"), 1),
            "Broken bitmap directory"
        );
    }
}
