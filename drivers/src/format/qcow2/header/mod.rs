//! The image header: its fields, what is checked before an image is trusted, and how it is written.

pub(crate) mod extensions;
pub(crate) mod fields;

use millpond_messages::{Error, ErrorKind, MAX_LENGTH, Result, SECTOR_SIZE};

use self::fields::{FULL_LENGTH, Fields, V2_LENGTH, V3_LENGTH};
use crate::format::qcow2::layout::bytes::text;
use crate::format::qcow2::layout::geometry::Geometry;
use crate::format::qcow2::layout::space::{GuestOffset, HostOffset};
use crate::format::qcow2::layout::subcluster::SUBCLUSTERS;
use extensions::{Extensions, FeatureType};

/// The image's first bytes: `QFI\xfb`.
pub(crate) const MAGIC: u32 = 0x5146_49fb;

/// The image was not closed cleanly: refcounts may be too low or too high.
pub(crate) const DIRTY: u64 = 1;
/// Metadata was found to contradict itself.
pub(crate) const CORRUPT: u64 = 1 << 1;
/// The guest's data is in a file of its own.
pub(crate) const DATA_FILE: u64 = 1 << 2;
/// The compression type is not zlib.
pub(crate) const COMPRESSION: u64 = 1 << 3;
/// L2 entries have bitmaps of subclusters.
pub(crate) const EXTENDED_L2: u64 = 1 << 4;
/// The image's maker wants refcounts to be written late.
pub(crate) const LAZY_REFCOUNTS: u64 = 1;
/// The bitmaps agree with the data.
pub(crate) const AUTOCLEAR_BITMAPS: u64 = 1;
/// The external data file reads as the disk does.
pub(crate) const AUTOCLEAR_DATA_FILE_RAW: u64 = 1 << 1;

/// The log of the bitmaps agrees with the data: a flag of our own, far from those that the format gives out.
pub(crate) const AUTOCLEAR_BITMAP_LOG: u64 = 1 << 62;

/// Bytes of the largest L1 table.
pub(crate) const MAX_L1_BYTES: u64 = 32 << 20;
/// Bytes of the largest refcount table.
pub(crate) const MAX_REFTABLE_BYTES: u64 = 8 << 20;
/// The most internal snapshots.
pub(crate) const MAX_SNAPSHOTS: u64 = 65_536;
/// Bytes of the longest backing file name.
pub(crate) const MAX_BACKING_NAME: u64 = 1023;
/// The smallest and the largest cluster, as powers of two.
pub(crate) const CLUSTER_BITS: std::ops::RangeInclusive<u32> = 9..=21;

/// log2 of the smallest cluster whose subclusters are sectors at least.
pub(crate) const MIN_EXTENDED_BITS: u32 = 14;

/// How compressed clusters are compressed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, serde::Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Compression {
    /// Deflate, without any header.
    #[default]
    Zlib = 0,
    /// Zstandard, in frames of its own.
    Zstd = 1,
}

/// How the guest's data is encrypted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum CryptMethod {
    /// AES with a key that is the password, which is weak.
    Aes = 1,
    /// As a LUKS header says that is inside the image.
    Luks = 2,
}

impl CryptMethod {
    /// The method's name among options and in what is shown.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Aes => "aes",
            Self::Luks => "luks",
        }
    }
}

/// A header that passed every check that needs no other part of the image.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Header {
    pub version: u32,
    pub cluster_bits: u32,
    /// The virtual disk's length in bytes, whole sectors: what a header says beyond is not part of the disk.
    pub size: u64,
    /// Entries of the active L1 table.
    pub l1_size: u32,
    pub l1_offset: HostOffset,
    pub reftable_offset: HostOffset,
    /// The refcount table's length in clusters.
    pub reftable_clusters: u32,
    pub snapshots: u32,
    pub snapshots_offset: HostOffset,
    pub incompatible: u64,
    pub compatible: u64,
    pub autoclear: u64,
    pub refcount_order: u32,
    pub compression: Compression,
    /// How the guest's data is encrypted, if it is.
    pub encryption: Option<CryptMethod>,
    /// What follows the known fields.
    pub unknown: Vec<u8>,
    pub extensions: Extensions,
    /// The backing file's name: what is stored up to the first NUL, if that is anything.
    pub backing: Option<Vec<u8>>,
}

fn invalid(text: impl Into<std::borrow::Cow<'static, str>>) -> Error {
    Error::new(ErrorKind::InvalidArgument, text)
}

/// Reads log2 of the cluster size from a header's start, so that the header cluster can be read whole.
pub(crate) fn cluster_bits(head: &[u8]) -> Result<u32> {
    let fields = Fields::read(head, V2_LENGTH);
    if head.len() < V2_LENGTH || fields.magic.get() != MAGIC {
        return Err(invalid("Image is not in qcow2 format"));
    }
    let version = fields.version.get();
    if !(2..=3).contains(&version) {
        return Err(Error::new(
            ErrorKind::Unsupported,
            format!("Unsupported qcow2 version {version}"),
        ));
    }
    let bits = fields.cluster_bits.get();
    if !CLUSTER_BITS.contains(&bits) {
        return Err(invalid(format!("Unsupported cluster size: 2^{bits}")));
    }
    Ok(bits)
}

impl Header {
    /// Reads the header from the image's first cluster. `check` leaves out what a repair can repair.
    pub fn parse(cluster: &[u8], check: bool) -> Result<Self> {
        let cluster_bits = cluster_bits(cluster)?;
        let cluster_size = 1_u64 << cluster_bits;
        let all = Fields::read(cluster, FULL_LENGTH);
        let version = all.version.get();
        let v3 = version >= 3;
        let length = if v3 {
            u64::from(all.length.get())
        } else {
            V2_LENGTH as u64
        };
        if v3 && length < V3_LENGTH as u64 {
            return Err(invalid("qcow2 header too short"));
        }
        if length > cluster_size {
            return Err(invalid("qcow2 header exceeds cluster size"));
        }
        let known_end = (FULL_LENGTH as u64).min(length);
        let fields = Fields::read(cluster, known_end as usize);
        let backing_offset = fields.backing_offset.get();
        if backing_offset > cluster_size {
            return Err(invalid("Invalid backing file offset"));
        }
        let extensions_end = if backing_offset == 0 {
            cluster_size
        } else {
            backing_offset
        };
        let part = |from: u64, to: u64| cluster.get(from as usize..to as usize).unwrap_or_default();
        let extension_bytes = part(length, extensions_end);
        refuse_features(fields.incompatible.get(), extension_bytes)?;
        let unknown = part(known_end, length).to_vec();
        let header = Self {
            unknown,
            ..Self::of(&fields)?
        };
        header.check_fields(check)?;
        let size = header.size / SECTOR_SIZE * SECTOR_SIZE;
        let extensions = Extensions::parse(extension_bytes)?;
        extensions.check_crypto(header.encryption == Some(CryptMethod::Luks), cluster_size)?;
        if header.autoclear & AUTOCLEAR_BITMAPS != 0 {
            extensions.check_bitmaps(cluster_size)?;
        }
        let backing = backing_name(cluster, backing_offset, fields.backing_len.get())?;
        Ok(Self {
            size,
            extensions,
            backing,
            ..header
        })
    }

    /// What the fields say by themselves, without what follows them.
    fn of(fields: &Fields) -> Result<Self> {
        let (version, incompatible) = (fields.version.get(), fields.incompatible.get());
        Ok(Self {
            version,
            cluster_bits: fields.cluster_bits.get(),
            size: fields.size.get(),
            l1_size: fields.l1_size.get(),
            l1_offset: HostOffset::new(fields.l1_offset.get()),
            reftable_offset: HostOffset::new(fields.reftable_offset.get()),
            reftable_clusters: fields.reftable_clusters.get(),
            snapshots: fields.snapshots.get(),
            snapshots_offset: HostOffset::new(fields.snapshots_offset.get()),
            incompatible,
            compatible: fields.compatible.get(),
            autoclear: fields.autoclear.get(),
            // Version 2 has refcounts of 16 bits.
            refcount_order: if version >= 3 {
                fields.refcount_order.get()
            } else {
                4
            },
            compression: compression(fields.compression, incompatible)?,
            encryption: encryption(fields.encryption.get())?,
            unknown: Vec::new(),
            extensions: Extensions::default(),
            backing: None,
        })
    }

    /// Limits and places of what the header points at.
    fn check_fields(&self, check: bool) -> Result<()> {
        if self.refcount_order > 6 {
            return Err(invalid(
                "Reference count entry width too large; may not exceed 64 bits",
            ));
        }
        let reftable_entries = u64::from(self.reftable_clusters) << (self.cluster_bits - 3);
        let max = MAX_REFTABLE_BYTES;
        self.check_table(
            "Reference count table",
            self.reftable_offset,
            reftable_entries,
            8,
            max,
        )?;
        if self.reftable_clusters == 0 && !check {
            return Err(invalid("Image does not contain a reference count table"));
        }
        if !check {
            self.check_snapshot_table(false)?;
        }
        self.check_table(
            "Active L1 table",
            self.l1_offset,
            u64::from(self.l1_size),
            8,
            MAX_L1_BYTES,
        )?;
        let needed = self
            .size
            .div_ceil(1 << (2 * self.cluster_bits - self.entry_bits()));
        if needed > i32::MAX as u64 || self.size > MAX_LENGTH {
            return Err(Error::new(
                ErrorKind::Io(millpond_messages::IoError::Os(27)),
                "Image is too big",
            ));
        }
        if u64::from(self.l1_size) < needed {
            return Err(invalid("L1 table is too small"));
        }
        self.check_features()
    }

    /// What features ask of each other, and of the size of a cluster.
    fn check_features(&self) -> Result<()> {
        if self.has_extended_l2() && self.cluster_bits < MIN_EXTENDED_BITS {
            let size = (1_u64 << self.cluster_bits) / u64::from(SUBCLUSTERS);
            return Err(invalid(format!("Unsupported subcluster size: {size}")));
        }
        if self.autoclear & AUTOCLEAR_DATA_FILE_RAW != 0 && self.incompatible & DATA_FILE == 0 {
            return Err(invalid("data-file-raw requires a data file"));
        }
        Ok(())
    }

    /// Refuses a snapshot table that cannot be. One of too many entries can be mended.
    pub fn check_snapshot_table(&self, mends: bool) -> Result<()> {
        let snapshots = u64::from(self.snapshots);
        let snapshots = if mends {
            snapshots.min(MAX_SNAPSHOTS)
        } else {
            snapshots
        };
        // An entry has 40 bytes and more.
        let (start, most) = (self.snapshots_offset, MAX_SNAPSHOTS * 40);
        self.check_table("Snapshot table", start, snapshots, 40, most)
    }

    /// Refuses a table that is too large, or where none can be.
    pub fn check_table(
        &self,
        name: &str,
        start: HostOffset,
        entries: u64,
        entry: u64,
        max: u64,
    ) -> Result<()> {
        if entries > max / entry {
            return Err(Error::new(
                ErrorKind::Io(millpond_messages::IoError::Os(27)),
                format!("{name} too large"),
            ));
        }
        let room = (i64::MAX as u64).saturating_sub(entries * entry);
        if start.get() > room || !start.get().is_multiple_of(1 << self.cluster_bits) {
            return Err(invalid(format!("{name} offset invalid")));
        }
        Ok(())
    }

    /// The end of the virtual disk.
    pub const fn end(&self) -> GuestOffset {
        GuestOffset::new(self.size)
    }

    /// The sizes that follow from the header, with L2 slices of `slice_size` bytes.
    pub const fn geometry(&self, slice_size: u32) -> Geometry {
        let geometry = Geometry::new(self.cluster_bits, self.refcount_order, slice_size, self.version);
        let geometry = if self.has_extended_l2() {
            geometry.with_extended_l2()
        } else {
            geometry
        };
        Geometry {
            external: self.has_data_file(),
            ..geometry
        }
    }

    /// Whether clusters have subclusters.
    pub const fn has_extended_l2(&self) -> bool {
        self.incompatible & EXTENDED_L2 != 0
    }

    /// log2 of the bytes of an L2 entry.
    pub const fn entry_bits(&self) -> u32 {
        if self.has_extended_l2() { 4 } else { 3 }
    }

    /// Whether the guest's data is in a file of its own.
    pub const fn has_data_file(&self) -> bool {
        self.incompatible & DATA_FILE != 0
    }

    /// Whether that file reads as the disk does.
    pub const fn data_file_is_raw(&self) -> bool {
        self.autoclear & AUTOCLEAR_DATA_FILE_RAW != 0
    }

    /// The fixed fields as they stand on disk, without the backing file's place.
    fn fields(&self) -> Fields {
        Fields {
            magic: MAGIC.into(),
            version: self.version.into(),
            backing_offset: 0.into(),
            backing_len: 0.into(),
            cluster_bits: self.cluster_bits.into(),
            size: self.size.into(),
            encryption: self.encryption.map_or(0, |method| method as u32).into(),
            l1_size: self.l1_size.into(),
            l1_offset: self.l1_offset.get().into(),
            reftable_offset: self.reftable_offset.get().into(),
            reftable_clusters: self.reftable_clusters.into(),
            snapshots: self.snapshots.into(),
            snapshots_offset: self.snapshots_offset.get().into(),
            incompatible: self.incompatible.into(),
            compatible: self.compatible.into(),
            autoclear: self.autoclear.into(),
            refcount_order: self.refcount_order.into(),
            // What is known and what was kept both come from one cluster of at most 2 MiB.
            length: ((FULL_LENGTH + self.unknown.len()) as u32).into(),
            compression: self.compression as u8,
            padding: [0; 7],
        }
    }

    /// The same as bytes, of which a part can be written alone.
    pub fn encode_fields(&self) -> Vec<u8> {
        self.fields().write()
    }

    /// All that the header cluster holds: fields, extensions, backing file name.
    ///
    /// # Errors
    /// It does not fit in a cluster.
    pub fn encode(&self) -> Result<Vec<u8>> {
        // The names of features only help people, so they make room in the smallest clusters.
        let with_names = self.encode_with(self.version >= 3);
        with_names.or_else(|_| self.encode_with(false))
    }

    fn encode_with(&self, feature_names: bool) -> Result<Vec<u8>> {
        let mut fields = self.fields();
        let mut rest = self.unknown.clone();
        rest.extend_from_slice(&self.extensions.encode(feature_names));
        if let Some(name) = &self.backing {
            let offset = fields.write().len() + rest.len();
            fields.backing_offset = (offset as u64).into();
            fields.backing_len = (name.len() as u32).into();
            rest.extend_from_slice(name);
        }
        let bytes = [fields.write(), rest].concat();
        if bytes.len() as u64 > 1 << self.cluster_bits {
            return Err(Error::new(
                ErrorKind::Io(millpond_messages::IoError::NoSpace),
                "The image header does not fit in a cluster",
            ));
        }
        Ok(bytes)
    }
}

/// Refuses what is not known, by the image's own names, and what is known but not done here yet.
fn refuse_features(incompatible: u64, extensions: &[u8]) -> Result<()> {
    let unknown = incompatible & !(DIRTY | CORRUPT | DATA_FILE | COMPRESSION | EXTENDED_L2);
    if unknown != 0 {
        // A damaged extension must not hide which feature is missing.
        let names = Extensions::parse(extensions).unwrap_or_default();
        let mut nameless = 0;
        let mut list = Vec::new();
        for bit in (0..64_u8).filter(|bit| unknown & (1 << bit) != 0) {
            match names.feature_name(FeatureType::Incompatible, bit) {
                Some(name) => list.push(name),
                None => nameless |= 1_u64 << bit,
            }
        }
        if nameless != 0 {
            list.push(format!("Unknown incompatible feature: {nameless:x}"));
        }
        let text = format!("Unsupported qcow2 feature(s): {}", list.join(", "));
        return Err(Error::new(ErrorKind::Unsupported, text));
    }
    Ok(())
}

fn compression(field: u8, incompatible: u64) -> Result<Compression> {
    let flagged = incompatible & COMPRESSION != 0;
    match (field, flagged) {
        (0, false) => Ok(Compression::Zlib),
        (1, true) => Ok(Compression::Zstd),
        (0, true) => Err(invalid(
            "qcow2: Compression type incompatible feature bit must not be set",
        )),
        (1, false) => Err(invalid(
            "qcow2: Compression type incompatible feature bit must be set",
        )),
        (other, _) => {
            let text = format!("qcow2: unknown compression type: {other}");
            Err(Error::new(ErrorKind::Unsupported, text))
        }
    }
}

fn encryption(field: u32) -> Result<Option<CryptMethod>> {
    match field {
        0 => Ok(None),
        1 => Ok(Some(CryptMethod::Aes)),
        2 => Ok(Some(CryptMethod::Luks)),
        other => Err(invalid(format!("Unsupported encryption method {other}"))),
    }
}

fn backing_name(cluster: &[u8], offset: u64, len: u32) -> Result<Option<Vec<u8>>> {
    if offset == 0 {
        return Ok(None);
    }
    let len = u64::from(len);
    let room = (cluster.len() as u64).saturating_sub(offset);
    if len > MAX_BACKING_NAME.min(room) {
        return Err(invalid("Backing file name too long"));
    }
    let stored = cluster.get(offset as usize..(offset + len) as usize);
    let name = text(stored.ok_or_else(|| invalid("Could not read backing file name"))?);
    Ok((!name.is_empty()).then(|| name.to_vec()))
}
