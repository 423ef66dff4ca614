//! `commit_top`: what a commit puts on top of the images that it merges.
//!
//! The node shows its child and asks nothing of it: neither that what is read there is consistent, nor that nobody writes
//! below. The parents of the child, which have the node in between, read the same all the time; what is below may change
//! under it as the commit copies data down.

use std::rc::Rc;

use futures_util::future::LocalBoxFuture;
use millpond_messages::graph::Options;
use millpond_messages::{ChildSlot, Permissions, Result};

use crate::api::reopen::not_supported;
use crate::api::{
    Abilities, Answer, ChildKind, Driver, DriverKind, EdgeUse, Lifecycle, Moved, OpenRequest, Opened,
    OptionNames, PassThrough, ReopenRequest, SavesState, parse_options,
};
use crate::delegate;

/// The driver `commit_top`, which only jobs make nodes of.
#[derive(Debug, Clone, Copy, Default)]
pub struct CommitTopKind;

/// There are no options but the child.
#[derive(Debug, serde::Deserialize)]
#[serde(deny_unknown_fields)]
struct CommitTopOptions {}

impl DriverKind for CommitTopKind {
    fn name(&self) -> &'static str {
        "commit_top"
    }

    fn option_names(&self) -> OptionNames {
        OptionNames::Checked
    }

    fn children(&self) -> &'static [ChildKind] {
        &[ChildKind::FILTERED]
    }

    fn is_protocol(&self) -> bool {
        false
    }

    fn prepares_permissions(&self) -> bool {
        false
    }

    fn reopens(&self) -> bool {
        false
    }

    fn is_filter(&self) -> bool {
        true
    }

    fn never_freeze(&self) -> bool {
        true
    }

    fn check_options(&self, options: &Options, _numbered: usize) -> Result<()> {
        parse_options::<CommitTopOptions>(options.clone()).map(|CommitTopOptions {}| ())
    }

    fn child_permissions(&self, _: EdgeUse<'_>) -> (Permissions, Permissions) {
        (Permissions::empty(), Permissions::all())
    }

    fn open(&self, request: OpenRequest) -> LocalBoxFuture<'static, Result<Opened>> {
        Box::pin(async move {
            let driver = CommitTop {
                node_name: request.node_name,
                below: PassThrough::to_only(request.children)?,
            };
            Ok(Opened {
                driver: Rc::new(driver),
                flags: request.flags,
                backing: None,
            })
        })
    }
}

/// A node of the driver that is open.
struct CommitTop {
    node_name: String,
    below: PassThrough,
}

impl Driver for CommitTop {
    delegate!(below: locate, read, place, settle, write, write_zeroes, discard, flush, truncate, length, allocated_size);

    fn abilities(&self) -> Abilities {
        self.below.abilities()
    }
}

impl Lifecycle for CommitTop {
    fn reopen_prepare(&self, _request: ReopenRequest) -> Answer<'_, Result<()>> {
        Answer::ready(Err(not_supported("commit_top", &self.node_name)))
    }

    fn exchange_prepare(&self, _slots: &[ChildSlot]) -> Answer<'_, Result<()>> {
        // Nothing of what the child holds is kept here.
        Answer::ready(Ok(()))
    }

    fn saved_state(&self) -> Option<&dyn SavesState> {
        None
    }

    fn depart(&self) -> Moved {
        Moved::new(self.node_name.clone(), |node_name, children, _| {
            let below = PassThrough::moved(children);
            Rc::new(CommitTop { node_name, below })
        })
    }

    fn close(&self) -> Answer<'_, Result<()>> {
        Answer::ready(Ok(()))
    }
}
