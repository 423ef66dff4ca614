//! Links of chains that somebody relies on, frozen and given free.
//!
//! This is no `Change`: the graph's value alone is looked at and changed, in one go that cannot fail half-way.

use millpond_messages::graph::{FreezeChain, GraphReply};
use millpond_messages::{Error, ErrorKind, Result, Token};

use crate::effect::Reply;
use crate::value::chain;
use crate::value::frozen::Freeze;
use crate::value::refusal::Refusal;
use crate::world::World;

/// Freezes the links of a chain.
///
/// # Errors
/// One of them is frozen already or must not be, `base` is not in the chain, or there is no such hold.
pub fn freeze(world: &World, request: &FreezeChain) -> Reply {
    let FreezeChain { top, base, root } = request;
    world.graph(|graph| {
        let (top, base) = chain::ends(graph, top, base.as_deref())?;
        let edges = chain::to_freeze(graph, top, base)?;
        let (root, node) = (*root, None);
        if let Some(root) = root.filter(|root| graph.root(*root).is_none()) {
            return Err(Refusal::NoRoot(root).into());
        }
        Ok(GraphReply::Frozen(graph.freeze(Freeze { root, node, edges })))
    })
}

/// Gives links free again.
///
/// # Errors
/// There is no such hold on links.
pub fn unfreeze(world: &World, token: Token) -> Result<()> {
    if world.graph(|graph| graph.unfreeze(token)) {
        return Ok(());
    }
    let text = format!("There are no links frozen by {token}");
    Err(Error::new(ErrorKind::NotFound, text))
}
