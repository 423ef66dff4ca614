//! Looking whether each block of the disk has a place of its own, and whether the header counts them right.

use millpond_messages::{CheckResult, Error, ErrorKind, FINDINGS, Repair, Result};

use super::driver::Vdi;

/// Which places are taken: a bit each.
struct Taken(Vec<u64>);

impl Taken {
    fn none_of(places: u64) -> Result<Self> {
        let words = usize::try_from(places.div_ceil(64)).unwrap_or(usize::MAX);
        let mut bits = Vec::new();
        bits.try_reserve_exact(words)
            .map_err(|_| Error::new(ErrorKind::Unsupported, "Not enough memory to check the image"))?;
        bits.resize(words, 0);
        Ok(Self(bits))
    }

    /// Takes a place; whether it was free.
    fn take(&mut self, place: u64) -> bool {
        let word = usize::try_from(place / 64).ok();
        let Some(word) = word.and_then(|word| self.0.get_mut(word)) else {
            return false;
        };
        let bit = 1 << (place % 64);
        let was_free = *word & bit == 0;
        *word |= bit;
        was_free
    }
}

impl Vdi {
    /// Checks the table. Nothing is mended, as with QEMU.
    pub(super) async fn check_table(&self, repair: Repair) -> Result<CheckResult> {
        if repair.is_wanted() {
            let text = "This image format does not support checks";
            return Err(Error::new(ErrorKind::Unsupported, text));
        }
        let blocks = self.blocks();
        let mut taken = Taken::none_of(blocks.len())?;
        let (mut stored, mut corruptions) = (0_u64, 0_u64);
        for block in 0..blocks.len() {
            let entry = blocks.entry(&self.file, block).await;
            let entry = entry.map_err(|error| Error::io("Could not read the block map", error))?;
            let Some(place) = blocks.place_of(entry) else {
                continue;
            };
            if place >= blocks.len() {
                tracing::warn!(target: FINDINGS, "ERROR: block index {block} too large, is {place}");
                corruptions += 1;
                continue;
            }
            stored += 1;
            if !taken.take(place) {
                tracing::warn!(target: FINDINGS, "ERROR: block index {place} also used by {place}");
                corruptions += 1;
            }
        }
        let count = u64::from(blocks.count());
        if stored != count {
            tracing::warn!(
                target: FINDINGS,
                "ERROR: allocated blocks mismatch, is {stored}, should be {count}"
            );
            corruptions += 1;
        }
        Ok(CheckResult {
            corruptions,
            ..CheckResult::default()
        })
    }
}
