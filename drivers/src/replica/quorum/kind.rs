//! The options, and what the graph has to know of a quorum.

use std::rc::Rc;

use futures_util::future::LocalBoxFuture;
use millpond_messages::graph::Options;
use millpond_messages::{Error, ErrorKind, Permissions, Result, Role};

use super::driver::Quorum;
use crate::api::{
    ChildChange, ChildKind, DriverKind, EdgeUse, OpenRequest, Opened, OptionNames, parse_options,
};

/// The driver `quorum`, whose children vote.
#[derive(Debug, Clone, Copy, Default)]
pub struct QuorumKind;

/// The options as QAPI's `BlockdevOptionsQuorum` has them, children left out.
#[derive(Debug, Clone, Copy, serde::Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
struct QuorumOptions {
    #[serde(default)]
    blkverify: bool,
    vote_threshold: i64,
    #[serde(default)]
    rewrite_corrupted: bool,
    #[serde(default)]
    read_pattern: ReadPattern,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, serde::Deserialize)]
#[serde(rename_all = "kebab-case")]
enum ReadPattern {
    #[default]
    Quorum,
    Fifo,
}

/// How a quorum reads, and how many children must agree.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Settings {
    /// So many children are enough. At least 1, and never more than there are.
    pub threshold: usize,
    pub reads: Reads,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Reads {
    /// The first child that can be read.
    Fifo,
    /// All children. `rewrite` stores what they agreed on in those that disagreed.
    Vote { rewrite: bool },
    /// Two children that must be the same: a difference ends the program.
    Verify,
}

impl Settings {
    /// Reads the options of a node with `children` children.
    fn parse(options: &Options, children: usize) -> Result<Self> {
        let refuse = |text: &'static str| Err(Error::new(ErrorKind::InvalidArgument, text));
        let options: QuorumOptions = parse_options(options.clone())?;
        if children == 0 {
            return refuse("Number of provided children must be 1 or more");
        }
        if options.vote_threshold < 1 {
            return refuse("Parameter 'vote-threshold' expects a value >= 1");
        }
        let threshold = usize::try_from(options.vote_threshold).ok();
        let Some(threshold) = threshold.filter(|threshold| *threshold <= children) else {
            return refuse("threshold may not exceed children count");
        };
        let reads = match (options.read_pattern, options.blkverify) {
            (ReadPattern::Fifo, _) => Reads::Fifo,
            (ReadPattern::Quorum, true) if children != 2 || threshold != 2 => {
                return refuse(
                    "blkverify=on can only be set if there are exactly two files and vote-threshold is 2",
                );
            }
            (ReadPattern::Quorum, true) if options.rewrite_corrupted => {
                return refuse("rewrite-corrupted=on cannot be used with blkverify=on");
            }
            (ReadPattern::Quorum, true) => Reads::Verify,
            (ReadPattern::Quorum, false) => Reads::Vote {
                rewrite: options.rewrite_corrupted,
            },
        };
        Ok(Self { threshold, reads })
    }
}

impl DriverKind for QuorumKind {
    fn name(&self) -> &'static str {
        "quorum"
    }

    fn option_names(&self) -> OptionNames {
        OptionNames::Checked
    }

    fn children(&self) -> &'static [ChildKind] {
        &[]
    }

    fn numbered(&self) -> Option<ChildKind> {
        Some(ChildKind::named("children", Role::DATA))
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

    fn check_options(&self, options: &Options, numbered: usize) -> Result<()> {
        Settings::parse(options, numbered).map(drop)
    }

    fn check_change(&self, change: ChildChange, options: &Options, numbered: usize) -> Result<()> {
        let settings = Settings::parse(options, numbered)?;
        match change {
            ChildChange::Add if settings.reads == Reads::Verify => Err(Error::new(
                ErrorKind::Unsupported,
                "Cannot add a child to a quorum in blkverify mode",
            )),
            ChildChange::Remove if numbered <= settings.threshold => Err(Error::new(
                ErrorKind::InvalidArgument,
                format!(
                    "The number of children cannot be lower than the vote threshold {}",
                    settings.threshold
                ),
            )),
            ChildChange::Add | ChildChange::Remove => Ok(()),
        }
    }

    /// Nobody else may write to a child, or they would differ. What disagreed is rewritten even below a node that is
    /// only read.
    fn child_permissions(&self, edge: EdgeUse<'_>) -> (Permissions, Permissions) {
        let mut taken = edge.taken;
        let options = parse_options::<QuorumOptions>(edge.options.clone());
        if options
            .is_ok_and(|options| options.rewrite_corrupted && options.read_pattern == ReadPattern::Quorum)
        {
            taken |= Permissions::WRITE;
        }
        let shared = edge.shared & (Permissions::CONSISTENT_READ | Permissions::WRITE_UNCHANGED);
        if edge.force_share {
            (taken, Permissions::all())
        } else {
            (taken, shared)
        }
    }

    fn open(&self, request: OpenRequest) -> LocalBoxFuture<'static, Result<Opened>> {
        Box::pin(async move {
            let settings = Settings::parse(&request.options, request.children.len())?;
            let flags = request.flags;
            let driver = Quorum::new(request.node_name, settings, request.notices, &request.children);
            Ok(Opened {
                driver: Rc::new(driver),
                flags,
                backing: None,
            })
        })
    }
}
