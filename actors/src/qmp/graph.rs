//! The graph and its nodes as they are shown, and what they count.

use crate::daemon::Daemon;
use crate::graph::graph_json;
use millpond_messages::graph::{
    BlockStatistics, DrawGraph, FindNode, IothreadReport, IothreadReports, ListDrains, NamedNodes,
    SetHistograms, SetWriteThreshold, WholeGraph,
};
use millpond_messages::qapi::QmpError;
use millpond_messages::qapi::schema::{
    BlockDeviceInfo, BlockSetWriteThreshold, BlockStats, Like, MillpondIothreadReport, PendingDrain,
    QueryBlockstats, QueryNamedBlockNodes, XDbgBlockGraph, XDebugQueryBlockGraph,
    XMillpondLatencyHistogramSet, XMillpondQueryDot, XMillpondQueryDrains, XMillpondQueryIothreads,
};
use millpond_messages::{LatencyHistogram, LatencyHistograms};

pub(super) async fn query_nodes(
    daemon: Daemon,
    arguments: QueryNamedBlockNodes,
) -> Result<Vec<BlockDeviceInfo>, QmpError> {
    let QueryNamedBlockNodes { flat } = arguments;
    daemon.graph(NamedNodes { flat }).await
}

/// Statistics are kept by nodes: without `query-nodes` only devices are asked for, which there are none.
pub(super) async fn query_statistics(
    daemon: Daemon,
    arguments: QueryBlockstats,
) -> Result<Vec<BlockStats>, QmpError> {
    match arguments.query_nodes {
        true => daemon.graph(BlockStatistics).await,
        false => Ok(Vec::new()),
    }
}

/// A node that is not there is called a device, as QEMU has it.
pub(super) async fn set_threshold(daemon: Daemon, arguments: BlockSetWriteThreshold) -> Result<(), QmpError> {
    let node_name = arguments.node_name;
    let find = FindNode {
        node_name: node_name.clone(),
    };
    if daemon.graph(find).await.is_err() {
        return Err(QmpError::generic(format!("Device '{node_name}' not found")));
    }
    let offset = arguments.write_threshold;
    daemon.graph(SetWriteThreshold { node_name, offset }).await
}

/// As QEMU's `block-latency-histogram-set`, but of a node.
pub(super) async fn set_histograms(
    daemon: Daemon,
    arguments: XMillpondLatencyHistogramSet,
) -> Result<(), QmpError> {
    let of = |own: Option<Vec<u64>>| {
        let boundaries = own.or_else(|| arguments.boundaries.clone());
        let histogram = boundaries.map(LatencyHistogram::new).transpose();
        histogram.map_err(|error| QmpError::generic(error.to_string()))
    };
    let histograms = LatencyHistograms {
        read: of(arguments.boundaries_read)?,
        write: of(arguments.boundaries_write)?,
        flush: of(arguments.boundaries_flush)?,
    };
    let node_name = arguments.node_name;
    let request = SetHistograms {
        node_name,
        histograms,
    };
    daemon.graph(request).await
}

pub(super) async fn query_graph(
    daemon: Daemon,
    _: XDebugQueryBlockGraph,
) -> Result<XDbgBlockGraph, QmpError> {
    daemon.graph(WholeGraph).await.map(|facts| graph_json(&facts))
}

pub(super) async fn query_drains(
    daemon: Daemon,
    _: XMillpondQueryDrains,
) -> Result<Vec<PendingDrain>, QmpError> {
    daemon.graph(ListDrains).await
}

pub(super) async fn query_iothreads(
    daemon: Daemon,
    _: XMillpondQueryIothreads,
) -> Result<Like<Vec<MillpondIothreadReport>, Vec<IothreadReport>>, QmpError> {
    daemon.graph(IothreadReports).await.map(Like::new)
}

pub(super) async fn query_dot(daemon: Daemon, _: XMillpondQueryDot) -> Result<String, QmpError> {
    daemon.graph(DrawGraph).await
}

#[cfg(test)]
mod tests {
    use super::*;
    use millpond_messages::graph::IothreadCounters;
    use millpond_messages::qapi::schema::Structure;

    #[test]
    fn an_iothreads_report_has_the_members_of_its_row() {
        let report = IothreadReport {
            id: "main".to_owned(),
            thread_id: 1,
            nodes: 2,
            cpu_affinity: vec![3],
            counters: IothreadCounters::default(),
        };
        let shown = serde_json::to_value(report).expect("it is JSON");
        let members: Vec<&str> = shown
            .as_object()
            .expect("an object")
            .keys()
            .map(String::as_str)
            .collect();
        let row: Vec<&str> = MillpondIothreadReport::schema()
            .members
            .iter()
            .map(|member| member.name)
            .collect();
        assert_eq!(members, row);
    }
}
