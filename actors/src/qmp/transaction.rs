//! Several changes together, all or none.

use crate::daemon::Daemon;
use millpond_messages::graph::{self, CompletionMode, Transact};
use millpond_messages::qapi::QmpError;
use millpond_messages::qapi::schema::{
    ActionCompletionMode, BlockdevSnapshot, Transaction, TransactionAction,
};

pub(super) async fn run(daemon: Daemon, arguments: Transaction) -> Result<(), QmpError> {
    let actions = arguments.actions.into_iter().map(|action| match action {
        TransactionAction::Abort(_) => graph::Action::Abort,
        TransactionAction::BlockdevSnapshot(snapshot) => {
            let BlockdevSnapshot { node, overlay } = snapshot.data;
            graph::Action::Snapshot(graph::Snapshot { node, overlay })
        }
    });
    let request = Transact {
        actions: actions.collect(),
        completion: match arguments.properties.completion_mode {
            ActionCompletionMode::Individual => CompletionMode::Individual,
            ActionCompletionMode::Grouped => CompletionMode::Grouped,
        },
    };
    daemon.graph(request).await
}
