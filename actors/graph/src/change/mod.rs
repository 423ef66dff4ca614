//! Changes of the graph, one a file, and which request is which.

use millpond_messages::Result;
use millpond_messages::graph::{
    AttachRoot, AttachRootInactive, CopyOnRead, GraphReply, Mutation, SetHistograms,
};

use crate::change::add::Add;
use crate::change::children::{AddChild, DelChild};
use crate::change::open_image::OpenOne;
use crate::change::roots::Inactive;
use crate::change::snapshot::Snapshot;
use crate::effect::Reply;
use crate::order::NodeOrder;
use crate::procedure::{Next, Procedure};
use crate::transaction::run;
use crate::world::World;

mod activate;
mod add;
mod amend;
mod backing_link;
mod block;
mod check;
mod children;
mod commit;
mod create;
mod delete;
mod exchange;
mod freeze;
mod iothreads;
mod links;
mod open_image;
mod reopen;
mod replace;
mod resize;
mod roots;
pub mod shutdown;
mod snapshot;
mod targets;
mod transaction;

/// The procedure that carries a mutation out.
pub fn procedure(world: &World, mutation: Mutation) -> Procedure {
    let world = world.clone();
    Box::pin(async move { carry_out(&world, mutation).await })
}

async fn carry_out(world: &World, mutation: Mutation) -> Next {
    let done = match mutation {
        Mutation::MakeImage(request) => return create::make_image(world, request).await,
        Mutation::Commit(request) => return commit::commit(world, &request.node_name).await,
        Mutation::CheckImage(request) => return check::check(world, request).await,
        Mutation::Open(request) => return reply(run(world, "open", OpenOne::from(request)).await),
        Mutation::OpenHeld(request) => return reply(run(world, "open", OpenOne::from(request)).await),
        Mutation::AttachRoot(AttachRoot(request)) => {
            return reply(roots::attach(world, request, Inactive::Refused).await);
        }
        Mutation::AttachRootInactive(AttachRootInactive(request)) => {
            return reply(roots::attach(world, request, Inactive::Allowed).await);
        }
        Mutation::FreezeChain(request) => return reply(freeze::freeze(world, &request)),
        Mutation::OpBlock(request) => return reply(block::block(world, request)),
        Mutation::AddNode(request) => run(world, "blockdev-add", Add::from(request)).await,
        Mutation::DeleteNode(request) => delete::delete_node(world, &request.node_name).await,
        Mutation::Reopen(request) => reopen::reopen(world, request.0).await,
        Mutation::ReopenKeeping(request) => reopen::reopen_keeping(world, request.0).await,
        Mutation::SetReadOnly(request) => reopen::set_read_only(world, request).await,
        Mutation::SetActive(request) => activate::set_active(world, request).await,
        Mutation::InvalidateCache(request) => activate::invalidate(world, &request.node_name).await,
        Mutation::Snapshot(request) => run(world, snapshot::USER, Snapshot::from(request)).await,
        Mutation::Transact(request) => transaction::all(world, request).await,
        Mutation::AddChild(request) => run(world, children::USER, AddChild::from(request)).await,
        Mutation::DelChild(request) => run(world, children::USER, DelChild::from(request)).await,
        Mutation::Amend(request) => amend::amend(world, request).await,
        Mutation::Resize(request) => resize::resize(world, request).await,
        Mutation::Truncate(request) => resize::truncate(world, request).await,
        Mutation::DeleteFile(request) => delete::delete_file(world, &request.node_name).await,
        Mutation::Serialise(request) => roots::serialise(world, request.0).await,
        Mutation::MoveNode(request) => iothreads::move_node(world, &request).await,
        Mutation::SetIothread(request) => iothreads::set_iothread(world, &request).await,
        Mutation::SetRootPermissions(request) => roots::set_permissions(world, request).await,
        Mutation::DetachRoot(request) => roots::detach(world, request.0).await,
        Mutation::Append(request) => replace::append_node(world, &request).await,
        Mutation::ReplaceNode(request) => replace::replace_node(world, &request).await,
        Mutation::ReplaceChild(request) => replace::replace_child(world, &request).await,
        Mutation::InsertNode(request) => replace::insert_node(world, request).await,
        Mutation::DropFilter(request) => replace::drop_filter(world, &request.node_name).await,
        Mutation::SetBacking(request) => links::set_backing(world, &request).await,
        Mutation::AttachChild(request) => links::attach_child(world, &request).await,
        Mutation::DetachChild(request) => links::detach_child(world, &request).await,
        Mutation::RecordBackingFile(request) => backing_link::record(world, &request).await,
        Mutation::DropIntermediate(request) => backing_link::drop_intermediate(world, request).await,
        Mutation::MakeEmpty(request) => commit::make_empty(world, &request.node_name).await,
        Mutation::UnfreezeChain(request) => freeze::unfreeze(world, request.0),
        Mutation::ExtendOpBlock(request) => block::extend(world, request),
        Mutation::OpUnblock(request) => block::unblock(world, &request),
        Mutation::CopyOnRead(request) => copy_on_read(world, &request).await,
        Mutation::SetHistograms(request) => set_histograms(world, request).await,
        Mutation::FlushAll(_) => shutdown::flush_all(world).await,
        Mutation::AddIothread(request) => iothreads::add(world, request.0).await,
        Mutation::DelIothread(request) => iothreads::delete(world, &request.id),
        Mutation::TuneIothread(request) => iothreads::tune(world, request.0),
    };
    reply(done.map(|()| GraphReply::Done))
}

const fn reply(reply: Reply) -> Next {
    Next::Reply(reply)
}

async fn copy_on_read(world: &World, request: &CopyOnRead) -> Result<()> {
    let node = world.graph(|graph| graph.find(&request.node_name).map(|node| node.id))?;
    let order = NodeOrder::CopyOnRead { on: request.on };
    world.ask(node, order).done().await
}

async fn set_histograms(world: &World, request: SetHistograms) -> Result<()> {
    let node = world.graph(|graph| graph.find(&request.node_name).map(|node| node.id))?;
    let histograms = request.histograms;
    let order = NodeOrder::SetHistograms { histograms };
    world.ask(node, order).done().await
}
