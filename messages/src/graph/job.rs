//! Changes of the graph that only jobs ask for, and tools that do a job's work.

use super::{JoinBitmap, Options};
use crate::common::RootId;

/// A change that a job asks for, or that belongs to its end.
#[derive(Debug, Clone, PartialEq)]
pub enum JobEdit {
    /// Open a filter and put it in the place of one of its children, whole or not at all. It belongs to nobody, and is
    /// closed with its last parent.
    InsertFilter {
        /// The node whose parents move to the filter.
        node: String,
        /// The filter's options. One of them names `node` as its child.
        options: Options,
        /// An error says whether the filter could not be made, or not be put there.
        says_step: bool,
    },
    /// Put together again a dirty bitmap that was split for a backup.
    JoinBitmap(JoinBitmap),
    /// Take images out of chains, as [`DropIntermediate`](super::DropIntermediate) does.
    DropImages {
        /// The first image to be taken out.
        top: String,
        /// The image below the last one to be taken out.
        base: String,
        /// What the overlays of `top` store.
        named: BackingName,
    },
    /// Put a node behind an image as its backing node, or leave it without, and let its header name that: both or none.
    Rebase {
        /// The name of the image's node.
        node_name: String,
        /// The backing node; `None` takes the present one away.
        base: Option<String>,
        /// What the image stores of it.
        named: BackingName,
    },
    /// Store in an image's header which backing file it has, and of which format. What is open below it stays.
    StoreBacking {
        /// The name of the node with the image.
        node_name: String,
        /// The name to be stored; `None` stores that there is none.
        backing_file: Option<String>,
        /// The format of that file, where it is known.
        backing_format: Option<String>,
    },
    /// End a mirror: its target takes the place of a node, and its filter goes.
    Pivot {
        /// The mirror's filter, which shows the source.
        filter: String,
        /// The node that the target takes the place of, if that is not the source.
        replaced: Option<String>,
        /// The node that the mirror writes to.
        target: String,
        /// What the target gets as its backing node, if that is for the mirror to say.
        backing: Option<String>,
    },
    /// Change the length of the node that a user holds, whatever operations others may not begin there.
    ResizeHeld {
        /// The number of the root edge.
        root: RootId,
        /// The new length in bytes.
        size: u64,
    },
}

/// How an image is to name its backing image.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct BackingName {
    /// The name that it stores; `None` is the one that opens the backing image.
    pub backing_file: Option<String>,
    /// It calls the backing image raw where that has no format.
    pub mask_protocol: bool,
}
