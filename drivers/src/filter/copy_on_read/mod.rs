//! `copy-on-read`: a filter whose reads copy into its child what the child only has from below.

use std::rc::Rc;

use futures_util::future::LocalBoxFuture;
use millpond_messages::global_state::Options;
use millpond_messages::io::{Operation, Preallocation};
use millpond_messages::{
    ChildSlot, Error, ErrorKind, IoError, IoResult, Permissions, RequestFlags, Result, Role,
};

use crate::api::reopen::not_supported;
use crate::api::{
    Abilities, Ability, Answer, At, Child, ChildKind, Driver, DriverKind, EdgeUse, Events, Extent,
    OpenRequest, Opened, OptionNames, Parcel, Placement, Purpose, ReopenRequest, Target, Ticket, Transfer,
    parse_options, transfer,
};
use millpond_ring::Ring;
use millpond_ring::buffer::Buffers;

const CHILD: ChildKind = ChildKind {
    name: "file",
    role: Role::FILTERED.union(Role::PRIMARY),
    required: true,
};

/// What a user of the node may do that the child is asked for as well.
const PASSED: Permissions = Permissions::CONSISTENT_READ
    .union(Permissions::WRITE)
    .union(Permissions::RESIZE);

/// The driver `copy-on-read`.
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
        &[CHILD]
    }

    fn is_protocol(&self) -> bool {
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
            let [file]: [Child; 1] = request.children.try_into().map_err(|_| missing_file())?;
            let CorOptions { bottom } = parse_options(request.options)?;
            let driver = Rc::new(CopyOnRead {
                node_name: request.node_name,
                bottom,
                file,
            });
            Ok(Opened {
                driver,
                flags: request.flags,
                backing: None,
            })
        })
    }
}

fn missing_file() -> Error {
    Error::new(ErrorKind::InvalidArgument, "Parameter 'file' is missing")
}

/// An open node.
struct CopyOnRead {
    node_name: String,
    /// The last node of the chain from which data is copied; all of them if there is none.
    bottom: Option<String>,
    file: Child,
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
            let status = match self.file.block_status(offset, len, false, true).await {
                Ok(status) if status.len > 0 => status,
                Ok(_) => return (Err(IoError::Corrupt), joined(filled, rest)),
                // Another process has the image: it can be read, and nothing is copied.
                Err(IoError::NotPermitted) => {
                    let (result, rest) = self.pass_on(offset, rest, flags).await;
                    return (result, joined(filled, rest));
                }
                Err(error) => return (Err(error), joined(filled, rest)),
            };
            // Without an answer all is copied: that is what was wanted before anybody set a bound.
            let last = self.file.chain_index(bottom).unwrap_or(u32::MAX);
            let copied = status.depth > 1 && status.depth <= last;
            let piece = rest.split_to(usize::try_from(status.len.min(len)).unwrap_or(usize::MAX));
            let mut piece_flags = flags;
            piece_flags.set(RequestFlags::COPY_ON_READ, copied);
            let (result, piece) = if !copied && flags.contains(RequestFlags::PREFETCH) {
                (Ok(()), piece)
            } else {
                self.pass_on(offset, piece, piece_flags).await
            };
            filled.append(piece);
            if result.is_err() {
                return (result, joined(filled, rest));
            }
            offset = offset.saturating_add(status.len.min(len));
        }
        (Ok(()), filled)
    }

    async fn pass_on(&self, offset: u64, buffers: Buffers, flags: RequestFlags) -> Transfer {
        let read = Operation::Read {
            offset,
            buffers,
            flags,
        };
        transfer(self.file.request(read).await)
    }
}

fn joined(mut filled: Buffers, rest: Buffers) -> Buffers {
    filled.append(rest);
    filled
}

impl Driver for CopyOnRead {
    fn abilities(&self) -> Abilities {
        Abilities {
            write_zeroes: Ability::Native,
            zero_unmap: true,
            discard: Ability::Native,
            fua: Ability::Native,
            write_compressed: true,
            transparent: true,
            events: Events::Ignored,
            ..Abilities::default()
        }
    }

    fn locate(&self, purpose: Purpose, offset: u64, len: u64) -> Answer<'_, IoResult<Extent>> {
        // Reads pass through here, to be told to copy.
        let at = match purpose {
            Purpose::Read => At::Own,
            Purpose::Status { .. } => At::Child {
                slot: ChildSlot::FILE,
                offset,
            },
        };
        Answer::ready(Ok(Extent::new(len, at)))
    }

    fn read(self: Rc<Self>, offset: u64, buffers: Buffers, flags: RequestFlags) -> Answer<'static, Transfer> {
        Answer::wait(async move {
            match &self.bottom {
                None => {
                    self.pass_on(offset, buffers, flags | RequestFlags::COPY_ON_READ)
                        .await
                }
                Some(bottom) => self.read_above(bottom, offset, buffers, flags).await,
            }
        })
    }

    fn place(&self, offset: u64, len: u64, _flags: RequestFlags) -> Answer<'_, IoResult<Placement>> {
        Answer::ready(Ok(Placement {
            len,
            target: Target::Child {
                slot: ChildSlot::FILE,
                offset,
            },
            head: 0,
            tail: 0,
            ticket: None,
        }))
    }

    fn settle(&self, _ticket: Ticket, written: IoResult<()>) -> Answer<'_, IoResult<()>> {
        Answer::ready(written)
    }

    fn write(
        self: Rc<Self>,
        _offset: u64,
        buffers: Buffers,
        _flags: RequestFlags,
    ) -> Answer<'static, Transfer> {
        // Nothing is placed here.
        Answer::ready((Err(IoError::NotSupported), buffers))
    }

    fn write_zeroes(&self, offset: u64, len: u64, flags: RequestFlags) -> Answer<'_, IoResult<()>> {
        let flags = flags.difference(RequestFlags::SERIALISING | RequestFlags::NO_WAIT);
        Answer::wait(self.file.write_zeroes(offset, len, flags))
    }

    fn discard(&self, offset: u64, len: u64) -> Answer<'_, IoResult<()>> {
        Answer::wait(self.file.discard(offset, len))
    }

    fn flush(&self) -> Answer<'_, IoResult<()>> {
        Answer::ready(Ok(()))
    }

    fn truncate(
        &self,
        size: u64,
        exact: bool,
        preallocation: Preallocation,
        flags: RequestFlags,
    ) -> Answer<'_, Result<()>> {
        Answer::wait(self.file.resize(size, exact, preallocation, flags))
    }

    fn length(&self) -> Answer<'_, IoResult<u64>> {
        Answer::wait(self.file.length())
    }

    fn allocated_size(&self) -> Answer<'_, IoResult<u64>> {
        Answer::ready(Err(IoError::NotSupported))
    }

    fn reopen_prepare(&self, _request: ReopenRequest) -> Answer<'_, Result<()>> {
        Answer::ready(Err(not_supported("copy-on-read", &self.node_name)))
    }

    fn exchange_prepare(&self, _slots: &[ChildSlot]) -> Answer<'_, Result<()>> {
        // Nothing of what the children hold is kept here.
        Answer::ready(Ok(()))
    }

    fn depart(&self) -> Box<dyn Parcel> {
        Box::new(Travelling {
            node_name: self.node_name.clone(),
            bottom: self.bottom.clone(),
        })
    }

    fn close(&self) -> Answer<'_, Result<()>> {
        Answer::ready(Ok(()))
    }
}

/// A node between iothreads.
struct Travelling {
    node_name: String,
    bottom: Option<String>,
}

impl Parcel for Travelling {
    fn arrive(self: Box<Self>, children: Vec<Child>, _ring: Ring) -> Rc<dyn Driver> {
        let file = children.into_iter().next();
        // The graph carries the edges along with the driver, so the one edge there was is there again.
        let file = file.unwrap_or_else(|| unreachable!("a copy-on-read node lost its edge while moving"));
        Rc::new(CopyOnRead {
            node_name: self.node_name,
            bottom: self.bottom,
            file,
        })
    }
}
