//! An open image: the data path, and the life of the node.

use std::cell::{Cell, RefCell};
use std::rc::Rc;

use millpond_messages::graph::Options;
use millpond_messages::io::Preallocation;
use millpond_messages::{
    CheckResult, ChildSlot, DriverInfo, Error, ErrorKind, IoError, IoResult, Range, Repair, RequestFlags,
    Result,
};
use millpond_ring::buffer::Buffers;

use super::header::BLOCK;
use super::kind::read;
use crate::api::reopen::check_unchanged;
use crate::api::{
    Abilities, Ability, AllocationTicket, Answer, Child, DebugEvents, Driver, Exchanged, Extent, Image,
    LengthSource, Lifecycle, Moved, Placement, Purpose, ReopenRequest, SavesState, Transfer, arrived,
};
use crate::format::blocks::Blocks;

/// An image that is open, as a driver.
pub(super) struct Vdi {
    options: Options,
    pub(super) file: Child,
    size: Cell<u64>,
    blocks: RefCell<Rc<Blocks>>,
}

impl Vdi {
    pub fn new(options: Options, file: Child, size: u64, blocks: Blocks) -> Self {
        Self {
            options,
            file,
            size: Cell::new(size),
            blocks: RefCell::new(Rc::new(blocks)),
        }
    }

    pub(super) fn blocks(&self) -> Rc<Blocks> {
        Rc::clone(&self.blocks.borrow())
    }

    /// Brings the file up to date.
    async fn write_back(&self) -> Result<()> {
        let written = async {
            self.blocks().write_back(&self.file).await?;
            Ok(())
        };
        written
            .await
            .map_err(|error| Error::io("Failed to write back the image's metadata", error))
    }

    /// Reads the image anew; answers what it was before.
    async fn read_again(&self) -> Result<(u64, Rc<Blocks>)> {
        let (size, blocks) = read(&self.file).await?;
        Ok((self.size.replace(size), self.blocks.replace(Rc::new(blocks))))
    }
}

impl Driver for Vdi {
    fn abilities(&self) -> Abilities {
        Abilities {
            write_zeroes: Ability::Emulated,
            discard: Ability::None,
            fua: Ability::Emulated,
            has_zero_init: true,
            events: DebugEvents::Forward,
            length: LengthSource::Requests,
            ..Abilities::default()
        }
    }

    fn locate(&self, _purpose: Purpose, range: Range) -> Answer<'_, IoResult<Extent>> {
        let blocks = self.blocks();
        match blocks.locate_now(range) {
            Some(extent) => Answer::ready(Ok(extent)),
            None => Answer::wait(async move { blocks.locate(&self.file, range).await }),
        }
    }

    fn read(
        self: Rc<Self>,
        _offset: u64,
        buffers: Buffers,
        _flags: RequestFlags,
    ) -> Answer<'static, Transfer> {
        Answer::ready((Err(IoError::NotSupported), buffers))
    }

    fn place(&self, range: Range, _flags: RequestFlags) -> Answer<'_, IoResult<Placement>> {
        let blocks = self.blocks();
        match blocks.place_now(range) {
            Some(placement) => Answer::ready(Ok(placement)),
            None => Answer::wait(async move { blocks.place(&self.file, range).await }),
        }
    }

    fn settle(&self, ticket: AllocationTicket, written: IoResult<()>) -> Answer<'_, IoResult<()>> {
        let blocks = self.blocks();
        Answer::wait(async move { blocks.settle(&self.file, ticket, written).await })
    }

    fn write(
        self: Rc<Self>,
        _offset: u64,
        buffers: Buffers,
        _flags: RequestFlags,
    ) -> Answer<'static, Transfer> {
        Answer::ready((Err(IoError::NotSupported), buffers))
    }

    fn write_zeroes(&self, _range: Range, _flags: RequestFlags) -> Answer<'_, IoResult<()>> {
        Answer::ready(Err(IoError::NotSupported))
    }

    fn discard(&self, _range: Range) -> Answer<'_, IoResult<()>> {
        Answer::ready(Err(IoError::NotSupported))
    }

    fn flush(&self) -> Answer<'_, IoResult<()>> {
        let blocks = self.blocks();
        if !blocks.is_changed() {
            return Answer::ready(Ok(()));
        }
        Answer::wait(async move { blocks.write_back(&self.file).await })
    }

    fn truncate(
        &self,
        _size: u64,
        _exact: bool,
        _preallocation: Preallocation,
        _flags: RequestFlags,
    ) -> Answer<'_, Result<()>> {
        Answer::ready(Err(Error::new(
            ErrorKind::Unsupported,
            "Image format driver does not support resize",
        )))
    }

    fn length(&self) -> Answer<'_, IoResult<u64>> {
        Answer::ready(Ok(self.size.get()))
    }

    fn allocated_size(&self) -> Answer<'_, IoResult<u64>> {
        Answer::ready(Err(IoError::NotSupported))
    }

    fn image(&self) -> &dyn Image {
        self
    }
}

impl Image for Vdi {
    fn info(&self) -> DriverInfo {
        DriverInfo {
            cluster_size: BLOCK,
            ..DriverInfo::default()
        }
    }

    fn check(&self, repair: Repair) -> Answer<'_, Result<CheckResult>> {
        Answer::wait(self.check_table(repair))
    }
}

impl Lifecycle for Vdi {
    fn reopen_prepare(&self, request: ReopenRequest) -> Answer<'_, Result<()>> {
        if let Err(error) = check_unchanged(&self.options, &request.options, &[]) {
            return Answer::ready(Err(error));
        }
        // The node may be read-only afterwards.
        Answer::wait(self.write_back())
    }

    fn invalidate(&self) -> Answer<'_, Result<()>> {
        Answer::wait(async move {
            self.write_back().await?;
            self.read_again().await.map(drop)
        })
    }

    fn exchange_prepare(&self, _slots: &[ChildSlot]) -> Answer<'_, Result<()>> {
        Answer::wait(self.write_back())
    }

    fn exchange(self: Rc<Self>, _slots: &[ChildSlot]) -> Answer<'static, Result<Exchanged>> {
        Answer::wait(async move {
            let (size, blocks) = self.read_again().await?;
            Ok(Exchanged::with_old_state(move || {
                self.size.set(size);
                self.blocks.replace(blocks);
            }))
        })
    }

    fn saved_state(&self) -> Option<&dyn SavesState> {
        Some(self)
    }

    fn depart(&self) -> Moved {
        let state = (self.options.clone(), self.size.get(), self.blocks().depart());
        Moved::new(state, |(options, size, blocks), children, _| {
            let [file] = arrived(children);
            Rc::new(Vdi::new(options, file, size, Blocks::arrive(blocks)))
        })
    }

    fn close(&self) -> Answer<'_, Result<()>> {
        Answer::wait(self.write_back())
    }
}
