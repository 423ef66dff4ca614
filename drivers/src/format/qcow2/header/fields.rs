//! The fixed fields of the header, as they stand on disk.

use std::mem::offset_of;
use std::ops::Range;

use zerocopy::byteorder::big_endian::{U32, U64};
use zerocopy::{FromBytes, FromZeros, Immutable, IntoBytes, KnownLayout, Unaligned};

/// Every field that is known, in its place. Version 2 ends before [`Fields::incompatible`]; what a header does not have
/// reads as 0.
#[derive(Debug, Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub(crate) struct Fields {
    pub magic: U32,
    pub version: U32,
    pub backing_offset: U64,
    pub backing_len: U32,
    pub cluster_bits: U32,
    pub size: U64,
    pub encryption: U32,
    pub l1_size: U32,
    pub l1_offset: U64,
    pub reftable_offset: U64,
    pub reftable_clusters: U32,
    pub snapshots: U32,
    pub snapshots_offset: U64,
    pub incompatible: U64,
    pub compatible: U64,
    pub autoclear: U64,
    pub refcount_order: U32,
    /// Bytes of the header, unknown fields included.
    pub length: U32,
    pub compression: u8,
    pub padding: [u8; 7],
}

/// Bytes of a version 2 header.
pub(crate) const V2_LENGTH: usize = offset_of!(Fields, incompatible);
/// Bytes of the shortest version 3 header.
pub(crate) const V3_LENGTH: usize = offset_of!(Fields, compression);
/// Bytes of the fields known here, padding included: what is written.
pub(crate) const FULL_LENGTH: usize = size_of::<Fields>();

/// Where the disk's length is.
pub(crate) const SIZE: Range<usize> = offset_of!(Fields, size)..offset_of!(Fields, encryption);
/// Where the header says how long the L1 table is, and where.
pub(crate) const L1: Range<usize> = offset_of!(Fields, l1_size)..offset_of!(Fields, reftable_offset);
/// Where it says the same of the refcount table.
pub(crate) const REFTABLE: Range<usize> = offset_of!(Fields, reftable_offset)..offset_of!(Fields, snapshots);
/// Where it says how many snapshots there are, and where their table is.
pub(crate) const SNAPSHOTS: Range<usize> = offset_of!(Fields, snapshots)..offset_of!(Fields, incompatible);
/// Where the feature words are.
pub(crate) const FEATURES: Range<usize> =
    offset_of!(Fields, incompatible)..offset_of!(Fields, refcount_order);

impl Fields {
    /// The fields that the first `length` bytes of `head` hold.
    pub fn read(head: &[u8], length: usize) -> Self {
        let mut fields = Self::new_zeroed();
        let there = head.len().min(length).min(FULL_LENGTH);
        if let (Some(to), Some(from)) = (fields.as_mut_bytes().get_mut(..there), head.get(..there)) {
            to.copy_from_slice(from);
        }
        fields
    }

    /// The bytes of a header of this version.
    pub fn write(&self) -> Vec<u8> {
        let length = if self.version.get() >= 3 {
            FULL_LENGTH
        } else {
            V2_LENGTH
        };
        self.as_bytes().get(..length).unwrap_or_default().to_vec()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_are_where_the_format_has_them() {
        assert_eq!((V2_LENGTH, V3_LENGTH, FULL_LENGTH), (72, 104, 112));
        assert_eq!((SIZE, L1, REFTABLE, FEATURES), (24..32, 36..48, 48..60, 72..96));
        assert_eq!((SNAPSHOTS, offset_of!(Fields, snapshots_offset)), (60..72, 64));
        let bytes: Vec<u8> = (0..112).collect();
        let fields = Fields::read(&bytes, 112);
        assert_eq!(fields.cluster_bits.get(), 0x1415_1617);
        assert_eq!((fields.length.get(), fields.compression), (0x6465_6667, 104));
        assert_eq!(fields.write(), bytes);
        assert_eq!(Fields::read(&bytes, 72).incompatible.get(), 0);
        assert_eq!(Fields::read(&bytes[..10], 112).backing_offset.get(), 0x0809 << 48);
    }
}
