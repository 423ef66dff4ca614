//! What requests are answered with, as types: the one place where a reply of the graph actor is taken apart.

use millpond_engine::node::Client;
use millpond_messages::graph::{
    Blocker, DriverFacts, GraphFacts, GraphReply, GraphRequest, IothreadReport, NodeFacts,
};
use millpond_messages::handshake::PendingDrain;
use millpond_messages::saved::SavedGraph;
use millpond_messages::{
    BlockSizes, CheckResult, DriverInfo, Error, ErrorKind, Geometry, NodeReport, Result, Token,
};
use serde_json::Value;

use super::handle::GraphHandle;

/// What some request is answered with.
pub(super) trait Answer: Sized {
    /// It, out of a reply.
    fn of(reply: GraphReply<Client>) -> Option<Self>;
}

macro_rules! answers {
    ($($answer:ty: $($reply:ident)|+;)*) => {
        $(impl Answer for $answer {
            fn of(reply: GraphReply<Client>) -> Option<Self> {
                match reply {
                    $(GraphReply::$reply(answer))|+ => Some(answer),
                    _ => None,
                }
            }
        })*
    };
}

answers! {
    Client: Root;
    String: Name;
    BlockSizes: BlockSizes;
    Geometry: Geometry;
    CheckResult: Checked;
    DriverInfo: DriverInfo;
    Vec<DriverFacts>: Drivers;
    Token: Still | Frozen | Blocked;
    Value: Json;
    GraphFacts: Graph;
    bool: Suspended | Truth;
    Vec<PendingDrain>: Drains;
    NodeFacts: Node;
    Vec<IothreadReport>: IothreadStatistics;
    Vec<NodeReport>: NodeStatistics;
    Option<NodeFacts>: Found;
    Vec<Blocker>: Blockers;
    Box<SavedGraph>: Saved;
}

impl Answer for () {
    fn of(reply: GraphReply<Client>) -> Option<Self> {
        matches!(reply, GraphReply::Done).then_some(())
    }
}

impl GraphHandle {
    /// Asks, and waits for the answer.
    pub(super) async fn get<A: Answer>(&self, request: impl Into<GraphRequest>) -> Result<A> {
        let text = "The graph gave a reply to another question";
        let answer = A::of(self.ask(request).await?);
        answer.ok_or_else(|| Error::new(ErrorKind::InvalidArgument, text))
    }
}
