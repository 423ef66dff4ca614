//! `mirror_top`: what a mirror puts over its source. The node sees what is written, and copies what is left to the target.
//!
//! ```text
//!   users -> mirror_top -> source
//!                  \-> target
//! ```
//! A write marks the chunks that it touched in the step in which it is answered; or, where it is to be answered only once the
//! target has it too, it goes to both. The job asks for one piece after the other, and hears by a
//! [`MirrorLine`](millpond_messages::MirrorLine) how much is left.

mod copy;
mod saved;
mod write;

use std::rc::Rc;

use futures_util::future::LocalBoxFuture;
use millpond_messages::graph::Options;
use millpond_messages::io::{MirrorRequest, Value};
use millpond_messages::{
    ChildSlot, ChunkSet, Error, ErrorKind, IoResult, MirrorMode, Permissions, Range, RequestFlags, Result,
    Role,
};
use millpond_ring::buffer::Buffers;

use crate::api::reopen::not_supported;
use crate::api::{
    Abilities, Answer, Child, ChildKind, Driver, DriverKind, EdgeUse, Lifecycle, Mirrored, Moved,
    OpenRequest, Opened, OptionNames, PassThrough, ReopenRequest, SavesState, Transfer, arrived, declared,
    parse_options,
};
use crate::delegate;
use crate::replica::left::Left;

use copy::{Mirror, MirrorState};

/// What is copied as a whole to a target without clusters, in bytes, and where those are large.
const CHUNK: u64 = 65_536;
/// The same where they are small.
const MIN_CHUNK: u64 = 4096;

const TARGET: ChildKind = ChildKind::named("target", Role::DATA);

/// The driver `mirror_top`, which only jobs make nodes of.
#[derive(Debug, Clone, Copy, Default)]
pub struct MirrorTopKind;

/// What a job says of its mirror.
#[derive(Debug, Clone, Copy, serde::Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
struct MirrorTopOptions {
    /// What is copied as a whole, in bytes: a power of two, or 0 for what suits the target.
    granularity: u64,
    /// The most that is copied by one pair of requests, in bytes.
    piece: u64,
    #[serde(flatten)]
    manner: Manner,
}

impl MirrorTopOptions {
    /// What is copied as a whole. A cluster of the target is, since the rest of one would be filled from a backing image that
    /// need not be the source's.
    fn chunk(self, target: &Child) -> u64 {
        let cluster = target.info().map_or(0, |info| info.cluster_size);
        let suits = match cluster {
            0 => CHUNK,
            cluster => cluster.clamp(MIN_CHUNK, CHUNK),
        };
        match self.granularity {
            0 => suits.max(cluster),
            granularity => granularity.max(cluster),
        }
    }
}

/// How zeroes get to the target, and what else is to be known of the two ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "kebab-case")]
struct Manner {
    /// Zeroes may give space of the target back.
    unmap: bool,
    /// The target shows what it will: zeroes that are there already need not be written.
    looks_at_target: bool,
    /// What no image of the source has counts as alike once the target reads as zeroes there.
    skips_holes: bool,
    /// The target is in the source's own chain.
    is_commit: bool,
}

impl DriverKind for MirrorTopKind {
    fn name(&self) -> &'static str {
        "mirror_top"
    }

    fn option_names(&self) -> OptionNames {
        OptionNames::Checked
    }

    fn children(&self) -> &'static [ChildKind] {
        &[ChildKind::FILTERED, TARGET]
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

    /// Users' data is durable once the source has it. The target is flushed by the job, in the end; one that is dead must hold
    /// up neither a flush nor the filter's end.
    fn flushes_child(&self, child: &ChildKind) -> bool {
        child.role.contains(Role::FILTERED)
    }

    fn is_filter(&self) -> bool {
        true
    }

    fn never_freeze(&self) -> bool {
        true
    }

    fn borrows_filename(&self) -> bool {
        true
    }

    fn check_options(&self, options: &Options, _numbered: usize) -> Result<()> {
        parse_options::<MirrorTopOptions>(options.clone()).map(drop)
    }

    /// Nobody but the mirror writes to the target, and nobody but its users to the source. A target in the chain of the source is read by all that are above it, who
    /// cannot rely on it; and what is written to it is seen through the source by this node itself.
    fn child_permissions(&self, edge: EdgeUse<'_>) -> (Permissions, Permissions) {
        let is_commit = edge.options.get("is-commit").and_then(serde_json::Value::as_bool) == Some(true);
        if !edge.role.contains(Role::FILTERED) {
            let chain = Permissions::CONSISTENT_READ | Permissions::WRITE;
            let shared = match is_commit {
                true => Permissions::WRITE_UNCHANGED | chain,
                false => Permissions::WRITE_UNCHANGED,
            };
            return match edge.is_used {
                true => (Permissions::WRITE, shared),
                false => (Permissions::empty(), Permissions::all()),
            };
        }
        let (mut taken, mut shared) = millpond_messages::child_permissions(
            edge.role,
            edge.taken,
            edge.shared,
            edge.writable,
            edge.force_share,
        );
        if !edge.is_used {
            return (Permissions::empty(), Permissions::all());
        }
        if is_commit {
            taken -= Permissions::CONSISTENT_READ;
            shared |= Permissions::WRITE;
        } else {
            // What is written below this node is not seen.
            taken |= Permissions::CONSISTENT_READ;
            shared -= Permissions::WRITE | Permissions::RESIZE;
        }
        (taken, shared)
    }

    fn open(&self, request: OpenRequest) -> LocalBoxFuture<'static, Result<Opened>> {
        Box::pin(async move {
            let children: [Child; 2] = declared(request.children)?;
            let options: MirrorTopOptions = parse_options(request.options)?;
            let len = children[0].length().await;
            let len = len.map_err(|error| Error::io("Cannot get the length of the source", error))?;
            let chunks = ChunkSet::new(len, options.chunk(&children[1]))
                .map_err(|error| Error::new(ErrorKind::InvalidArgument, error.to_string()))?;
            let state = MirrorState {
                left: Left::new(chunks, options.piece).with_zeroes_most(copy::ZEROES_MOST),
                line: None,
                manner: options.manner,
                is_abandoned: false,
            };
            Ok(Opened {
                driver: Rc::new(MirrorTop::new(request.node_name, children, state)),
                flags: request.flags,
                backing: None,
            })
        })
    }
}

/// A node of the driver that is open.
struct MirrorTop {
    node_name: String,
    below: PassThrough,
    mirror: Mirror,
}

impl MirrorTop {
    fn new(node_name: String, children: [Child; 2], state: MirrorState) -> Self {
        Self {
            node_name,
            below: PassThrough::new(children[0].clone()),
            mirror: Mirror::new(children, state),
        }
    }
}

impl Driver for MirrorTop {
    delegate!(below: locate, read, place_here, settle, flush, truncate, length, allocated_size);

    fn abilities(&self) -> Abilities {
        self.below.abilities()
    }

    fn write(
        self: Rc<Self>,
        offset: u64,
        buffers: Buffers,
        flags: RequestFlags,
    ) -> Answer<'static, Transfer> {
        Answer::wait(async move { self.mirror.write(&self.below, offset, buffers, flags).await })
    }

    fn write_zeroes(&self, range: Range, flags: RequestFlags) -> Answer<'_, IoResult<()>> {
        Answer::wait(self.mirror.write_zeroes(&self.below, range, flags))
    }

    fn discard(&self, range: Range) -> Answer<'_, IoResult<()>> {
        Answer::wait(self.mirror.discard(&self.below, range))
    }

    fn mirrored(&self) -> &dyn Mirrored {
        self
    }
}

impl Mirrored for MirrorTop {
    fn mirror(&self, request: MirrorRequest) -> Answer<'_, IoResult<Value>> {
        match request {
            MirrorRequest::Join(line) => {
                self.mirror.join(line);
                Answer::ready(Ok(Value::Done))
            }
            MirrorRequest::Add { range } => {
                self.mirror.mark(range);
                Answer::ready(Ok(Value::Done))
            }
            MirrorRequest::Copy => {
                Answer::wait(async move { Ok(Value::Mirrored(self.mirror.copy_next().await)) })
            }
        }
    }
}

impl Lifecycle for MirrorTop {
    fn cancel_in_flight(&self) {
        self.mirror.abandon();
    }

    fn reopen_prepare(&self, _request: ReopenRequest) -> Answer<'_, Result<()>> {
        Answer::ready(Err(not_supported("mirror_top", &self.node_name)))
    }

    fn exchange_prepare(&self, slots: &[ChildSlot]) -> Answer<'_, Result<()>> {
        // What is put above the source shows what that shows; but the target has what was copied to it. At the mirror's end
        // the target is given its backing image, and nothing is read or written here any more.
        let line = self.mirror.line();
        let is_ending = line.is_some_and(|line| line.mode() == MirrorMode::Closing);
        match is_ending || slots.iter().all(|slot| *slot == ChildSlot::FILE) {
            true => Answer::ready(Ok(())),
            false => Answer::ready(Err(Error::new(
                ErrorKind::Unsupported,
                "The target of a mirror cannot be exchanged",
            ))),
        }
    }

    fn saved_state(&self) -> Option<&dyn SavesState> {
        Some(self)
    }

    fn depart(&self) -> Moved {
        let state = (self.node_name.clone(), self.mirror.state());
        Moved::new(state, |(node_name, state), children, _| {
            Rc::new(MirrorTop::new(node_name, arrived(children), state))
        })
    }

    fn close(&self) -> Answer<'_, Result<()>> {
        Answer::ready(Ok(()))
    }
}
