//! Changes of the graph, one a file, and which request is which.

use millpond_messages::graph::{GraphReply, Mutation, RootRequest};
use millpond_messages::{LatencyHistograms, Result};

use crate::change::add::Add;
use crate::change::children::{AddChild, DelChild};
use crate::change::open_image::OpenOne;
use crate::change::roots::Inactive;
use crate::change::snapshot::Snapshot;
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
        Mutation::BlockdevCreate(options) => return create::blockdev_create(world, options).await,
        Mutation::Commit { node_name } => return commit::commit(world, &node_name).await,
        Mutation::Check { node_name, repair } => return check::check(world, &node_name, repair).await,
        Mutation::Open(image) => return Next::Reply(run(world, "open", OpenOne::new(*image)).await),
        Mutation::BlockdevAdd(options) => run(world, "blockdev-add", Add { options }).await,
        Mutation::BlockdevDel { node_name } => delete::blockdev_del(world, &node_name).await,
        Mutation::BlockdevReopen(list) => reopen::blockdev_reopen(world, list).await,
        Mutation::ReopenKeeping(list) => reopen::reopen_keeping(world, list).await,
        Mutation::SetReadOnly { node_name, read_only } => {
            reopen::set_read_only(world, &node_name, read_only).await
        }
        Mutation::SetActive { node_name, active } => {
            activate::set_active(world, node_name.as_deref(), active).await
        }
        Mutation::InvalidateCache { node_name } => activate::invalidate(world, &node_name).await,
        Mutation::BlockdevSnapshot { node, overlay } => {
            run(world, snapshot::USER, Snapshot::new(node, overlay)).await
        }
        Mutation::Transaction { actions, completion } => transaction::all(world, actions, completion).await,
        Mutation::AddChild { parent, node } => run(world, children::USER, AddChild::new(parent, node)).await,
        Mutation::DelChild { parent, child } => {
            run(world, children::USER, DelChild::new(parent, child)).await
        }
        Mutation::Amend { node_name, options } => amend::amend(world, &node_name, options).await,
        Mutation::Resize { node_name, size } => {
            resize::resize(world, &node_name, size, resize::How::default()).await
        }
        Mutation::Truncate {
            node_name,
            size,
            exact,
            preallocation,
            flags,
        } => {
            let how = resize::How {
                exact,
                preallocation,
                flags,
            };
            resize::resize(world, &node_name, size, how).await
        }
        Mutation::DeleteFile { node_name } => delete::delete_file(world, &node_name).await,
        Mutation::Serialise(root) => roots::serialise(world, root).await,
        Mutation::MoveNode { node_name, iothread } => {
            iothreads::move_node(world, &node_name, iothread.as_deref()).await
        }
        Mutation::SetIothread {
            node_name,
            iothread,
            force,
        } => iothreads::set_iothread(world, &node_name, iothread.as_deref(), force).await,
        Mutation::AttachRoot(request) => return attach(world, request, Inactive::Refused).await,
        Mutation::AttachRootInactive(request) => return attach(world, request, Inactive::Allowed).await,
        Mutation::SetRootPermissions {
            root,
            permissions,
            shared,
        } => roots::set_permissions(world, root, permissions, shared).await,
        Mutation::DetachRoot(root) => roots::detach(world, root).await,
        Mutation::Append { node, new } => replace::append_node(world, &node, &new).await,
        Mutation::ReplaceNode { from, to } => replace::replace_node(world, &from, &to).await,
        Mutation::ReplaceChild { of, node } => replace::replace_child(world, of, &node).await,
        Mutation::InsertNode { node, options } => replace::insert_node(world, &node, options).await,
        Mutation::DropFilter { node_name } => replace::drop_filter(world, &node_name).await,
        Mutation::SetBacking { node_name, backing } => {
            links::set_backing(world, &node_name, backing.as_deref()).await
        }
        Mutation::AttachChild { parent, child, node } => {
            links::attach_child(world, &parent, &child, &node).await
        }
        Mutation::DetachChild { parent, child } => links::detach_child(world, &parent, &child).await,
        Mutation::ChangeBackingFile {
            device,
            image_node_name,
            backing_file,
        } => backing_link::change_backing_file(world, &device, &image_node_name, &backing_file).await,
        Mutation::DropIntermediate {
            top,
            base,
            backing_file,
        } => backing_link::drop_intermediate(world, &top, &base, backing_file).await,
        Mutation::MakeEmpty { node_name } => commit::make_empty(world, &node_name).await,
        Mutation::FreezeChain { top, base, root } => {
            return Next::Reply(freeze::freeze(world, &top, base.as_deref(), root));
        }
        Mutation::UnfreezeChain(token) => freeze::unfreeze(world, token),
        Mutation::OpBlock {
            node_name,
            operations,
            by,
        } => return Next::Reply(block::block(world, &node_name, operations, by)),
        Mutation::OpUnblock {
            token,
            node_name,
            operations,
        } => block::unblock(world, token, node_name.as_deref(), &operations),
        Mutation::CopyOnRead { node_name, on } => copy_on_read(world, &node_name, on).await,
        Mutation::SetHistograms {
            node_name,
            histograms,
        } => set_histograms(world, &node_name, histograms).await,
        Mutation::FlushAll => shutdown::flush_all(world).await,
        Mutation::AddIothread(options) => iothreads::add(world, options).await,
        Mutation::DelIothread { id } => iothreads::delete(world, &id),
        Mutation::TuneIothread(options) => iothreads::tune(world, options),
    };
    Next::Reply(done.map(|()| GraphReply::Done))
}

async fn attach(world: &World, request: RootRequest, inactive: Inactive) -> Next {
    Next::Reply(roots::attach(world, request, inactive).await)
}

async fn copy_on_read(world: &World, name: &str, on: bool) -> Result<()> {
    let node = world.graph(|graph| graph.find(name).map(|node| node.id))?;
    world.ask(node, NodeOrder::CopyOnRead { on }).done().await
}

async fn set_histograms(world: &World, name: &str, histograms: LatencyHistograms) -> Result<()> {
    let node = world.graph(|graph| graph.find(name).map(|node| node.id))?;
    let order = NodeOrder::SetHistograms { histograms };
    world.ask(node, order).done().await
}
