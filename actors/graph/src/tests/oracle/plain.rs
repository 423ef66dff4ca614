//! The graph as plainly as it can be written: maps of names, and everything worked out anew each time it is asked for.
//!
//! Each change answers the graph as it would be afterwards, or the kinds of error that could be the reason to refuse it.

use std::collections::{BTreeMap, BTreeSet};

use millpond_messages::{Permissions, RootId};

/// The kind of an error.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Refusal {
    Invalid,
    NotFound,
    Exists,
    InUse,
    Permission,
    ReadOnly,
    Unsupported,
}

/// What comes of a change.
pub type Changed = Result<Plain, BTreeSet<Refusal>>;

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PlainNode {
    pub driver: &'static str,
    /// What was given for it, and what holds.
    pub given_read_only: Option<bool>,
    pub read_only: bool,
    /// The node whose options it was part of.
    pub inherits: Option<String>,
    pub owned: bool,
    pub children: BTreeMap<&'static str, String>,
    /// 0 is the main iothread.
    pub home: usize,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PlainRoot {
    pub node: String,
    pub taken: Permissions,
    pub shared: Permissions,
}

/// Who holds an edge: a node with its name for the child, or a root edge.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Holder {
    Node(String, &'static str),
    Root(RootId),
}

/// An edge with what it takes and shares.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PlainEdge {
    pub holder: Holder,
    pub child: String,
    pub taken: Permissions,
    pub shared: Permissions,
}

/// The graph.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Plain {
    pub nodes: BTreeMap<String, PlainNode>,
    pub roots: BTreeMap<RootId, PlainRoot>,
}

fn refuse<T>(refusal: Refusal) -> Result<T, BTreeSet<Refusal>> {
    Err([refusal].into())
}

/// The children that a driver has.
pub fn slots(driver: &str) -> &'static [&'static str] {
    match driver {
        "fmt" => &["file", "backing"],
        "filter" => &["file"],
        _ => &[],
    }
}

impl Plain {
    /// All edges without their permissions.
    fn edges(&self) -> Vec<(Holder, String)> {
        let of_nodes = self.nodes.iter().flat_map(|(name, node)| {
            let children = node.children.iter();
            children.map(|(slot, child)| (Holder::Node(name.clone(), slot), child.clone()))
        });
        let of_roots = self
            .roots
            .iter()
            .map(|(id, root)| (Holder::Root(*id), root.node.clone()));
        of_nodes.chain(of_roots).collect()
    }

    pub fn parents(&self, name: &str) -> Vec<Holder> {
        let edges = self.edges().into_iter().filter(|(_, child)| child == name);
        edges.map(|(holder, _)| holder).collect()
    }

    /// A node with all below it.
    pub fn below(&self, name: &str) -> BTreeSet<String> {
        let mut found = BTreeSet::new();
        let mut open = vec![name.to_owned()];
        while let Some(name) = open.pop() {
            if let Some(node) = self.nodes.get(&name)
                && found.insert(name)
            {
                open.extend(node.children.values().cloned());
            }
        }
        found
    }

    /// A node with all above it.
    pub fn above(&self, name: &str) -> BTreeSet<String> {
        let all = self.nodes.keys().filter(|other| self.below(other).contains(name));
        all.cloned().collect()
    }

    /// All that is joined to a node by edges.
    pub fn joined(&self, name: &str) -> BTreeSet<String> {
        let mut found: BTreeSet<String> = [name.to_owned()].into();
        loop {
            let around = found
                .iter()
                .flat_map(|name| self.below(name).into_iter().chain(self.above(name)));
            let more: BTreeSet<String> = around.collect();
            if more.is_subset(&found) {
                return found;
            }
            found.extend(more);
        }
    }

    /// What all edges take and share; or why that cannot be.
    pub fn permissions(&self) -> Result<Vec<PlainEdge>, BTreeSet<Refusal>> {
        let mut known: Vec<PlainEdge> = Vec::new();
        let mut refusals = BTreeSet::new();
        for (id, root) in &self.roots {
            known.push(PlainEdge {
                holder: Holder::Root(*id),
                child: root.node.clone(),
                taken: root.taken,
                shared: root.shared,
            });
        }
        let mut left: BTreeSet<&String> = self.nodes.keys().collect();
        while !left.is_empty() {
            // A node whose parents are all done.
            let next = left.iter().find(|name| {
                left.iter()
                    .all(|other| other == *name || !self.below(other).contains(name.as_str()))
            });
            let name = *next.expect("the graph has no circle");
            left.remove(name);
            let node = &self.nodes[name];
            let above: Vec<PlainEdge> = known.iter().filter(|edge| edge.child == *name).cloned().collect();
            refusals.extend(conflicts(node, &above));
            let taken = above
                .iter()
                .fold(Permissions::empty(), |all, edge| all | edge.taken);
            let shared = above
                .iter()
                .fold(Permissions::all(), |all, edge| all & edge.shared);
            for (slot, child) in &node.children {
                let (taken, shared) = needs(node, slot, taken, shared);
                let holder = Holder::Node(name.clone(), slot);
                known.push(PlainEdge {
                    holder,
                    child: child.clone(),
                    taken,
                    shared,
                });
            }
        }
        if refusals.is_empty() {
            Ok(known)
        } else {
            Err(refusals)
        }
    }

    /// The graph after a change, if its permissions can be; without nodes that nobody holds.
    fn checked(mut self) -> Changed {
        self.permissions()?;
        loop {
            let unused = self
                .nodes
                .iter()
                .find(|(name, node)| !node.owned && self.parents(name).is_empty());
            let Some(unused) = unused.map(|(name, _)| name.clone()) else {
                return Ok(self);
            };
            self.nodes.remove(&unused);
        }
    }

    fn known(&self, names: &[&str]) -> Result<(), BTreeSet<Refusal>> {
        if names.iter().all(|name| self.nodes.contains_key(*name)) {
            Ok(())
        } else {
            refuse(Refusal::NotFound)
        }
    }

    /// A node of a driver without children.
    pub fn add_leaf(&self, name: &str, read_only: Option<bool>) -> Changed {
        self.add(name, PlainNode::new("file", read_only))
    }

    fn add(&self, name: &str, node: PlainNode) -> Changed {
        if self.nodes.contains_key(name) {
            return refuse(Refusal::Exists);
        }
        let mut after = self.clone();
        after
            .nodes
            .insert(name.to_owned(), PlainNode { owned: true, ..node });
        after.checked()
    }

    /// Looks at names that must not exist, and at one, unless it is empty, that must.
    fn may_add(&self, names: &[&str], child: &str) -> Result<(), BTreeSet<Refusal>> {
        let exists = names.iter().any(|name| self.nodes.contains_key(*name));
        let missing = !child.is_empty() && !self.nodes.contains_key(child);
        let refusals = [(exists, Refusal::Exists), (missing, Refusal::NotFound)];
        let refusals: BTreeSet<Refusal> = refusals
            .into_iter()
            .filter_map(|(is, refusal)| is.then_some(refusal))
            .collect();
        if refusals.is_empty() {
            Ok(())
        } else {
            Err(refusals)
        }
    }

    /// A filter over a node that exists.
    pub fn add_filter(&self, name: &str, child: &str, read_only: Option<bool>) -> Changed {
        self.may_add(&[name], child)?;
        let mut node = PlainNode::new("filter", read_only);
        node.children.insert("file", child.to_owned());
        node.home = self.nodes[child].home;
        self.add(name, node)
    }

    /// A format over a file of its own, with a backing node of its own as well, and as such read-only.
    pub fn add_overlay(&self, name: &str, read_only: Option<bool>) -> Changed {
        let backing = format!("{name}b");
        self.may_add(&[name, &format!("{name}f"), &backing], "")?;
        let mut with_backing = self.clone();
        let below = PlainNode {
            inherits: Some(name.to_owned()),
            read_only: true,
            ..PlainNode::new("file", None)
        };
        with_backing.nodes.insert(backing.clone(), below);
        with_backing.add_format(name, Some(&backing), read_only)
    }

    /// A format over a file of its own.
    pub fn add_format(&self, name: &str, backing: Option<&str>, read_only: Option<bool>) -> Changed {
        let file = format!("{name}f");
        self.may_add(&[name, &file], backing.unwrap_or_default())?;
        let mut node = PlainNode::new("fmt", read_only);
        let mut with_file = self.clone();
        let inherits = Some(name.to_owned());
        let below = PlainNode {
            inherits,
            read_only: node.read_only,
            ..PlainNode::new("file", None)
        };
        with_file.nodes.insert(file.clone(), below);
        node.children.insert("file", file);
        if let Some(backing) = backing {
            node.children.insert("backing", backing.to_owned());
        }
        with_file.add(name, node)
    }

    pub fn del(&self, name: &str) -> Changed {
        self.known(&[name])?;
        let mut refusals = BTreeSet::new();
        if !self.parents(name).is_empty() {
            refusals.insert(Refusal::InUse);
        }
        if !self.nodes[name].owned {
            refusals.insert(Refusal::Invalid);
        }
        if !refusals.is_empty() {
            return Err(refusals);
        }
        let mut after = self.clone();
        after.nodes.remove(name);
        after.checked()
    }

    fn is_backing(&self, name: &str) -> bool {
        self.parents(name)
            .iter()
            .any(|holder| matches!(holder, Holder::Node(_, "backing")))
    }

    pub fn snapshot(&self, node: &str, overlay: &str) -> Changed {
        self.known(&[node])?;
        if self.known(&[overlay]).is_err() {
            let in_use = self.is_backing(node).then_some(Refusal::InUse);
            return Err(in_use.into_iter().chain([Refusal::NotFound]).collect());
        }
        let new = &self.nodes[overlay];
        let rooted = self
            .parents(overlay)
            .iter()
            .any(|holder| matches!(holder, Holder::Root(_)));
        if self.is_backing(node)
            || rooted
            || new.driver != "fmt"
            || new.children.contains_key("backing")
            || self.below(node).contains(overlay)
        {
            return refuse(Refusal::InUse);
        }
        let mut gone_over = self.clone();
        gone_over.bring(overlay, self.nodes[node].home);
        let after = gone_over.put_above(node, overlay)?;
        Ok(after.made_read_only(node).unwrap_or(after))
    }

    pub fn append(&self, node: &str, new: &str) -> Changed {
        self.known(&[node, new])?;
        let above = &self.nodes[new];
        if above.driver != "fmt" || above.children.contains_key("backing") || self.below(node).contains(new) {
            return refuse(Refusal::Invalid);
        }
        self.put_above(node, new)
    }

    fn put_above(&self, node: &str, new: &str) -> Changed {
        let mut after = self.moved(node, new);
        if let Some(new) = after.nodes.get_mut(new) {
            new.children.insert("backing", node.to_owned());
        }
        after.checked()
    }

    /// All parents of `from` hold `to`, but those that `to` stands on.
    fn moved(&self, from: &str, to: &str) -> Self {
        let below = self.below(to);
        let mut after = self.clone();
        for holder in self.parents(from) {
            match holder {
                Holder::Node(parent, slot) if !below.contains(&parent) => {
                    after.hold(&parent, slot, Some(to));
                }
                Holder::Root(root) => {
                    if let Some(root) = after.roots.get_mut(&root) {
                        root.node = to.to_owned();
                    }
                }
                Holder::Node(..) => {}
            }
        }
        after
    }

    fn hold(&mut self, parent: &str, slot: &'static str, child: Option<&str>) {
        if let Some(node) = self.nodes.get_mut(parent) {
            match child {
                Some(child) => node.children.insert(slot, child.to_owned()),
                None => node.children.remove(slot),
            };
        }
    }

    fn made_read_only(&self, name: &str) -> Option<Self> {
        let mut after = self.clone();
        let node = after.nodes.get_mut(name).filter(|node| !node.read_only)?;
        node.given_read_only = Some(true);
        node.read_only = true;
        after.pass_on(name);
        after.checked().ok()
    }

    /// Children that take from a node what they were not given do so anew.
    fn pass_on(&mut self, name: &str) {
        let node = self.nodes[name].clone();
        for (slot, child) in node.children {
            let Some(below) = self
                .nodes
                .get_mut(&child)
                .filter(|below| below.inherits.as_deref() == Some(name))
            else {
                continue;
            };
            let read_only = below
                .given_read_only
                .unwrap_or(node.read_only || slot == "backing");
            if below.read_only != read_only {
                below.read_only = read_only;
                self.pass_on(&child);
            }
        }
    }

    pub fn replace(&self, from: &str, to: &str) -> Changed {
        self.known(&[from, to])?;
        self.moved(from, to).checked()
    }

    pub fn replace_child(&self, parent: &str, slot: &'static str, child: &str) -> Changed {
        self.known(&[parent, child])?;
        if !self.nodes[parent].children.contains_key(slot) {
            return refuse(Refusal::NotFound);
        }
        self.with_child(parent, slot, Some(child))
    }

    /// A filter is opened over a node, and put in its place.
    pub fn insert(&self, node: &str, filter: &str) -> Changed {
        self.known(&[node])?;
        self.add_filter(filter, node, None)?.moved(node, filter).checked()
    }

    pub fn set_backing(&self, name: &str, backing: Option<&str>) -> Changed {
        self.known(&[name])?;
        if self.nodes[name].driver != "fmt" {
            return refuse(Refusal::Unsupported);
        }
        self.with_child(name, "backing", backing)
    }

    pub fn attach_child(&self, parent: &str, slot: &'static str, child: &str) -> Changed {
        self.known(&[parent, child])?;
        let node = &self.nodes[parent];
        if !slots(node.driver).contains(&slot) {
            return refuse(Refusal::NotFound);
        }
        if node.children.contains_key(slot) {
            return refuse(Refusal::Exists);
        }
        self.with_child(parent, slot, Some(child))
    }

    pub fn detach_child(&self, parent: &str, slot: &'static str) -> Changed {
        self.known(&[parent])?;
        if !self.nodes[parent].children.contains_key(slot) {
            return refuse(Refusal::NotFound);
        }
        if slot == "file" {
            return refuse(Refusal::Unsupported);
        }
        self.with_child(parent, slot, None)
    }

    fn with_child(&self, parent: &str, slot: &'static str, child: Option<&str>) -> Changed {
        if let Some(child) = child {
            self.known(&[child])?;
            if self.below(child).contains(parent) {
                return refuse(Refusal::Invalid);
            }
        }
        let mut after = self.clone();
        after.hold(parent, slot, child);
        after.checked()
    }

    pub fn drop_filter(&self, name: &str) -> Changed {
        self.known(&[name])?;
        if self.nodes[name].driver != "filter" {
            return refuse(Refusal::Invalid);
        }
        let below = self.nodes[name].children["file"].clone();
        let mut after = self.moved(name, &below);
        after.nodes.remove(name);
        after.checked()
    }

    /// `children` are those that the options name: a node, or none.
    pub fn reopen(
        &self,
        name: &str,
        driver: &str,
        read_only: Option<bool>,
        children: &BTreeMap<&'static str, Option<String>>,
    ) -> Changed {
        self.known(&[name])?;
        let node = &self.nodes[name];
        let mut refusals = BTreeSet::new();
        if node.driver != driver
            || (node.children.contains_key("backing") && !children.contains_key("backing"))
            || children.get("file") == Some(&None)
        {
            refusals.insert(Refusal::Invalid);
        }
        let mut after = self.clone();
        for (slot, child) in children {
            match child {
                Some(child) if !self.nodes.contains_key(child) => {
                    refusals.insert(Refusal::NotFound);
                }
                Some(child) if node.children.get(slot) != Some(child) && self.below(child).contains(name) => {
                    refusals.insert(Refusal::Invalid);
                }
                child => after.hold(name, slot, child.as_deref()),
            }
        }
        if !refusals.is_empty() {
            return Err(refusals);
        }
        if let Some(node) = after.nodes.get_mut(name) {
            node.given_read_only = read_only;
            node.read_only = read_only.unwrap_or(false);
        }
        after.pass_on(name);
        after.checked()
    }

    pub fn attach(&self, id: RootId, root: PlainRoot) -> Changed {
        self.known(&[&root.node])?;
        let mut after = self.clone();
        after.roots.insert(id, root);
        after.checked()
    }

    pub fn set_permissions(&self, id: RootId, taken: Permissions, shared: Permissions) -> Changed {
        let mut after = self.clone();
        match after.roots.get_mut(&id) {
            Some(root) => (root.taken, root.shared) = (taken, shared),
            None => return refuse(Refusal::NotFound),
        }
        after.checked()
    }

    pub fn detach(&self, id: RootId) -> Changed {
        let mut after = self.clone();
        let Some(root) = after.roots.remove(&id) else {
            return refuse(Refusal::NotFound);
        };
        let mut after = after.checked()?;
        after.bring(&root.node, 0);
        Ok(after)
    }

    /// A node goes to an iothread, with what is joined to it and lives beside it.
    fn bring(&mut self, name: &str, to: usize) {
        let (joined, home) = (self.joined(name), self.nodes.get(name).map(|node| node.home));
        for (name, node) in &mut self.nodes {
            if joined.contains(name) && Some(node.home) == home {
                node.home = to;
            }
        }
    }

    pub fn set_iothread(&self, name: &str, home: usize) -> Changed {
        self.known(&[name])?;
        let mut after = self.clone();
        for name in self.joined(name) {
            if let Some(node) = after.nodes.get_mut(&name) {
                node.home = home;
            }
        }
        after.checked()
    }
}

impl PlainNode {
    fn new(driver: &'static str, read_only: Option<bool>) -> Self {
        Self {
            driver,
            given_read_only: read_only,
            read_only: read_only.unwrap_or(false),
            inherits: None,
            owned: false,
            children: BTreeMap::new(),
            home: 0,
        }
    }
}

/// What a node's parents cannot agree on.
fn conflicts(node: &PlainNode, above: &[PlainEdge]) -> BTreeSet<Refusal> {
    let mut refusals = BTreeSet::new();
    for (at, one) in above.iter().enumerate() {
        let others = above.iter().enumerate().filter(|(other, _)| *other != at);
        if others
            .into_iter()
            .any(|(_, other)| !other.shared.contains(one.taken))
        {
            refusals.insert(Refusal::Permission);
        }
        if node.read_only
            && one
                .taken
                .intersects(Permissions::WRITE | Permissions::WRITE_UNCHANGED)
        {
            refusals.insert(Refusal::ReadOnly);
        }
    }
    refusals
}

/// What a node needs of a child when all its parents together take and share this.
fn needs(
    node: &PlainNode,
    slot: &str,
    taken: Permissions,
    shared: Permissions,
) -> (Permissions, Permissions) {
    let (read, write) = (Permissions::CONSISTENT_READ, Permissions::WRITE);
    let (unchanged, resize) = (Permissions::WRITE_UNCHANGED, Permissions::RESIZE);
    match (node.driver, slot) {
        ("filter", _) => (taken, shared),
        (_, "backing") => {
            let others = if shared.contains(write) {
                write | resize
            } else {
                Permissions::empty()
            };
            (taken & read, read | unchanged | others)
        }
        _ if node.read_only => (
            (taken | read) - write - unchanged - resize,
            shared - write - resize,
        ),
        _ => (taken | read | write | resize, shared - write - resize),
    }
}
