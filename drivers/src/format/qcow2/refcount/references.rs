//! A count of what refers to each cluster of a file, kept small: a bit for a cluster that is referred to once at the most.
//!
//! # What it costs
//! Clusters near each other share a page, which is there once any of them is referred to: 512 bytes for 4096 clusters, and 4 KiB
//! once any of them is referred to twice. An image of 16 TiB that is full, with clusters of 64 KiB, takes 32 MiB; with a snapshot
//! of all of it, 256 MiB. Clusters of 512 bytes take 128 times as much for the same image, up to [`MAX_BYTES`].

use std::cell::Cell;
use std::collections::HashMap;

use millpond_messages::IoError;
use millpond_messages::error::errno::ENOMEM;

use crate::format::qcow2::layout::space::HostCluster;

/// Clusters whose counts are kept together.
const PAGE: usize = 4096;
/// The most bytes of all pages. A crafted image reaches it by spreading its references, and is not checked then.
const MAX_BYTES: usize = 1 << 30;

/// The counts of some clusters.
enum Page {
    /// Nothing is referred to more than once.
    Once(Box<[u64; PAGE / 64]>),
    /// Counts up to 255; there the larger ones are elsewhere.
    Often(Box<[u8; PAGE]>),
}

impl Page {
    fn new() -> Self {
        Self::Once(Box::new([0; PAGE / 64]))
    }

    fn bytes(&self) -> usize {
        match self {
            Self::Once(bits) => size_of_val(&**bits),
            Self::Often(counts) => size_of_val(&**counts),
        }
    }

    /// The count at `at`, which lies within a page.
    fn get(&self, at: usize) -> u8 {
        match self {
            Self::Once(bits) => bits.get(at / 64).map_or(0, |word| (word >> (at % 64) & 1) as u8),
            Self::Often(counts) => counts.get(at).copied().unwrap_or(0),
        }
    }

    /// Whether there is no room for one more at `at`.
    fn is_too_narrow(&self, at: usize) -> bool {
        matches!(self, Self::Once(_)) && self.get(at) == 1
    }

    /// Makes room for counts that are larger than 1.
    fn widen(&mut self) {
        let mut counts = Box::new([0; PAGE]);
        let all = counts.iter_mut().enumerate();
        all.for_each(|(at, count)| *count = self.get(at));
        *self = Self::Often(counts);
    }

    /// Counts one more where there is room for it; answers the new count.
    fn add(&mut self, at: usize) -> u8 {
        match self {
            Self::Once(bits) => {
                if let Some(word) = bits.get_mut(at / 64) {
                    *word |= 1 << (at % 64);
                }
                1
            }
            Self::Often(counts) => counts.get_mut(at).map_or(0, |count| {
                *count = count.saturating_add(1);
                *count
            }),
        }
    }
}

/// How often each cluster is referred to.
#[derive(Default)]
pub(crate) struct References {
    pages: Vec<Page>,
    /// Where among them the page of a number is.
    places: HashMap<u64, usize>,
    /// The one that was looked for last: most references are near the one before.
    last: Cell<Option<(u64, usize)>>,
    /// Bytes of the pages.
    bytes: usize,
    /// The counts that no page has room for.
    large: HashMap<HostCluster, u64>,
    /// One past the last cluster that is referred to.
    pub end: HostCluster,
}

/// The page that a cluster is counted in, and where.
fn place(cluster: HostCluster) -> (u64, usize) {
    let (number, page) = (cluster.get(), PAGE as u64);
    (number / page, (number % page) as usize)
}

impl References {
    /// Counts one more reference to a cluster.
    pub fn add(&mut self, cluster: HostCluster) -> Result<(), IoError> {
        let (number, at) = place(cluster);
        let is_full = self.bytes >= MAX_BYTES;
        let place = match self.place_of(number) {
            Some(place) => place,
            None if is_full => return Err(IoError::Os(ENOMEM)),
            None => self.add_page(number),
        };
        let Some(page) = self.pages.get_mut(place) else {
            return Ok(());
        };
        if page.is_too_narrow(at) {
            if is_full {
                return Err(IoError::Os(ENOMEM));
            }
            self.bytes -= page.bytes();
            page.widen();
            self.bytes += page.bytes();
        }
        let count = page.add(at);
        self.end = self.end.max(cluster + 1);
        if count == u8::MAX {
            *self.large.entry(cluster).or_insert(u64::from(u8::MAX) - 1) += 1;
        }
        Ok(())
    }

    /// Where the page of a number is, if there is one.
    fn place_of(&self, number: u64) -> Option<usize> {
        match self.last.get() {
            Some((last, place)) if last == number => Some(place),
            _ => {
                let place = *self.places.get(&number)?;
                self.last.set(Some((number, place)));
                Some(place)
            }
        }
    }

    fn add_page(&mut self, number: u64) -> usize {
        let (place, page) = (self.pages.len(), Page::new());
        self.bytes += page.bytes();
        self.pages.push(page);
        self.places.insert(number, place);
        place
    }

    /// How often a cluster is referred to.
    pub fn get(&self, cluster: HostCluster) -> u64 {
        let (number, at) = place(cluster);
        let page = self.place_of(number).and_then(|place| self.pages.get(place));
        match page.map_or(0, |page| page.get(at)) {
            u8::MAX => self.large.get(&cluster).copied().unwrap_or(u64::from(u8::MAX)),
            count => u64::from(count),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_pass_a_bit_and_a_byte() {
        let mut references = References::default();
        let cluster = HostCluster::new(5000);
        references.add(cluster + 1).unwrap();
        for n in 1..=600 {
            references.add(cluster).unwrap();
            assert_eq!(references.get(cluster), n);
        }
        assert_eq!((references.get(cluster - 1), references.end), (0, cluster + 2));
        assert_eq!(references.get(cluster + 1), 1, "its neighbour's count is kept");
    }

    #[test]
    fn what_is_referred_to_once_takes_a_bit() {
        let mut references = References::default();
        let count = 1_u64 << 20;
        (0..count).for_each(|number| references.add(HostCluster::new(number)).unwrap());
        assert_eq!(references.bytes as u64, count / 8);
        references.add(HostCluster::new(7)).unwrap();
        assert_eq!(references.bytes, (count / 8) as usize + PAGE - PAGE / 8);
    }

    #[test]
    fn references_all_over_the_place_are_too_many_in_the_end() {
        let mut references = References::default();
        let pages = (MAX_BYTES / (PAGE / 8)) as u64;
        // The pages themselves would take the gigabyte, so most are only said to be there.
        references.bytes = MAX_BYTES - PAGE / 8;
        let far = |number: u64| HostCluster::new(number * PAGE as u64);
        references.add(far(pages)).unwrap();
        assert_eq!(references.add(far(pages + 1)), Err(IoError::Os(ENOMEM)));
        references.add(far(pages) + 1).unwrap();
        // A second reference takes room too, unless its page has that already.
        assert_eq!(references.add(far(pages)), Err(IoError::Os(ENOMEM)));
        references.bytes -= PAGE / 8;
        references.add(far(pages)).unwrap();
        assert!(references.bytes > MAX_BYTES);
        references.add(far(pages)).unwrap();
        references.add(far(pages) + 1).unwrap();
    }
}
