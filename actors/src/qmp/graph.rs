//! The graph and its nodes as they are shown, and what they count.

use crate::daemon::Daemon;
use crate::graph::graph_json;
use millpond_messages::graph::{
    BlockStatistics, DrawGraph, FindNode, IothreadReport, IothreadReports, ListDrains, NamedNodes,
    SetHistograms, SetWriteThreshold, WholeGraph,
};
use millpond_messages::qapi::QmpError;
use millpond_messages::qapi::schema::{
    BlockDeviceInfo, BlockSetWriteThreshold, BlockStats, Json, MillpondIothreadReport, PendingDrain,
    QueryBlockstats, QueryNamedBlockNodes, XDbgBlockGraph, XDebugQueryBlockGraph,
    XMillpondLatencyHistogramSet, XMillpondQueryDot, XMillpondQueryDrains, XMillpondQueryIothreads,
};
use millpond_messages::{LatencyHistogram, LatencyHistograms};
use serde_json::{Value, json};

pub(super) async fn query_nodes(
    daemon: Daemon,
    arguments: QueryNamedBlockNodes,
) -> Result<Json<Vec<BlockDeviceInfo>>, QmpError> {
    let QueryNamedBlockNodes { flat } = arguments;
    daemon.graph(NamedNodes { flat }).await.map(Json::new)
}

/// Statistics are kept by nodes: without `query-nodes` only devices are asked for, which there are none.
pub(super) async fn query_statistics(
    daemon: Daemon,
    arguments: QueryBlockstats,
) -> Result<Json<Vec<BlockStats>>, QmpError> {
    match arguments.query_nodes {
        true => daemon.graph(BlockStatistics).await.map(Json::new),
        false => Ok(Json::new(Value::Array(Vec::new()))),
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
) -> Result<Json<Vec<MillpondIothreadReport>>, QmpError> {
    daemon.graph(IothreadReports).await.map(|reports| shown(&reports))
}

/// The reports in the form that their row in the schema says.
fn shown(reports: &[IothreadReport]) -> Json<Vec<MillpondIothreadReport>> {
    Json::new(json!(reports))
}

pub(super) async fn query_dot(daemon: Daemon, _: XMillpondQueryDot) -> Result<Json<String>, QmpError> {
    daemon
        .graph(DrawGraph)
        .await
        .map(|drawing| Json::new(drawing.into()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use millpond_messages::graph::IothreadCounters;
    use millpond_messages::qapi::schema::{Answers, Structure};

    #[test]
    fn an_iothreads_report_has_the_members_of_its_row() {
        let report = IothreadReport {
            id: "main".to_owned(),
            thread_id: 1,
            nodes: 2,
            cpu_affinity: vec![3],
            counters: IothreadCounters::default(),
        };
        let shown = shown(&[report]).into_json().expect("it is JSON");
        let members: Vec<&str> = shown[0]
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
