//! Clients' requests, and drivers' work of their own: how they enter, where they go, and how they end.

use std::collections::BTreeSet;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Poll, Wake, Waker};

use millpond_messages::io::OperationKind;
use millpond_messages::{NodeId, RootId, Token};

use super::Breach;
use super::site::{Mail, Site};
use crate::{NodeTask, Order};
use millpond_engine::node::{self, Gate, InFlight, Parked, WaitEnd, WaitQueue};

/// Whether a task is to run.
pub struct Woken(AtomicBool);

impl Wake for Woken {
    fn wake(self: Arc<Self>) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// A request that waits in a queue, and whether its task is to run.
pub struct Waiting {
    pub request: usize,
    parked: Rc<Parked<usize, ()>>,
    woken: Arc<Woken>,
}

impl Waiting {
    pub fn is_woken(&self) -> bool {
        self.woken.0.load(Ordering::Relaxed)
    }
}

/// A root edge's cell.
pub struct Root {
    pub node: NodeId,
    pub queue: WaitQueue<usize, ()>,
    pub waiting: Vec<Waiting>,
    /// It has ended; what was parked has not all been told.
    pub ended: bool,
}

impl Root {
    pub fn new(node: NodeId) -> Self {
        Self {
            node,
            queue: WaitQueue::default(),
            waiting: Vec::new(),
            ended: false,
        }
    }
}

/// Where a client's request is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Stage {
    /// On its way to a root edge that moves.
    Sent,
    Parked,
    /// Counted at the first node under `key`; pieces of it stand at the others.
    Admitted {
        node: NodeId,
        key: usize,
        pieces: BTreeSet<NodeId>,
    },
    Answered,
    Refused,
}

/// A client's request.
pub struct Request {
    pub root: RootId,
    pub stage: Stage,
}

impl Site {
    /// Whether a task has nothing to wait for: a node that was told to be quiet closes when it is.
    pub fn may_end(&self, order: &Order) -> bool {
        match order {
            Order::Task(id, NodeTask::Close) => {
                let gate = self.cells.get(id).map(|cell| &cell.gate);
                gate.is_none_or(|gate| gate.is_open() || gate.is_quiet())
            }
            _ => true,
        }
    }

    /// A client sends a request.
    pub fn arrive(&mut self, root: RootId) {
        let request = self.requests.len();
        self.requests.push(Request {
            root,
            stage: Stage::Sent,
        });
        let on_its_way = |mail: &Mail| match mail {
            Mail::Arrive(_, _, _, roots) => roots.iter().any(|luggage| luggage.root == root),
            Mail::ArriveRoot(_, luggage) => luggage.root == root,
            // A client's requests take one way, so none overtakes another on it.
            Mail::Request(to, _) => *to == root,
            Mail::Order(..) => false,
        };
        let awaiting = self
            .threads
            .values_mut()
            .find(|thread| thread.inbox.iter().any(on_its_way));
        match awaiting {
            Some(thread) => thread.inbox.push_back(Mail::Request(root, request)),
            None => self.enter(root, request),
        }
    }

    /// A request comes to its root edge: `RootCell::run`.
    pub fn enter(&mut self, id: RootId, request: usize) {
        let Some(root) = self.roots.get_mut(&id).filter(|root| !root.ended) else {
            self.requests[request].stage = Stage::Refused;
            return;
        };
        let open = self.cells.get(&root.node).is_some_and(|cell| cell.gate.is_open());
        if root.queue.is_empty() && open {
            self.admit(id, request);
            return;
        }
        let parked = root.queue.join(request);
        let woken = Arc::new(Woken(AtomicBool::new(true)));
        root.waiting.push(Waiting {
            request,
            parked,
            woken,
        });
        self.requests[request].stage = Stage::Parked;
        // It is polled in the same step that parks it.
        self.look(id, request);
    }

    fn admit(&mut self, id: RootId, request: usize) {
        let node = self.roots[&id].node;
        let Some(cell) = self.cells.get(&node) else {
            self.breach(Breach::Cells);
            return;
        };
        let later = |other: &Request| {
            other.root == id && matches!(other.stage, Stage::Admitted { .. } | Stage::Answered)
        };
        let key = cell
            .gate
            .enter(InFlight::new(node, OperationKind::Write, 0, 512, 0));
        if self.requests[request + 1..].iter().any(later) {
            self.breach(Breach::Order);
        }
        let pieces = BTreeSet::new();
        self.requests[request].stage = Stage::Admitted { node, key, pieces };
    }

    /// A parked request's task runs.
    pub fn look(&mut self, id: RootId, request: usize) {
        let Some(root) = self.roots.get_mut(&id) else {
            return;
        };
        let Some(at) = root.waiting.iter().position(|waiting| waiting.request == request) else {
            return;
        };
        let open = self.cells.get(&root.node).is_some_and(|cell| cell.gate.is_open());
        let waiting = &root.waiting[at];
        waiting.woken.0.store(false, Ordering::Relaxed);
        let waker = Waker::from(Arc::clone(&waiting.woken));
        let Poll::Ready(end) = root.queue.poll(&waiting.parked, open, &waker) else {
            return;
        };
        let waiting = root.waiting.remove(at);
        match end {
            WaitEnd::Pass(request) => {
                self.admit(id, request);
                self.roots[&id].queue.leave(&waiting.parked);
            }
            WaitEnd::Ended(request) => {
                self.requests[request].stage = Stage::Refused;
                root.queue.leave(&waiting.parked);
                if root.waiting.is_empty() {
                    self.roots.remove(&id);
                }
            }
            // Taken off the queue of an edge that has left, and this one has not.
            WaitEnd::Elsewhere(()) => self.breach(Breach::Loss),
        }
    }

    /// Part of a request is handed to a child of a node where it stands.
    pub fn pass_down(&mut self, request: usize, child: NodeId) {
        if let Stage::Admitted { pieces, .. } = &mut self.requests[request].stage {
            pieces.insert(child);
        }
        match self.cells.get(&child) {
            None => self.breach(Breach::Cells),
            Some(cell) if has_answered(&cell.gate, &self.in_force) => self.breach(Breach::Stillness),
            Some(_) => {}
        }
    }

    /// Where a request can be passed down to.
    pub fn ways_down(&self, request: usize) -> Vec<NodeId> {
        let Stage::Admitted { node, pieces, .. } = &self.requests[request].stage else {
            return Vec::new();
        };
        let stands = pieces.iter().chain([node]);
        let children = stands
            .filter_map(|id| self.cells.get(id))
            .flat_map(|cell| cell.edges.values());
        let new: BTreeSet<NodeId> = children.filter(|id| !pieces.contains(id)).copied().collect();
        new.into_iter().collect()
    }

    /// A request ends and is answered.
    pub fn complete(&mut self, request: usize) {
        let stage = std::mem::replace(&mut self.requests[request].stage, Stage::Answered);
        let Stage::Admitted { node, key, .. } = stage else {
            self.breach(Breach::Loss);
            return;
        };
        let Some(cell) = self.cells.get(&node) else {
            self.breach(Breach::Cells);
            return;
        };
        if cell.gate.leave(key) {
            self.answer_quiesce(node);
        }
    }

    pub fn answer_quiesce(&mut self, id: NodeId) {
        let Some(cell) = self.cells.get(&id) else { return };
        let home = cell.home;
        for token in cell.gate.take_answerable() {
            self.tell(home, node::Event::Quiesced(id, token));
            self.passed(home, id, token);
        }
    }

    /// A driver begins a piece of background work at its first child, or at itself.
    pub fn begin_background(&mut self, id: NodeId) {
        let Some(cell) = self.cells.get_mut(&id) else {
            return;
        };
        let at = cell.edges.values().next().copied().unwrap_or(id);
        cell.background.left -= 1;
        cell.background.at = Some(at);
        if self
            .cells
            .get(&at)
            .is_none_or(|cell| has_answered(&cell.gate, &self.in_force))
        {
            self.breach(Breach::Stillness);
        }
    }

    pub fn end_background(&mut self, id: NodeId) {
        if let Some(cell) = self.cells.get_mut(&id) {
            cell.background.at = None;
        }
    }

    /// What waits for a driver's background work to stop finds nothing under way.
    pub fn idle(&mut self, id: NodeId) {
        if let Some(cell) = self.cells.get_mut(&id) {
            cell.background.idle += std::mem::take(&mut cell.background.stopping);
        }
    }

    /// And says so, at any time after.
    pub fn stopped(&mut self, id: NodeId) {
        if let Some(cell) = self.cells.get_mut(&id) {
            cell.background.idle -= 1;
            if cell.gate.background_stopped() == node::Background::Resume {
                cell.resumes += 1;
            }
        }
        self.answer_quiesce(id);
    }
}

/// Whether a node has told one of these sections that it is quiet: from there on it gets nothing, though the section may
/// not be still yet. That is why parents are asked first.
fn has_answered(gate: &Gate, in_force: &BTreeSet<Token>) -> bool {
    let (holds, unanswered, ..) = gate.parts();
    holds
        .iter()
        .any(|token| in_force.contains(token) && !unanswered.contains(token))
}
