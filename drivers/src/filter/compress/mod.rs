//! `compress`: a filter whose writes are stored compressed by the format below.
//!
//! A format compresses whole clusters, so the node asks for requests of whole clusters: a smaller write is completed with
//! what is there already.

use std::cell::Cell;
use std::rc::Rc;

use futures_util::future::LocalBoxFuture;
use millpond_messages::global_state::Options;
use millpond_messages::io::Preallocation;
use millpond_messages::{ChildSlot, Error, ErrorKind, IoError, IoResult, Limits, RequestFlags, Result, Role};

use crate::api::reopen::not_supported;
use crate::api::{
    Abilities, Ability, Answer, At, Child, ChildKind, Driver, DriverKind, Exchanged, Extent, OpenRequest,
    Opened, OptionNames, Parcel, Placement, Purpose, ReopenRequest, Ticket, Transfer, parse_options,
};
use millpond_ring::Ring;
use millpond_ring::buffer::Buffers;

const CHILD: ChildKind = ChildKind {
    name: "file",
    role: Role::FILTERED.union(Role::PRIMARY),
    required: true,
};

/// The driver `compress`.
#[derive(Debug, Clone, Copy, Default)]
pub struct CompressKind;

/// There are no options but the child.
#[derive(Debug, serde::Deserialize)]
#[serde(deny_unknown_fields)]
struct CompressOptions {}

impl DriverKind for CompressKind {
    fn name(&self) -> &'static str {
        "compress"
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

    fn check_options(&self, options: &Options, _numbered: usize) -> Result<()> {
        parse_options::<CompressOptions>(options.clone()).map(|CompressOptions {}| ())
    }

    fn open(&self, request: OpenRequest) -> LocalBoxFuture<'static, Result<Opened>> {
        Box::pin(async move {
            let [file]: [Child; 1] = request
                .children
                .try_into()
                .map_err(|_| Error::new(ErrorKind::InvalidArgument, "Parameter 'file' is missing"))?;
            check_compresses(&file)?;
            let driver = Compress {
                node_name: request.node_name,
                file,
                cluster_size: Cell::new(1),
            };
            Ok(Opened {
                driver: Rc::new(driver),
                flags: request.flags,
                backing: None,
            })
        })
    }
}

fn check_compresses(file: &Child) -> Result<()> {
    if file.takes_compressed() {
        return Ok(());
    }
    let format = file.driver_name().unwrap_or("(no format)");
    Err(Error::new(
        ErrorKind::Unsupported,
        format!("Compression is not supported for underlying format: {format}"),
    ))
}

/// An open node.
struct Compress {
    node_name: String,
    file: Child,
    /// As last seen: a child of another iothread does not tell.
    cluster_size: Cell<u32>,
}

impl Driver for Compress {
    fn abilities(&self) -> Abilities {
        if let Some(info) = self.file.info() {
            let cluster_size = u32::try_from(info.cluster_size).unwrap_or(1);
            self.cluster_size.set(cluster_size.max(1));
        }
        Abilities {
            limits: Limits {
                request_alignment: self.cluster_size.get(),
                ..Limits::default()
            },
            write_zeroes: Ability::Native,
            zero_unmap: true,
            discard: Ability::Native,
            fua: Ability::Native,
            transparent: true,
            ..Abilities::default()
        }
    }

    fn locate(&self, _purpose: Purpose, offset: u64, len: u64) -> Answer<'_, IoResult<Extent>> {
        let slot = ChildSlot::FILE;
        Answer::ready(Ok(Extent::new(len, At::Child { slot, offset })))
    }

    fn read(
        self: Rc<Self>,
        _offset: u64,
        buffers: Buffers,
        _flags: RequestFlags,
    ) -> Answer<'static, Transfer> {
        // Nothing is said to be here.
        Answer::ready((Err(IoError::NotSupported), buffers))
    }

    fn place(&self, _offset: u64, len: u64, _flags: RequestFlags) -> Answer<'_, IoResult<Placement>> {
        // Writes pass through here, to be told to compress.
        Answer::ready(Ok(Placement::own(len)))
    }

    fn settle(&self, _ticket: Ticket, written: IoResult<()>) -> Answer<'_, IoResult<()>> {
        Answer::ready(written)
    }

    fn write(
        self: Rc<Self>,
        offset: u64,
        buffers: Buffers,
        flags: RequestFlags,
    ) -> Answer<'static, Transfer> {
        let flags = flags & (RequestFlags::FUA | RequestFlags::WRITE_UNCHANGED);
        let flags = flags | RequestFlags::WRITE_COMPRESSED;
        Answer::wait(async move { self.file.write(offset, buffers, flags).await })
    }

    fn write_zeroes(&self, offset: u64, len: u64, flags: RequestFlags) -> Answer<'_, IoResult<()>> {
        let flags = flags.difference(RequestFlags::SERIALISING | RequestFlags::NO_WAIT);
        Answer::wait(self.file.write_zeroes(offset, len, flags))
    }

    fn discard(&self, offset: u64, len: u64) -> Answer<'_, IoResult<()>> {
        Answer::wait(self.file.discard(offset, len))
    }

    fn flush(&self) -> Answer<'_, IoResult<()>> {
        // The node flushes the child.
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
        Answer::ready(Err(not_supported("compress", &self.node_name)))
    }

    fn exchange_prepare(&self, _slots: &[ChildSlot]) -> Answer<'_, Result<()>> {
        Answer::ready(Ok(()))
    }

    /// The cluster size is asked for with the abilities.
    fn exchange(self: Rc<Self>, _slots: &[ChildSlot]) -> Answer<'static, Result<Exchanged>> {
        Answer::ready(check_compresses(&self.file).map(|()| Exchanged::nothing()))
    }

    fn depart(&self) -> Box<dyn Parcel> {
        Box::new(Travelling {
            node_name: self.node_name.clone(),
            cluster_size: self.cluster_size.get(),
        })
    }

    fn close(&self) -> Answer<'_, Result<()>> {
        Answer::ready(Ok(()))
    }
}

/// A node between iothreads.
struct Travelling {
    node_name: String,
    cluster_size: u32,
}

impl Parcel for Travelling {
    fn arrive(self: Box<Self>, children: Vec<Child>, _ring: Ring) -> Rc<dyn Driver> {
        let file = children.into_iter().next();
        // The graph carries the edges along with the driver, so the one edge there was is there again.
        let file = file.unwrap_or_else(|| unreachable!("a compress node lost its edge while moving"));
        Rc::new(Compress {
            node_name: self.node_name,
            file,
            cluster_size: Cell::new(self.cluster_size),
        })
    }
}
