//! The images that `convert` copies.

use millpond_messages::graph::{DescribeImage, FindRoot};
use millpond_messages::{OpenFlags, SECTOR_SIZE};

use super::plan::ConvertPlan;
use crate::cli::img::copy::Source;
use crate::cli::tool::{Failure, ImageName, ShownSnapshot, Tool};

/// A source that is open.
pub struct OpenedSource {
    /// The name of its node.
    pub node: String,
    /// The amount of data that is read fastest, in bytes; 0 where it does not matter.
    pub best_transfer: u64,
    /// How it is copied.
    pub source: Source,
}

/// Opens all of them.
///
/// # Errors
/// One of them cannot be opened, or its length not be had.
pub async fn open_all(
    tool: &Tool<'_>,
    plan: &ConvertPlan,
    (flags, writes_through): (OpenFlags, bool),
) -> Result<Vec<OpenedSource>, Failure> {
    let mut opened = Vec::new();
    let mut start = 0;
    for name in &plan.sources {
        let image = ImageName {
            name: name.clone(),
            format: plan.source_format.clone(),
            is_options: plan.source_is_options,
            // What is written to meanwhile is not copied, and the target is none of the sources.
            flags: flags | OpenFlags::NO_SHARE,
            writes_through,
            force_share: plan.force_share,
        };
        let client = tool.open(&image).await?;
        let one = look_at(tool, name, client, start).await?;
        start = one.source.end();
        opened.push(one);
    }
    Ok(opened)
}

async fn look_at(
    tool: &Tool<'_>,
    name: &str,
    client: crate::node::Client,
    start: u64,
) -> Result<OpenedSource, Failure> {
    let unknown = |error| Failure::new(format!("Could not get size of {name}: {error}"));
    let length = client.length().await.map_err(unknown)?;
    let end = start.checked_add(length.next_multiple_of(SECTOR_SIZE));
    if end.is_none() {
        return Err(Failure::new(
            "The images are too large to be put one behind the other",
        ));
    }
    let facts = tool.graph().ask(FindRoot(client.root())).await?;
    let node_name = facts.name.clone();
    let info = tool.graph().ask(DescribeImage { node_name }).await.ok();
    let cluster = info.map_or(0, |info| info.cluster_size);
    let block = u64::from(facts.limits.request_alignment).next_multiple_of(SECTOR_SIZE);
    Ok(OpenedSource {
        node: facts.name,
        best_transfer: u64::from(facts.limits.opt_transfer),
        source: Source {
            client,
            start,
            from: 0,
            length,
            alignment: block.max(cluster),
        },
    })
}

/// Has the first source show the snapshot that is asked for.
///
/// # Errors
/// There is none, or its format has no snapshots.
pub async fn load_snapshot(
    tool: &Tool<'_>,
    plan: &ConvertPlan,
    opened: &[OpenedSource],
) -> Result<(), Failure> {
    let (Some(snapshot), Some(first)) = (&plan.snapshot, opened.first()) else {
        return Ok(());
    };
    if matches!(snapshot, ShownSnapshot::IdOrName(_)) && opened.len() > 1 {
        return Err(Failure::new("No support for concatenating multiple snapshot"));
    }
    snapshot.show(tool, &first.node).await
}
