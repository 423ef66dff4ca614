//! Big-endian numbers in byte slices whose length comes from outside.

/// The 32-bit number at `at`; 0 past the end.
pub(crate) fn be32(bytes: &[u8], at: usize) -> u32 {
    field(bytes, at).map_or(0, u32::from_be_bytes)
}

/// The 64-bit number at `at`; 0 past the end.
pub(crate) fn be64(bytes: &[u8], at: usize) -> u64 {
    field(bytes, at).map_or(0, u64::from_be_bytes)
}

/// A text of the image: what it stores up to the first NUL.
pub(crate) fn text(stored: &[u8]) -> &[u8] {
    stored.split(|&byte| byte == 0).next().unwrap_or_default()
}

fn field<const N: usize>(bytes: &[u8], at: usize) -> Option<[u8; N]> {
    bytes.get(at..)?.first_chunk::<N>().copied()
}

/// A table of 64-bit numbers from its bytes on disk; a rest that is no whole number is left out.
pub(crate) fn table_from_be(bytes: &[u8]) -> Vec<u64> {
    bytes
        .as_chunks::<8>()
        .0
        .iter()
        .map(|chunk| u64::from_be_bytes(*chunk))
        .collect()
}

/// A table of 64-bit numbers as its bytes on disk.
pub(crate) fn table_to_be(table: &[u64]) -> Vec<u8> {
    let mut bytes = vec![0; table.len() * 8];
    store_be(table, &mut bytes);
    bytes
}

/// Stores a table of 64-bit numbers in `bytes` as it is on disk, as far as there is room.
pub(crate) fn store_be(table: &[u64], bytes: &mut [u8]) {
    for (chunk, entry) in bytes.as_chunks_mut::<8>().0.iter_mut().zip(table) {
        *chunk = entry.to_be_bytes();
    }
}

/// A number as C's `%#x` shows it, which QEMU's texts use: 0 has no prefix.
pub(crate) struct Hex(pub u64);

impl std::fmt::Display for Hex {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.0 {
            0 => f.write_str("0"),
            number => write!(f, "{number:#x}"),
        }
    }
}
