//! The way from a file to an open image's state: what is read, and what is checked before it is trusted.

use millpond_messages::graph::Options;
use millpond_messages::{DebugEvent, Error, ErrorKind, IoError, OpenFlags, Result};

use super::file::ImageFile;
use super::header::{self, CORRUPT, Header};
use super::layout::bytes::{be32, be64, table_from_be};
use super::layout::entry::{l2_table, refblock};
use super::layout::space::HostOffset;
use super::options::Settings;
use super::state::State;
use crate::api::BackingLink;

/// So many bytes surely hold all of a header's fields that are needed to read the rest.
const HEAD: usize = 512;
/// Bytes of a snapshot table entry without its texts.
const SNAPSHOT_ENTRY: usize = 40;

/// How much an entry may say beyond what is defined, as QEMU limits it.
const MAX_SNAPSHOT_EXTRA: u64 = 1024;

/// How long the table of snapshots may be: 1 KiB for each of the most that there may be.
const MAX_SNAPSHOT_TABLE: u64 = 64 << 20;

/// The backing file that an image names.
pub(super) fn backing_link(header: &Header) -> Option<BackingLink> {
    header.backing.as_ref().map(|name| BackingLink {
        filename: String::from_utf8_lossy(name).into_owned(),
        format: header.extensions.backing_format.clone(),
    })
}

/// Whether a node opened like this writes to its image.
pub(super) fn is_writable(flags: OpenFlags) -> bool {
    flags.contains(OpenFlags::RDWR) && !flags.contains(OpenFlags::INACTIVE)
}

/// Reads all that is kept in memory while the image is open.
pub(super) async fn open_state(file: &ImageFile, options: Options, flags: OpenFlags) -> Result<State> {
    let header = read_header(file, flags).await?;
    let settings = Settings::parse(options, &header, flags)?;
    read_tables(file, header, settings, is_writable(flags)).await
}

async fn read_tables(file: &ImageFile, header: Header, settings: Settings, writable: bool) -> Result<State> {
    let l1 = read_table(
        file,
        header.l1_offset,
        u64::from(header.l1_size),
        "Could not read L1 table",
    )
    .await?;
    let entries = u64::from(header.reftable_clusters) << header.geometry(settings.slice_size).l2_bits();
    file.raise(DebugEvent::ReftableLoad).await;
    let reftable = read_table(
        file,
        header.reftable_offset,
        entries,
        "Could not initialize refcount handling",
    )
    .await?;
    // Most of a cluster of entries names no block: those behind the last that does read as 0 without being kept.
    let used = reftable
        .iter()
        .rposition(|&entry| entry != 0)
        .map_or(0, |last| last + 1);
    let reftable = reftable.get(..used).unwrap_or_default().to_vec();
    let file_end = file
        .end()
        .await
        .map_err(|error| Error::io("Could not get the file's length", error))?;
    let mut state = State::new(header, settings, writable);
    (state.l1, state.reftable, state.file_end) = (l1, reftable, file_end);
    state.mark_metadata();
    mark_snapshots(file, &mut state).await?;
    Ok(state)
}

async fn read_header(file: &ImageFile, flags: OpenFlags) -> Result<Header> {
    let failed = |error: IoError| Error::io("Could not read qcow2 header", error);
    let head = file
        .read_vec(HostOffset::default(), HEAD)
        .await
        .map_err(failed)?
        .to_vec();
    let cluster_bits = header::cluster_bits(&head)?;
    let cluster = file
        .read_vec(HostOffset::default(), 1 << cluster_bits)
        .await
        .map_err(failed)?
        .into_single();
    let check = flags.contains(OpenFlags::CHECK);
    let header = Header::parse(&cluster, check)?;
    if header.incompatible & CORRUPT != 0 && flags.contains(OpenFlags::RDWR) && !check {
        let text = "qcow2: Image is corrupt; cannot be opened read/write";
        return Err(Error::new(ErrorKind::ReadOnly, text));
    }
    Ok(header)
}

/// Reads a table of `entries` numbers; the header's checks bound it at 32 MiB.
async fn read_table(file: &ImageFile, offset: HostOffset, entries: u64, context: &str) -> Result<Vec<u64>> {
    if entries == 0 {
        return Ok(Vec::new());
    }
    let bytes = file
        .read_vec(offset, entries as usize * 8)
        .await
        .map_err(|error| Error::io(context, error))?;
    Ok(table_from_be(&bytes.into_single()))
}

/// Guards the snapshot table and the snapshots' L1 tables. What it says of them is checked only as far as that needs.
async fn mark_snapshots(file: &ImageFile, state: &mut State) -> Result<()> {
    let failed = |error: IoError| Error::io("Could not read snapshots", error);
    let mut offset = state.header.snapshots_offset;
    let start = offset;
    for index in 0..state.header.snapshots {
        let entry = file
            .read_vec(offset, SNAPSHOT_ENTRY)
            .await
            .map_err(failed)?
            .into_single();
        let l1_bytes = u64::from(be32(&entry, 8)) * 8;
        let l1_offset = HostOffset::new(be64(&entry, 0));
        let word = |at: usize| u64::from(be32(&entry, at));
        let texts = (word(12) >> 16) + (word(12) & 0xffff);
        let extra = word(36);
        if extra > MAX_SNAPSHOT_EXTRA {
            let text = format!("Too much extra metadata in snapshot table entry {index}");
            return Err(Error::new(ErrorKind::Corrupt, text));
        }
        if l1_bytes > header::MAX_L1_BYTES || !l1_offset.is_aligned(&state.geometry) {
            return Err(Error::new(
                ErrorKind::Corrupt,
                "Could not read snapshots: Snapshot table entry is invalid",
            ));
        }
        state.mark_range(l1_offset, l1_bytes);
        state.inactive_l1.push((l1_offset, be32(&entry, 8)));
        // The header's checks leave room behind the table's start, and the entry starts at a multiple of 8.
        offset += (SNAPSHOT_ENTRY as u64 + texts + extra).next_multiple_of(8);
        if offset - start > MAX_SNAPSHOT_TABLE {
            return Err(Error::new(ErrorKind::Corrupt, "Snapshot table is too big"));
        }
    }
    state.snapshots_end = offset;
    state.mark_range(start, offset - start);
    Ok(())
}

impl State {
    /// Guards the clusters of a range of the file.
    pub fn mark_range(&mut self, offset: HostOffset, len: u64) {
        if len > 0 && !self.settings.guarded.is_empty() {
            let (first, count) = (
                offset.cluster(&self.geometry),
                offset.clusters(len, &self.geometry),
            );
            self.metadata.add(first, count);
        }
    }

    /// Guards what the header, the L1 table and the refcount table tell of, and the bitmap directory.
    fn mark_metadata(&mut self) {
        let size = self.geometry.cluster_size();
        self.mark_range(HostOffset::default(), size);
        self.mark_range(self.header.l1_offset, u64::from(self.header.l1_size) * 8);
        self.mark_range(
            self.header.reftable_offset,
            u64::from(self.header.reftable_clusters) * size,
        );
        if let Some(directory) = self.bitmap_directory() {
            self.mark_range(directory.offset, directory.size);
        }
        let tables = self.l1.iter().filter_map(|&entry| l2_table(entry));
        let blocks = self.reftable.iter().filter_map(|&entry| refblock(entry));
        let all: Vec<HostOffset> = tables.chain(blocks).collect();
        all.into_iter().for_each(|table| self.mark_range(table, size));
    }
}
