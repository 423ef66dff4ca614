//! `query-blockstats` of nodes.

use serde_json::{Value, json};

use super::super::value::Node;
use super::super::world::World;
use super::nodes::describe;
use crate::node::Statistics;

/// The counters of all nodes, the oldest first.
pub async fn statistics(world: &World) -> Value {
    let descriptions = describe(world).await;
    world.graph(|graph| {
        let nodes = graph.live_nodes().filter_map(|node| {
            let mut entry = one(node, &descriptions.get(&node.id)?.statistics);
            let file = graph
                .child_named(node.id, "file")
                .and_then(|file| graph.node(file));
            if let Some((file, description)) = file.and_then(|file| Some((file, descriptions.get(&file.id)?)))
            {
                entry.insert(
                    "parent".to_owned(),
                    Value::Object(one(file, &description.statistics)),
                );
            }
            Some(Value::Object(entry))
        });
        Value::Array(nodes.collect())
    })
}

fn one(node: &Node, statistics: &Statistics) -> serde_json::Map<String, Value> {
    let mut entry = serde_json::Map::new();
    entry.insert("node-name".to_owned(), Value::String(node.name.clone()));
    entry.insert("stats".to_owned(), counters(statistics));
    if matches!(node.kind.name(), "file" | "host_device") {
        entry.insert(
            "driver-specific".to_owned(),
            json!({
                "driver": node.kind.name(),
                "discard-nb-ok": statistics.discards,
                "discard-nb-failed": 0,
                "discard-bytes-ok": statistics.discarded_bytes,
            }),
        );
    }
    entry
}

/// QAPI's `BlockDeviceStats`. What no one keeps is 0, as it is in a program that has no guest device.
fn counters(statistics: &Statistics) -> Value {
    json!({
        "rd_bytes": statistics.read_bytes,
        "wr_bytes": statistics.written_bytes,
        "zone_append_bytes": 0,
        "unmap_bytes": statistics.discarded_bytes,
        "rd_operations": statistics.reads,
        "wr_operations": statistics.writes,
        "zone_append_operations": 0,
        "flush_operations": statistics.flushes,
        "unmap_operations": statistics.discards,
        "rd_total_time_ns": 0,
        "wr_total_time_ns": 0,
        "zone_append_total_time_ns": 0,
        "flush_total_time_ns": 0,
        "unmap_total_time_ns": 0,
        "wr_highest_offset": statistics.highest_write,
        "rd_merged": 0,
        "wr_merged": 0,
        "zone_append_merged": 0,
        "unmap_merged": 0,
        "failed_rd_operations": 0,
        "failed_wr_operations": 0,
        "failed_zone_append_operations": 0,
        "failed_flush_operations": 0,
        "failed_unmap_operations": 0,
        "invalid_rd_operations": 0,
        "invalid_wr_operations": 0,
        "invalid_zone_append_operations": 0,
        "invalid_flush_operations": 0,
        "invalid_unmap_operations": 0,
        "account_invalid": false,
        "account_failed": false,
        "timed_stats": [],
    })
}
