//! Permissions over the graph as it will be: what every edge takes and shares, computed and checked before anything is
//! changed.

use std::collections::{HashMap, HashSet};

use millpond_drivers::api::EdgeUse;
use millpond_messages::{EdgeId, Error, ErrorKind, NodeId, OpenFlags, Permissions, Result, SECTOR_SIZE};

use crate::value::edge::{Edge, Parent};
use crate::value::graph::Graph;
use crate::value::node::{Granted, Node};

/// What changes: edges, and the nodes to be told, parents before children.
#[derive(Debug, Default, Clone)]
pub struct Plan {
    /// What edges take and share from now on.
    pub edges: HashMap<EdgeId, (Permissions, Permissions)>,
    /// What is committed on nodes.
    pub nodes: Vec<(NodeId, Granted)>,
    /// Flags that nodes are about to get by a reopen.
    pub flags: HashMap<NodeId, OpenFlags>,
}

impl Plan {
    /// A plan in which a root edge takes and shares something new.
    pub fn with_edge(edge: EdgeId, taken: Permissions, shared: Permissions) -> Self {
        Self {
            edges: HashMap::from([(edge, (taken, shared))]),
            ..Self::default()
        }
    }

    /// A plan in which nodes are about to be reopened with these flags.
    pub fn with_flags(flags: HashMap<NodeId, OpenFlags>) -> Self {
        Self {
            flags,
            ..Self::default()
        }
    }

    fn edge(&self, edge: &Edge) -> (Permissions, Permissions) {
        self.edges
            .get(&edge.id)
            .copied()
            .unwrap_or((edge.taken, edge.shared))
    }

    fn flags(&self, node: &Node) -> OpenFlags {
        self.flags.get(&node.id).copied().unwrap_or(node.flags)
    }

    fn writable(&self, node: &Node) -> bool {
        let flags = self.flags(node);
        !flags.is_read_only() && !flags.contains(OpenFlags::INACTIVE)
    }

    /// Completes the plan for everything below `starts`.
    ///
    /// Nodes are looked at parents first, so each is seen once, with all its parents' new permissions known: a change
    /// that only moves a permission from one branch to another never conflicts with itself. What is below a node for whose
    /// children nothing changes is not looked at, however much it is.
    ///
    /// # Errors
    /// A conflict, told as QEMU tells it; or a writer of a read-only node.
    pub fn complete(mut self, graph: &Graph, starts: impl IntoIterator<Item = NodeId>) -> Result<Self> {
        let mut touched = Touched::new(starts);
        while let Some(id) = touched.next(graph) {
            if let Some(node) = graph.node(id) {
                let below = self.look_at(graph, node)?;
                touched.add(below);
            }
        }
        Ok(self)
    }

    /// Works out what a node is granted and what it takes from its children; answers those for which that is something new.
    fn look_at(&mut self, graph: &Graph, node: &Node) -> Result<Vec<NodeId>> {
        self.check_conflicts(graph, node)?;
        let granted = self.granted(graph, node.id);
        check_may_use(node, granted)?;
        self.check_writable(node, granted)?;
        check_length(node, granted)?;
        if granted != node.granted {
            self.nodes.push((node.id, granted));
        }
        let mut below = Vec::new();
        for edge in graph.children_of(node.id) {
            self.check_activity(graph, node, edge)?;
            let (taken, mut shared) = node.kind.child_permissions(EdgeUse {
                role: edge.role,
                options: &node.options,
                taken: granted.taken,
                shared: granted.shared,
                is_used: graph.parents_of(node.id).next().is_some(),
                writable: self.writable(node),
                inactive: self.flags(node).contains(OpenFlags::INACTIVE),
                force_share: node.common.force_share,
            });
            if self.flags(node).contains(OpenFlags::INACTIVE) {
                // Whoever has the image now does with it what it wants.
                shared |= Permissions::WRITE | Permissions::RESIZE;
            }
            let new = if edge.suspended {
                (Permissions::empty(), Permissions::all())
            } else {
                (taken, shared)
            };
            if new != self.edge(edge) {
                self.edges.insert(edge.id, new);
                below.push(edge.child);
            }
        }
        Ok(below)
    }

    fn granted(&self, graph: &Graph, id: NodeId) -> Granted {
        graph.parents_of(id).fold(Granted::NOBODY, |granted, edge| {
            let (taken, shared) = self.edge(edge);
            Granted {
                taken: granted.taken | taken,
                shared: granted.shared & shared,
            }
        })
    }

    fn check_writable(&self, node: &Node, granted: Granted) -> Result<()> {
        let writes = Permissions::WRITE | Permissions::WRITE_UNCHANGED;
        if !granted.taken.intersects(writes) || self.writable(node) {
            return Ok(());
        }
        let text = if node.writable() {
            format!(
                "Read-only block node '{}' cannot support read-write users",
                node.name
            )
        } else {
            "Block node is read-only".to_owned()
        };
        Err(Error::new(ErrorKind::ReadOnly, text))
    }

    /// Every parent must let every other do what it takes.
    fn check_conflicts(&self, graph: &Graph, node: &Node) -> Result<()> {
        // Many parents are common (a base under many overlays), conflicts are not: what would have to be shared with
        // each parent is first summed up, and only a sum that fails is looked at pair by pair.
        let sum = self.granted(graph, node.id);
        if sum.shared.contains(sum.taken) {
            return Ok(());
        }
        for strict in graph.parents_of(node.id) {
            let (_, shared) = self.edge(strict);
            for user in graph.parents_of(node.id).filter(|user| user.id != strict.id) {
                let (taken, _) = self.edge(user);
                let refused = taken - shared;
                if !refused.is_empty() {
                    return Err(conflict(graph, node, refused, user, strict));
                }
            }
        }
        Ok(())
    }
}

impl Plan {
    /// An active node relies on what is below it: another process must not have that.
    fn check_activity(&self, graph: &Graph, parent: &Node, edge: &Edge) -> Result<()> {
        let is_inactive = |node: &Node| self.flags(node).contains(OpenFlags::INACTIVE);
        match graph.node(edge.child) {
            Some(child) if is_inactive(child) && !is_inactive(parent) => {
                let (child, edge, parent) = (&child.name, &edge.name, &parent.name);
                let text = format!("Inactive '{child}' can't be a {edge} child of active '{parent}'");
                Err(Error::new(ErrorKind::Permission, text))
            }
            _ => Ok(()),
        }
    }
}

/// How many nodes are compared with each other for which of them comes first.
const FEW: usize = 4;

/// Nodes to be looked at, parents before children.
struct Touched {
    /// The next one last, as long as it can be told.
    open: Vec<NodeId>,
    /// All nodes that are still to be looked at.
    waiting: HashSet<NodeId>,
    done: HashSet<NodeId>,
    /// All that are below those in `open`, in order, once it cannot be told without which is to be the next.
    ordered: Option<std::vec::IntoIter<NodeId>>,
}

impl Touched {
    fn new(starts: impl IntoIterator<Item = NodeId>) -> Self {
        let mut touched = Self {
            open: Vec::new(),
            waiting: HashSet::new(),
            done: HashSet::new(),
            ordered: None,
        };
        touched.add(starts.into_iter().collect());
        touched
    }

    fn add(&mut self, nodes: Vec<NodeId>) {
        for node in nodes.into_iter().rev() {
            if self.waiting.insert(node) {
                self.open.push(node);
            }
        }
    }

    /// Of a few nodes one that is below none of the others: what more is below them need not be looked at.
    fn topmost(&self, graph: &Graph) -> Option<usize> {
        if self.open.len() > FEW {
            return None;
        }
        self.open.iter().rposition(|id| {
            let mut others = self.open.iter().filter(|other| *other != id);
            others.all(|other| !graph.reaches(*other, *id))
        })
    }

    fn next(&mut self, graph: &Graph) -> Option<NodeId> {
        if self.ordered.is_none() {
            // What comes later is below what is here: nothing can come above a node that is alone here, or that has only
            // parents which were looked at.
            let is_next = |id: &NodeId| graph.parent_nodes(*id).all(|parent| self.done.contains(&parent));
            let place = match self.open.len() {
                0 => return None,
                1 => Some(0),
                _ => self
                    .open
                    .iter()
                    .rposition(is_next)
                    .or_else(|| self.topmost(graph)),
            };
            if let Some(place) = place {
                let id = self.open.remove(place);
                self.waiting.remove(&id);
                self.done.insert(id);
                return Some(id);
            }
        }
        // One look at all that is below costs less than looks at many pairs.
        let open = &mut self.open;
        let order = || graph.topological(std::mem::take(open)).into_iter();
        let ordered = self.ordered.get_or_insert_with(order);
        let next = ordered.find(|id| self.waiting.contains(id))?;
        self.waiting.remove(&next);
        Some(next)
    }
}

/// The last block of a node is written whole, so whoever writes must have the right to complete it.
fn check_length(node: &Node, granted: Granted) -> Result<()> {
    let Some(facts) = node.facts.as_ref() else {
        return Ok(());
    };
    let alignment = u64::from(facts.limits.request_alignment).max(1);
    let is_whole = facts.size.next_multiple_of(SECTOR_SIZE).is_multiple_of(alignment);
    if is_whole || !granted.taken.contains(Permissions::WRITE) || granted.taken.contains(Permissions::RESIZE)
    {
        return Ok(());
    }
    let text =
        "Cannot get 'write' permission without 'resize': Image size is not a multiple of request alignment";
    Err(Error::new(ErrorKind::Permission, text))
}

/// A node that was opened without I/O has no users: only its own metadata is looked at.
fn check_may_use(node: &Node, granted: Granted) -> Result<()> {
    if granted.taken.is_empty() || !node.flags.contains(OpenFlags::NO_IO) {
        return Ok(());
    }
    let text = format!("Node '{}' was opened without I/O", node.name);
    Err(Error::new(ErrorKind::Permission, text))
}

fn conflict(graph: &Graph, node: &Node, refused: Permissions, user: &Edge, strict: &Edge) -> Error {
    let text = format!(
        "Permission conflict on node '{name}': permissions '{what}' are both required by {user} (uses node '{name}' \
         as '{user_edge}' child) and unshared by {strict} (uses node '{name}' as '{strict_edge}' child).",
        name = node.name,
        what = refused.in_words(),
        user = parent_name(graph, user.parent),
        user_edge = user.name,
        strict = parent_name(graph, strict.parent),
        strict_edge = strict.name,
    );
    Error::new(ErrorKind::Permission, text)
}

fn parent_name(graph: &Graph, parent: Parent) -> String {
    match parent {
        Parent::Node(id, _) => {
            format!("node '{}'", graph.node(id).map_or("", |node| node.name.as_str()))
        }
        Parent::Root(_) => "an unnamed block device".to_owned(),
    }
}
