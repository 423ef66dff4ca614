//! What is begun at once, whatever waits for its turn.

use std::time::Duration;

use super::DrainScope;
use crate::common::{DebugOrder, Token};

/// What is begun at once, whatever mutation is under way: that may wait for this very thing.
#[derive(Debug)]
pub enum Immediate {
    /// Begin a drained section; answered when it is still.
    DrainBegin {
        /// The nodes that it covers.
        scope: DrainScope,
        /// Who begins it, for those who ask what is going on.
        user: String,
    },
    /// End a drained section, still or not.
    DrainEnd(Token),
    /// End early what a node has in flight and its driver can end; done at once, whatever else goes on.
    CancelInFlight {
        /// The node; where it only passes requests on, the one that it passes them to as well.
        node_name: String,
    },
    /// Hold requests at an event, or let them go: at the first node that listens, from this one down over primary children.
    /// Answered whatever else is going on.
    Debug {
        /// The name of the node.
        node_name: String,
        /// What to do at which event.
        order: DebugOrder,
    },
    /// Flush and close everything. Requests that have not begun are refused from then on; one that waits for a drain gives up,
    /// and what it did is undone.
    CloseAll {
        /// After this long the request fails, and says what it waits for; closing goes on all the same. Without it, it waits
        /// for as long as it takes.
        grace: Option<Duration>,
    },
}
