//! A snapshot inside an image that is shown in place of what the disk is now, as `-l` names it.

use crate::cli::tool::{Failure, Program, Tool, read_pairs};
use millpond_messages::graph::ChangeSnapshots;
use millpond_messages::{SnapshotChange, SnapshotName};

/// A snapshot as a command line names it.
pub(super) enum Snapshot {
    /// By all that is said.
    Exact(SnapshotName),
    /// By its id, or else by its name.
    IdOrName(String),
}

impl Snapshot {
    /// Reads what `-l` says.
    ///
    /// # Errors
    /// It says something else than an id and a name.
    pub fn read(program: Program<'_>, text: String) -> Result<Self, Failure> {
        if !text.starts_with("snapshot.") {
            return Ok(Self::IdOrName(text));
        }
        let mut name = SnapshotName::default();
        for (member, value) in read_pairs(&text, None, |warning| program.warn(warning))? {
            match member.as_str() {
                "snapshot.id" => name.id = Some(value),
                "snapshot.name" => name.name = Some(value),
                other => {
                    program.tell(&format!("Invalid parameter '{other}'"));
                    return Err(Failure::new(format!("Failed in parsing snapshot param '{text}'")));
                }
            }
        }
        Ok(Self::Exact(name))
    }

    /// Has a node show it, as long as that is open.
    ///
    /// # Errors
    /// The image has no such snapshot, or cannot show it.
    pub async fn show(&self, tool: &Tool<'_>, node: &str) -> Result<(), Failure> {
        let show = |name: SnapshotName| {
            tool.graph().ask(ChangeSnapshots {
                device: node.to_owned(),
                change: SnapshotChange::Show(name),
                any_name: false,
            })
        };
        let shown = match self {
            Self::Exact(name) => show(name.clone()).await,
            Self::IdOrName(text) => match show(SnapshotName::with_id(text)).await {
                Err(_) => show(SnapshotName::named(text)).await,
                shown => shown,
            },
        };
        shown
            .map(drop)
            .map_err(|error| Failure::from(error).within("Failed to load snapshot"))
    }
}
