//! `copy-before-write`: a filter that keeps a moment of its child. What a write is about to change is copied to `target`
//! before.
//!
//! Who wants to see the moment asks by a node of `snapshot-access` above this one.

mod kept;
mod saved;

use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::LocalBoxFuture;
use millpond_messages::graph::Options;
use millpond_messages::io::CopyFault;
use millpond_messages::{
    BlockStatus, ChildSlot, ChunkSet, Error, ErrorKind, IoResult, MomentLine, Permissions, Range,
    RequestFlags, Result, Role,
};
use millpond_ring::Ring;
use millpond_ring::buffer::Buffers;

use crate::api::reopen::not_supported;
use crate::api::{
    Abilities, Answer, Child, ChildKind, Driver, DriverKind, EdgeUse, Lifecycle, Moved, OpenRequest, Opened,
    OptionNames, PassThrough, Placement, ReopenRequest, SavesState, SnapshotAccess, Transfer, arrived,
    declared, parse_options,
};
use crate::delegate;

use kept::{Kept, OnError, State};

/// The smallest chunk that is copied, in bytes.
const MIN_CHUNK: u64 = 65_536;

const TARGET: ChildKind = ChildKind::named("target", Role::DATA);

/// The driver `copy-before-write`, which keeps a moment.
#[derive(Debug, Clone, Copy, Default)]
pub struct CopyBeforeWriteKind;

/// The dirty bitmap of a node whose chunks alone are kept.
#[derive(Debug, serde::Deserialize)]
#[serde(deny_unknown_fields)]
struct BitmapName {
    #[expect(dead_code, reason = "the graph finds the bitmap, and limits the moment to it")]
    node: String,
    #[expect(dead_code, reason = "as of the node")]
    name: String,
}

/// The options as QAPI's `BlockdevOptionsCbw` has them.
#[derive(Debug, serde::Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
struct CbwOptions {
    #[expect(dead_code, reason = "only its shape is checked here")]
    bitmap: Option<BitmapName>,
    #[serde(default)]
    on_cbw_error: OnError,
    /// Seconds; 0 for no limit.
    #[serde(default)]
    cbw_timeout: u32,
    #[serde(default)]
    min_cluster_size: u64,
    /// Of a backup: what is copied is written compressed.
    #[serde(default)]
    compress: bool,
    /// Of a backup: what was copied is discarded in the source.
    #[serde(default)]
    discard_source: bool,
    /// Of a backup: data goes from file to file of the host where it can.
    #[serde(default = "yes")]
    use_copy_range: bool,
}

const fn yes() -> bool {
    true
}

impl CbwOptions {
    fn read(options: Options) -> Result<Self> {
        let options: Self = parse_options(options)?;
        let size = options.min_cluster_size;
        if size > i64::MAX as u64 {
            let text = format!(
                "Cannot create block-copy-state: min-cluster-size too large: {size} > {}",
                i64::MAX
            );
            return Err(Error::new(ErrorKind::InvalidArgument, text));
        }
        if size != 0 && !size.is_power_of_two() {
            let text = "Cannot create block-copy-state: min-cluster-size needs to be a power of 2";
            return Err(Error::new(ErrorKind::InvalidArgument, text));
        }
        Ok(options)
    }
}

impl DriverKind for CopyBeforeWriteKind {
    fn name(&self) -> &'static str {
        "copy-before-write"
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

    /// Users' data is durable once the source has it. A backup's target is flushed by the job, in the end; one that is dead must
    /// hold up neither a flush nor the filter's end.
    fn flushes_child(&self, child: &ChildKind) -> bool {
        child.role.contains(Role::FILTERED)
    }

    fn reopens(&self) -> bool {
        false
    }

    fn is_filter(&self) -> bool {
        true
    }

    fn check_options(&self, options: &Options, _numbered: usize) -> Result<()> {
        CbwOptions::read(options.clone()).map(drop)
    }

    /// A write reads what it changes, and nobody but the users of this node may change the child: they would destroy the
    /// moment. As long as there are no users, others still have it as they like.
    fn child_permissions(&self, edge: EdgeUse<'_>) -> (Permissions, Permissions) {
        if !edge.role.contains(Role::FILTERED) {
            // The child's chain may have the guest's own disk in it, so others may write there.
            return (Permissions::WRITE, Permissions::all() - Permissions::RESIZE);
        }
        let (mut taken, mut shared) = millpond_messages::child_permissions(
            edge.role,
            edge.taken,
            edge.shared,
            edge.writable,
            edge.force_share,
        );
        if edge.is_used {
            taken |= Permissions::CONSISTENT_READ;
            shared -= Permissions::WRITE | Permissions::RESIZE;
        }
        (taken, shared)
    }

    fn borrows_filename(&self) -> bool {
        true
    }

    fn open(&self, request: OpenRequest) -> LocalBoxFuture<'static, Result<Opened>> {
        Box::pin(async move {
            let children: [Child; 2] = declared(request.children)?;
            let options = CbwOptions::read(request.options)?;
            let state = first_state(&children, &options).await?;
            Ok(Opened {
                driver: Rc::new(CopyBeforeWrite::new(
                    request.node_name,
                    children,
                    request.ring,
                    state,
                )),
                flags: request.flags,
                backing: None,
            })
        })
    }
}

/// All of the source is left, and can be asked for.
async fn first_state(children: &[Child; 2], options: &CbwOptions) -> Result<State> {
    let [source, target] = children;
    let len = source.length().await;
    let len = len.map_err(|error| Error::io("Cannot get the length of the source", error))?;
    let cluster = target.info().map_or(0, |info| info.cluster_size);
    let chunk = cluster.max(MIN_CHUNK).max(options.min_cluster_size);
    let mut all = ChunkSet::new(len, chunk)
        .map_err(|error| Error::new(ErrorKind::InvalidArgument, error.to_string()))?;
    all.insert(Range::between(0, len));
    Ok(State {
        left: all.clone(),
        readable: all,
        on_error: options.on_cbw_error,
        timeout: (options.cbw_timeout > 0).then(|| Duration::from_secs(options.cbw_timeout.into())),
        lost: None,
        line: None,
        write_flags: match options.compress {
            true => RequestFlags::WRITE_COMPRESSED,
            false => RequestFlags::empty(),
        },
        discards_source: options.discard_source,
        copies_range: options.use_copy_range,
    })
}

/// A node of the driver that is open.
struct CopyBeforeWrite {
    node_name: String,
    below: PassThrough,
    kept: Kept,
}

impl CopyBeforeWrite {
    fn new(node_name: String, children: [Child; 2], ring: Ring, state: State) -> Self {
        Self {
            node_name,
            below: PassThrough::new(children[0].clone()),
            kept: Kept::new(children, ring, state),
        }
    }
}

impl Driver for CopyBeforeWrite {
    delegate!(below: locate, read, settle, write, flush, truncate, length, allocated_size);

    fn abilities(&self) -> Abilities {
        self.below.abilities()
    }

    fn place(&self, range: Range, flags: RequestFlags) -> Answer<'_, IoResult<Placement>> {
        if self.kept.is_free(range, flags) {
            return self.below.place(range, flags);
        }
        Answer::wait(async move {
            self.kept.before_write(range, flags).await?;
            self.below.place(range, flags).await
        })
    }

    fn write_zeroes(&self, range: Range, flags: RequestFlags) -> Answer<'_, IoResult<()>> {
        Answer::wait(async move {
            self.kept.before_write(range, flags).await?;
            self.below.write_zeroes(range, flags).await
        })
    }

    fn discard(&self, range: Range) -> Answer<'_, IoResult<()>> {
        Answer::wait(async move {
            self.kept.before_write(range, RequestFlags::empty()).await?;
            self.below.discard(range).await
        })
    }

    fn snapshot_access(&self) -> &dyn SnapshotAccess {
        self
    }
}

impl SnapshotAccess for CopyBeforeWrite {
    fn read_then(&self, offset: u64, buffers: Buffers) -> Answer<'_, Transfer> {
        Answer::wait(self.kept.read(offset, buffers))
    }

    fn status_then(&self, range: Range) -> Answer<'_, IoResult<BlockStatus>> {
        Answer::wait(self.kept.status(range))
    }

    fn discard_then(&self, range: Range) -> Answer<'_, IoResult<()>> {
        Answer::wait(async move {
            self.kept.discard(range).await;
            Ok(())
        })
    }

    fn copy_then(&self, range: Range) -> Answer<'_, IoResult<std::result::Result<(), CopyFault>>> {
        Answer::wait(async move { Ok(self.kept.copy_unless_abandoned(range).await) })
    }

    fn limit(&self, set: &ChunkSet) -> IoResult<()> {
        self.kept.limit(set);
        Ok(())
    }

    fn left(&self) -> IoResult<ChunkSet> {
        Ok(self.kept.left())
    }

    fn join(&self, line: Arc<MomentLine>) -> Answer<'_, IoResult<()>> {
        self.kept.join(line);
        Answer::ready(Ok(()))
    }
}

impl Lifecycle for CopyBeforeWrite {
    /// What waits for a target that may never answer is what keeps the moment: that is given up, and the writes go on.
    fn cancel_in_flight(&self) {
        self.kept.abandon();
    }

    fn reopen_prepare(&self, _request: ReopenRequest) -> Answer<'_, Result<()>> {
        Answer::ready(Err(not_supported("copy-before-write", &self.node_name)))
    }

    fn exchange_prepare(&self, slots: &[ChildSlot]) -> Answer<'_, Result<()>> {
        // What is put above the child shows what that shows; but the moment is where it was copied to.
        match slots.iter().all(|slot| *slot == ChildSlot::FILE) {
            true => Answer::ready(Ok(())),
            false => Answer::ready(Err(Error::new(
                ErrorKind::Unsupported,
                "The moment that is kept in the target cannot be exchanged",
            ))),
        }
    }

    fn saved_state(&self) -> Option<&dyn SavesState> {
        Some(self)
    }

    fn depart(&self) -> Moved {
        let state = (self.node_name.clone(), self.kept.state());
        Moved::new(state, |(node_name, state), children, ring| {
            Rc::new(CopyBeforeWrite::new(node_name, arrived(children), ring, state))
        })
    }

    fn close(&self) -> Answer<'_, Result<()>> {
        Answer::ready(Ok(()))
    }
}
