//! The guard of images that were taken to be raw because they begin with no known format: nobody who writes to one may make
//! it begin with one, and so have files of the host's opened in its name the next time.
//!
//! What counts is the whole first sector as it would be after the write, so a header cannot be put there in parts. Writes to
//! the sector go one after the other.

use millpond_ring::buffer::Buffers;

use crate::node::cell::node::NodeCell;

/// Bytes at the start of an image in which formats keep their magic numbers.
pub const SIGNATURE_BYTES: u64 = 512;
/// [`SIGNATURE_BYTES`] as a length in memory.
const SECTOR: usize = 512;

/// Whether a write at `offset` must pass the guard of `cell`.
pub fn concerns(cell: &NodeCell, offset: u64) -> bool {
    cell.settings().probed && offset < SIGNATURE_BYTES
}

/// The first sector as it would be after a write.
pub struct Sector([u8; SECTOR]);

impl Default for Sector {
    fn default() -> Self {
        Self([0; SECTOR])
    }
}

impl Sector {
    /// Puts bytes at a place; what passes the sector's end is left out.
    pub fn put(&mut self, at: usize, buffers: &Buffers) {
        let len = buffers.len().min(SECTOR.saturating_sub(at));
        if let Some(part) = self.0.get_mut(at..at.saturating_add(len)) {
            buffers.copy_to_slice(0, part);
        }
    }

    /// Whether a program that guesses formats would not take an image that begins so to be raw.
    pub fn looks_like_a_format(&self) -> bool {
        looks_like_a_format(&self.0)
    }
}

/// Whether a program that guesses formats, this one or QEMU, would not take an image that begins so to be raw.
fn looks_like_a_format(sector: &[u8; SECTOR]) -> bool {
    let has_magic = |at: usize, magic: &[u8]| sector.get(at..).is_some_and(|rest| rest.starts_with(magic));
    SIGNATURES.iter().any(|(at, magic)| has_magic(*at, magic)) || is_vmdk_descriptor(sector)
}

/// Where formats begin, by offset in the first sector.
const SIGNATURES: [(usize, &[u8]); 12] = [
    (0, b"QFI\xfb"),
    (0, b"QED\0"),
    (0, b"KDMV"),
    (0, b"COWD"),
    (0, b"conectix"),
    (0, b"vhdxfile"),
    (0, b"LUKS\xba\xbe"),
    (0, b"WithoutFreeSpace"),
    (0, b"WithouFreSpacExt"),
    (0, b"Bochs Virtual HD Image"),
    (0, b"#!/bin/sh\n#V2.0 Format\nmodprobe cloop"),
    (64, b"\x7f\x10\xda\xbe"),
];

/// A VMDK image may begin with a text that names the files which hold the data: comments and empty lines, then a version.
fn is_vmdk_descriptor(sector: &[u8]) -> bool {
    let lines = sector.split(|byte| *byte == b'\n');
    let mut lines = lines.map(|line| line.strip_suffix(b"\r").unwrap_or(line));
    let first = lines.find(|line| !line.starts_with(b"#") && !line.iter().all(|byte| *byte == b' '));
    matches!(first, Some(b"version=1" | b"version=2" | b"version=3"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sector(start: &[u8]) -> [u8; SECTOR] {
        let mut sector = [0; SECTOR];
        sector[..start.len()].copy_from_slice(start);
        sector
    }

    #[test]
    fn formats_are_told_from_what_is_raw() {
        assert!(!looks_like_a_format(&sector(b"")));
        assert!(!looks_like_a_format(&sector(b"\0\0QFI\xfb")));
        assert!(!looks_like_a_format(&sector(b"#!/bin/sh\necho version=1\n")));
        for (at, magic) in SIGNATURES {
            let mut start = vec![0; at];
            start.extend(magic);
            assert!(looks_like_a_format(&sector(&start)), "{magic:?}");
        }
        for text in [
            "# Disk DescriptorFile\nversion=1\nCID=1",
            "version=2\r\n",
            "#x\n\n  \n#y\r\nversion=3\n",
        ] {
            assert!(looks_like_a_format(&sector(text.as_bytes())), "{text:?}");
        }
    }
}
