//! What is begun at once, whatever waits for its turn.

use std::time::Duration;

use super::DrainScope;
use crate::common::{DebugOrder, RootId, Token};

requests! {
    /// What is begun at once, whatever mutation is under way: that may wait for this very thing.
    Immediate {
        /// Begin a drained section; answered when it is still.
        ///
        /// # Errors
        /// There is no such node, child or root edge.
        DrainBegin {
            /// The nodes that it covers.
            scope: DrainScope,
            /// Who begins it, for those who ask what is going on.
            user: String,
        } -> Token: Still,
        /// End a drained section, still or not.
        DrainEnd(Token),
        /// End early what a node has in flight and its driver can end; done at once, whatever else goes on.
        ///
        /// # Errors
        /// There is no such node.
        CancelInFlight {
            /// The node; where it only passes requests on, the one that it passes them to as well, unless it is `alone`.
            node_name: String,
            /// Nodes that it only passes requests on to are left alone.
            alone: bool,
        },
        /// Hold requests at an event, or let them go: at the first node that listens, from this one down over primary children.
        /// Answered whatever else is going on.
        ///
        /// # Errors
        /// There is no such node, event or tag, or no node from there down listens ([`Unsupported`](crate::ErrorKind::Unsupported)).
        DebugNode {
            /// The name of the node.
            node_name: String,
            /// What to do at which event.
            order: DebugOrder,
        },
        /// Whether a request is held under a tag; not where no node from there down listens.
        ///
        /// # Errors
        /// There is no such node.
        IsSuspended {
            /// The name of the node.
            node_name: String,
            /// What the breakpoint was given as its tag.
            tag: String,
        } -> bool: Truth,
        /// Note that a user works on these iothreads too, wherever its node lives: none of them is deleted before the user lets
        /// go of the node. Its hold tells them from then on.
        ///
        /// # Errors
        /// There is no such user, or no iothread of one of the names.
        ServeOn {
            /// The root edge by which the user holds its node.
            root: RootId,
            /// The names of the iothreads, in the order in which the user takes them.
            iothreads: Vec<String>,
        },
        /// Flush and close everything. Requests that have not begun are refused from then on; one that waits for a drain gives up,
        /// and what it did is undone.
        ///
        /// # Errors
        /// A flush's, or what is waited for when the time is over.
        CloseAll {
            /// After this long the request fails, and says what it waits for; closing goes on all the same. Without it, it waits
            /// for as long as it takes.
            grace: Option<Duration>,
        },
    }
}

impl DebugNode {
    /// Hold the next request that reaches the event, under a tag.
    #[must_use]
    pub fn breakpoint(
        node_name: impl Into<String>,
        event: impl Into<String>,
        tag: impl Into<String>,
    ) -> Self {
        let (event, tag) = (event.into(), tag.into());
        Self::with(node_name, DebugOrder::Breakpoint { event, tag })
    }

    /// Forget the breakpoints of a tag, and let go of all that they hold.
    #[must_use]
    pub fn remove_breakpoint(node_name: impl Into<String>, tag: impl Into<String>) -> Self {
        Self::with(node_name, DebugOrder::RemoveBreakpoint { tag: tag.into() })
    }

    /// Let go of a request that is held under a tag.
    #[must_use]
    pub fn resume(node_name: impl Into<String>, tag: impl Into<String>) -> Self {
        Self::with(node_name, DebugOrder::Resume { tag: tag.into() })
    }

    fn with(node_name: impl Into<String>, order: DebugOrder) -> Self {
        let node_name = node_name.into();
        Self { node_name, order }
    }
}

impl IsSuspended {
    /// Whether a request is held under this tag.
    #[must_use]
    pub fn under(node_name: impl Into<String>, tag: impl Into<String>) -> Self {
        let (node_name, tag) = (node_name.into(), tag.into());
        Self { node_name, tag }
    }
}
