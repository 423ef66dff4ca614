//! The way from a file to an open image's state: what is read, and what is checked before it is trusted.

use millpond_messages::{DebugEvent, Error, ErrorKind, IoError, OpenFlags, Result};

use super::encryption::{self, Encryption};
use super::file::ImageFile;
use super::header::{self, CORRUPT, Header};
use super::image::GivenOptions;
use super::layout::bytes::table_from_be;
use super::layout::entry::{l2_table, refblock};
use super::layout::space::HostOffset;
use super::options::Settings;
use super::snapshot::table::{self, SnapshotTable};
use super::state::State;
use super::table::overlap::MetadataMap;
use crate::api::{BackingLink, DataFileLink};
use millpond_ring::Ring;

/// So many bytes surely hold all of a header's fields that are needed to read the rest.
const HEAD: usize = 512;
/// The backing file that an image names.
pub(super) fn backing_link(header: &Header) -> Option<BackingLink> {
    header.backing.as_ref().map(|name| BackingLink {
        filename: String::from_utf8_lossy(name).into_owned(),
        format: header.extensions.backing_format.clone(),
    })
}

impl State {
    /// What the image says of its data file, if it has one.
    pub fn data_file_link(&self) -> Option<DataFileLink> {
        self.header.has_data_file().then(|| DataFileLink {
            filename: self.header.extensions.data_file.clone(),
        })
    }
}

/// Whether a node opened like this writes to its image.
pub(super) fn is_writable(flags: OpenFlags) -> bool {
    flags.contains(OpenFlags::RDWR) && !flags.contains(OpenFlags::INACTIVE)
}

/// Reads all that is kept in memory while the image is open. `known` is what encrypts the data of the image that was open
/// before, which may be the same.
pub(super) async fn open_state(
    file: &ImageFile,
    ring: &Ring,
    given: &GivenOptions,
    known: Option<Encryption>,
) -> Result<State> {
    let flags = given.flags;
    let header = read_header(file, flags).await?;
    let settings = Settings::parse(given.options.clone(), &header, flags)?;
    let encryption = encryption::open(file, ring, given, &header, known).await?;
    let mut state = read_tables(file, header, settings, flags).await?;
    state.encryption = encryption;
    Ok(state)
}

async fn read_tables(
    file: &ImageFile,
    header: Header,
    settings: Settings,
    flags: OpenFlags,
) -> Result<State> {
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
    let mut state = State::new(header, settings, is_writable(flags));
    (state.l1, state.reftable, state.file_end) = (l1, reftable, file_end);
    match table::read(file, &state.header, false).await {
        Ok(table) => state.learn_snapshots(table),
        // A check looks at the table itself.
        Err(_) if flags.contains(OpenFlags::CHECK) => {}
        Err(error) => return Err(error),
    }
    state.mark_metadata();
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

    /// Keeps what the snapshot table says.
    pub fn learn_snapshots(&mut self, table: SnapshotTable) {
        (self.snapshots, self.snapshots_end) = (table.entries, table.end);
        self.knows_snapshots = true;
    }

    /// Refuses to change an image whose snapshot table could not be read: what belongs to snapshots is not known.
    pub fn check_snapshots_known(&self) -> Result<()> {
        match self.knows_snapshots {
            true => Ok(()),
            false => Err(Error::new(
                ErrorKind::Corrupt,
                "The image's snapshot table must be repaired first",
            )),
        }
    }

    /// Guards anew what is metadata now.
    pub fn mark_again(&mut self) {
        self.metadata = MetadataMap::default();
        self.mark_metadata();
    }

    /// Guards what the header, the L1 table, the refcount table and the snapshot table tell of, and the bitmap directory.
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
        if let Some(crypto) = self.header.extensions.crypto() {
            self.mark_range(crypto.offset, crypto.len);
        }
        let start = self.header.snapshots_offset;
        self.mark_range(start, self.snapshots_end.bytes_since(start));
        let snapshots = self.snapshots.iter();
        let sound = snapshots.filter(|snapshot| snapshot.check_l1(&self.header).is_ok());
        let inactive: Vec<_> = sound
            .map(|snapshot| (snapshot.l1_offset, u64::from(snapshot.l1_entries) * 8))
            .collect();
        for (offset, len) in inactive {
            self.mark_range(offset, len);
        }
        let tables = self.l1.iter().filter_map(|&entry| l2_table(entry));
        let blocks = self.reftable.iter().filter_map(|&entry| refblock(entry));
        let inactive = self.inactive_l2.iter().copied();
        let all: Vec<HostOffset> = tables.chain(blocks).chain(inactive).collect();
        all.into_iter().for_each(|table| self.mark_range(table, size));
    }
}
