//! Operations forbidden on nodes, and allowed again.
//!
//! This is no `Change`: the graph's value alone is looked at and changed, in one go that cannot fail half-way.

use millpond_messages::graph::{ExtendOpBlock, GraphReply, OpBlock, OpUnblock};
use millpond_messages::{Error, ErrorKind, Result, Token};

use crate::effect::Reply;
use crate::value::refusal::Refusal;
use crate::world::World;

/// Forbids operations on a node.
///
/// # Errors
/// There is no such node or hold.
pub fn block(world: &World, request: OpBlock) -> Reply {
    world.graph(|graph| {
        let node = graph.find(&request.node_name)?.id;
        if let Some(root) = request.root.filter(|root| graph.root(*root).is_none()) {
            return Err(Refusal::NoRoot(root).into());
        }
        let token = graph.add_blocker(request.reason, request.root);
        graph.blockers.block(token, node, request.operations);
        Ok(GraphReply::Blocked(token))
    })
}

/// Lets a blocker forbid operations on a node as well.
///
/// # Errors
/// There is no such node or blocker.
pub fn extend(world: &World, request: ExtendOpBlock) -> Result<()> {
    world.graph(|graph| {
        let node = graph.find(&request.node_name)?.id;
        if !graph.blockers.contains(request.token) {
            return Err(no_blocker(request.token));
        }
        graph.blockers.block(request.token, node, request.operations);
        Ok(())
    })
}

/// Lets a blocker allow operations.
///
/// # Errors
/// There is no such node or blocker.
pub fn unblock(world: &World, request: &OpUnblock) -> Result<()> {
    let OpUnblock {
        token,
        node_name,
        operations,
    } = request;
    let token = *token;
    world.graph(|graph| {
        let node = node_name.as_ref();
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
