//! The dirty bitmaps that an export shows as metadata contexts, and how its clients read them.

use std::fmt;

use millpond_messages::graph::{BitmapHold, DirtyRun, HeldBitmap, HoldBitmaps, ReadBitmap};
use millpond_messages::{Error, ErrorKind, Range, Result};

use crate::graph::GraphHandle;

/// The most bitmaps that one export shows: which of them a client has chosen is a word of bits.
const MOST: usize = 64;

/// A dirty bitmap that an export shows. Nobody changes it while the export holds it but the writes that it records.
///
/// It is read by way of the graph actor, which knows where the bitmap's node lives: that may be any node, also one that goes to
/// another iothread than the export's.
#[derive(Clone)]
pub struct OfferedBitmap {
    held: HeldBitmap,
    graph: GraphHandle,
}

impl PartialEq for OfferedBitmap {
    fn eq(&self, other: &Self) -> bool {
        self.held == other.held
    }
}

impl Eq for OfferedBitmap {}

impl fmt::Debug for OfferedBitmap {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.held.fmt(f)
    }
}

impl OfferedBitmap {
    /// What clients ask for it by, behind `qemu:dirty-bitmap:`.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.held.name
    }

    /// The bitmap by its number, and by that of its node.
    pub(super) const fn held(&self) -> &HeldBitmap {
        &self.held
    }

    /// What is dirty in a range, from its start on: at most so many runs, of which neighbours differ.
    pub(super) async fn read(&self, range: Range, most: usize) -> Result<Vec<DirtyRun>> {
        let HeldBitmap { node, bitmap, .. } = self.held;
        let asked = ReadBitmap {
            node,
            bitmap,
            range,
            most,
        };
        self.graph.ask(asked).await
    }
}

/// Holds bitmaps for an export, all or none.
///
/// # Errors
/// There are too many of them, or the graph's.
pub(super) async fn hold(graph: &GraphHandle, hold: BitmapHold) -> Result<Vec<OfferedBitmap>> {
    if hold.bitmaps.len() > MOST {
        let text = format!(
            "An export can show {MOST} dirty bitmaps, but {} were given",
            hold.bitmaps.len()
        );
        return Err(Error::new(ErrorKind::InvalidArgument, text));
    }
    if hold.bitmaps.is_empty() {
        return Ok(Vec::new());
    }
    let held = graph.ask(HoldBitmaps(hold)).await?;
    let offered = held.into_iter().map(|held| OfferedBitmap {
        held,
        graph: graph.clone(),
    });
    Ok(offered.collect())
}
