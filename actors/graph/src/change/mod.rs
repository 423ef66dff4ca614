//! Changes of the graph, one a file, and which request is which.

use millpond_messages::Result;
use millpond_messages::graph::{
    CopyOnRead, GraphReply, Mutation, SetHistograms, SetRootPermissions, SetWriteThreshold,
};

use crate::change::activate::Invalidate;
use crate::change::add::Add;
use crate::change::amend::Amendment;
use crate::change::backing_link::{Record, Shorten};
use crate::change::bitmap::Editing;
use crate::change::children::{AddChild, DelChild};
use crate::change::insert::Insert;
use crate::change::iothreads::Move;
use crate::change::links::Relink;
use crate::change::open_image::OpenOne;
use crate::change::reopen::Reopening;
use crate::change::replace::{Append, Replace};
use crate::change::resize::NewLength;
use crate::change::roots::{Inactive, Serialising, SetPermissions};
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
mod backup;
mod bitmap;
mod block;
mod check;
mod children;
mod commit;
mod create;
mod delete;
mod freeze;
mod insert;
mod internal_snapshot;
pub mod iothreads;
mod job;
mod links;
mod new_file;
mod open_image;
mod pivot;
mod rebase;
mod reopen;
mod replace;
mod resize;
mod roots;
pub mod shutdown;
mod snapshot;
mod snapshot_sync;
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
        Mutation::TransactForJobs(request) => return transaction::for_jobs(world, request.0).await,
        Mutation::ChangeSnapshots(request) => return reply(internal_snapshot::change(world, request).await),
        Mutation::CheckImage(request) => return check::check(world, request).await,
        Mutation::Open(request) => return reply(run(world, "open", OpenOne::from(request)).await),
        Mutation::OpenHeld(request) => return reply(run(world, "open", OpenOne::from(request)).await),
        Mutation::AttachRoot(request) => return roots::attach(world, request.0, Inactive::Refused).await,
        Mutation::AttachRootInactive(request) => return roots::attach_inactive(world, request.0).await,
        Mutation::FreezeChain(request) => return reply(freeze::freeze(world, &request)),
        Mutation::OpBlock(request) => return reply(block::block(world, request)),
        Mutation::AddNode(request) => run(world, "blockdev-add", Add::from(request)).await,
        Mutation::DeleteNode(request) => delete::delete_node(world, &request.node_name).await,
        Mutation::Reopen(request) => run(world, reopen::USER, Reopening::from(request)).await,
        Mutation::ReopenKeeping(request) => run(world, reopen::USER, Reopening::from(request)).await,
        Mutation::SetReadOnly(request) => run(world, reopen::USER, Reopening::from(request)).await,
        Mutation::SetActive(request) => activate::set_active(world, request).await,
        Mutation::InvalidateCache(request) => run(world, "invalidate-cache", Invalidate::from(request)).await,
        Mutation::Snapshot(request) => run(world, snapshot::USER, Snapshot::from(request)).await,
        Mutation::Transact(request) => transaction::all(world, request).await,
        Mutation::AddChild(request) => run(world, children::USER, AddChild::from(request)).await,
        Mutation::DelChild(request) => run(world, children::USER, DelChild::from(request)).await,
        Mutation::Amend(request) => run(world, "amend", Amendment::from(request)).await,
        Mutation::Resize(request) => run(world, "block_resize", NewLength::from(request)).await,
        Mutation::Truncate(request) => run(world, "block_resize", NewLength::from(request)).await,
        Mutation::DeleteFile(request) => delete::delete_file(world, &request.node_name).await,
        Mutation::Serialise(request) => run(world, "serialising", Serialising::from(request)).await,
        Mutation::MoveNode(request) => run(world, "x-millpond-move-node", Move::from(request)).await,
        Mutation::SetIothread(request) => run(world, "x-blockdev-set-iothread", Move::from(request)).await,
        Mutation::SetRootPermissions(request) => set_permissions(world, request).await,
        Mutation::DetachRoot(request) => roots::detach(world, request.0).await,
        Mutation::Append(request) => run(world, "append", Append::from(request)).await,
        Mutation::ReplaceNode(request) => run(world, "replace", Replace::from(request)).await,
        Mutation::ReplaceChild(request) => run(world, "replace-child", Replace::from(request)).await,
        Mutation::InsertNode(request) => run(world, "insert", Insert::from(request)).await,
        Mutation::DropFilter(request) => run(world, "drop-filter", Replace::from(request)).await,
        Mutation::SetBacking(request) => run(world, "set-backing", Relink::from(request)).await,
        Mutation::AttachChild(request) => run(world, "attach-child", Relink::from(request)).await,
        Mutation::DetachChild(request) => run(world, "detach-child", Relink::from(request)).await,
        Mutation::RecordBackingFile(request) => run(world, backing_link::USER, Record::from(request)).await,
        Mutation::DropIntermediate(request) => run(world, "drop-intermediate", Shorten::from(request)).await,
        Mutation::HoldBitmaps(request) => return reply(bitmap::hold(world, &request.0)),
        Mutation::EditBitmap(request) => run(world, request.0.command(), Editing::from(request.0)).await,
        Mutation::EditForJob(request) => job::carry_out(world, request.0).await,
        Mutation::MakeEmpty(request) => commit::make_empty(world, &request.node_name).await,
        Mutation::UnfreezeChain(request) => freeze::unfreeze(world, request.0),
        Mutation::ExtendOpBlock(request) => block::extend(world, request),
        Mutation::OpUnblock(request) => block::unblock(world, &request),
        Mutation::CopyOnRead(request) => copy_on_read(world, &request).await,
        Mutation::SetHistograms(request) => set_histograms(world, request).await,
        Mutation::SetWriteThreshold(request) => set_threshold(world, &request).await,
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

async fn set_permissions(world: &World, request: SetRootPermissions) -> Result<()> {
    run(world, "set-permissions", SetPermissions::from(request)).await
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

async fn set_threshold(world: &World, request: &SetWriteThreshold) -> Result<()> {
    let node = world.graph(|graph| graph.find(&request.node_name).map(|node| node.id))?;
    let offset = request.offset;
    world
        .ask(node, NodeOrder::SetWriteThreshold { offset })
        .done()
        .await
}
