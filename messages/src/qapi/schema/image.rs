//! Images: made, resized, checked, amended, and shown.

use super::crypto::{
    BlockdevCreateOptionsLUKS, ImageInfoSpecificLUKSWrapper, ImageInfoSpecificQCow2Encryption,
    QCryptoBlockAmendOptions, QCryptoBlockAmendOptionsLUKS, QCryptoBlockCreateOptions,
};
use super::driver::Qcow2CompressionType;
use super::node::{BlockdevDetectZeroesOptions, BlockdevDriver, BlockdevRef};
use crate::InternalSnapshot;
use crate::io::Preallocation;
use crate::qapi::define::{EnumType, Qapi, Size, Type};
use crate::qapi::row::qapi;

qapi! {
    /// Makes an image, as a job.
    command BlockdevCreate = "blockdev-create" {
        /// The id of the job.
        job_id: String,
        /// What the image is to be.
        options: BlockdevCreateOptions,
    };

    /// Options of an image that is to be made. Only the driver knows what they all mean.
    open union BlockdevCreateOptions {
        @"driver": BlockdevDriver {
            "file": BlockdevCreateOptionsFile,
            "luks": BlockdevCreateOptionsLUKS,
            "qcow2": BlockdevCreateOptionsQcow2,
            "vdi": BlockdevCreateOptionsVdi,
        },
    }

    /// Options of a file that is to be made.
    open struct BlockdevCreateOptionsFile {
        filename: String,
        size: Size,
        preallocation: Option<Preallocation>,
        nocow: Option<bool>,
        extent_size_hint: Option<Size>,
    }

    /// Options of a qcow2 image that is to be made.
    open struct BlockdevCreateOptionsQcow2 {
        file: BlockdevRef,
        data_file: Option<BlockdevRef>,
        data_file_raw: Option<bool>,
        extended_l2: Option<bool>,
        size: Size,
        version: Option<BlockdevQcow2Version>,
        backing_file: Option<String>,
        backing_fmt: Option<BlockdevDriver>,
        encrypt: Option<QCryptoBlockCreateOptions>,
        cluster_size: Option<Size>,
        preallocation: Option<Preallocation>,
        lazy_refcounts: Option<bool>,
        refcount_bits: Option<i64>,
        compression_type: Option<Qcow2CompressionType>,
    }

    /// Options of a VDI image that is to be made.
    open struct BlockdevCreateOptionsVdi {
        file: BlockdevRef,
        size: Size,
        preallocation: Option<Preallocation>,
    }

    /// The versions of the format qcow2.
    enum BlockdevQcow2Version {
        /// The older one, without features.
        V2 = "v2",
        /// The newer one, which lists its features.
        V3 = "v3",
    }

    /// Changes options of an image, as a job.
    command XBlockdevAmend = "x-blockdev-amend" {
        /// The id of the job.
        job_id: String,
        /// The node of the image.
        node_name: String,
        /// What is to be changed.
        options: BlockdevAmendOptions,
        /// Even what may lose data.
        force: bool = default,
    } ["unstable"];

    /// Options of an image that are changed.
    open union BlockdevAmendOptions {
        @"driver": BlockdevDriver {
            "luks": QCryptoBlockAmendOptionsLUKS,
            "qcow2": BlockdevAmendOptionsQcow2,
        },
    }

    /// Options of a qcow2 image that are changed.
    open struct BlockdevAmendOptionsQcow2 {
        encrypt: Option<QCryptoBlockAmendOptions>,
    }

    /// Changes an image's size.
    command BlockResize = "block_resize" {
        /// The device; there are none.
        device: Option<String>,
        /// The node that is resized.
        node_name: Option<String>,
        /// The new size in bytes.
        size: i64,
    };

    /// Changes a node's size, with all that can be said about how.
    command XMillpondTruncate = "x-millpond-truncate" {
        /// The node that is resized.
        node_name: String,
        /// The new size in bytes.
        size: Size,
        /// To exactly this size, and not to a larger one.
        exact: bool = default,
        /// What is allocated of what is new.
        preallocation: Preallocation = default,
        /// What is new reads as zeroes.
        zero: bool = default,
    } ["unstable"];

    /// Writes another name of the backing file into an image.
    command ChangeBackingFile = "change-backing-file" {
        /// A node of the chain, the image or one above it.
        device: String,
        /// The node of the image that is written to.
        image_node_name: String,
        /// The name that is written.
        backing_file: String,
    };

    /// Checks an image while it is open, and repairs it if asked to. QEMU has that in its image tool only.
    command XMillpondCheck = "x-millpond-check" {
        /// The node of the image.
        node_name: String,
        /// What is repaired of what is found.
        repair: MillpondCheckRepair = default,
    } -> MillpondImageCheck ["unstable"];

    /// What is repaired of what is found.
    #[derive(Default)]
    enum MillpondCheckRepair {
        /// Nothing: the image stays as it is.
        #[default]
        None = "none",
        /// Clusters that nothing refers to.
        Leaks = "leaks",
        /// All that can be repaired.
        All = "all",
    }

    /// What a check has found; as `ImageCheck` of QEMU's tool, in which what is zero is left out.
    struct MillpondImageCheck {
        /// The name of the image's file.
        filename: String,
        /// The name of the image's driver.
        format: String,
        /// What could not be checked.
        check_errors: u64,
        /// Where the last used byte of the file is.
        image_end_offset: u64,
        /// What is wrong and not repaired.
        corruptions: u64,
        /// Clusters that nothing refers to, not repaired.
        leaks: u64,
        /// What was wrong and is repaired.
        corruptions_fixed: u64,
        /// Clusters that nothing referred to, repaired.
        leaks_fixed: u64,
        /// The clusters of the guest's disk.
        total_clusters: u64,
        /// Those that have data of their own.
        allocated_clusters: u64,
        /// Those that do not follow the one before.
        fragmented_clusters: u64,
        /// Those that are compressed.
        compressed_clusters: u64,
    }

    /// How a node uses caches.
    #[derive(Copy, Default, Eq)]
    struct BlockdevCacheInfo {
        /// Writes are flushed only when asked for.
        writeback: bool,
        /// The host's page cache is bypassed.
        direct: bool,
        /// Flushes are answered without a flush.
        no_flush: bool,
    }

    /// A dirty bitmap as it is shown.
    #[derive(Eq)]
    struct BlockDirtyInfo {
        /// The bitmap's name, where it has one.
        name: Option<String>,
        /// How many bytes are dirty.
        count: i64,
        /// Bytes a bit stands for.
        granularity: u32,
        /// Whether writes are being recorded now.
        recording: bool,
        /// A job or an export uses it.
        busy: bool,
        /// It is stored in the image.
        persistent: bool,
        /// It was not saved properly.
        inconsistent: Option<bool>,
    }

    /// A snapshot inside an image.
    #[derive(Eq)]
    struct SnapshotInfo {
        /// The snapshot's id inside its image.
        id: String,
        /// The name that its maker gave it.
        name: String,
        /// Size of the machine's state in bytes.
        vm_state_size: i64,
        /// When it was made, seconds since the epoch.
        date_sec: i64,
        /// The nanoseconds of that.
        date_nsec: i64,
        /// The machine's clock, seconds.
        vm_clock_sec: i64,
        /// The nanoseconds of that.
        vm_clock_nsec: i64,
        /// The machine's instruction counter.
        icount: Option<i64>,
    }

    /// Takes a snapshot inside a node's image.
    command BlockdevSnapshotInternalSync = "blockdev-snapshot-internal-sync" {
        /// The node that is meant, by its name.
        device: String,
        /// The name of the snapshot, which no other in the image has.
        name: String,
    };

    /// Deletes a snapshot inside a node's image, and tells what it was.
    command BlockdevSnapshotDeleteInternalSync = "blockdev-snapshot-delete-internal-sync" {
        /// The node that is meant, by its name.
        device: String,
        /// The id of the snapshot, if that is how it is found.
        id: Option<String>,
        /// The name of the snapshot, if that is how it is found.
        name: Option<String>,
    } -> SnapshotInfo;

    /// What only the image's format knows.
    branches ImageInfoSpecific by "type": ImageInfoSpecificKind {
        /// An image in the format qcow2.
        Qcow2 = "qcow2": ImageInfoSpecificQCow2Wrapper,
        /// An image that is encrypted as a whole.
        Luks = "luks": ImageInfoSpecificLUKSWrapper,
        /// A file of the host.
        File = "file": ImageInfoSpecificFileWrapper,
    }

    /// The formats that say something of their own.
    enum ImageInfoSpecificKind {
        /// An image in the format qcow2.
        Qcow2 = "qcow2",
        /// An image that is encrypted as a whole.
        Luks = "luks",
        /// A file of the host.
        File = "file",
    }

    /// What a qcow2 image says of itself, one level down.
    struct ImageInfoSpecificQCow2Wrapper {
        /// What it says.
        data: ImageInfoSpecificQCow2,
    }

    /// What a qcow2 image says of itself.
    struct ImageInfoSpecificQCow2 {
        /// The oldest version that can read it.
        compat: String,
        /// The file that has its data.
        data_file: Option<String>,
        /// Whether that file is the guest's disk as it is.
        data_file_raw: Option<bool>,
        /// Whether clusters have parts of their own.
        extended_l2: Option<bool>,
        /// Whether reference counts may be behind.
        lazy_refcounts: Option<bool>,
        /// Whether its metadata is broken.
        corrupt: Option<bool>,
        /// Bits of a reference count.
        refcount_bits: i64,
        /// How its data is encrypted, if it is.
        encrypt: Option<ImageInfoSpecificQCow2Encryption>,
        /// The bitmaps that are stored in it.
        bitmaps: Option<Vec<Qcow2BitmapInfo>>,
        /// How clusters are compressed.
        compression_type: Qcow2CompressionType,
    }

    /// A bitmap stored in a qcow2 image.
    struct Qcow2BitmapInfo {
        /// The bitmap's name in the image.
        name: String,
        /// Bytes a bit stands for.
        granularity: u32,
        /// What is to be known of it.
        flags: Vec<Qcow2BitmapInfoFlags>,
    }

    /// What a qcow2 image says of a bitmap.
    enum Qcow2BitmapInfoFlags {
        /// It was not saved properly.
        InUse = "in-use",
        /// It records writes as soon as the image is open.
        Auto = "auto",
    }

    /// What a file says of itself, one level down.
    struct ImageInfoSpecificFileWrapper {
        /// What it says.
        data: ImageInfoSpecificFile,
    }

    /// What a file says of itself.
    struct ImageInfoSpecificFile {
        /// In which steps the host is to allocate space.
        extent_size_hint: Option<Size>,
    }

    /// What is known of an image.
    #[derive(Default)]
    struct ImageInfo {
        /// Its name, or a `json:` description.
        filename: String,
        /// The name of the image's driver.
        format: String,
        /// It was not closed properly.
        dirty_flag: Option<bool>,
        /// Bytes it takes on the host.
        actual_size: Option<i64>,
        /// Bytes its user sees.
        virtual_size: i64,
        /// Bytes of a cluster.
        cluster_size: Option<i64>,
        /// It is encrypted; absent if not.
        encrypted: Option<bool>,
        /// It is compressed; absent if not.
        compressed: Option<bool>,
        /// The backing file's name as the image has it.
        backing_filename: Option<String>,
        /// The backing file's name as it is opened.
        full_backing_filename: Option<String>,
        /// The backing file's format as the image has it.
        backing_filename_format: Option<String>,
        /// The snapshots inside the image, oldest first.
        snapshots: Option<Vec<SnapshotInfo>>,
        /// What only the format knows.
        format_specific: Option<ImageInfoSpecific>,
        /// What is known of the image below.
        backing_image: Option<Box<ImageInfo>>,
    }

    /// A node as it is shown.
    #[derive(Default)]
    struct BlockDeviceInfo {
        /// The name that opens the node's file.
        file: String,
        /// The node's name in the graph.
        node_name: Option<String>,
        /// Whether the node is open for reading only.
        ro: bool,
        /// The name of the node's driver.
        drv: String,
        /// The backing file's name.
        backing_file as "backing_file": Option<String>,
        /// How many backing files are below.
        backing_file_depth as "backing_file_depth": i64,
        /// Whether the node may use its storage now.
        active: bool,
        /// Whether its data is stored encrypted.
        encrypted: bool,
        /// What is done with writes of zeroes.
        detect_zeroes as "detect_zeroes": BlockdevDetectZeroesOptions,
        /// Limit, bytes a second; 0 for none, as all of these.
        bps: i64,
        /// The same for reads.
        bps_rd as "bps_rd": i64,
        /// The same for writes.
        bps_wr as "bps_wr": i64,
        /// Limit, requests a second.
        iops: i64,
        /// The same for reads.
        iops_rd as "iops_rd": i64,
        /// The same for writes.
        iops_wr as "iops_wr": i64,
        /// The image that it shows.
        image: ImageInfo,
        /// The limit of a burst, bytes a second; absent without one, as all of these.
        bps_max as "bps_max": Option<i64>,
        /// The same for reads.
        bps_rd_max as "bps_rd_max": Option<i64>,
        /// The same for writes.
        bps_wr_max as "bps_wr_max": Option<i64>,
        /// The limit of a burst, requests a second.
        iops_max as "iops_max": Option<i64>,
        /// The same for reads.
        iops_rd_max as "iops_rd_max": Option<i64>,
        /// The same for writes.
        iops_wr_max as "iops_wr_max": Option<i64>,
        /// How long a burst may be, seconds.
        bps_max_length as "bps_max_length": Option<i64>,
        /// The same for reads.
        bps_rd_max_length as "bps_rd_max_length": Option<i64>,
        /// The same for writes.
        bps_wr_max_length as "bps_wr_max_length": Option<i64>,
        /// How long a burst of requests may be, seconds.
        iops_max_length as "iops_max_length": Option<i64>,
        /// The same for reads.
        iops_rd_max_length as "iops_rd_max_length": Option<i64>,
        /// The same for writes.
        iops_wr_max_length as "iops_wr_max_length": Option<i64>,
        /// Bytes after which a request counts as another.
        iops_size as "iops_size": Option<i64>,
        /// The throttle group that it is in.
        group: Option<String>,
        /// How it uses caches.
        cache: BlockdevCacheInfo,
        /// Writes past this offset are told; 0 for none.
        write_threshold as "write_threshold": i64,
        /// The dirty bitmaps that are kept of it.
        dirty_bitmaps: Option<Vec<BlockDirtyInfo>>,
    }

    /// Shows the nodes that have names.
    command QueryNamedBlockNodes = "query-named-block-nodes" {
        /// Without the images below each.
        flat: bool = default,
    } -> Vec<BlockDeviceInfo>;
}

impl Qapi for Preallocation {
    const TYPE: Type = Type::Enum(|| {
        static SCHEMA: EnumType = EnumType {
            name: "PreallocMode",
            values: &["off", "metadata", "falloc", "full"],
            features: &[],
        };
        &SCHEMA
    });
}

impl From<&InternalSnapshot> for SnapshotInfo {
    fn from(snapshot: &InternalSnapshot) -> Self {
        const SECOND: u64 = 1_000_000_000;
        Self {
            id: snapshot.shown_id().to_owned(),
            name: snapshot.shown_name().to_owned(),
            vm_state_size: snapshot.vm_state_size.cast_signed(),
            date_sec: snapshot.date_sec.into(),
            date_nsec: snapshot.date_nsec.into(),
            vm_clock_sec: (snapshot.vm_clock_nsec / SECOND).cast_signed(),
            vm_clock_nsec: (snapshot.vm_clock_nsec % SECOND).cast_signed(),
            icount: snapshot.icount.map(u64::cast_signed),
        }
    }
}

impl BlockdevAmendOptions {
    /// The driver whose options these are.
    pub fn driver(&self) -> &str {
        self.0
            .get("driver")
            .and_then(serde_json::Value::as_str)
            .unwrap_or_default()
    }

    /// Whether they are about encryption.
    pub fn is_about_encryption(&self) -> bool {
        self.0.contains_key("encrypt")
    }
}
