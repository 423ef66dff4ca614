//! Changes of the graph, one a file, and which request is which.

use millpond_messages::global_state::{GraphReply, GraphRequest};
use millpond_messages::{Error, ErrorKind};

use crate::change::roots::Inactive;
use crate::effect::Reply;
use crate::order::Order;
use crate::procedure::{Next, Procedure};
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

/// The procedure that carries a mutation out.
pub fn procedure(world: &World, request: GraphRequest) -> Procedure {
    let world = world.clone();
    Box::pin(async move {
        match request {
            GraphRequest::BlockdevCreate(options) => create::blockdev_create(&world, options).await,
            GraphRequest::Commit { node_name } => commit::commit(&world, &node_name).await,
            GraphRequest::Check { node_name, repair } => check::check(&world, &node_name, repair).await,
            request => Next::Reply(change(&world, request).await),
        }
    })
}

async fn change(world: &World, request: GraphRequest) -> Reply {
    match request {
        GraphRequest::Open(image) => return open_image::open(world, *image).await,
        GraphRequest::BlockdevAdd(options) => add::blockdev_add(world, options).await?,
        GraphRequest::BlockdevDel { node_name } => delete::blockdev_del(world, &node_name).await?,
        GraphRequest::BlockdevReopen(list) => reopen::blockdev_reopen(world, list).await?,
        GraphRequest::ReopenKeeping(list) => reopen::reopen_keeping(world, list).await?,
        GraphRequest::SetReadOnly { node_name, read_only } => {
            reopen::set_read_only(world, &node_name, read_only).await?;
        }
        GraphRequest::SetActive { node_name, active } => {
            activate::set_active(world, node_name.as_deref(), active).await?;
        }
        GraphRequest::InvalidateCache { node_name } => activate::invalidate(world, &node_name).await?,
        GraphRequest::BlockdevSnapshot { node, overlay } => {
            snapshot::blockdev_snapshot(world, &node, &overlay).await?;
        }
        GraphRequest::AddChild { parent, node } => children::add_child(world, &parent, &node).await?,
        GraphRequest::DelChild { parent, child } => children::del_child(world, &parent, &child).await?,
        GraphRequest::Amend { node_name, options } => amend::amend(world, &node_name, options).await?,
        GraphRequest::Resize { node_name, size } => {
            resize::resize(world, &node_name, size, resize::How::default()).await?;
        }
        GraphRequest::Truncate {
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
            resize::resize(world, &node_name, size, how).await?;
        }
        GraphRequest::DeleteFile { node_name } => delete::delete_file(world, &node_name).await?,
        GraphRequest::Serialise(root) => roots::serialise(world, root).await?,
        GraphRequest::MoveNode { node_name, iothread } => {
            iothreads::move_node(world, &node_name, iothread.as_deref()).await?;
        }
        GraphRequest::SetIothread {
            node_name,
            iothread,
            force,
        } => {
            iothreads::set_iothread(world, &node_name, iothread.as_deref(), force).await?;
        }
        GraphRequest::AttachRoot(request) => return roots::attach(world, request, Inactive::Refused).await,
        GraphRequest::AttachRootInactive(request) => {
            return roots::attach(world, request, Inactive::Allowed).await;
        }
        GraphRequest::SetRootPermissions {
            root,
            permissions,
            shared,
        } => {
            roots::set_permissions(world, root, permissions, shared).await?;
        }
        GraphRequest::DetachRoot(root) => roots::detach(world, root).await?,
        GraphRequest::Append { node, new } => replace::append_node(world, &node, &new).await?,
        GraphRequest::ReplaceNode { from, to } => replace::replace_node(world, &from, &to).await?,
        GraphRequest::ReplaceChild { of, node } => replace::replace_child(world, of, &node).await?,
        GraphRequest::InsertNode { node, options } => replace::insert_node(world, &node, options).await?,
        GraphRequest::DropFilter { node_name } => replace::drop_filter(world, &node_name).await?,
        GraphRequest::SetBacking { node_name, backing } => {
            links::set_backing(world, &node_name, backing.as_deref()).await?;
        }
        GraphRequest::AttachChild { parent, child, node } => {
            links::attach_child(world, &parent, &child, &node).await?;
        }
        GraphRequest::DetachChild { parent, child } => links::detach_child(world, &parent, &child).await?,
        GraphRequest::ChangeBackingFile {
            device,
            image_node_name,
            backing_file,
        } => backing_link::change_backing_file(world, &device, &image_node_name, &backing_file).await?,
        GraphRequest::DropIntermediate {
            top,
            base,
            backing_file,
        } => backing_link::drop_intermediate(world, &top, &base, backing_file).await?,
        GraphRequest::MakeEmpty { node_name } => commit::make_empty(world, &node_name).await?,
        GraphRequest::FreezeChain { top, base, root } => {
            return freeze::freeze(world, &top, base.as_deref(), root);
        }
        GraphRequest::UnfreezeChain(token) => freeze::unfreeze(world, token)?,
        GraphRequest::OpBlock {
            node_name,
            operations,
            by,
        } => return block::block(world, &node_name, operations, by),
        GraphRequest::OpUnblock {
            token,
            node_name,
            operations,
        } => block::unblock(world, token, node_name.as_deref(), &operations)?,
        GraphRequest::CopyOnRead { node_name, on } => {
            let node = world.graph(|graph| graph.find(&node_name).map(|node| node.id))?;
            world.ask(node, Order::CopyOnRead { node, on }).done().await?;
        }
        GraphRequest::SetHistograms {
            node_name,
            histograms,
        } => {
            let node = world.graph(|graph| graph.find(&node_name).map(|node| node.id))?;
            world
                .ask(node, Order::SetHistograms { node, histograms })
                .done()
                .await?;
        }
        GraphRequest::FlushAll => shutdown::flush_all(world).await?,
        GraphRequest::AddIothread(options) => iothreads::add(world, options).await?,
        GraphRequest::DelIothread { id } => iothreads::delete(world, &id)?,
        GraphRequest::TuneIothread(options) => iothreads::tune(world, options)?,
        // Taken out before; answered all the same rather than trusted to be.
        GraphRequest::DrainBegin { .. }
        | GraphRequest::DrainEnd(_)
        | GraphRequest::CloseAll { .. }
        | GraphRequest::CancelInFlight { .. }
        | GraphRequest::Debug { .. }
        | GraphRequest::Query(_)
        | GraphRequest::Commit { .. }
        | GraphRequest::Check { .. }
        | GraphRequest::BlockdevCreate(_) => {
            return Err(Error::new(
                ErrorKind::InvalidArgument,
                "This request changes nothing",
            ));
        }
    }
    Ok(GraphReply::Done)
}
