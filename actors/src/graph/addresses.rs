//! Carrying the policy's orders out: handles in place of ids.

use std::collections::HashMap;

use millpond_messages::{Error, ErrorKind, IoThreadId, Result, RootId};

use super::flight::GraphFlight;
use millpond_engine::iothread::IoThread;
use millpond_engine::node::{self, Mail, NodeAddress, OpenOrder, RootHandle};
use millpond_graph::{Address, Order, Wiring};

/// The handles behind the policy's ids.
#[derive(Default)]
pub struct Handles {
    /// The mailboxes of the iothreads.
    pub iothreads: HashMap<IoThreadId, IoThread<Mail>>,
    /// The shared parts of the root edges.
    pub roots: HashMap<RootId, RootHandle>,
    /// The flight recorder of the graph actor.
    pub(super) flight: GraphFlight,
    /// The iothreads that were sent orders and not woken for them.
    untold: Vec<IoThread<Mail>>,
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

    /// Tells the clients of a root edge on which iothreads its user works.
    pub fn set_threads(&self, root: RootId, iothreads: &[IoThreadId]) {
        if let Some(root) = self.roots.get(&root) {
            let found = iothreads.iter().filter_map(|id| self.iothreads.get(id));
            root.set_threads(found.cloned().collect());
        }
    }

    /// Sends an order to the iothread where its node lives, which is woken for it by [`Handles::wake`]: one that slept would
    /// else take what belongs together piece by piece, and sleep in between.
    ///
    /// # Errors
    /// An iothread is gone.
    pub fn send(&mut self, to: IoThreadId, order_id: node::OrderId, order: Order) -> Result<()> {
        let iothread = self.iothread(to)?;
        let order = match order {
            Order::Node(node, order) => order.at(node),
            Order::Task(node, task) => task.at(node),
            Order::Iothread(order) => order.into(),
            Order::Wiring(wiring) => self.resolve(&iothread, wiring)?.into(),
        };
        self.flight.sent(order_id, &order);
        iothread
            .post(Mail::Control { order_id, order })
            .map_err(|_| Error::new(ErrorKind::Closed, "The iothread has stopped"))?;
        if self.untold.iter().all(|untold| untold.id() != to) {
            self.untold.push(iothread);
        }
        Ok(())
    }

    /// Wakes the iothreads that were sent orders since the last time.
    pub fn wake(&mut self) {
        self.untold.drain(..).for_each(|iothread| iothread.wake());
    }

    fn resolve(&mut self, home: &IoThread<Mail>, wiring: Wiring) -> Result<node::Wiring> {
        Ok(match wiring {
            Wiring::Open(open) => {
                let children = open.children.into_iter().map(|child| self.optional(child));
                node::Wiring::Open(Box::new(OpenOrder {
                    node: open.node,
                    name: open.name,
                    kind: open.kind,
                    options: open.options,
                    flags: open.flags,
                    settings: open.settings,
                    children: children.collect::<Result<_>>()?,
                }))
            }
            Wiring::Connect { parent, slot, target } => node::Wiring::Connect {
                parent,
                slot,
                target: self.optional(target)?,
            },
            Wiring::AttachRoot { root: new, node } => {
                let root = RootHandle::new(new.root, new.permissions, new.writethrough, home.clone());
                self.roots.insert(new.root, root.clone());
                node::Wiring::AttachRoot { root, node }
            }
            Wiring::MoveRoot { root, target } => node::Wiring::MoveRoot {
                root,
                target: self.address(target)?,
            },
            Wiring::DetachRoot(root) => node::Wiring::DetachRoot(root),
            Wiring::Depart { node, to } => node::Wiring::Depart {
                node,
                to: self.iothread(to)?,
            },
            Wiring::Create {
                kind,
                options,
                file,
                header,
                data_file,
            } => node::Wiring::Create {
                kind,
                options,
                file: self.optional(file)?,
                header: self.optional(header)?,
                data_file: self.optional(data_file)?,
            },
        })
    }
}
