//! Operations forbidden on nodes, and allowed again.

use millpond_messages::graph::{BlockedBy, GraphReply};
use millpond_messages::{Error, ErrorKind, OpBlocker, Result, Token};

use crate::effect::Reply;
use crate::value::refusal::Refusal;
use crate::world::World;

/// Forbids operations on a node.
///
/// # Errors
/// There is no such node, hold or blocker.
pub fn block(world: &World, node: &str, operations: Vec<OpBlocker>, by: BlockedBy) -> Reply {
    world.graph(|graph| {
        let node = graph.find(node)?.id;
        match by {
            BlockedBy::New { reason, root } => {
                if let Some(root) = root.filter(|root| graph.root(*root).is_none()) {
                    return Err(Refusal::NoRoot(root).into());
                }
                let token = graph.add_blocker(reason, root);
                graph.blockers.block(token, node, operations);
                Ok(GraphReply::Blocked(token))
            }
            BlockedBy::Token(token) if graph.blockers.contains(token) => {
                graph.blockers.block(token, node, operations);
                // Not `Blocked`: whoever no longer waits for this would give the whole blocker back.
                Ok(GraphReply::Done)
            }
            BlockedBy::Token(token) => Err(no_blocker(token)),
        }
    })
}

/// Lets a blocker allow operations.
///
/// # Errors
/// There is no such node or blocker.
pub fn unblock(world: &World, token: Token, node: Option<&str>, operations: &[OpBlocker]) -> Result<()> {
    world.graph(|graph| {
        let node = node
            .map(|name| graph.find(name).map(|node| node.id))
            .transpose()?;
        if !graph.blockers.contains(token) {
            return Err(no_blocker(token));
        }
        graph.blockers.unblock(token, node, operations);
        Ok(())
    })
}

fn no_blocker(token: Token) -> Error {
    Error::new(ErrorKind::NotFound, format!("There is no op blocker {token}"))
}
