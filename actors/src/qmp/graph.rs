//! Nodes: opened, closed, changed and shown.

use super::{Reply, done, flag, text};
use crate::daemon::Daemon;
use crate::graph::graph_json;
use millpond_messages::graph::{GraphReply, GraphRequest, Mutation, Query};
use millpond_messages::io::Preallocation;
use millpond_messages::qapi::{Object, QmpError};
use millpond_messages::{LatencyHistogram, LatencyHistograms, Repair, RequestFlags};
use serde_json::{Value, json};

async fn change(daemon: &Daemon, request: impl Into<GraphRequest>) -> Reply {
    daemon.graph(request).await?;
    Ok(done())
}

/// A question whose answer is JSON in QAPI's own form.
async fn ask(daemon: &Daemon, query: Query) -> Reply {
    match daemon.graph(GraphRequest::Query(query)).await? {
        GraphReply::Json(answer) => Ok(answer),
        _ => Err(wrong_kind()),
    }
}

fn wrong_kind() -> QmpError {
    QmpError::generic("The graph gave an answer of the wrong kind")
}

pub(super) async fn add(daemon: Daemon, arguments: Object) -> Reply {
    if text(&arguments, "node-name").is_empty() && !arguments.contains_key("node-name") {
        return Err(QmpError::generic(
            "'node-name' must be specified for the root node",
        ));
    }
    change(&daemon, Mutation::BlockdevAdd(arguments)).await
}

pub(super) async fn delete(daemon: Daemon, arguments: Object) -> Reply {
    let node_name = text(&arguments, "node-name").to_owned();
    change(&daemon, Mutation::BlockdevDel { node_name }).await
}

pub(super) async fn reopen(daemon: Daemon, mut arguments: Object) -> Reply {
    let Some(Value::Array(options)) = arguments.shift_remove("options") else {
        return Ok(done());
    };
    let objects = options.into_iter().filter_map(|options| match options {
        Value::Object(options) => Some(options),
        _ => None,
    });
    change(&daemon, Mutation::BlockdevReopen(objects.collect())).await
}

pub(super) async fn set_active(daemon: Daemon, arguments: Object) -> Reply {
    let node_name = arguments
        .get("node-name")
        .and_then(Value::as_str)
        .map(str::to_owned);
    let active = flag(&arguments, "active");
    change(&daemon, Mutation::SetActive { node_name, active }).await
}

pub(super) async fn snapshot(daemon: Daemon, arguments: Object) -> Reply {
    let node = text(&arguments, "node").to_owned();
    let overlay = text(&arguments, "overlay").to_owned();
    change(&daemon, Mutation::BlockdevSnapshot { node, overlay }).await
}

/// The parent is looked for first, whatever else is wrong.
pub(super) async fn change_children(daemon: Daemon, arguments: Object) -> Reply {
    let given = |name| arguments.get(name).and_then(Value::as_str).map(str::to_owned);
    let parent = text(&arguments, "parent").to_owned();
    let wrong = match (given("child"), given("node")) {
        (Some(child), None) => return change(&daemon, Mutation::DelChild { parent, child }).await,
        (None, Some(node)) => return change(&daemon, Mutation::AddChild { parent, node }).await,
        (Some(_), Some(_)) => "The parameters child and node are in conflict",
        (None, None) => "Either child or node must be specified",
    };
    let query = Query::Node {
        node_name: parent.clone(),
    };
    match daemon.graph(GraphRequest::Query(query)).await {
        Ok(_) => Err(QmpError::generic(wrong)),
        Err(_) => Err(QmpError::generic(format!(
            "Cannot find device='{parent}' nor node-name='{parent}'"
        ))),
    }
}

pub(super) async fn create(daemon: Daemon, mut arguments: Object) -> Reply {
    let Some(Value::Object(options)) = arguments.shift_remove("options") else {
        return Ok(done());
    };
    daemon.start_create(text(&arguments, "job-id"), options).await?;
    Ok(done())
}

/// Only encryption can be amended by this command.
pub(super) async fn amend(daemon: Daemon, mut arguments: Object) -> Reply {
    let Some(Value::Object(options)) = arguments.shift_remove("options") else {
        return Ok(done());
    };
    let node_name = text(&arguments, "node-name").to_owned();
    let driver = match daemon.graph(GraphRequest::Query(Query::Node { node_name })).await {
        Ok(GraphReply::Node(facts)) => facts.driver,
        Ok(_) => return Err(wrong_kind()),
        Err(_) => {
            let name = text(&arguments, "node-name");
            let text = format!("Cannot find device='' nor node-name='{name}'");
            return Err(QmpError::generic(text));
        }
    };
    if driver != text(&options, "driver") {
        return Err(QmpError::generic(
            "x-blockdev-amend doesn't support changing the block driver",
        ));
    }
    if driver != "qcow2" {
        return Err(QmpError::generic("Driver does not support x-blockdev-amend"));
    }
    daemon
        .start_amend(text(&arguments, "job-id"), options.contains_key("encrypt"))
        .await?;
    Ok(done())
}

pub(super) async fn resize(daemon: Daemon, arguments: Object) -> Reply {
    let device = text(&arguments, "device");
    let node_name = text(&arguments, "node-name");
    let size = arguments.get("size").and_then(Value::as_i64).unwrap_or_default();
    let size = u64::try_from(size).map_err(|_| QmpError::generic("Parameter 'size' expects a >0 size"));
    // Devices there are none: only a node can be meant, and where there is that node, no device is looked for. The change
    // itself looks for the node too, and asking about it takes a step for every node below.
    let node = Query::Node {
        node_name: node_name.to_owned(),
    };
    let asks = size.is_err() || !device.is_empty();
    if node_name.is_empty() || (asks && daemon.graph(GraphRequest::Query(node)).await.is_err()) {
        let text = format!("Cannot find device='{device}' nor node-name='{node_name}'");
        return Err(QmpError::generic(text));
    }
    let size = size?;
    change(
        &daemon,
        Mutation::Resize {
            node_name: node_name.to_owned(),
            size,
        },
    )
    .await
}

pub(super) async fn truncate(daemon: Daemon, arguments: Object) -> Reply {
    let mode = text(&arguments, "preallocation");
    let preallocation = match mode {
        "" => Preallocation::Off,
        mode => serde_json::from_value(mode.into()).map_err(|error| QmpError::generic(error.to_string()))?,
    };
    let mut flags = RequestFlags::empty();
    flags.set(RequestFlags::ZERO_WRITE, flag(&arguments, "zero"));
    let request = Mutation::Truncate {
        node_name: text(&arguments, "node-name").to_owned(),
        size: arguments.get("size").and_then(Value::as_u64).unwrap_or_default(),
        exact: flag(&arguments, "exact"),
        preallocation,
        flags,
    };
    change(&daemon, request).await
}

pub(super) async fn check(daemon: Daemon, arguments: Object) -> Reply {
    let node_name = text(&arguments, "node-name").to_owned();
    let mode = text(&arguments, "repair");
    let repair = Repair {
        leaks: matches!(mode, "leaks" | "all"),
        errors: mode == "all",
    };
    let query = Query::Node {
        node_name: node_name.clone(),
    };
    let checked = daemon.graph(Mutation::Check { node_name, repair }).await?;
    let GraphReply::Checked(found) = checked else {
        return Err(wrong_kind());
    };
    let GraphReply::Node(facts) = daemon.graph(GraphRequest::Query(query)).await? else {
        return Err(wrong_kind());
    };
    Ok(json!({
        "filename": facts.filename,
        "format": facts.driver,
        "check-errors": found.check_errors,
        "image-end-offset": found.image_end_offset,
        "corruptions": found.corruptions,
        "leaks": found.leaks,
        "corruptions-fixed": found.corruptions_fixed,
        "leaks-fixed": found.leaks_fixed,
        "total-clusters": found.fragments.total_clusters,
        "allocated-clusters": found.fragments.allocated_clusters,
        "fragmented-clusters": found.fragments.fragmented_clusters,
        "compressed-clusters": found.fragments.compressed_clusters,
    }))
}

pub(super) async fn change_backing_file(daemon: Daemon, arguments: Object) -> Reply {
    let named = |name: &str| text(&arguments, name).to_owned();
    let request = Mutation::ChangeBackingFile {
        device: named("device"),
        image_node_name: named("image-node-name"),
        backing_file: named("backing-file"),
    };
    change(&daemon, request).await
}

pub(super) async fn set_iothread(daemon: Daemon, arguments: Object) -> Reply {
    let node_name = text(&arguments, "node-name").to_owned();
    let iothread = iothread(&arguments);
    let force = flag(&arguments, "force");
    change(
        &daemon,
        Mutation::SetIothread {
            node_name,
            iothread,
            force,
        },
    )
    .await
}

/// The iothread that a move goes to; null is the main one.
fn iothread(arguments: &Object) -> Option<String> {
    arguments
        .get("iothread")
        .and_then(Value::as_str)
        .map(str::to_owned)
}

pub(super) async fn move_node(daemon: Daemon, arguments: Object) -> Reply {
    let node_name = text(&arguments, "node-name").to_owned();
    let iothread = iothread(&arguments);
    let joined = flag(&arguments, "joined");
    if flag(&arguments, "dry-run") {
        let query = Query::MayMove {
            node_name,
            iothread,
            joined,
        };
        return change(&daemon, query).await;
    }
    let request = match joined {
        true => Mutation::SetIothread {
            node_name,
            iothread,
            force: true,
        },
        false => Mutation::MoveNode { node_name, iothread },
    };
    change(&daemon, request).await
}

pub(super) async fn query_nodes(daemon: Daemon, arguments: Object) -> Reply {
    let flat = flag(&arguments, "flat");
    ask(&daemon, Query::NamedNodes { flat }).await
}

/// Statistics are kept by nodes: without `query-nodes` only devices are asked for, which there are none.
pub(super) async fn query_statistics(daemon: Daemon, arguments: Object) -> Reply {
    match flag(&arguments, "query-nodes") {
        true => ask(&daemon, Query::Statistics).await,
        false => Ok(Value::Array(Vec::new())),
    }
}

/// As QEMU's `block-latency-histogram-set`, but of a node.
pub(super) async fn set_histograms(daemon: Daemon, arguments: Object) -> Reply {
    let of = |name: &str| {
        let boundaries = arguments.get(name).or_else(|| arguments.get("boundaries"));
        boundaries.map(histogram).transpose()
    };
    let histograms = LatencyHistograms {
        read: of("boundaries-read")?,
        write: of("boundaries-write")?,
        flush: of("boundaries-flush")?,
    };
    let node_name = text(&arguments, "node-name").to_owned();
    change(
        &daemon,
        Mutation::SetHistograms {
            node_name,
            histograms,
        },
    )
    .await
}

fn histogram(boundaries: &Value) -> Result<LatencyHistogram, QmpError> {
    let boundaries = boundaries.as_array().into_iter().flatten();
    // The schema lets only whole numbers through that are not negative.
    let boundaries = boundaries.filter_map(Value::as_u64).collect();
    LatencyHistogram::new(boundaries).map_err(|error| QmpError::generic(error.to_string()))
}

pub(super) async fn query_graph(daemon: Daemon, _: Object) -> Reply {
    match daemon.graph(GraphRequest::Query(Query::Graph)).await? {
        GraphReply::Graph(facts) => Ok(json!(graph_json(&facts))),
        _ => Err(wrong_kind()),
    }
}

pub(super) async fn query_drains(daemon: Daemon, _: Object) -> Reply {
    match daemon.graph(GraphRequest::Query(Query::PendingDrains)).await? {
        GraphReply::Drains(drains) => {
            serde_json::to_value(drains).map_err(|error| QmpError::generic(error.to_string()))
        }
        _ => Err(wrong_kind()),
    }
}

pub(super) async fn query_iothreads(daemon: Daemon, _: Object) -> Reply {
    match daemon
        .graph(GraphRequest::Query(Query::IothreadStatistics))
        .await?
    {
        GraphReply::IothreadStatistics(reports) => {
            serde_json::to_value(reports).map_err(|error| QmpError::generic(error.to_string()))
        }
        _ => Err(wrong_kind()),
    }
}

pub(super) async fn query_dot(daemon: Daemon, _: Object) -> Reply {
    ask(&daemon, Query::Dot).await
}
