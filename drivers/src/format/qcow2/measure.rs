//! How large a new image will be, by its options.

use millpond_messages::graph::Options;
use millpond_messages::io::Preallocation;
use millpond_messages::{Error, ErrorKind, ImagePlan, Result};

use super::create::CreateOptions;
use super::encryption::NewEncryption;
use crate::api::parse_options;
use crate::secret::Secrets;

/// The size of the largest L1 table, in bytes.
const MAX_L1: u64 = 32 << 20;
/// Bytes of an entry in the L1 table, the refcount table, and the L2 tables of images without subclusters.
const ENTRY: u64 = 8;
/// Bytes of an entry in the L2 tables of images with subclusters.
const EXTENDED_ENTRY: u64 = 16;

/// What an image with these options needs.
///
/// # Errors
/// The options are wrong, or the disk is too large.
pub fn measure(secrets: &Secrets, options: Options) -> Result<ImagePlan> {
    let mut options: CreateOptions = parse_options(options)?;
    let encryption = options.encrypt.take();
    let encryption = encryption.map(|option| NewEncryption::parse(secrets, option));
    let keys = encryption.transpose()?.map(|new| new.header_len());
    let keys = keys.transpose()?.unwrap_or(0);
    let size = options.size.unwrap_or(0);
    let header = options.of_layout().header(None)?;
    let layout = Layout {
        cluster: 1 << header.cluster_bits,
        refcount_order: header.refcount_order,
        l2_entry: match options.extended_l2 {
            Some(true) => EXTENDED_ENTRY,
            _ => ENTRY,
        },
    };
    let too_large = || {
        let text = "The image size is too large (try using a larger cluster size)";
        Error::new(ErrorKind::InvalidArgument, text)
    };
    let disk = size
        .checked_next_multiple_of(layout.cluster)
        .ok_or_else(too_large)?;
    let l2_tables = (disk / layout.cluster).div_ceil(layout.cluster / layout.l2_entry);
    if l2_tables > MAX_L1 / ENTRY {
        return Err(too_large());
    }
    let is_reserved = matches!(options.preallocation, Preallocation::Falloc | Preallocation::Full);
    Ok(ImagePlan {
        metadata: layout.metadata(disk) + keys.next_multiple_of(layout.cluster),
        disk,
        sparse: (!is_reserved).then_some(layout.cluster),
        is_overlay: options.backing_file.is_some(),
        bitmaps: (header.version >= 3).then_some(layout.cluster),
    })
}

/// What the size of the metadata follows from.
struct Layout {
    /// Bytes that a cluster has.
    cluster: u64,
    refcount_order: u32,
    l2_entry: u64,
}

impl Layout {
    /// Bytes of an image's metadata whose disk, of whole clusters, is allocated from one end to the other.
    fn metadata(&self, disk: u64) -> u64 {
        let clusters = disk / self.cluster;
        let l2 = (clusters * self.l2_entry).next_multiple_of(self.cluster);
        let l1 = (l2 / self.cluster * ENTRY).next_multiple_of(self.cluster);
        let counted = self.cluster + l1 + l2;
        counted + self.refcounts((disk + counted) / self.cluster)
    }

    /// Bytes of the refcount table and blocks that count so many clusters and themselves.
    fn refcounts(&self, clusters: u64) -> u64 {
        let in_block = (self.cluster * 8) >> self.refcount_order;
        let (mut blocks, mut table) = (0, 0);
        loop {
            let needed = (clusters + blocks + table).div_ceil(in_block);
            let table_needed = (needed * ENTRY).div_ceil(self.cluster);
            if (needed, table_needed) == (blocks, table) {
                return (blocks + table) * self.cluster;
            }
            (blocks, table) = (needed, table_needed);
        }
    }
}
