//! What has passed each node: `query-blockstats` of nodes.

use std::collections::HashMap;

use millpond_engine::node::OrderOutcome;
use millpond_messages::{LatencyHistogram, NodeId, NodeReport, NodeStatistics, OperationCount};
use serde_json::{Map, Value, json};

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

/// The same as QAPI's list of `BlockStats`.
pub async fn statistics(world: &World) -> Value {
    let statistics = ask(world).await;
    world.graph(|graph| {
        let nodes = graph.live_nodes().filter_map(|node| {
            let mut entry = one(node, statistics.get(&node.id)?);
            let file = graph
                .child_named(node.id, "file")
                .and_then(|file| graph.node(file));
            if let Some((file, statistics)) = file.and_then(|file| Some((file, statistics.get(&file.id)?))) {
                entry.insert("parent".to_owned(), Value::Object(one(file, statistics)));
            }
            Some(Value::Object(entry))
        });
        Value::Array(nodes.collect())
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

fn one(node: &Node, statistics: &NodeStatistics) -> Map<String, Value> {
    let mut entry = Map::new();
    entry.insert("node-name".to_owned(), Value::String(node.name.clone()));
    entry.insert("stats".to_owned(), Value::Object(counters(statistics)));
    if matches!(node.kind.name(), "file" | "host_device") {
        entry.insert(
            "driver-specific".to_owned(),
            json!({
                "driver": node.kind.name(),
                "discard-nb-ok": statistics.driver_discard.operations,
                "discard-nb-failed": statistics.driver_discard.failed,
                "discard-bytes-ok": statistics.driver_discard.bytes,
            }),
        );
    }
    entry
}

/// QAPI's `BlockDeviceStats`. Zero writes are writes, as they are when a guest's disk asks for them in QEMU. Nothing merges
/// requests, and there are no zones to append to.
fn counters(statistics: &NodeStatistics) -> Map<String, Value> {
    let none = OperationCount::default();
    let kinds = [
        ("rd", statistics.read),
        ("wr", sum(statistics.write, statistics.write_zeroes)),
        ("zone_append", none),
        ("flush", statistics.flush),
        ("unmap", statistics.discard),
    ];
    let mut shown = Map::new();
    for (name, count) in kinds {
        if name != "flush" {
            shown.insert(format!("{name}_bytes"), count.bytes.into());
            shown.insert(format!("{name}_merged"), 0.into());
        }
        shown.insert(format!("{name}_operations"), count.operations.into());
        shown.insert(format!("{name}_total_time_ns"), count.total_time_ns.into());
        shown.insert(format!("failed_{name}_operations"), count.failed.into());
        shown.insert(format!("invalid_{name}_operations"), count.invalid.into());
    }
    shown.insert("wr_highest_offset".to_owned(), statistics.highest_write.into());
    if let Some(idle) = statistics.idle_ns {
        shown.insert("idle_time_ns".to_owned(), idle.into());
    }
    shown.insert("account_invalid".to_owned(), true.into());
    shown.insert("account_failed".to_owned(), true.into());
    shown.insert("timed_stats".to_owned(), Value::Array(Vec::new()));
    let histograms = &statistics.histograms;
    for (name, histogram) in [
        ("rd_latency_histogram", &histograms.read),
        ("wr_latency_histogram", &histograms.write),
        ("flush_latency_histogram", &histograms.flush),
    ] {
        if let Some(histogram) = histogram {
            shown.insert(name.to_owned(), bins(histogram));
        }
    }
    shown
}

fn bins(histogram: &LatencyHistogram) -> Value {
    json!({"boundaries": histogram.boundaries(), "bins": histogram.bins()})
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
