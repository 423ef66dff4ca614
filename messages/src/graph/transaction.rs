//! Changes that are carried out together.

/// A change that can be one of several.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Action {
    /// Fail, so that none of the others is carried out.
    Abort,
    /// Put the open node `overlay` on top of `node`, under all of `node`'s parents.
    BlockdevSnapshot {
        /// The name of the node to protect.
        node: String,
        /// The name of the node to go on top.
        overlay: String,
    },
}

impl Action {
    /// Its name in QMP.
    #[must_use]
    pub const fn name(&self) -> &'static str {
        match self {
            Self::Abort => "abort",
            Self::BlockdevSnapshot { .. } => "blockdev-snapshot",
        }
    }
}

/// What the end of one action's job means for those of the others.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum CompletionMode {
    /// Each job ends for itself.
    #[default]
    Individual,
    /// If one job fails, all do.
    Grouped,
}
