//! What a node has been asked, in numbers: what `query-blockstats` shows, and more.

use serde::{Deserialize, Serialize};

use crate::error::{Error, ErrorKind, Result};
use crate::io::OperationKind;

/// The most boundaries that a latency histogram may have.
pub const MAX_BOUNDARIES: usize = 256;

/// The requests of one kind that passed a node.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct OperationCount {
    /// How many requests succeeded.
    pub operations: u64,
    /// How many bytes those had in all.
    pub bytes: u64,
    /// Requests that a driver, of this node or below it, ended with an error.
    pub failed: u64,
    /// Requests that the node refused before a driver saw them: outside of its range, or not permitted.
    pub invalid: u64,
    /// Time from their arrival at the node to their end, of those that succeeded and of those that failed.
    ///
    /// The clock is looked at once for all that a task of the iothread does, so a request that needs no waiting takes no
    /// time.
    pub total_time_ns: u64,
}

/// Bounds of times, and how many requests took so long.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct LatencyHistogram {
    /// Bounds between bins, in nanoseconds, ascending.
    boundaries: Vec<u64>,
    /// How many requests took less than the first boundary, between the first and the second, and so on.
    bins: Vec<u64>,
}

impl LatencyHistogram {
    /// An empty histogram.
    ///
    /// # Errors
    /// There are too many boundaries, the first one is 0, or one is not above the one before it.
    pub fn new(boundaries: Vec<u64>) -> Result<Self> {
        if boundaries.len() > MAX_BOUNDARIES {
            let text = format!("A latency histogram has at most {MAX_BOUNDARIES} boundaries");
            return Err(Error::new(ErrorKind::InvalidArgument, text));
        }
        let before = std::iter::once(0).chain(boundaries.iter().copied());
        if let Some((before, after)) = before.zip(&boundaries).find(|(before, after)| before >= after) {
            let text = format!(
                "The boundaries of a latency histogram ascend from above 0: {after} follows {before}"
            );
            return Err(Error::new(ErrorKind::InvalidArgument, text));
        }
        let bins = vec![0; boundaries.len().saturating_add(1)];
        Ok(Self { boundaries, bins })
    }

    /// Counts a request that took `time_ns` nanoseconds.
    pub fn count(&mut self, time_ns: u64) {
        let bin = self.boundaries.partition_point(|boundary| *boundary <= time_ns);
        if let Some(bin) = self.bins.get_mut(bin) {
            *bin = bin.wrapping_add(1);
        }
    }

    /// The boundaries, in nanoseconds.
    #[must_use]
    pub fn boundaries(&self) -> &[u64] {
        &self.boundaries
    }

    /// The counts, one more than there are boundaries.
    #[must_use]
    pub fn bins(&self) -> &[u64] {
        &self.bins
    }
}

/// A node's latency histograms. Zero writes are writes here.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct LatencyHistograms {
    /// The histogram of reads, if wanted.
    pub read: Option<LatencyHistogram>,
    /// The histogram of writes, if wanted.
    pub write: Option<LatencyHistogram>,
    /// The histogram of flushes, if wanted.
    pub flush: Option<LatencyHistogram>,
}

impl LatencyHistograms {
    /// Whether there is none.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.read.is_none() && self.write.is_none() && self.flush.is_none()
    }

    /// Counts a request of a kind that has a histogram.
    pub fn count(&mut self, kind: OperationKind, time_ns: u64) {
        let histogram = match kind {
            OperationKind::Read => &mut self.read,
            OperationKind::Write | OperationKind::WriteZeroes => &mut self.write,
            OperationKind::Flush => &mut self.flush,
            _ => return,
        };
        if let Some(histogram) = histogram {
            histogram.count(time_ns);
        }
    }
}

/// A node's counters at one moment. Each request is counted once at every node that it passes; what a driver asks of its
/// children for its own sake is counted at the children.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct NodeStatistics {
    /// Reads, whoever asked for them.
    pub read: OperationCount,
    /// Writes that carry data.
    pub write: OperationCount,
    /// Writes of zeroes without data.
    pub write_zeroes: OperationCount,
    /// Discards, whether the node passes them on or not.
    pub discard: OperationCount,
    /// Flushes, whether or not something was unflushed.
    pub flush: OperationCount,
    /// Changes of length over an edge.
    pub truncate: OperationCount,
    /// Questions what a range is made of. Their bytes are those asked about.
    pub block_status: OperationCount,
    /// The end of the write that reached furthest.
    pub highest_write: u64,
    /// Time since a request last ended; none if no request has.
    pub idle_ns: Option<u64>,
    /// Discards that the driver was asked for.
    pub driver_discard: OperationCount,
    /// Histograms, where they were asked for.
    pub histograms: LatencyHistograms,
}

/// The statistics of a node, by name.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct NodeReport {
    /// The node's name in the graph.
    pub node_name: String,
    /// The name of the node's driver.
    pub driver: String,
    /// What the node has counted so far.
    #[serde(flatten)]
    pub statistics: NodeStatistics,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_boundary_belongs_to_the_bin_above_it() {
        let mut histogram = LatencyHistogram::new(vec![10, 50, 100]).unwrap();
        for time in [0, 9, 10, 49, 50, 99, 100, u64::MAX] {
            histogram.count(time);
        }
        assert_eq!(histogram.bins(), [2, 2, 2, 2]);
    }

    #[test]
    fn boundaries_ascend() {
        for wrong in [vec![0], vec![5, 5], vec![7, 6]] {
            assert!(LatencyHistogram::new(wrong).is_err());
        }
        assert!(LatencyHistogram::new((1..=257).collect()).is_err(), "too many");
        let mut one = LatencyHistogram::new(Vec::new()).unwrap();
        one.count(3);
        assert_eq!(one.bins(), [1], "without boundaries there is one bin");
    }
}
