//! A count of what refers to each cluster of a file, kept small where little is referred to.

use std::collections::HashMap;

use millpond_messages::IoError;
use millpond_messages::error::errno::ENOMEM;

use crate::format::qcow2::layout::space::HostCluster;

/// Clusters whose counts are kept together.
const PAGE: u64 = 4096;
/// The most pages: a gigabyte, which is 64 TiB of image with default clusters. A crafted image reaches it by spreading
/// its references, and is not checked then.
const MAX_PAGES: usize = 1 << 18;

/// How often each cluster is referred to.
#[derive(Default)]
pub(crate) struct References {
    /// Counts up to 255; there the larger ones are in `large`.
    pages: HashMap<u64, Box<[u8]>>,
    large: HashMap<HostCluster, u64>,
    /// One past the last cluster that is referred to.
    pub end: HostCluster,
}

impl References {
    /// Counts one more reference to a cluster.
    pub fn add(&mut self, cluster: HostCluster) -> Result<(), IoError> {
        let number = cluster.get();
        if self.pages.len() >= MAX_PAGES && !self.pages.contains_key(&(number / PAGE)) {
            return Err(IoError::Os(ENOMEM));
        }
        let page = self
            .pages
            .entry(number / PAGE)
            .or_insert_with(|| vec![0; PAGE as usize].into());
        self.end = self.end.max(cluster + 1);
        if let Some(count) = page.get_mut((number % PAGE) as usize) {
            *count = count.saturating_add(1);
            if *count == u8::MAX {
                *self.large.entry(cluster).or_insert(u64::from(u8::MAX) - 1) += 1;
            }
        }
        Ok(())
    }

    /// How often a cluster is referred to.
    pub fn get(&self, cluster: HostCluster) -> u64 {
        let number = cluster.get();
        let count = self
            .pages
            .get(&(number / PAGE))
            .and_then(|page| page.get((number % PAGE) as usize));
        match count.copied().unwrap_or(0) {
            u8::MAX => self.large.get(&cluster).copied().unwrap_or(u64::from(u8::MAX)),
            count => u64::from(count),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_pass_a_byte() {
        let mut references = References::default();
        let cluster = HostCluster::new(5000);
        for n in 1..=600 {
            references.add(cluster).unwrap();
            assert_eq!(references.get(cluster), n);
        }
        assert_eq!((references.get(cluster - 1), references.end), (0, cluster + 1));
    }
}
