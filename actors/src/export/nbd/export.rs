//! An export on the NBD server, as the registry sees it.

use std::sync::Arc;

use futures_util::FutureExt;
use futures_util::future::LocalBoxFuture;
use millpond_messages::graph::{BitmapHold, ShownBitmap};
use millpond_messages::nbd::MAX_STRING;
use millpond_messages::qapi::{BlockDirtyBitmapOrStr, BlockExportType, NbdExportOptions};
use millpond_messages::saved::SavedExportKind;
use millpond_messages::{Error, ErrorKind, Limits, Result, SECTOR_SIZE};

use super::dirty;
use super::offer::Offer;
use super::server::{NbdServer, OfferId};
use crate::export::kind::{Export, Hold, Prepared};
use crate::export::saved::Descriptors;
use crate::graph::GraphHandle;

/// An NBD export that is being made: its name is taken.
struct NbdPrepared {
    server: NbdServer,
    graph: GraphHandle,
    name: String,
    options: NbdExportOptions,
}

struct NbdExport {
    server: NbdServer,
    id: OfferId,
    offer: Arc<Offer>,
}

/// Checks the options of an NBD export that is to be called `name`.
///
/// # Errors
/// In this order, with QEMU's texts: the server does not run, a text is too long, the name is taken.
pub(crate) fn prepare(
    server: &NbdServer,
    graph: &GraphHandle,
    name: &str,
    options: &NbdExportOptions,
) -> Result<Box<dyn Prepared>> {
    server.check_listens()?;
    if name.len() > MAX_STRING {
        return Err(invalid(format!("export name '{name}' too long")));
    }
    let description = options.description.as_deref();
    if let Some(text) = description.filter(|text| text.len() > MAX_STRING) {
        return Err(invalid(format!("description '{text}' too long")));
    }
    server.reserve(name)?;
    let prepared = NbdPrepared {
        server: server.clone(),
        graph: graph.clone(),
        name: name.to_owned(),
        options: options.clone(),
    };
    Ok(Box::new(prepared))
}

/// A bitmap as its user names it.
fn shown(bitmap: &BlockDirtyBitmapOrStr) -> ShownBitmap {
    match bitmap {
        BlockDirtyBitmapOrStr::Local(name) => ShownBitmap::InChain(name.clone()),
        BlockDirtyBitmapOrStr::External(bitmap) => ShownBitmap::Of(bitmap.clone().into()),
    }
}

fn invalid(text: String) -> Error {
    Error::new(ErrorKind::InvalidArgument, text)
}

impl Drop for NbdPrepared {
    fn drop(&mut self) {
        self.server.release(&self.name);
    }
}

impl NbdPrepared {
    async fn offer(&self, hold: &Hold<'_>) -> Result<(OfferId, Arc<Offer>)> {
        let size = hold
            .client
            .length()
            .await
            .map_err(|error| Error::io("Failed to determine the NBD export's length", error))?;
        let limits = hold
            .node
            .as_ref()
            .map_or_else(Limits::default, |node| node.limits);
        let writable = hold.options.writable.unwrap_or(false);
        let bitmaps = self.options.bitmaps.iter().flatten();
        let bitmaps = BitmapHold {
            root: hold.client.root(),
            bitmaps: bitmaps.map(shown).collect(),
            writable,
        };
        let bitmaps = dirty::hold(&self.graph, bitmaps).await?;
        self.server.offer(hold.seats(), |multi_conn| Offer {
            name: self.name.clone(),
            description: self.options.description.clone(),
            size: size - size % SECTOR_SIZE,
            flags: Offer::base_flags(writable, multi_conn),
            request_alignment: limits.request_alignment.max(1),
            max_transfer: limits.max_transfer,
            allocation_depth: self.options.allocation_depth.unwrap_or(false),
            bitmaps,
        })
    }
}

impl Prepared for NbdPrepared {
    fn start<'a>(&'a self, hold: &'a Hold<'a>) -> LocalBoxFuture<'a, Result<Box<dyn Export>>> {
        async move {
            let (id, offer) = self.offer(hold).await?;
            let server = self.server.clone();
            Ok(Box::new(NbdExport { server, id, offer }) as Box<dyn Export>)
        }
        .boxed_local()
    }
}

impl Export for NbdExport {
    fn kind(&self) -> BlockExportType {
        BlockExportType::Nbd
    }

    fn name(&self) -> &str {
        &self.offer.name
    }

    fn is_used(&self) -> bool {
        self.server.is_used(self.id)
    }

    fn over(&self) -> Option<LocalBoxFuture<'static, ()>> {
        None
    }

    fn save(&self, descriptors: &Descriptors) -> LocalBoxFuture<'static, SavedExportKind> {
        let offer = Arc::clone(&self.offer);
        self.server.save_export(self.id, offer, descriptors).boxed_local()
    }

    fn shut_down(&self) -> LocalBoxFuture<'static, ()> {
        self.server.withdraw(self.id);
        let (server, id) = (self.server.clone(), self.id);
        async move { server.forget(id).await }.boxed_local()
    }
}
