//! Questions about the graph. They are answered at once, or as soon as the nodes they concern have answered.

mod backing_image;
mod bitmaps;
mod chains;
pub mod device;
mod dot;
mod drains;
pub mod facts;
mod iothreads;
mod nodes;
pub mod replace;
mod saved;
mod statistics;
mod vm_state;

use millpond_messages::graph::{DriverFacts, GraphReply, MayMove, MeasureImage, NamedNodes, Query};
use millpond_messages::{Error, ErrorKind, RootId};

use crate::effect::Reply;
use crate::open::tree;
use crate::state::PolicyState;
use crate::value::graph::Graph;
use crate::value::home::{self, Company};
use crate::value::{filename, forbidden};
use crate::world::World;

pub use drains::pending as pending_drains;
pub use facts::facts;
use facts::found;

/// Answers a question.
///
/// # Errors
/// It is about something that does not exist.
pub async fn answer(world: &World, query: Query) -> Reply {
    match query {
        Query::NamedNodes(NamedNodes { flat }) => {
            nodes::named_nodes(world, flat).await.map(GraphReply::NamedNodes)
        }
        Query::NodeReports(_) => Ok(GraphReply::NodeReports(statistics::reports(world).await)),
        Query::BlockStatistics(_) => Ok(GraphReply::Statistics(statistics::statistics(world).await)),
        Query::IothreadReports(_) => Ok(GraphReply::IothreadReports(iothreads::reports(world).await)),
        Query::SaveGraph(_) => saved::graph(world)
            .await
            .map(|saved| GraphReply::Saved(Box::new(saved))),
        Query::ListDrains(_) => Ok(GraphReply::Drains(drains::pending(world).await)),
        Query::WholeGraph(_) => Ok(GraphReply::Graph(world.graph(|graph| facts::whole(graph)))),
        Query::DrawGraph(_) => Ok(GraphReply::Text(world.with(|state| drawn(state)))),
        Query::ListDrivers(request) => Ok(world.with(|state| drivers(state, request.read_only))),
        Query::ListIothreads(_) => Ok(world.with(|state| iothreads(state))),
        Query::MayMove(request) => world.with(|state| may_move(state, &request)),
        Query::MayName(request) => {
            tree::check_free_name(world, &request.node_name).map(|()| GraphReply::Done)
        }
        Query::FindNode(request) => world.graph(|graph| named(graph, &request.node_name)),
        Query::FindRoot(request) => world.graph(|graph| behind(graph, request.0)),
        Query::FindBlockSizes(request) => device::block_sizes(world, &request.node_name).await,
        Query::IsInserted(request) => device::is_inserted(world, &request.node_name).await,
        Query::ChangeMedium(request) => device::change_medium(world, request).await,
        Query::IsScsiGeneric(request) => device::is_scsi_generic(world, &request.node_name).await,
        Query::SendScsi(request) => device::send_scsi(world, request).await,
        Query::DescribeImage(request) => device::driver_info(world, &request.node_name).await,
        Query::MeasureImage(request) => world.with(|state| measure(state, request)),
        Query::SaveVmState(request) => vm_state::save(world, request).await,
        Query::LoadVmState(request) => vm_state::load(world, &request).await,
        Query::FindGeometry(request) => device::geometry(world, &request.node_name).await,
        Query::FindDirectory(request) => world.graph(|graph| directory(graph, &request.node_name)),
        Query::CopyBitmap(request) => bitmaps::copy(world, &request.0).await.map(GraphReply::Bits),
        Query::ReadBitmap(request) => bitmaps::read(world, &request).await.map(GraphReply::DirtyRuns),
        Query::ListOpBlockers(request) => world.graph(|graph| op_blockers(graph, &request.node_name)),
        Query::FindOverlay(request) => world.graph(|graph| chains::find_overlay(graph, &request)),
        Query::FindBackingImage(request) => {
            let image = backing_image::find(world, &request.top, &request.filename).await?;
            world.graph(|graph| Ok(found(graph, image)))
        }
        Query::ChainContains(request) => world.graph(|graph| chains::contains(graph, &request)),
        Query::ChainUnfrozen(request) => world.graph(|graph| chains::unfrozen(graph, &request)),
        Query::CheckReplace(request) => world.graph(|graph| {
            let node = replace::check_to_replace(graph, &request.parent, &request.node_name)?;
            Ok(found(graph, Some(node)))
        }),
        Query::NextOwned(request) => world.graph(|graph| next_owned(graph, request.after.as_deref())),
    }
}

fn measure(state: &PolicyState, request: MeasureImage) -> Reply {
    let MeasureImage { driver, options } = request;
    let kind = state.registry.find(&driver);
    let unknown = || {
        Error::new(
            ErrorKind::InvalidArgument,
            format!("Unknown file format '{driver}'"),
        )
    };
    let kind = kind.ok_or_else(unknown)?;
    if !kind.creates() && driver != "raw" {
        let text = format!("Format driver '{driver}' does not support image creation");
        return Err(Error::new(ErrorKind::Unsupported, text));
    }
    kind.measure(options).map(GraphReply::ImagePlan)
}

/// The graph in the DOT language.
fn drawn(state: &PolicyState) -> String {
    let named = state.iothreads.iter();
    let named = named.map(|(id, entry)| (*id, iothreads::shown_name(entry).to_owned()));
    dot::dot(&facts::whole(&state.graph), &named.collect())
}

fn drivers(state: &PolicyState, read_only: bool) -> GraphReply<RootId> {
    let names = state.registry.names(read_only);
    let kinds = names.filter_map(|name| state.registry.find(name));
    GraphReply::Drivers(kinds.map(|kind| driver_facts(kind.as_ref())).collect())
}

fn driver_facts(kind: &dyn millpond_drivers::api::DriverKind) -> DriverFacts {
    DriverFacts {
        name: kind.name().to_owned(),
        is_protocol: kind.is_protocol(),
        creates: kind.creates(),
        has_filenames: kind.has_filenames(),
    }
}

fn iothreads(state: &PolicyState) -> GraphReply<RootId> {
    let entries = state.iothreads.iter();
    let made = entries.filter_map(|(id, entry)| Some((entry.options.clone()?, entry.thread, *id)));
    GraphReply::Iothreads(made.collect())
}

fn may_move(state: &PolicyState, request: &MayMove) -> Reply {
    let node = state.graph.find(&request.node_name)?.id;
    let company = match request.joined {
        true => Company::Joined,
        false => Company::Alone,
    };
    let to = state.destination(request.iothread.as_deref())?;
    home::to_move(&state.graph, node, to, company).map(|_| GraphReply::Done)
}

fn named(graph: &Graph, name: &str) -> Reply {
    Ok(GraphReply::Node(facts(graph, graph.find(name)?)))
}

/// The node that a root edge leads to.
fn behind(graph: &Graph, root: RootId) -> Reply {
    let edge = graph.root(root).and_then(|root| graph.edge(root.edge));
    let node = edge.and_then(|edge| graph.node(edge.child));
    let facts = node.map(|node| GraphReply::Node(facts(graph, node)));
    facts.ok_or_else(|| Error::new(ErrorKind::NotFound, format!("There is no root edge {root}")))
}

fn directory(graph: &Graph, name: &str) -> Reply {
    filename::directory(graph, graph.find(name)?).map(GraphReply::Text)
}

fn op_blockers(graph: &Graph, name: &str) -> Reply {
    let node = graph.find(name)?.id;
    Ok(GraphReply::Blockers(forbidden::reasons(graph, node)))
}

/// The node that users added next after the one called `after`, or first.
fn next_owned(graph: &Graph, after: Option<&str>) -> Reply {
    let after = after
        .map(|name| graph.find(name).map(|node| node.id))
        .transpose()?;
    let mut nodes = graph.live_nodes();
    let next = nodes.find(|node| node.owned && after.is_none_or(|after| node.id > after));
    Ok(found(graph, next.map(|node| node.id)))
}
