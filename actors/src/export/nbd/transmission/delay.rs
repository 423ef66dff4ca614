//! Slow and dying NBD clients: what a message policy makes of a connection.

use std::rc::Rc;

use millpond_engine::delay::{End, Hop, Pair, kind};
use millpond_engine::iothread::Local;

/// A connection as the rules see it.
#[derive(Clone)]
pub(super) struct Delays {
    local: Rc<Local>,
    number: u64,
    export: Rc<str>,
}

impl Delays {
    pub(super) fn new(local: Rc<Local>, export: &str) -> Self {
        let number = local.chaos().next_connection();
        Self {
            local,
            number,
            export: export.into(),
        }
    }

    /// Waits until a request may be received. False if the connection is to be cut instead.
    pub(super) async fn receives(&self) -> bool {
        let hop = Hop {
            pair: Pair {
                from: End::Connection(self.number),
                to: End::Session(self.number),
            },
            kind: kind::NBD_REQUEST,
            node: &self.export,
        };
        self.local.chaos().wait(&self.local, &hop).await;
        !self.local.chaos().cuts(&self.local, &hop)
    }

    /// Waits until replies may be sent.
    pub(super) async fn sends(&self) {
        let hop = Hop {
            pair: Pair {
                from: End::Session(self.number),
                to: End::Connection(self.number),
            },
            kind: kind::NBD_REPLY,
            node: &self.export,
        };
        self.local.chaos().wait(&self.local, &hop).await;
    }
}
