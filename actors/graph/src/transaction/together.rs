//! Nodes that an edit joins live together where nobody holds them apart.

use millpond_messages::{IoThreadId, NodeId, Result};

use crate::transaction::Transaction;
use crate::value::home::{self, Joint};

/// Has nodes follow those that are held in place to the iothread where they are. Where both sides of an edge are held, or
/// neither is, all stay where they are: the edge crosses iothreads.
///
/// # Errors
/// An iothread is gone.
pub async fn follow(transaction: &mut Transaction, joints: impl IntoIterator<Item = Joint>) -> Result<()> {
    for joint in joints {
        let moving = transaction.world.graph(|graph| home::following(graph, joint));
        if let Some((nodes, to)) = moving {
            transaction.move_nodes(nodes, to).await?;
        }
    }
    Ok(())
}

/// Where a node with these children is to live: with those that are held in place, whom the others join, or else with the
/// first.
///
/// # Errors
/// An iothread is gone.
pub async fn gather(
    transaction: &mut Transaction,
    children: impl Iterator<Item = &NodeId>,
) -> Result<IoThreadId> {
    let children: Vec<NodeId> = children.copied().collect();
    let world = transaction.world.clone();
    let home_of = |id: &NodeId| world.graph(|graph| graph.node(*id).map(|node| node.iothread));
    let held = |id: &NodeId| world.graph(|graph| home::is_held(graph, &home::beside(graph, *id)));
    let first = children.first().and_then(home_of);
    let main = || world.with(|state| state.main);
    // Mostly all live in one place.
    if children.iter().all(|child| home_of(child) == first) {
        return Ok(first.unwrap_or_else(main));
    }
    let Some(to) = children.iter().find(|child| held(child)).and_then(home_of) else {
        return Ok(first.unwrap_or_else(main));
    };
    for child in &children {
        if home_of(child) != Some(to) && !held(child) {
            let free = world.graph(|graph| home::beside(graph, *child));
            transaction.move_nodes(free.into_iter().collect(), to).await?;
        }
    }
    Ok(to)
}
