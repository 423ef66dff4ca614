//! The protocol driver `recorder`: a node whose storage is a [`Disk`], found by name.

use std::collections::HashMap;
use std::rc::Rc;
use std::sync::{Arc, Mutex, PoisonError};

use futures_channel::oneshot;
use futures_util::future::LocalBoxFuture;
use millpond::iothread::Local;
use millpond_drivers::api::{
    Abilities, Ability, AllocationTicket, Answer, At, ChildKind, Driver, DriverKind, Extent, Image,
    Lifecycle, Moved, OpenRequest, Opened, OptionNames, Placement, Purpose, ReopenRequest, SavesState,
    Target, Transfer, parse_options,
};
use millpond_messages::graph::Options;
use millpond_messages::io::Preallocation;
use millpond_messages::{Error, ErrorKind, IoError, IoResult, Limits, Range, RequestFlags, Result};
use millpond_ring::buffer::Buffers;

use super::disk::{Change, Disk, Kind};

/// The disks that there are, by name.
#[derive(Debug, Default)]
pub struct Disks(Mutex<HashMap<String, Arc<Disk>>>);

impl Disks {
    /// Puts a disk there, in place of one of the same name.
    pub fn insert(&self, name: &str, disk: &Arc<Disk>) {
        let mut disks = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        disks.insert(name.to_owned(), Arc::clone(disk));
    }

    /// Takes a disk away; nodes that have it open keep it.
    pub fn remove(&self, name: &str) {
        let mut disks = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        disks.remove(name);
    }

    fn find(&self, name: &str) -> Option<Arc<Disk>> {
        let disks = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        disks.get(name).cloned()
    }
}

/// Opens nodes on disks.
pub struct RecorderKind(pub Arc<Disks>);

#[derive(serde::Deserialize)]
#[serde(deny_unknown_fields)]
struct RecorderOptions {
    disk: String,
}

impl DriverKind for RecorderKind {
    fn name(&self) -> &'static str {
        "recorder"
    }

    fn option_names(&self) -> OptionNames {
        OptionNames::Checked
    }

    fn children(&self) -> &'static [ChildKind] {
        &[]
    }

    fn is_protocol(&self) -> bool {
        true
    }

    fn parse_filename(&self, filename: &str) -> Result<Options> {
        let mut options = Options::new();
        let name = filename.strip_prefix("recorder:").unwrap_or(filename);
        options.insert("disk".to_owned(), name.into());
        Ok(options)
    }

    fn open(&self, request: OpenRequest) -> LocalBoxFuture<'static, Result<Opened>> {
        let disks = Arc::clone(&self.0);
        Box::pin(async move {
            let RecorderOptions { disk: name } = parse_options(request.options)?;
            let disk = disks.find(&name);
            let disk = disk.ok_or_else(|| Error::new(ErrorKind::NotFound, format!("no disk '{name}'")))?;
            Ok(Opened {
                driver: Rc::new(Recorder { name, disk }),
                flags: request.flags,
                backing: None,
            })
        })
    }
}

struct Recorder {
    name: String,
    disk: Arc<Disk>,
}

/// Comes back in the next turn.
async fn yield_now() {
    let mut again = true;
    std::future::poll_fn(move |context| {
        if std::mem::take(&mut again) {
            context.waker().wake_by_ref();
            return std::task::Poll::Pending;
        }
        std::task::Poll::Ready(())
    })
    .await;
}

async fn pause(disk: &Disk) {
    for _ in 0..disk.pause() {
        yield_now().await;
    }
}

/// Runs a request to its end whether or not somebody still waits for its answer, as a kernel does.
async fn detached<T: 'static>(work: impl Future<Output = T> + 'static) -> Option<T> {
    let (tell, told) = oneshot::channel();
    Local::current()?.spawn(async move {
        // Whoever asked may have given up.
        drop(tell.send(work.await));
    });
    told.await.ok()
}

impl Recorder {
    /// A request without data to give back.
    fn perform(&self, kind: Kind, change: Option<Change>) -> Answer<'static, IoResult<()>> {
        let disk = Arc::clone(&self.disk);
        Answer::wait(async move {
            let (began, fate) = disk.begin(kind);
            let work = async move {
                pause(&disk).await;
                let record = match (&fate, change) {
                    (Ok(()), Some(change)) => disk.apply(began, change),
                    _ => None,
                };
                pause(&disk).await;
                let flushed = (kind == Kind::Flush && fate.is_ok()).then_some(began);
                disk.end(record, flushed);
                fate
            };
            detached(work).await.unwrap_or(Err(IoError::Cancelled))
        })
    }
}

impl Driver for Recorder {
    fn abilities(&self) -> Abilities {
        Abilities {
            limits: Limits {
                request_alignment: self.disk.alignment,
                ..Limits::default()
            },
            write_zeroes: Ability::Native,
            zero_unmap: true,
            discard: Ability::Native,
            fua: Ability::Emulated,
            has_zero_init: true,
            grows: true,
            ..Abilities::default()
        }
    }

    fn locate(&self, _purpose: Purpose, range: Range) -> Answer<'_, IoResult<Extent>> {
        Answer::ready(Ok(Extent::new(range.len(), At::Own)))
    }

    fn read(
        self: Rc<Self>,
        offset: u64,
        mut buffers: Buffers,
        _flags: RequestFlags,
    ) -> Answer<'static, Transfer> {
        let disk = Arc::clone(&self.disk);
        Answer::wait(async move {
            let work = async move {
                let (_, fate) = disk.begin(Kind::Read);
                pause(&disk).await;
                if fate.is_ok() {
                    let mut bytes = vec![0; buffers.len()];
                    disk.read(offset, &mut bytes);
                    buffers.copy_from_slice(0, &bytes);
                }
                pause(&disk).await;
                disk.end(None, None);
                (fate, buffers)
            };
            let lost = || (Err(IoError::Cancelled), Buffers::new());
            detached(work).await.unwrap_or_else(lost)
        })
    }

    fn place(&self, range: Range, _flags: RequestFlags) -> Answer<'_, IoResult<Placement>> {
        Answer::ready(Ok(Placement {
            len: range.len(),
            target: Target::Own,
            head: 0,
            tail: 0,
            ticket: None,
        }))
    }

    fn settle(&self, _ticket: AllocationTicket, written: IoResult<()>) -> Answer<'_, IoResult<()>> {
        Answer::ready(written)
    }

    fn write(
        self: Rc<Self>,
        offset: u64,
        buffers: Buffers,
        _flags: RequestFlags,
    ) -> Answer<'static, Transfer> {
        let written = self.perform(Kind::Write, Some(Change::Write(offset, buffers.to_vec())));
        Answer::wait(async move { (written.await, buffers) })
    }

    fn write_zeroes(&self, range: Range, _flags: RequestFlags) -> Answer<'_, IoResult<()>> {
        self.perform(Kind::Zero, Some(Change::Zero(range.offset(), range.len())))
    }

    fn discard(&self, range: Range) -> Answer<'_, IoResult<()>> {
        let change = self.disk.forgetting(range.offset(), range.len());
        self.perform(Kind::Discard, Some(change))
    }

    fn flush(&self) -> Answer<'_, IoResult<()>> {
        self.perform(Kind::Flush, None)
    }

    fn truncate(
        &self,
        size: u64,
        _exact: bool,
        _preallocation: Preallocation,
        _flags: RequestFlags,
    ) -> Answer<'_, Result<()>> {
        let truncated = self.perform(Kind::Truncate, Some(Change::Truncate(size)));
        Answer::wait(async {
            truncated
                .await
                .map_err(|error| Error::io("Failed to resize", error))
        })
    }

    fn length(&self) -> Answer<'_, IoResult<u64>> {
        Answer::ready(Ok(self.disk.len()))
    }

    fn allocated_size(&self) -> Answer<'_, IoResult<u64>> {
        Answer::ready(Ok(self.disk.len()))
    }

    fn image(&self) -> &dyn Image {
        self
    }
}

impl Image for Recorder {
    fn filename(&self) -> Option<String> {
        Some(format!("recorder:{}", self.name))
    }
}

impl Lifecycle for Recorder {
    fn reopen_prepare(&self, _request: ReopenRequest) -> Answer<'_, Result<()>> {
        Answer::ready(Ok(()))
    }

    fn saved_state(&self) -> Option<&dyn SavesState> {
        None
    }

    fn depart(&self) -> Moved {
        let state = (self.name.clone(), Arc::clone(&self.disk));
        Moved::new(state, |(name, disk), _, _| Rc::new(Recorder { name, disk }))
    }

    fn close(&self) -> Answer<'_, Result<()>> {
        Answer::ready(Ok(()))
    }
}
