//! `blklogwrites`: a filter that logs what is written, in order, in the form of the kernel's dm-log-writes target.
//!
//! From a log, the image can be brought to the state it was in after any of the requests: so tools check that it could be
//! used had the power failed there. What is written goes to `file` first and then to `log`, also where the first fails.

mod format;
mod log;
mod options;

use std::rc::Rc;

use futures_util::future::LocalBoxFuture;
use millpond_messages::io::Preallocation;
use millpond_messages::{ChildSlot, Error, ErrorKind, IoError, IoResult, Limits, RequestFlags, Result, Role};

use crate::api::reopen::not_supported;
use crate::api::{
    Abilities, Ability, Answer, At, Child, ChildKind, Driver, DriverKind, Exchanged, Extent, OpenRequest,
    Opened, OptionNames, Parcel, Placement, Purpose, ReopenRequest, Ticket, Transfer,
};
use crate::replica::copies::bytes_in;
use format::Kind;
use log::{Data, Log, Progress};
use millpond_ring::Ring;
use millpond_ring::buffer::Buffers;
use options::LogOptions;

const FILE: ChildKind = ChildKind {
    name: "file",
    role: Role::FILTERED.union(Role::PRIMARY),
    required: true,
};
const LOG: ChildKind = ChildKind {
    name: "log",
    role: Role::METADATA,
    required: true,
};

/// The place of `log` in [`BlklogwritesKind::children`].
const LOG_SLOT: ChildSlot = ChildSlot(1);

/// The driver `blklogwrites`.
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
        &[FILE, LOG]
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

    fn flushes_to_disk(&self) -> bool {
        true
    }

    fn open(&self, request: OpenRequest) -> LocalBoxFuture<'static, Result<Opened>> {
        Box::pin(async move {
            let options = LogOptions::parse(request.options)?;
            let [file, log]: [Child; 2] = request
                .children
                .try_into()
                .map_err(|_| Error::new(ErrorKind::InvalidArgument, "Parameter 'file' is missing"))?;
            let progress = Progress::start(&options, &log).await?;
            options.check()?;
            let driver = Blklogwrites {
                node_name: request.node_name,
                file,
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

/// An open node.
struct Blklogwrites {
    node_name: String,
    file: Child,
    log: Log,
    options: LogOptions,
}

impl Blklogwrites {
    /// Logs what was done to the file, and tells how it ended: the log's failure counts more.
    async fn logged(
        &self,
        kind: Kind,
        offset: u64,
        len: u64,
        data: Data,
        done: IoResult<()>,
    ) -> IoResult<()> {
        self.log.add(kind, offset, len, data).await.0.and(done)
    }
}

impl Driver for Blklogwrites {
    fn abilities(&self) -> Abilities {
        Abilities {
            limits: Limits {
                request_alignment: self.log.sector().bytes(),
                ..Limits::default()
            },
            write_zeroes: Ability::Native,
            discard: Ability::Native,
            fua: Ability::Emulated,
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
        let flags = flags & RequestFlags::WRITE_UNCHANGED;
        Answer::wait(async move {
            let len = bytes_in(&buffers);
            let (done, buffers) = self.file.write(offset, buffers, flags).await;
            let data = Data::Bytes(buffers);
            let (logged, buffers) = self.log.add(Kind::Write, offset, len, data).await;
            (logged.and(done), buffers)
        })
    }

    fn write_zeroes(&self, offset: u64, len: u64, flags: RequestFlags) -> Answer<'_, IoResult<()>> {
        if flags.contains(RequestFlags::NO_FALLBACK) {
            return Answer::ready(Err(IoError::NotSupported));
        }
        let flags = flags & RequestFlags::WRITE_UNCHANGED;
        Answer::wait(async move {
            let done = self.file.write_zeroes(offset, len, flags).await;
            self.logged(Kind::Write, offset, len, Data::Zeroes(len), done)
                .await
        })
    }

    fn discard(&self, offset: u64, len: u64) -> Answer<'_, IoResult<()>> {
        Answer::wait(async move {
            let done = self.file.discard(offset, len).await;
            self.logged(Kind::Discard, offset, len, Data::None, done).await
        })
    }

    fn flush(&self) -> Answer<'_, IoResult<()>> {
        Answer::wait(async move {
            let done = self.file.flush().await;
            self.logged(Kind::Flush, 0, 0, Data::None, done).await
        })
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

    fn depart(&self) -> Box<dyn Parcel> {
        Box::new(Travelling {
            node_name: self.node_name.clone(),
            progress: self.log.progress(),
            options: self.options.clone(),
        })
    }

    fn close(&self) -> Answer<'_, Result<()>> {
        Answer::ready(Ok(()))
    }
}

/// A node between iothreads. Nothing is in flight, so no superblock is being written.
struct Travelling {
    node_name: String,
    progress: Progress,
    options: LogOptions,
}

impl Parcel for Travelling {
    fn arrive(self: Box<Self>, children: Vec<Child>, _ring: Ring) -> Rc<dyn Driver> {
        let mut children = children.into_iter();
        let mut next = || {
            children
                .next()
                .unwrap_or_else(|| unreachable!("a blklogwrites node always has two child handles"))
        };
        let (file, log) = (next(), next());
        Rc::new(Blklogwrites {
            node_name: self.node_name,
            file,
            log: Log::new(self.progress, log),
            options: self.options,
        })
    }
}
