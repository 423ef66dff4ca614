//! Which parts of what was read are worth writing: runs of sectors with data and of such that are all zero.

use millpond_messages::SECTOR_SIZE;
use millpond_ring::buffer::is_zero;

const SECTOR: usize = SECTOR_SIZE as usize;

/// What decides whether zeroes are left out.
#[derive(Clone, Copy, Debug)]
pub struct Sparse {
    /// Sectors of zeroes in a row that make a hole: fewer are written as data.
    pub least: usize,
    /// Data begins and ends at a multiple of so many sectors of the target, a power of two.
    pub alignment: u64,
}

/// Sectors in a row that are written, or that are left zero.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Run {
    /// How many bytes there are.
    pub len: usize,
    /// Whether they have to be written.
    pub is_data: bool,
}

impl Sparse {
    /// The runs of `bytes`, whole sectors that are read for `sector` of the target.
    pub fn runs(&self, bytes: &[u8], sector: u64) -> Vec<Run> {
        let mut runs = Vec::new();
        let mut done = 0;
        while let Some(rest) = bytes.get(done..).filter(|rest| !rest.is_empty()) {
            let run = self.first(rest, sector + (done / SECTOR) as u64);
            done += run.len;
            runs.push(run);
        }
        runs
    }

    /// The first run: zeroes up to the next data, or data with all holes in it that are too short.
    fn first(&self, bytes: &[u8], sector: u64) -> Run {
        let mut used = self.alike(bytes, sector);
        if !used.is_data {
            return used;
        }
        let least = self.least.min(bytes.len() / SECTOR) * SECTOR;
        let mut looked_at = used.len;
        while let Some(rest) = bytes.get(looked_at..).filter(|rest| !rest.is_empty()) {
            let next = self.alike(rest, sector + (looked_at / SECTOR) as u64);
            looked_at += next.len;
            if next.is_data {
                used.len = looked_at;
            } else if next.len >= least {
                break;
            }
        }
        used
    }

    /// The sectors at the start that are alike, cut so that data covers all of each block that it touches.
    fn alike(&self, bytes: &[u8], sector: u64) -> Run {
        let mut sectors = bytes.chunks(SECTOR);
        let zero = sectors.next().is_none_or(is_zero);
        let alike = 1 + sectors.take_while(|next| is_zero(next) == zero).count();
        if alike * SECTOR >= bytes.len() {
            let (len, is_data) = (bytes.len(), !zero);
            return Run { len, is_data };
        }
        let beyond = ((sector + alike as u64) % self.alignment) as usize;
        let (count, is_data) = match (zero, beyond) {
            (_, 0) => (alike, !zero),
            (true, beyond) if alike > beyond => (alike - beyond, false),
            (_, beyond) => (alike + self.alignment as usize - beyond, true),
        };
        let len = (count * SECTOR).min(bytes.len());
        Run { len, is_data }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The runs of sectors that a picture shows, one letter each: `.` is zero.
    fn runs(picture: &str, sector: u64) -> String {
        let sectors = picture.bytes().map(|byte| if byte == b'.' { 0 } else { byte });
        let bytes: Vec<u8> = sectors.flat_map(|byte| [byte; SECTOR]).collect();
        let sparse = Sparse {
            least: 4,
            alignment: 4,
        };
        let shown = sparse.runs(&bytes, sector).into_iter().map(|run| {
            let letter = if run.is_data { "x" } else { "." };
            letter.repeat(run.len / SECTOR)
        });
        shown.collect::<Vec<_>>().join("|")
    }

    #[test]
    fn runs_begin_and_end_at_whole_blocks_and_swallow_short_holes() {
        for (picture, expected) in [
            ("....", "...."),
            ("xxxx", "xxxx"),
            ("x.......", "xxxx|...."),
            (".......x", "....|xxxx"),
            (".x......", "xxxx|...."),
            ("x...x...", "xxxxxxxx"),
            ("xxxx....xxxx", "xxxx|....|xxxx"),
            ("xxxx...xxxxx", "xxxxxxxxxxxx"),
            ("x.....", "xxxx|.."),
        ] {
            assert_eq!(runs(picture, 0), expected, "{picture}");
        }
        assert_eq!(runs("x.......", 2), "xx|......", "blocks are the target's");
        assert_eq!(runs("", 0), "");
    }
}
