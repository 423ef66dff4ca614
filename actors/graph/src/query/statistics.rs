//! What has passed each node: `query-blockstats` of nodes.

use std::collections::HashMap;

use millpond_engine::node::OrderOutcome;
use millpond_messages::qapi::{
    BlockDeviceStats, BlockLatencyHistogramInfo, BlockStats, BlockStatsSpecific, BlockStatsSpecificFile,
};
use millpond_messages::{LatencyHistogram, NodeId, NodeReport, NodeStatistics, OperationCount};

use crate::order::IothreadOrder;
use crate::query::nodes::by_iothread;
use crate::value::node::Node;
use crate::world::World;

/// How many nodes one order asks, so that requests of an iothread do not wait for all of them.
const AT_ONCE: usize = 256;

/// The counters of all nodes, the oldest first.
pub async fn reports(world: &World) -> Vec<NodeReport> {
    let mut statistics = ask(world).await;
    world.graph(|graph| {
        let nodes = graph.live_nodes().filter_map(|node| {
            Some(NodeReport {
                node_name: node.name.clone(),
                driver: node.kind.name().to_owned(),
                statistics: statistics.remove(&node.id)?,
            })
        });
        nodes.collect()
    })
}

/// The same as `query-blockstats` shows it.
pub async fn statistics(world: &World) -> Vec<BlockStats> {
    let statistics = ask(world).await;
    world.graph(|graph| {
        let nodes = graph.live_nodes().filter_map(|node| {
            let file = graph
                .child_named(node.id, "file")
                .and_then(|file| graph.node(file));
            let below = file.and_then(|file| Some(one(file, statistics.get(&file.id)?)));
            Some(BlockStats {
                parent: below.map(Box::new),
                ..one(node, statistics.get(&node.id)?)
            })
        });
        nodes.collect()
    })
}

/// Nodes answer from memory: this waits for no storage. One that goes meanwhile is left out.
async fn ask(world: &World) -> HashMap<NodeId, NodeStatistics> {
    let (at_home, moving) = by_iothread(world);
    let mut answers = Vec::new();
    for (iothread, nodes) in at_home {
        for some in nodes.chunks(AT_ONCE) {
            answers.push(world.ask_iothread(iothread, IothreadOrder::Statistics(some.to_vec())));
        }
    }
    for node in moving {
        answers.push(world.ask(node, IothreadOrder::Statistics(vec![node])));
    }
    let mut statistics = HashMap::new();
    for answer in answers {
        if let OrderOutcome::Statistics(some) = answer.await {
            statistics.extend(some);
        }
    }
    statistics
}

fn one(node: &Node, statistics: &NodeStatistics) -> BlockStats {
    let specific = BlockStatsSpecificFile {
        discard_nb_ok: statistics.driver_discard.operations,
        discard_nb_failed: statistics.driver_discard.failed,
        discard_bytes_ok: statistics.driver_discard.bytes,
    };
    BlockStats {
        node_name: Some(node.name.clone()),
        stats: counters(statistics),
        driver_specific: match node.kind.name() {
            "file" => Some(BlockStatsSpecific::File(specific)),
            "host_device" => Some(BlockStatsSpecific::HostDevice(specific)),
            _ => None,
        },
        ..BlockStats::default()
    }
}

/// Zero writes are writes, as they are when a guest's disk asks for them in QEMU. Nothing merges requests, and there are no
/// zones to append to.
fn counters(statistics: &NodeStatistics) -> BlockDeviceStats {
    let shown = |count: u64| i64::try_from(count).unwrap_or(i64::MAX);
    let NodeStatistics {
        read: rd,
        flush,
        discard: unmap,
        histograms,
        ..
    } = statistics;
    let wr = sum(statistics.write, statistics.write_zeroes);
    BlockDeviceStats {
        rd_bytes: shown(rd.bytes),
        wr_bytes: shown(wr.bytes),
        unmap_bytes: shown(unmap.bytes),
        rd_operations: shown(rd.operations),
        wr_operations: shown(wr.operations),
        flush_operations: shown(flush.operations),
        unmap_operations: shown(unmap.operations),
        rd_total_time_ns: shown(rd.total_time_ns),
        wr_total_time_ns: shown(wr.total_time_ns),
        flush_total_time_ns: shown(flush.total_time_ns),
        unmap_total_time_ns: shown(unmap.total_time_ns),
        wr_highest_offset: shown(statistics.highest_write),
        idle_time_ns: statistics.idle_ns.map(shown),
        failed_rd_operations: shown(rd.failed),
        failed_wr_operations: shown(wr.failed),
        failed_flush_operations: shown(flush.failed),
        failed_unmap_operations: shown(unmap.failed),
        invalid_rd_operations: shown(rd.invalid),
        invalid_wr_operations: shown(wr.invalid),
        invalid_flush_operations: shown(flush.invalid),
        invalid_unmap_operations: shown(unmap.invalid),
        account_invalid: true,
        account_failed: true,
        rd_latency_histogram: histograms.read.as_ref().map(bins),
        wr_latency_histogram: histograms.write.as_ref().map(bins),
        flush_latency_histogram: histograms.flush.as_ref().map(bins),
        ..BlockDeviceStats::default()
    }
}

fn bins(histogram: &LatencyHistogram) -> BlockLatencyHistogramInfo {
    BlockLatencyHistogramInfo {
        boundaries: histogram.boundaries().to_vec(),
        bins: histogram.bins().to_vec(),
    }
}

fn sum(one: OperationCount, other: OperationCount) -> OperationCount {
    OperationCount {
        operations: one.operations.wrapping_add(other.operations),
        bytes: one.bytes.wrapping_add(other.bytes),
        failed: one.failed.wrapping_add(other.failed),
        invalid: one.invalid.wrapping_add(other.invalid),
        total_time_ns: one.total_time_ns.wrapping_add(other.total_time_ns),
    }
}
