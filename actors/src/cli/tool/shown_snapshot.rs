//! A snapshot inside an image that is shown in place of what the disk is now, as `-l` names it.

use super::{Failure, Program, Tool, read_pairs};
use millpond_messages::graph::ChangeSnapshots;
use millpond_messages::{SnapshotChange, SnapshotName};

/// A snapshot as a command line names it.
#[derive(Clone, Debug)]
pub enum ShownSnapshot {
    /// By all that is said.
    Exact(SnapshotName),
    /// By its id, or else by its name.
    IdOrName(String),
}

impl ShownSnapshot {
    /// Reads what `-l` says. `quote` is what a text that repeats it has before it.
    ///
    /// # Errors
    /// It says something else than an id and a name.
    pub fn read(program: Program<'_>, text: String, quote: char) -> Result<Self, Failure> {
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
                    let why = format!("Failed in parsing snapshot param {quote}{text}'");
                    return Err(Failure::new(why));
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
