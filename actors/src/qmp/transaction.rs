//! Several changes together, all or none.

use super::{Reply, arguments, done};
use crate::daemon::Daemon;
use millpond_messages::graph::{self, CompletionMode, Mutation};
use millpond_messages::qapi::Object;
use serde::Deserialize;

#[derive(Deserialize)]
struct Arguments {
    actions: Vec<Action>,
    #[serde(default)]
    properties: Properties,
}

#[derive(Deserialize)]
#[serde(tag = "type", content = "data", rename_all = "kebab-case")]
enum Action {
    Abort {},
    BlockdevSnapshot { node: String, overlay: String },
}

#[derive(Default, Deserialize)]
struct Properties {
    #[serde(rename = "completion-mode", default)]
    completion: Completion,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "kebab-case")]
enum Completion {
    #[default]
    Individual,
    Grouped,
}

pub(super) async fn run(daemon: Daemon, given: Object) -> Reply {
    let Arguments { actions, properties } = arguments(given)?;
    let actions = actions.into_iter().map(|action| match action {
        Action::Abort {} => graph::Action::Abort,
        Action::BlockdevSnapshot { node, overlay } => graph::Action::BlockdevSnapshot { node, overlay },
    });
    let request = Mutation::Transaction {
        actions: actions.collect(),
        completion: match properties.completion {
            Completion::Individual => CompletionMode::Individual,
            Completion::Grouped => CompletionMode::Grouped,
        },
    };
    daemon.graph(request).await?;
    Ok(done())
}
