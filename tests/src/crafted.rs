//! Crafted images of the format qcow2: headers with impossible fields, and metadata with any bits changed.

use std::fs;
use std::path::Path;

use fastrand::Rng;

use crate::image::poke;

/// One field of the header and values it must not, or may just not, have.
pub struct Field {
    /// What the specification calls it, nearly.
    pub name: &'static str,
    /// Where it begins in the file.
    pub offset: u64,
    /// Its length in bytes.
    size: usize,
    /// The values that it may be given.
    pub values: &'static [u64],
}

impl Field {
    /// Gives it a value in an image.
    pub fn set(&self, path: &Path, value: u64) {
        poke(path, self.offset, &value.to_be_bytes()[8 - self.size..]);
    }
}

const fn field(name: &'static str, offset: u64, size: usize, values: &'static [u64]) -> Field {
    Field {
        name,
        offset,
        size,
        values,
    }
}

/// Fields of a header of version 3, and values that are wrong or strange.
pub const FIELDS: &[Field] = &[
    field("magic", 0, 4, &[0, 0x5146_49fa]),
    field("version", 4, 4, &[0, 1, 4, 5, u32::MAX as u64]),
    field(
        "backing_file_offset",
        8,
        8,
        &[1, 8, 112, 65535, 65536, 1 << 40, u64::MAX],
    ),
    field(
        "backing_file_size",
        16,
        4,
        &[1, 1023, 1024, 65536, u32::MAX as u64],
    ),
    field(
        "cluster_bits",
        20,
        4,
        &[0, 1, 8, 22, 31, 32, 63, 64, u32::MAX as u64],
    ),
    field(
        "size",
        24,
        8,
        &[1, 511, 1 << 44, 1 << 56, i64::MAX as u64, 1 << 63, u64::MAX],
    ),
    field("crypt_method", 32, 4, &[3, 4, u32::MAX as u64]),
    field(
        "l1_size",
        36,
        4,
        &[0, 1 << 22, (1 << 22) + 1, 0x7fff_ffff, u32::MAX as u64],
    ),
    field(
        "l1_table_offset",
        40,
        8,
        &[0, 1, 512, 65537, 1 << 50, i64::MAX as u64, u64::MAX, !0xffff],
    ),
    field(
        "refcount_table_offset",
        48,
        8,
        &[0, 1, 512, 65537, 1 << 50, i64::MAX as u64, u64::MAX, !0xffff],
    ),
    field(
        "refcount_table_clusters",
        56,
        4,
        &[0, 129, 0x8000, u32::MAX as u64],
    ),
    field("nb_snapshots", 60, 4, &[1, 65536, 65537, u32::MAX as u64]),
    field("snapshots_offset", 64, 8, &[1, 512, 1 << 50, u64::MAX]),
    field(
        "incompatible_features",
        72,
        8,
        &[1, 2, 4, 8, 16, 32, 1 << 63, u64::MAX],
    ),
    field("compatible_features", 80, 8, &[u64::MAX]),
    field("autoclear_features", 88, 8, &[1, 2, u64::MAX]),
    field(
        "refcount_order",
        96,
        4,
        &[0, 5, 7, 8, 31, 32, 64, u32::MAX as u64],
    ),
    field(
        "header_length",
        100,
        4,
        &[0, 72, 103, 105, 65536, u32::MAX as u64],
    ),
    field("compression_type", 104, 1, &[1, 2, 255]),
    field(
        "first extension's type",
        112,
        4,
        &[0xe279_2aca, 0x2385_2875, 0x0537_be77, 0x4441_5441, 0x1234_5678],
    ),
    field(
        "first extension's length",
        116,
        4,
        &[0xffff, 0x1_0000, 0x7fff_ffff, 0xffff_fff8, u32::MAX as u64],
    ),
];

/// Changes up to four words of an image with clusters of 4 KiB, most of them in its header and its tables.
pub fn change_metadata(path: &Path, rng: &mut Rng) {
    let length = fs::metadata(path).expect("the image").len();
    for _ in 0..rng.u8(1..5) {
        // Most changes hit the header and the tables, which lie at the front.
        let offset = if rng.u8(0..4) == 0 {
            rng.u64(0..length)
        } else {
            rng.u64(0..6 * 4096)
        };
        let value = match rng.u8(0..3) {
            0 => rng.u64(..).to_be_bytes(),
            1 => (rng.u64(0..length) & !511 | 1 << 63).to_be_bytes(),
            _ => [0xff; 8],
        };
        let count = rng.usize(1..=8);
        poke(path, offset & !7, &value[..count]);
    }
}
