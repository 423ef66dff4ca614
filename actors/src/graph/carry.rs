//! Carrying the policy's orders out: handles in place of ids.

use std::collections::HashMap;

use millpond_messages::{Error, ErrorKind, IoThreadId, Result, RootId};

use super::flight::GraphFlight;
use millpond_engine::iothread::IoThread;
use millpond_engine::node::{self, Mail, NodeAddress, OpenOrder, RootHandle};
use millpond_graph::{Address, Order};

/// The handles behind the policy's ids.
#[derive(Default)]
pub struct Handles {
    /// The mailboxes of the iothreads.
    pub iothreads: HashMap<IoThreadId, IoThread<Mail>>,
    /// The shared parts of the root edges.
    pub roots: HashMap<RootId, RootHandle>,
    /// The flight recorder of the graph actor.
    pub(super) flight: GraphFlight,
}

impl Handles {
    fn iothread(&self, id: IoThreadId) -> Result<IoThread<Mail>> {
        let found = self.iothreads.get(&id).cloned();
        found.ok_or_else(|| Error::new(ErrorKind::NotFound, format!("There is no iothread {id}")))
    }

    fn address(&self, address: Address) -> Result<NodeAddress> {
        Ok(NodeAddress {
            node: address.node,
            iothread: self.iothread(address.iothread)?,
        })
    }

    fn optional(&self, address: Option<Address>) -> Result<Option<NodeAddress>> {
        address.map(|address| self.address(address)).transpose()
    }

    /// Sends an order to the iothread where its node lives.
    ///
    /// # Errors
    /// An iothread is gone.
    pub fn send(&mut self, to: IoThreadId, ticket: node::Ticket, order: Order) -> Result<()> {
        let iothread = self.iothread(to)?;
        let order = self.complete(&iothread, order)?;
        self.flight.sent(ticket, &order);
        iothread
            .send(Mail::Control { ticket, order })
            .map_err(|_| Error::new(ErrorKind::Closed, "The iothread has stopped"))
    }

    fn complete(&mut self, home: &IoThread<Mail>, order: Order) -> Result<node::Order> {
        Ok(match order {
            Order::Open(open) => {
                let children = open.children.into_iter().map(|child| self.optional(child));
                node::Order::Open(Box::new(OpenOrder {
                    node: open.node,
                    name: open.name,
                    kind: open.kind,
                    options: open.options,
                    flags: open.flags,
                    settings: open.settings,
                    children: children.collect::<Result<_>>()?,
                }))
            }
            Order::Connect { parent, slot, target } => node::Order::Connect {
                parent,
                slot,
                target: self.optional(target)?,
            },
            Order::AttachRoot {
                root,
                node,
                permissions,
                writethrough,
            } => {
                let handle = RootHandle::new(root, permissions, writethrough, home.clone());
                self.roots.insert(root, handle.clone());
                node::Order::AttachRoot { root: handle, node }
            }
            Order::MoveRoot { root, target } => node::Order::MoveRoot {
                root,
                target: self.address(target)?,
            },
            Order::Depart { node, to } => node::Order::Depart {
                node,
                to: self.iothread(to)?,
            },
            Order::Create { kind, options, file } => node::Order::Create {
                kind,
                options,
                file: self.optional(file)?,
            },
            Order::Close(node) => node::Order::Close(node),
            Order::Quiesce(node, token) => node::Order::Quiesce(node, token),
            Order::Resume(node, token) => node::Order::Resume(node, token),
            Order::DetachRoot(root) => node::Order::DetachRoot(root),
            Order::PermissionsPrepare { node, taken, shared } => {
                node::Order::PermissionsPrepare { node, taken, shared }
            }
            Order::PermissionsCommit(node) => node::Order::PermissionsCommit(node),
            Order::PermissionsAbort(node) => node::Order::PermissionsAbort(node),
            Order::ReopenPrepare {
                node,
                request,
                settings,
            } => node::Order::ReopenPrepare {
                node,
                request,
                settings,
            },
            Order::ReopenCommit(node) => node::Order::ReopenCommit(node),
            Order::ReopenAbort(node) => node::Order::ReopenAbort(node),
            Order::ExchangePrepare { node, slots } => node::Order::ExchangePrepare { node, slots },
            Order::Exchange { node, slots } => node::Order::Exchange { node, slots },
            Order::ExchangeCommit(node) => node::Order::ExchangeCommit(node),
            Order::ExchangeAbort(node) => node::Order::ExchangeAbort(node),
            Order::Truncate {
                node,
                size,
                exact,
                preallocation,
                flags,
            } => node::Order::Truncate {
                node,
                size,
                exact,
                preallocation,
                flags,
            },
            Order::Check { node, repair } => node::Order::Check { node, repair },
            Order::DeleteFile(node) => node::Order::DeleteFile(node),
            Order::Serialise { root, node } => node::Order::Serialise { root, node },
            Order::RealPaths(paths) => node::Order::RealPaths(paths),
            Order::Flush(node) => node::Order::Flush(node),
            Order::CancelInFlight(node) => node::Order::CancelInFlight(node),
            Order::Describe(node) => node::Order::Describe(node),
            Order::DescribeMany(nodes) => node::Order::DescribeMany(nodes),
            Order::Statistics(nodes) => node::Order::Statistics(nodes),
            Order::SetHistograms { node, histograms } => node::Order::SetHistograms { node, histograms },
            Order::CopyOnRead { node, on } => node::Order::CopyOnRead { node, on },
            Order::Debug { node, order } => node::Order::Debug { node, order },
            Order::Pending(node) => node::Order::Pending(node),
            Order::Invalidate(node) => node::Order::Invalidate(node),
            Order::NewTemporary => node::Order::NewTemporary,
            Order::Counters => node::Order::Counters,
            Order::ReadHead { node, len } => node::Order::ReadHead { node, len },
            Order::Commit { node, offset, len } => node::Order::Commit { node, offset, len },
            Order::MakeEmpty(node) => node::Order::MakeEmpty(node),
            Order::Amend { node, options } => node::Order::Amend { node, options },
            Order::ChangeBackingFile { node, link } => node::Order::ChangeBackingFile { node, link },
        })
    }
}
