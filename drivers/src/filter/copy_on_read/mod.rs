//! `copy-on-read`: a filter whose reads copy data into its child that the child only shows from its backing chain.

use std::rc::Rc;

use futures_util::future::LocalBoxFuture;
use millpond_messages::graph::Options;
use millpond_messages::{ChildSlot, IoError, Permissions, Range, RequestFlags, Result};
use millpond_ring::buffer::Buffers;

use crate::api::reopen::not_supported;
use crate::api::{
    Abilities, Answer, ChildKind, Driver, DriverKind, EdgeUse, Lifecycle, Moved, OpenRequest, Opened,
    OptionNames, PassThrough, ReopenRequest, SavesState, Transfer, parse_options,
};
use crate::delegate;

/// What a user of the node may do that the child is asked for as well.
const PASSED: Permissions = Permissions::CONSISTENT_READ
    .union(Permissions::WRITE)
    .union(Permissions::RESIZE);

/// The driver `copy-on-read`, which keeps what is read.
#[derive(Debug, Clone, Copy, Default)]
pub struct CopyOnReadKind;

/// The options as QAPI's `BlockdevOptionsCor` has them.
#[derive(Debug, serde::Deserialize)]
#[serde(deny_unknown_fields)]
struct CorOptions {
    bottom: Option<String>,
}

impl DriverKind for CopyOnReadKind {
    fn name(&self) -> &'static str {
        "copy-on-read"
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

    fn chain_bottom<'a>(&self, options: &'a Options) -> Option<&'a str> {
        options.get("bottom").and_then(serde_json::Value::as_str)
    }

    /// Reads write to the child what it shows anyway, whatever the node's own users may do.
    fn child_permissions(&self, edge: EdgeUse<'_>) -> (Permissions, Permissions) {
        let mut taken = edge.taken & PASSED;
        taken.set(Permissions::WRITE_UNCHANGED, !edge.inactive);
        let shared = if edge.force_share {
            Permissions::all()
        } else {
            (edge.shared & PASSED) | Permissions::WRITE_UNCHANGED
        };
        (taken, shared)
    }

    fn open(&self, request: OpenRequest) -> LocalBoxFuture<'static, Result<Opened>> {
        Box::pin(async move {
            let below = PassThrough::to_only(request.children)?;
            let CorOptions { bottom } = parse_options(request.options)?;
            let driver = Rc::new(CopyOnRead {
                node_name: request.node_name,
                bottom,
                below,
            });
            Ok(Opened {
                driver,
                flags: request.flags,
                backing: None,
            })
        })
    }
}

/// A node of the driver that is open.
struct CopyOnRead {
    node_name: String,
    /// The last node of the chain from which data is copied; all of them if there is none.
    bottom: Option<String>,
    below: PassThrough,
}

impl CopyOnRead {
    /// Reads, copying what comes from a node between the child and `bottom`, that one included.
    async fn read_above(
        &self,
        bottom: &str,
        mut offset: u64,
        mut rest: Buffers,
        flags: RequestFlags,
    ) -> Transfer {
        let mut filled = Buffers::new();
        while !rest.is_empty() {
            let len = u64::try_from(rest.len()).unwrap_or(u64::MAX);
            let range = Range::between(offset, offset.saturating_add(len));
            let status = match self.below.child().block_status(range, false, true).await {
                Ok(status) if status.len > 0 => status,
                Ok(_) => return (Err(IoError::Corrupt), joined(filled, rest)),
                // Another process has the image: it can be read, and nothing is copied.
                Err(IoError::NotPermitted) => {
                    let (result, rest) = self.below.read(offset, rest, flags).await;
                    return (result, joined(filled, rest));
                }
                Err(error) => return (Err(error), joined(filled, rest)),
            };
            // Without an answer all is copied: that is what was wanted before anybody set a bound.
            let last = self.below.child().chain_index(bottom).unwrap_or(u32::MAX);
            let copied = status.depth > 1 && status.depth <= last;
            let piece = rest.split_to(usize::try_from(status.len.min(len)).unwrap_or(usize::MAX));
            let mut piece_flags = flags;
            piece_flags.set(RequestFlags::COPY_ON_READ, copied);
            let (result, piece) = if !copied && flags.contains(RequestFlags::PREFETCH) {
                (Ok(()), piece)
            } else {
                self.below.read(offset, piece, piece_flags).await
            };
            filled.append(piece);
            if result.is_err() {
                return (result, joined(filled, rest));
            }
            offset = offset.saturating_add(status.len.min(len));
        }
        (Ok(()), filled)
    }
}

fn joined(mut filled: Buffers, rest: Buffers) -> Buffers {
    filled.append(rest);
    filled
}

impl Driver for CopyOnRead {
    // Reads come here, to be told to copy.
    delegate!(
        below: locate_here, place, settle, write, write_zeroes, discard, flush, truncate, length, allocated_size
    );

    fn abilities(&self) -> Abilities {
        Abilities {
            write_compressed: true,
            ..self.below.abilities()
        }
    }

    fn read(self: Rc<Self>, offset: u64, buffers: Buffers, flags: RequestFlags) -> Answer<'static, Transfer> {
        Answer::wait(async move {
            match &self.bottom {
                None => {
                    let flags = flags | RequestFlags::COPY_ON_READ;
                    self.below.read(offset, buffers, flags).await
                }
                Some(bottom) => self.read_above(bottom, offset, buffers, flags).await,
            }
        })
    }
}

impl Lifecycle for CopyOnRead {
    fn reopen_prepare(&self, _request: ReopenRequest) -> Answer<'_, Result<()>> {
        Answer::ready(Err(not_supported("copy-on-read", &self.node_name)))
    }

    fn exchange_prepare(&self, _slots: &[ChildSlot]) -> Answer<'_, Result<()>> {
        // The filter keeps nothing of what its children hold.
        Answer::ready(Ok(()))
    }

    fn saved_state(&self) -> Option<&dyn SavesState> {
        None
    }

    fn depart(&self) -> Moved {
        let state = (self.node_name.clone(), self.bottom.clone());
        Moved::new(state, |(node_name, bottom), children, _| {
            let below = PassThrough::moved(children);
            Rc::new(CopyOnRead {
                node_name,
                bottom,
                below,
            })
        })
    }

    fn close(&self) -> Answer<'_, Result<()>> {
        Answer::ready(Ok(()))
    }
}
