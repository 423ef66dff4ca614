//! The active image of a chain is merged down: a mirror to an image below.

use millpond_messages::graph::NodeFacts;
use millpond_messages::qapi::QmpError;
use millpond_messages::qapi::schema::BlockCommit;
use millpond_messages::{MirrorMode, Permissions, Result};
use serde_json::Value;

use super::Mirror;
use super::plan::{Manner, MirrorPlan, OnErrors, filter_options};
use crate::graph::GraphHandle;
use crate::job::block::chain::{Chains, Merged};
use crate::job::block::commit::names;
use crate::job::block::copy;
use crate::job::block::holds::as_options;
use crate::job::block::outline::{FilterMade, Layers, Outline};

impl MirrorPlan {
    /// An active commit, once `top` and `base` were found and checked.
    pub(in crate::job::block) fn merging(
        graph: GraphHandle,
        asked: &BlockCommit,
        chains: &Chains,
        (top, base): (&NodeFacts, &NodeFacts),
    ) -> Result<Self, QmpError> {
        let no_base = || QmpError::generic("Invalid files for merge: top and base are the same");
        let last = chains.overlay(top, Some(base)).ok_or_else(no_base)?;
        let above = chains.backing(last).ok_or_else(no_base)?.id;
        let on_error = asked.on_error.unwrap_or_default();
        let manner = Manner {
            size: top.size,
            above: Some(above),
            copies_all: false,
            on_errors: OnErrors {
                source: on_error,
                target: on_error,
            },
            pieces: copy::PIECES,
        };
        Ok(Self {
            graph,
            asked: as_options(asked),
            id: asked.job_id.clone().unwrap_or_default(),
            node: top.name.clone(),
            size: top.size,
            target: base.name.clone(),
            target_size: base.size,
            target_read_only: base.read_only,
            grows_to: (base.size < top.size).then_some(top.size),
            mode: MirrorMode::Background,
            manner,
            replaces: None,
            backing: None,
            opened: None,
            filter: filter_options(&asked.filter_node_name, (top, base), 0, copy::PIECE, |manner| {
                manner.insert("is-commit".to_owned(), true.into());
            }),
            merged: Some(chains.merged(top, base)),
        })
    }
}

impl MirrorPlan {
    /// What an active commit would do.
    pub(in crate::job) fn outline(&self) -> Outline {
        let name = self.filter.get("node-name").and_then(Value::as_str);
        Outline {
            active: true,
            source: self.node.clone(),
            target: self.target.clone(),
            leaves: self.merged.as_deref().map(names).unwrap_or_default(),
            overlay: None,
            backing: None,
            reopens: self
                .target_read_only
                .then(|| self.target.clone())
                .into_iter()
                .collect(),
            grows_to: self.grows_to,
            layers: self.manner.above.map_or(Layers::All, Layers::Above),
            filter: (name.map(str::to_owned), FilterMade::First),
        }
    }
}

impl Mirror {
    /// All that is merged stays as it is, but for what the commit itself writes to the base.
    pub(super) async fn hold_merged(&self, filter: &str, merged: &[Merged]) -> Result<()> {
        for Merged { name, is_over_base } in merged {
            let mut shared = Permissions::WRITE_UNCHANGED | Permissions::WRITE;
            shared.set(Permissions::CONSISTENT_READ, *is_over_base);
            let client = self.holds.keep(name, shared).await?;
            self.merged.borrow_mut().push(client);
        }
        self.holds.freeze(filter, &self.plan.target).await
    }

    /// Nothing is merged any more: the images may be relied on again, as the users of the filter do.
    pub(super) async fn release_merged(&self) {
        for client in self.merged.take() {
            self.holds.release(&client).await;
        }
    }
}
