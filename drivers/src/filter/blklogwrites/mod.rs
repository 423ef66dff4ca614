//! `blklogwrites`: a filter that logs what is written, in order, in the form of the kernel's dm-log-writes target.
//!
//! From a log, the image can be brought to the state it was in after any of the requests: so tools check that it could be
//! used had the power failed there. What is written goes to `file` first and then to `log`, also where the first fails.

mod format;
mod log;
mod options;
mod saved;

use std::rc::Rc;

use futures_util::future::LocalBoxFuture;
use millpond_messages::{ChildSlot, IoError, IoResult, Limits, Range, RequestFlags, Result, Role};
use millpond_ring::buffer::Buffers;

use crate::api::bytes_in;
use crate::api::reopen::not_supported;
use crate::api::{
    Abilities, Ability, Answer, ChildKind, Driver, DriverKind, Exchanged, Lifecycle, Moved, OpenRequest,
    Opened, OptionNames, PassThrough, ReopenRequest, SavesState, Transfer, arrived, declared,
};
use crate::delegate;
use format::Kind;
use log::{Data, Log, Progress};
use options::LogOptions;

const LOG: ChildKind = ChildKind::named("log", Role::METADATA);

/// The place of `log` in [`BlklogwritesKind::children`].
const LOG_SLOT: ChildSlot = ChildSlot(1);

/// The driver `blklogwrites`, which logs writes.
#[derive(Debug, Clone, Copy, Default)]
pub struct BlklogwritesKind;

impl DriverKind for BlklogwritesKind {
    fn name(&self) -> &'static str {
        "blklogwrites"
    }

    fn option_names(&self) -> OptionNames {
        OptionNames::Checked
    }

    fn children(&self) -> &'static [ChildKind] {
        &[ChildKind::FILTERED, LOG]
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

    fn flushes_to_disk(&self) -> bool {
        true
    }

    fn open(&self, request: OpenRequest) -> LocalBoxFuture<'static, Result<Opened>> {
        Box::pin(async move {
            let options = LogOptions::parse(request.options)?;
            let [file, log] = declared(request.children)?;
            let progress = Progress::start(&options, &log).await?;
            options.check()?;
            let driver = Blklogwrites {
                node_name: request.node_name,
                below: PassThrough::new(file),
                log: Log::new(progress, log),
                options,
            };
            Ok(Opened {
                driver: Rc::new(driver),
                flags: request.flags,
                backing: None,
            })
        })
    }
}

/// A node of the driver that is open.
struct Blklogwrites {
    node_name: String,
    below: PassThrough,
    log: Log,
    options: LogOptions,
}

impl Blklogwrites {
    /// Logs what was done to the file, and tells how it ended: the log's failure counts more.
    async fn logged(&self, kind: Kind, range: Range, data: Data, done: IoResult<()>) -> IoResult<()> {
        self.log
            .add(kind, range.offset(), range.len(), data)
            .await
            .0
            .and(done)
    }
}

impl Driver for Blklogwrites {
    delegate!(below: locate, read, place_here, settle, truncate, length, allocated_size);

    fn abilities(&self) -> Abilities {
        Abilities {
            limits: Limits {
                request_alignment: self.log.sector().bytes(),
                ..Limits::default()
            },
            zero_unmap: false,
            fua: Ability::Emulated,
            ..self.below.abilities()
        }
    }

    fn write(
        self: Rc<Self>,
        offset: u64,
        buffers: Buffers,
        flags: RequestFlags,
    ) -> Answer<'static, Transfer> {
        Answer::wait(async move {
            let len = bytes_in(&buffers);
            let (done, buffers) = self.below.write(offset, buffers, flags).await;
            let data = Data::Bytes(buffers);
            let (logged, buffers) = self.log.add(Kind::Write, offset, len, data).await;
            (logged.and(done), buffers)
        })
    }

    fn write_zeroes(&self, range: Range, flags: RequestFlags) -> Answer<'_, IoResult<()>> {
        if flags.contains(RequestFlags::NO_FALLBACK) {
            return Answer::ready(Err(IoError::NotSupported));
        }
        let flags = flags & RequestFlags::WRITE_UNCHANGED;
        Answer::wait(async move {
            let done = self.below.write_zeroes(range, flags).await;
            self.logged(Kind::Write, range, Data::Zeroes(range.len()), done)
                .await
        })
    }

    fn discard(&self, range: Range) -> Answer<'_, IoResult<()>> {
        Answer::wait(async move {
            let done = self.below.discard(range).await;
            self.logged(Kind::Discard, range, Data::None, done).await
        })
    }

    fn flush(&self) -> Answer<'_, IoResult<()>> {
        Answer::wait(async move {
            let done = self.below.child().flush().await;
            self.logged(Kind::Flush, Range::default(), Data::None, done).await
        })
    }
}

impl Lifecycle for Blklogwrites {
    fn reopen_prepare(&self, _request: ReopenRequest) -> Answer<'_, Result<()>> {
        Answer::ready(Err(not_supported("blklogwrites", &self.node_name)))
    }

    fn exchange_prepare(&self, _slots: &[ChildSlot]) -> Answer<'_, Result<()>> {
        // The flush that follows brings the log's superblock up to date.
        Answer::ready(Ok(()))
    }

    /// What goes on in another file is logged where the last entry was; another log begins as the options say.
    fn exchange(self: Rc<Self>, slots: &[ChildSlot]) -> Answer<'static, Result<Exchanged>> {
        if !slots.contains(&LOG_SLOT) {
            return Answer::ready(Ok(Exchanged::nothing()));
        }
        Answer::wait(async move {
            let old = self.log.start(&self.options).await?;
            Ok(Exchanged::with_old_state(move || self.log.go_on(old)))
        })
    }

    fn saved_state(&self) -> Option<&dyn SavesState> {
        Some(self)
    }

    fn depart(&self) -> Moved {
        // Nothing is in flight, so no superblock is being written.
        let state = (self.node_name.clone(), self.log.progress(), self.options.clone());
        Moved::new(state, |(node_name, progress, options), children, _| {
            let [file, log] = arrived(children);
            Rc::new(Blklogwrites {
                node_name,
                below: PassThrough::new(file),
                log: Log::new(progress, log),
                options,
            })
        })
    }

    fn close(&self) -> Answer<'_, Result<()>> {
        Answer::ready(Ok(()))
    }
}
