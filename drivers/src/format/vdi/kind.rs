//! The driver's description for the registry.

use std::rc::Rc;

use futures_util::future::LocalBoxFuture;
use millpond_messages::{Error, Result, Role};

use super::create::create;
use super::driver::Vdi;
use super::header::{COUNT_AT, HEADER_LEN, Header, is_vdi};
use crate::api::{Child, ChildKind, CreateRequest, DriverKind, OpenRequest, Opened, OptionNames, declared};
use crate::format::blocks::{Blocks, Head};

const CHILDREN: [ChildKind; 1] = [ChildKind::file(Role::IMAGE)];

/// The driver `vdi`, for images of VirtualBox.
#[derive(Debug, Clone, Copy, Default)]
pub struct VdiKind;

/// What an image's file says of it.
pub(super) async fn read(file: &Child) -> Result<(u64, Blocks)> {
    let read = file.read_vec(0, HEADER_LEN).await;
    let bytes = read
        .map_err(|error| Error::io("Could not read VDI header", error))?
        .to_vec();
    let header = Header::parse(&bytes)?;
    let head = Head {
        bytes,
        count_at: COUNT_AT,
    };
    Ok((header.size, Blocks::new(header.layout, head, header.count)))
}

impl DriverKind for VdiKind {
    fn name(&self) -> &'static str {
        "vdi"
    }

    fn create_option_names(&self) -> OptionNames {
        OptionNames::Checked
    }

    fn children(&self) -> &'static [ChildKind] {
        &CHILDREN
    }

    fn is_protocol(&self) -> bool {
        false
    }

    fn prepares_permissions(&self) -> bool {
        false
    }

    fn probe(&self, head: &[u8]) -> u8 {
        if is_vdi(head) { 100 } else { 0 }
    }

    fn open(&self, request: OpenRequest) -> LocalBoxFuture<'static, Result<Opened>> {
        Box::pin(async move {
            let [file] = declared(request.children)?;
            let (size, blocks) = read(&file).await?;
            Ok(Opened {
                driver: Rc::new(Vdi::new(request.options, file, size, blocks)),
                flags: request.flags,
                backing: None,
            })
        })
    }

    fn creates(&self) -> bool {
        true
    }

    fn create(&self, request: CreateRequest) -> LocalBoxFuture<'static, Result<()>> {
        Box::pin(create(request))
    }
}
