//! Drained sections: which nodes each covers, who has been asked, who has answered.
//!
//! ```text
//!   Waiting --(all its parents in the section are quiet, or asked before in its iothread)--> Asked --(Quiesced)--> Quiet
//! ```
//! A node that another section in force holds quiet is so for this one as well, and is not waited for.
//! Every node keeps its own count of tokens, so sections need not know of each other: they nest and end in any order.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use millpond_messages::{NodeId, Token};

use crate::order::NodeOrder;
use crate::value::graph::{Direction, Graph};
use crate::value::node::Node;

/// What a section covers, besides the ancestors of all that.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Cover {
    /// These nodes, and all that is above them.
    Nodes(Vec<NodeId>),
    /// These and all below.
    Subtree(Vec<NodeId>),
    /// Everything, and what comes.
    All,
}

impl Cover {
    /// Whether it covers nothing.
    pub fn is_empty(&self) -> bool {
        matches!(self, Self::Nodes(nodes) | Self::Subtree(nodes) if nodes.is_empty())
    }

    /// What covers all that either of two does.
    #[must_use]
    pub fn join(self, other: Self) -> Self {
        match (self, other) {
            (Self::All, _) | (_, Self::All) => Self::All,
            (Self::Nodes(mut nodes), Self::Nodes(more)) => {
                nodes.extend(more);
                Self::Nodes(nodes)
            }
            (Self::Nodes(mut nodes) | Self::Subtree(mut nodes), Self::Nodes(more) | Self::Subtree(more)) => {
                nodes.extend(more);
                Self::Subtree(nodes)
            }
        }
    }

    /// What of it another does not cover.
    #[must_use]
    pub fn beyond(self, other: &Self) -> Self {
        match (self, other) {
            (_, Self::All) => Self::Nodes(Vec::new()),
            (Self::All, _) => Self::All,
            (Self::Nodes(mut nodes), Self::Nodes(covered) | Self::Subtree(covered)) => {
                nodes.retain(|node| !covered.contains(node));
                Self::Nodes(nodes)
            }
            (Self::Subtree(mut nodes), Self::Subtree(covered)) => {
                nodes.retain(|node| !covered.contains(node));
                Self::Subtree(nodes)
            }
            (all @ Self::Subtree(_), Self::Nodes(_)) => all,
        }
    }
}

/// How far a node of a section is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stage {
    Waiting,
    Asked,
    Quiet,
}

/// A section in force.
#[derive(Debug)]
pub struct Section {
    /// The nodes that it covers.
    pub cover: Cover,
    /// The name of who began it.
    pub user: String,
    /// The time at which it was begun.
    pub begun: Duration,
    nodes: BTreeMap<NodeId, Stage>,
    /// The nodes asked, in that order: parents first.
    asked: Vec<NodeId>,
    /// Nodes that are not quiet.
    missing: usize,
    /// Whether somebody was told that it is still.
    told: bool,
    /// Whether somebody was told that it is slow to become so.
    slow: bool,
}

impl Section {
    /// Whether no node of it can have anything in flight.
    pub fn is_still(&self) -> bool {
        self.missing == 0
    }

    /// Whether all its nodes are quiet, or were told to be.
    pub fn is_asked(&self) -> bool {
        self.nodes.values().all(|stage| *stage != Stage::Waiting)
    }

    /// The nodes that it waits for: asked without an answer though their parents are quiet, or busy with work of the graph
    /// actor's own.
    pub fn unanswered(&self, graph: &Graph) -> Vec<NodeId> {
        let is_quiet = |id: NodeId| self.nodes.get(&id).is_none_or(|stage| *stage == Stage::Quiet);
        let waited_for = self.nodes.iter().filter(|(id, stage)| match stage {
            Stage::Asked => graph.parent_nodes(**id).all(is_quiet),
            Stage::Waiting => graph.node(**id).is_some_and(|node| node.internal_io > 0),
            Stage::Quiet => false,
        });
        waited_for.map(|(id, _)| *id).collect()
    }
}

/// All sections in force.
#[derive(Default)]
pub struct Sections {
    sections: BTreeMap<Token, Section>,
    last: u64,
    /// Orders to be sent.
    outbox: Vec<(NodeId, NodeOrder)>,
}

impl Sections {
    /// The number that the last section was given.
    pub const fn last(&self) -> u64 {
        self.last
    }

    /// Begins a section, and tells which nodes to quiesce.
    pub fn begin(&mut self, graph: &Graph, cover: Cover, user: String, now: Duration) -> Token {
        self.last += 1;
        let token = Token(self.last);
        let nodes = members(graph, &cover);
        self.sections.insert(
            token,
            Section {
                cover,
                user,
                begun: now,
                nodes: BTreeMap::new(),
                asked: Vec::new(),
                missing: 0,
                told: false,
                slow: false,
            },
        );
        self.extend(graph, token, nodes);
        token
    }

    /// Ends a section: every node that was asked gets its gate back, children before parents.
    pub fn end(&mut self, token: Token) -> bool {
        let Some(section) = self.sections.remove(&token) else {
            return false;
        };
        let resumes = section
            .asked
            .iter()
            .rev()
            .map(|node| (*node, NodeOrder::Resume(token)));
        self.outbox.extend(resumes);
        true
    }

    /// Notes that a node has become quiet.
    pub fn quiesced(&mut self, graph: &Graph, node: NodeId, token: Token) {
        let Some(section) = self.sections.get_mut(&token) else {
            return;
        };
        match section.nodes.get_mut(&node) {
            Some(stage @ Stage::Asked) => *stage = Stage::Quiet,
            // An answer of a node that has left the section since, or a second one.
            _ => return,
        }
        section.missing -= 1;
        let below: Vec<NodeId> = graph.children_of(node).map(|edge| edge.child).collect();
        for child in below {
            ask_if_due(section, graph, token, child, &mut self.outbox);
        }
    }

    /// The section of a token, if it is in force.
    pub fn get(&self, token: Token) -> Option<&Section> {
        self.sections.get(&token)
    }

    /// All sections that are in force.
    pub fn iter(&self) -> impl Iterator<Item = (Token, &Section)> {
        self.sections.iter().map(|(token, section)| (*token, section))
    }

    /// The sections that have become still and about which nobody was told yet.
    pub fn newly_still(&mut self) -> Vec<Token> {
        let still = self
            .sections
            .iter_mut()
            .filter(|(_, section)| section.is_still() && !section.told);
        still
            .map(|(token, section)| {
                section.told = true;
                *token
            })
            .collect()
    }

    /// When the next section will have waited for `patience`, of those that are not still and not known to be slow.
    pub fn slow_at(&self, patience: Duration) -> Option<Duration> {
        let hopeful = self
            .sections
            .values()
            .filter(|section| !section.is_still() && !section.slow);
        hopeful
            .map(|section| section.begun.saturating_add(patience))
            .min()
    }

    /// The sections that have waited for `patience` by now. Each is told of once.
    pub fn newly_slow(&mut self, patience: Duration, now: Duration) -> Vec<Token> {
        let slow = self.sections.iter_mut().filter(|(_, section)| {
            !section.is_still() && !section.slow && section.begun.saturating_add(patience) <= now
        });
        slow.map(|(token, section)| {
            section.slow = true;
            *token
        })
        .collect()
    }

    /// Covers what an edge from `parent` to `child` will bring into sections in force; answers whether all of that is
    /// quiet already, so that the edge may exist.
    pub fn grow(&mut self, graph: &Graph, parent: NodeId, child: NodeId) -> bool {
        let mut quiet = true;
        let tokens: Vec<Token> = self.sections.keys().copied().collect();
        for token in tokens {
            let joining = self.joining(graph, token, parent, child);
            quiet &= self.cover_all(graph, token, joining);
        }
        quiet
    }

    /// Covers a new node by the sections that cover everything, and answers whether it is quiet.
    pub fn cover_new(&mut self, graph: &Graph, node: NodeId) -> bool {
        let tokens: Vec<Token> = self
            .sections
            .iter()
            .filter(|(_, section)| section.cover == Cover::All)
            .map(|(token, _)| *token)
            .collect();
        let mut quiet = true;
        for token in tokens {
            quiet &= self.cover_all(graph, token, [node].into());
        }
        quiet
    }

    fn cover_all(&mut self, graph: &Graph, token: Token, nodes: BTreeSet<NodeId>) -> bool {
        self.extend(graph, token, nodes.iter().copied());
        let Some(section) = self.sections.get(&token) else {
            return true;
        };
        nodes
            .iter()
            .all(|node| section.nodes.get(node) == Some(&Stage::Quiet))
    }

    /// The nodes that an edge brings into a section.
    fn joining(&self, graph: &Graph, token: Token, parent: NodeId, child: NodeId) -> BTreeSet<NodeId> {
        let Some(section) = self.sections.get(&token) else {
            return BTreeSet::new();
        };
        let below = match &section.cover {
            Cover::All => return [parent, child].into(),
            Cover::Nodes(_) => false,
            Cover::Subtree(roots) => graph
                .closure(roots.iter().copied(), Direction::Down)
                .contains(&parent),
        };
        let mut joining = BTreeSet::new();
        if below {
            let under = graph.closure([child], Direction::Down);
            joining = graph.closure(under, Direction::Up);
        }
        if below || section.nodes.contains_key(&child) {
            joining.extend(graph.closure([parent], Direction::Up));
        }
        joining
    }

    /// Gives back what sections no longer cover now that an edge below `parent` is gone.
    pub fn shrink(&mut self, graph: &Graph, parent: NodeId) {
        for (token, section) in &mut self.sections {
            if !section.nodes.contains_key(&parent) {
                continue;
            }
            if section.cover != Cover::All {
                give_back(section, graph, *token, &mut self.outbox);
            }
            // A child that waited for this parent need not any more, and nobody else will ask it.
            if !section.is_still() {
                ask_all_due(section, graph, *token, &mut self.outbox);
            }
        }
    }

    /// A node is gone: nobody waits for it any more.
    pub fn forget(&mut self, graph: &Graph, node: NodeId) {
        for (token, section) in &mut self.sections {
            if !section.nodes.contains_key(&node) {
                continue;
            }
            let was_still = section.is_still();
            remove(section, node);
            // What was covered only as a part of the tree below it.
            if matches!(section.cover, Cover::Subtree(_)) {
                give_back(section, graph, *token, &mut self.outbox);
            }
            // It stays among those asked: an order to a node that is gone is dropped, and ids are not used again. Nor is
            // there anything to be asked in a section that is still, so closing all nodes of one takes one step each.
            if !was_still {
                ask_all_due(section, graph, *token, &mut self.outbox);
            }
        }
    }

    /// Whether a section in force covers a node.
    pub fn cover(&self, node: NodeId) -> bool {
        self.sections
            .values()
            .any(|section| section.nodes.contains_key(&node))
    }

    /// Whether a section in force other than this one covers a node.
    pub fn cover_beside(&self, node: NodeId, section: Token) -> bool {
        self.sections
            .iter()
            .any(|(token, other)| *token != section && other.nodes.contains_key(&node))
    }

    /// Looks again whether a node may be asked.
    pub fn ask(&mut self, graph: &Graph, node: NodeId) {
        for (token, section) in &mut self.sections {
            ask_if_due(section, graph, *token, node, &mut self.outbox);
        }
    }

    /// The orders to be sent.
    pub fn take_orders(&mut self) -> Vec<(NodeId, NodeOrder)> {
        std::mem::take(&mut self.outbox)
    }

    fn extend(&mut self, graph: &Graph, token: Token, nodes: impl IntoIterator<Item = NodeId>) {
        let mut new = Vec::new();
        let mut held = Vec::new();
        for node in nodes {
            let Some(entry) = graph.node(node) else { continue };
            let is_covered = |section: &Section| section.nodes.contains_key(&node);
            // A node that is being opened has no gate yet.
            if entry.facts.is_none() || self.sections.get(&token).is_none_or(is_covered) {
                continue;
            }
            match self.is_held_quiet(entry) {
                true => held.push(node),
                false => new.push(node),
            }
        }
        let Some(section) = self.sections.get_mut(&token) else {
            return;
        };
        for node in held {
            section.nodes.insert(node, Stage::Quiet);
            section.asked.push(node);
            let after = Vec::new();
            self.outbox.push((node, NodeOrder::Quiesce { token, after }));
        }
        for node in &new {
            section.nodes.insert(*node, Stage::Waiting);
            section.missing += 1;
        }
        // Oldest last: parents are mostly younger than their children.
        new.sort_unstable();
        for node in new.into_iter().rev() {
            ask_if_due(section, graph, token, node, &mut self.outbox);
        }
    }

    /// Whether a section in force has found a node quiet, and nothing can come to it meanwhile: what that section gives back,
    /// it gives back after what is asked now.
    fn is_held_quiet(&self, node: &Node) -> bool {
        let is_quiet = |section: &Section| section.nodes.get(&node.id) == Some(&Stage::Quiet);
        node.internal_io == 0 && !node.closing && self.sections.values().any(is_quiet)
    }
}

fn members(graph: &Graph, cover: &Cover) -> BTreeSet<NodeId> {
    match cover {
        Cover::All => graph.nodes().map(|node| node.id).collect(),
        Cover::Nodes(nodes) => graph.closure(nodes.iter().copied(), Direction::Up),
        Cover::Subtree(roots) => {
            let below = graph.closure(roots.iter().copied(), Direction::Down);
            graph.closure(below, Direction::Up)
        }
    }
}

fn remove(section: &mut Section, node: NodeId) {
    if section
        .nodes
        .remove(&node)
        .is_some_and(|stage| stage != Stage::Quiet)
    {
        section.missing -= 1;
    }
}

/// Resumes what a section no longer covers.
fn give_back(section: &mut Section, graph: &Graph, token: Token, outbox: &mut Vec<(NodeId, NodeOrder)>) {
    let members = members(graph, &section.cover);
    let nodes = section.nodes.keys().copied();
    let gone: Vec<NodeId> = nodes.filter(|node| !members.contains(node)).collect();
    for node in gone {
        remove(section, node);
        if let Some(at) = section.asked.iter().position(|other| *other == node) {
            section.asked.remove(at);
            outbox.push((node, NodeOrder::Resume(token)));
        }
    }
}

/// Asks a waiting node, and those below it, once nothing above can send to it any more, nor work of the graph actor's own. A
/// parent of the same iothread that was asked before counts: the thread itself takes them in turn.
fn ask_if_due(
    section: &mut Section,
    graph: &Graph,
    token: Token,
    node: NodeId,
    outbox: &mut Vec<(NodeId, NodeOrder)>,
) {
    let mut open = vec![node];
    while let Some(node) = open.pop() {
        let Some(after) = due_after(section, graph, node) else {
            continue;
        };
        section.nodes.insert(node, Stage::Asked);
        // A node that is closing cannot be asked any more: it is waited for until it is gone.
        if graph.node(node).is_some_and(|node| node.closing) {
            continue;
        }
        section.asked.push(node);
        outbox.push((node, NodeOrder::Quiesce { token, after }));
        open.extend(graph.children_of(node).map(|edge| edge.child));
    }
}

/// The parents after which a node is to be quiesced, if it may be asked now.
fn due_after(section: &Section, graph: &Graph, id: NodeId) -> Option<Vec<NodeId>> {
    if section.nodes.get(&id) != Some(&Stage::Waiting) {
        return None;
    }
    let node = graph.node(id);
    if node.is_some_and(|node| node.internal_io > 0) {
        return None;
    }
    let mut after = Vec::new();
    // The newest are asked first: as long as there is one to be waited for, it is the first here.
    for parent in graph.oldest_parent_nodes(id) {
        match section.nodes.get(&parent) {
            None | Some(Stage::Quiet) => {}
            Some(Stage::Asked) if is_beside(graph.node(parent)?, node?) => after.push(parent),
            Some(Stage::Asked | Stage::Waiting) => return None,
        }
    }
    Some(after)
}

/// Whether orders to two nodes are carried out by the same iothread, in the order in which they are sent.
fn is_beside(parent: &Node, child: &Node) -> bool {
    let stays = |node: &Node| !node.moving && !node.closing;
    parent.iothread == child.iothread && stays(parent) && stays(child)
}

fn ask_all_due(section: &mut Section, graph: &Graph, token: Token, outbox: &mut Vec<(NodeId, NodeOrder)>) {
    let waiting: Vec<NodeId> = section
        .nodes
        .iter()
        .filter(|(_, stage)| **stage == Stage::Waiting)
        .map(|(node, _)| *node)
        .collect();
    for node in waiting {
        ask_if_due(section, graph, token, node, outbox);
    }
}
