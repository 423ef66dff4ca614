//! `compress`: a filter whose writes are stored compressed by the format below.
//!
//! A format compresses whole clusters, so the node asks for requests of whole clusters: a smaller write is completed with
//! what is there already.

use std::cell::Cell;
use std::rc::Rc;

use futures_util::future::LocalBoxFuture;
use millpond_messages::graph::Options;
use millpond_messages::{ChildSlot, Error, ErrorKind, Limits, RequestFlags, Result};
use millpond_ring::buffer::Buffers;

use crate::api::reopen::not_supported;
use crate::api::{
    Abilities, Answer, Child, ChildKind, Driver, DriverKind, Exchanged, Lifecycle, Moved, OpenRequest,
    Opened, OptionNames, PassThrough, ReopenRequest, SavesState, Transfer, parse_options,
};
use crate::delegate;

/// The driver `compress`, which writes compressed.
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

    fn check_options(&self, options: &Options, _numbered: usize) -> Result<()> {
        parse_options::<CompressOptions>(options.clone()).map(|CompressOptions {}| ())
    }

    fn open(&self, request: OpenRequest) -> LocalBoxFuture<'static, Result<Opened>> {
        Box::pin(async move {
            let below = PassThrough::to_only(request.children)?;
            check_compresses(below.child())?;
            let driver = Compress {
                node_name: request.node_name,
                below,
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

/// A node of the driver that is open.
struct Compress {
    node_name: String,
    below: PassThrough,
    /// The cluster size as it was last seen: that of a child on another iothread is not known.
    cluster_size: Cell<u32>,
}

impl Driver for Compress {
    // Writes come here, to be told to compress.
    delegate!(below: locate, read, place_here, settle, write_zeroes, discard, flush, truncate, length, allocated_size);

    fn abilities(&self) -> Abilities {
        if let Some(info) = self.below.child().info() {
            let cluster_size = u32::try_from(info.cluster_size).unwrap_or(1);
            self.cluster_size.set(cluster_size.max(1));
        }
        Abilities {
            limits: Limits {
                request_alignment: self.cluster_size.get(),
                ..Limits::default()
            },
            ..self.below.abilities()
        }
    }

    fn write(
        self: Rc<Self>,
        offset: u64,
        buffers: Buffers,
        flags: RequestFlags,
    ) -> Answer<'static, Transfer> {
        let flags = flags | RequestFlags::WRITE_COMPRESSED;
        Answer::wait(async move { self.below.write(offset, buffers, flags).await })
    }
}

impl Lifecycle for Compress {
    fn reopen_prepare(&self, _request: ReopenRequest) -> Answer<'_, Result<()>> {
        Answer::ready(Err(not_supported("compress", &self.node_name)))
    }

    fn exchange_prepare(&self, _slots: &[ChildSlot]) -> Answer<'_, Result<()>> {
        Answer::ready(Ok(()))
    }

    /// The cluster size is asked for with the abilities.
    fn exchange(self: Rc<Self>, _slots: &[ChildSlot]) -> Answer<'static, Result<Exchanged>> {
        Answer::ready(check_compresses(self.below.child()).map(|()| Exchanged::nothing()))
    }

    fn saved_state(&self) -> Option<&dyn SavesState> {
        None
    }

    fn depart(&self) -> Moved {
        let state = (self.node_name.clone(), self.cluster_size.get());
        Moved::new(state, |(node_name, cluster_size), children, _| {
            Rc::new(Compress {
                node_name,
                below: PassThrough::moved(children),
                cluster_size: Cell::new(cluster_size),
            })
        })
    }

    fn close(&self) -> Answer<'_, Result<()>> {
        Answer::ready(Ok(()))
    }
}
