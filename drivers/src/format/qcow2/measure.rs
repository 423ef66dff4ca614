//! How large a new image will be, by its options.

use millpond_messages::graph::Options;
use millpond_messages::io::Preallocation;
use millpond_messages::{Error, ErrorKind, ImagePlan, Result};

use super::create::CreateOptions;
use super::encryption::NewEncryption;
use super::header::MAX_L1_BYTES;
use super::layout::geometry::Geometry;
use crate::api::parse_options;
use crate::secret::Secrets;

/// The smallest slice of an L2 table, in bytes.
const MIN_SLICE: u32 = 512;
/// Bytes of an entry in the L1 table and the refcount table.
const ENTRY: u64 = 8;

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
    // No size here follows from that of slices.
    let geometry = header.geometry(MIN_SLICE);
    let too_large = || {
        let text = "The image size is too large (try using a larger cluster size)";
        Error::new(ErrorKind::InvalidArgument, text)
    };
    let cluster = geometry.cluster_size();
    let disk = size.checked_next_multiple_of(cluster).ok_or_else(too_large)?;
    if geometry.l1_entries(disk) > MAX_L1_BYTES / ENTRY {
        return Err(too_large());
    }
    let is_reserved = matches!(options.preallocation, Preallocation::Falloc | Preallocation::Full);
    Ok(ImagePlan {
        metadata: metadata(&geometry, disk) + keys.next_multiple_of(cluster),
        disk,
        sparse: (!is_reserved).then_some(cluster),
        is_overlay: options.backing_file.is_some(),
        bitmaps: (header.version >= 3).then_some(cluster),
    })
}

/// Bytes of an image's metadata whose disk, of whole clusters, is allocated from one end to the other.
fn metadata(geometry: &Geometry, disk: u64) -> u64 {
    let l2_tables = geometry.l1_entries(disk);
    // The header is in a cluster of its own.
    let counted = 1 + geometry.clusters(l2_tables * ENTRY) + l2_tables;
    geometry.bytes(counted + refcount_clusters(geometry, geometry.clusters(disk) + counted))
}

/// How many clusters the refcount table and blocks take that count so many and themselves.
fn refcount_clusters(geometry: &Geometry, clusters: u64) -> u64 {
    let (mut blocks, mut table) = (0, 0);
    loop {
        let needed = (clusters + blocks + table).div_ceil(geometry.refblock_entries());
        let table_needed = geometry.clusters(needed * ENTRY);
        if (needed, table_needed) == (blocks, table) {
            return blocks + table;
        }
        (blocks, table) = (needed, table_needed);
    }
}
