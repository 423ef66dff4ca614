//! Which drains have not become still, and what they wait for.

use millpond_engine::node::OrderOutcome;
use millpond_messages::handshake::{PendingDrain, WaitingNode};
use millpond_messages::{NodeId, Token};

use crate::order::NodeOrder;
use crate::world::World;

struct Waiting {
    token: Token,
    user: String,
    age_ns: u64,
    nodes: Vec<(NodeId, String)>,
}

/// All sections that are not still, the oldest first.
pub async fn pending(world: &World) -> Vec<PendingDrain> {
    let waiting: Vec<Waiting> = world.with(|state| {
        let sections = state.sections.iter().filter(|(_, section)| !section.is_still());
        sections
            .map(|(token, section)| Waiting {
                token,
                user: section.user.clone(),
                age_ns: u64::try_from(state.now.saturating_sub(section.begun).as_nanos()).unwrap_or(u64::MAX),
                nodes: section
                    .unanswered(&state.graph)
                    .into_iter()
                    .filter_map(|id| Some((id, state.graph.node(id)?.name.clone())))
                    .collect(),
            })
            .collect()
    });
    let mut drains = Vec::new();
    for Waiting {
        token,
        user,
        age_ns,
        nodes,
    } in waiting
    {
        let asked: Vec<_> = nodes
            .into_iter()
            .map(|(node, name)| (name, world.ask(node, NodeOrder::Pending)))
            .collect();
        let mut waiting_for = Vec::new();
        for (node_name, answer) in asked {
            // A node that has gone meanwhile is not waited for any more.
            if let OrderOutcome::Pending(requests) = answer.await {
                waiting_for.push(WaitingNode { node_name, requests });
            }
        }
        drains.push(PendingDrain {
            token: token.0,
            user,
            age_ns,
            waiting_for,
        });
    }
    drains
}
