//! What each command does with the node, and what it answers.

use std::future::poll_fn;
use std::task::Poll;

use millpond_drivers::api::transfer;
use millpond_messages::error::errno;
use millpond_messages::io::{Operation, Outcome};
use millpond_messages::nbd::{Mode, context, state};
use millpond_messages::{BlockStatus, IoError, IoResult, Range, RequestFlags, StatusFlags};
use millpond_ring::buffer::{Buffer, Buffers};

use super::budget::Permit;
use super::plan::{Failure, Plan};
use super::reply::{Extent, To, data_header};
use super::request::{Command, Request, WireError};
use super::session::Session;
use crate::export::backend::ExportedNode;
use crate::export::nbd::handshake::Contexts;
use crate::log::limits::{self, Flood};

/// Reads of at most so many bytes do not ask where the zeroes are: looking at what was read costs less.
const LOOK_FOR_ZEROES: u64 = 64 * 1024;

/// Bytes of a range that CACHE reads at a time.
const CACHE_STEP: u64 = 1 << 20;

/// The most bytes of extents that a reply has for each context.
const MAX_EXTENT_BYTES: usize = 1 << 20;

/// The most bytes of extents that a reply has for all contexts: no request holds more than a large read does.
const MAX_STATUS_BYTES: usize = 16 << 20;

/// A piece of a reply.
enum Chunk {
    /// No data: the whole reply.
    Plain,
    /// Data that was read at an offset.
    Data(u64, Buffers),
    /// Zeroes at an offset, so many bytes of them.
    Hole(u64, u32),
    /// Extents of a context.
    Extents(u32, Vec<Extent>),
}

/// What a request may hold of its client's budget, in bytes.
pub(super) fn cost(request: &Request) -> usize {
    match request.command {
        // At most 32 MiB, as the header's check saw to.
        Command::Read { .. } | Command::Write { .. } => {
            usize::try_from(request.range.len()).unwrap_or(usize::MAX)
        }
        Command::Cache => CACHE_STEP as usize,
        Command::BlockStatus { one: false, contexts } => {
            2 * extent_bytes(contexts) * contexts.count() as usize
        }
        Command::BlockStatus { one: true, .. }
        | Command::Flush
        | Command::Trim { .. }
        | Command::WriteZeroes { .. } => 0,
    }
}

/// The most bytes of extents that a reply has for each of these contexts.
fn extent_bytes(contexts: Contexts) -> usize {
    let share = MAX_STATUS_BYTES / contexts.count().max(1) as usize;
    share.min(MAX_EXTENT_BYTES)
}

/// The failure for an error of the node.
fn failed(text: &'static str) -> impl Fn(IoError) -> Failure {
    move |error| Failure { error, text }
}

/// What it says when the one request to the node that serves `command` fails.
const fn failure_text(command: &Command) -> &'static str {
    match command {
        Command::Read { .. } => "reading from file failed",
        Command::Write { .. } | Command::WriteZeroes { .. } => "writing to file failed",
        Command::Flush => "flush failed",
        Command::Trim { .. } => "discard failed",
        Command::Cache => "caching data failed",
        Command::BlockStatus { .. } => "can't get block status",
    }
}

impl<B: ExportedNode> Session<B> {
    /// What serves a request; `payload` is a write's data.
    pub(super) fn plan(&self, request: &Request, payload: Buffer) -> Plan {
        let range = request.range;
        let operation = match request.command {
            Command::Read { fua: true, .. } | Command::Trim { fua: true } => return Plan::Steps,
            Command::Cache | Command::BlockStatus { .. } => return Plan::Steps,
            Command::Read { whole, .. }
                if self.may_split(range.len(), whole) && range.len() > LOOK_FOR_ZEROES =>
            {
                return Plan::Steps;
            }
            Command::Read { .. } => {
                return match self.memory(range.len()) {
                    Ok((room, buffers)) => Plan::One(read_operation(range.offset(), buffers), room),
                    Err(failure) => Plan::Refused(failure),
                };
            }
            Command::Write { flags } => Operation::Write {
                offset: range.offset(),
                buffers: payload.into(),
                flags,
            },
            Command::WriteZeroes { flags } => Operation::WriteZeroes { range, flags },
            Command::Flush => Operation::Flush,
            Command::Trim { fua: false } => Operation::Discard { range },
        };
        Plan::One(operation, Buffer::new())
    }

    /// Memory for a read, with room for the header of its reply before it where that saves something.
    fn memory(&self, len: u64) -> Result<(Buffer, Buffers), Failure> {
        if self.backend.takes_any_memory()
            && let Some((room, data)) = self.arena.take(data_header(self.limits.mode), len)
        {
            return Ok((room, data.into()));
        }
        Ok((Buffer::new(), buffer(len)?))
    }

    /// Queues the reply to a request that one request to the node has served.
    pub(super) fn answer(&self, request: &Request, outcome: Outcome<Buffers>, room: Buffer, permit: Permit) {
        let (result, data) = outcome.into_parts();
        if let Err(error) = result {
            return self.fail(request, failed(failure_text(&request.command))(error), permit);
        }
        let chunk = match (request.command, data) {
            (Command::Read { whole, .. }, Some(data)) => self.chunk(request.range, whole, data),
            (Command::Read { .. }, None) => {
                return self.fail(
                    request,
                    failed("reading from file failed")(IoError::Cancelled),
                    permit,
                );
            }
            _ => Chunk::Plain,
        };
        let to = self.to(request);
        match chunk {
            Chunk::Data(at, data) if !room.is_empty() => {
                let len = data.len();
                self.outbox
                    .add_whole(|out| to.data(out, at, len, true), room, data, permit);
            }
            chunk => self.queue(&to, chunk, Some(permit)),
        }
    }

    /// Queues the refusal of a request.
    pub(super) fn fail(&self, request: &Request, failure: Failure, permit: Permit) {
        let Failure { error, text } = failure;
        self.report(request, failure);
        let (to, error) = (self.to(request), WireError::from_errno(error.errno()));
        self.outbox
            .add(|out| to.failure(out, error, text), None, Some(permit));
    }

    /// Says in the log what a client is told, if it is its storage that failed.
    #[cold]
    fn report(&self, request: &Request, Failure { error, text }: Failure) {
        if !error.is_of_storage() {
            return tracing::debug!(?request, %error, "{text}");
        }
        let Some(kept_back) = limits::admit(Flood::IoError, &self.export) else {
            return;
        };
        tracing::warn!(
            export = self.export,
            node = self.backend.node_name(),
            offset = request.range.offset(),
            len = request.range.len(),
            kept_back,
            "{text}: {error}"
        );
    }

    /// Serves a request that takes several to the node.
    pub(super) async fn serve_in_steps(&self, request: Request, permit: Permit) {
        let to = self.to(&request);
        match self.execute(&to, &request).await {
            Ok(last) => self.queue(&to, last, Some(permit)),
            Err(failure) => self.fail(&request, failure, permit),
        }
    }

    fn to(&self, request: &Request) -> To {
        To {
            mode: self.limits.mode,
            cookie: request.cookie,
            offset: request.range.offset(),
        }
    }

    /// Whether the reply to a read may have holes.
    fn may_split(&self, len: u64, whole: bool) -> bool {
        self.limits.mode >= Mode::Structured && !whole && len > 0
    }

    /// What was read in one piece.
    fn chunk(&self, range: Range, whole: bool, data: Buffers) -> Chunk {
        if self.may_split(range.len(), whole) && data.is_zero() {
            // A read is no longer than 32 MiB.
            Chunk::Hole(range.offset(), range.len() as u32)
        } else {
            Chunk::Data(range.offset(), data)
        }
    }

    /// Queues a chunk; the last of a request brings its permit.
    fn queue(&self, to: &To, chunk: Chunk, permit: Option<Permit>) {
        let outbox = &self.outbox;
        let done = permit.is_some();
        match chunk {
            Chunk::Plain => outbox.add(|out| to.success(out), None, permit),
            Chunk::Data(at, data) => {
                let len = data.len();
                outbox.add(|out| to.data(out, at, len, done), Some(data), permit);
            }
            Chunk::Hole(at, len) => outbox.add(|out| to.hole(out, at, len, done), None, permit),
            Chunk::Extents(id, extents) => {
                outbox.add(|out| to.extents(out, id, &extents, done), None, permit);
            }
        }
    }

    /// Does what a request asks for; the chunk that ends its reply is left to the caller.
    async fn execute(&self, to: &To, request: &Request) -> Result<Chunk, Failure> {
        let range = request.range;
        match request.command {
            Command::Read { fua, whole } => {
                if fua {
                    self.flush().await?;
                }
                self.read(to, range, whole).await
            }
            Command::Trim { fua } => {
                let forgotten = self.ask(Operation::Discard { range }).await;
                forgotten.into_done().map_err(failed("discard failed"))?;
                if fua {
                    self.flush().await?;
                }
                Ok(Chunk::Plain)
            }
            Command::Cache => self.cache(range).await,
            Command::BlockStatus { one, contexts } => self.block_status(to, range, one, contexts).await,
            Command::Write { .. } | Command::WriteZeroes { .. } | Command::Flush => {
                unreachable!("one request to the node serves these")
            }
        }
    }

    async fn ask(&self, operation: Operation<Buffers>) -> Outcome<Buffers> {
        self.backend.begin(operation).end().await
    }

    async fn flush(&self) -> Result<(), Failure> {
        let flushed = self.ask(Operation::Flush).await;
        flushed.into_done().map_err(failed("flush failed"))
    }

    async fn read_data(&self, range: Range) -> Result<Buffers, Failure> {
        let (result, data) = transfer(
            self.ask(read_operation(range.offset(), buffer(range.len())?))
                .await,
        );
        result.map_err(failed("reading from file failed"))?;
        Ok(data)
    }

    async fn read(&self, to: &To, range: Range, whole: bool) -> Result<Chunk, Failure> {
        if self.may_split(range.len(), whole) && range.len() > LOOK_FOR_ZEROES {
            return self.read_sparse(to, range).await;
        }
        let data = self.read_data(range).await?;
        Ok(self.chunk(range, whole, data))
    }

    /// Reads only what is data; zeroes are told of.
    async fn read_sparse(&self, to: &To, range: Range) -> Result<Chunk, Failure> {
        let mut rest = range;
        loop {
            let status = self.status(rest, true).await;
            let status = status.map_err(failed("unable to check for holes"))?;
            let piece = rest.first(progress(status.len, rest.len()).ok_or(STUCK)?);
            let chunk = if status.flags.contains(StatusFlags::ZERO) {
                // No longer than the read.
                Chunk::Hole(piece.offset(), piece.len() as u32)
            } else {
                Chunk::Data(piece.offset(), self.read_data(piece).await?)
            };
            rest = rest.after(piece.len());
            if rest.is_empty() {
                return Ok(chunk);
            }
            self.queue(to, chunk, None);
        }
    }

    async fn cache(&self, range: Range) -> Result<Chunk, Failure> {
        let (mut at, end) = (range.offset(), range.end());
        let flags = RequestFlags::COPY_ON_READ | RequestFlags::PREFETCH;
        let mut buffers = Buffers::alloc(CACHE_STEP.min(range.len()) as usize);
        while at < end {
            let step = CACHE_STEP.min(end - at);
            buffers.truncate(step as usize);
            let read = Operation::Read {
                offset: at,
                buffers,
                flags,
            };
            let (result, back) = transfer(self.ask(read).await);
            result.map_err(failed("caching data failed"))?;
            buffers = back;
            at += step;
        }
        Ok(Chunk::Plain)
    }

    /// The first extent of a range.
    async fn status(&self, range: Range, want_zero: bool) -> IoResult<BlockStatus> {
        let operation = Operation::BlockStatus {
            range,
            want_zero,
            whole_chain: true,
            base: None,
        };
        self.ask(operation).await.into_status()
    }

    /// As many extents of a range, from its start on, as the node tells of in one go.
    async fn map(&self, range: Range, want_zero: bool) -> IoResult<Box<[BlockStatus]>> {
        let operation = Operation::Map {
            range,
            want_zero,
            whole_chain: true,
        };
        self.ask(operation).await.into_map()
    }

    async fn block_status(
        &self,
        to: &To,
        range: Range,
        one: bool,
        contexts: Contexts,
    ) -> Result<Chunk, Failure> {
        let max = match to.mode {
            _ if one => 1,
            Mode::Extended => extent_bytes(contexts) / 16,
            Mode::Simple | Mode::Structured => extent_bytes(contexts) / 8,
        };
        let mut last = None;
        let own = [
            (contexts.base_allocation, context::BASE_ALLOCATION),
            (contexts.allocation_depth, context::ALLOCATION_DEPTH),
        ];
        for (_, id) in own.into_iter().filter(|(chosen, _)| *chosen) {
            let extents = self.extents(id, range, max).await?;
            self.follow(to, &mut last, Chunk::Extents(id, extents));
        }
        for (place, id) in (context::DIRTY_BITMAPS..).enumerate().take(self.bitmaps.len()) {
            if contexts.has_bitmap(place) {
                let extents = self.dirty_extents(place, range, max).await?;
                self.follow(to, &mut last, Chunk::Extents(id, extents));
            }
        }
        // A request without a context was refused by its header.
        last.ok_or(Failure {
            error: IoError::Invalid,
            text: "CMD_BLOCK_STATUS not negotiated",
        })
    }

    /// Queues the chunk before the last one that there is so far.
    fn follow(&self, to: &To, last: &mut Option<Chunk>, chunk: Chunk) {
        if let Some(before) = last.replace(chunk) {
            self.queue(to, before, None);
        }
    }

    /// The same as [`Session::extents`] by a dirty bitmap.
    async fn dirty_extents(&self, place: usize, range: Range, max: usize) -> Result<Vec<Extent>, Failure> {
        let bitmap = self.bitmaps.get(place).ok_or(STUCK)?;
        let runs = bitmap.read(range, max).await.map_err(|error| {
            tracing::warn!(export = self.export, bitmap = bitmap.name(), %error, "a dirty bitmap cannot be read");
            STUCK
        })?;
        let extents = runs.into_iter().map(|run| Extent {
            len: run.len,
            flags: if run.is_dirty { state::DIRTY } else { 0 },
        });
        Ok(extents.collect())
    }

    /// At most `max` extents from the front of a range; neighbours differ.
    async fn extents(&self, id: u32, range: Range, max: usize) -> Result<Vec<Extent>, Failure> {
        let mut extents: Vec<Extent> = Vec::new();
        let mut rest = range;
        while !rest.is_empty() {
            let want_zero = id == context::BASE_ALLOCATION;
            let found = match max {
                1 => self.status(rest, want_zero).await.map(|status| [status].into()),
                _ => self.map(rest, want_zero).await,
            };
            let found = found.map_err(failed("can't get block status"))?;
            if found.is_empty() {
                return Err(STUCK);
            }
            for status in found {
                let len = progress(status.len, rest.len()).ok_or(STUCK)?;
                let flags = match id {
                    context::BASE_ALLOCATION => allocation(status.flags),
                    _ => u64::from(status.depth),
                };
                let full = extents.len() == max;
                match extents.last_mut() {
                    Some(last) if last.flags == flags => last.len += len,
                    _ if full => return Ok(extents),
                    _ => extents.push(Extent { len, flags }),
                }
                rest = rest.after(len);
            }
            pause().await;
        }
        Ok(extents)
    }
}

/// Memory for what is read.
fn buffer(len: u64) -> Result<Buffers, Failure> {
    let buffer = usize::try_from(len).ok().and_then(Buffer::try_alloc);
    buffer.map(Buffers::from).ok_or(Failure {
        error: IoError::Os(errno::ENOMEM),
        text: "No memory",
    })
}

fn read_operation(offset: u64, buffers: Buffers) -> Operation<Buffers> {
    Operation::Read {
        offset,
        buffers,
        flags: RequestFlags::empty(),
    }
}

/// Lets other tasks of the thread run.
async fn pause() {
    let mut paused = false;
    poll_fn(|context| {
        if std::mem::replace(&mut paused, true) {
            return Poll::Ready(());
        }
        context.waker().wake_by_ref();
        Poll::Pending
    })
    .await;
}

/// A status that covers nothing would be asked for without end.
const STUCK: Failure = Failure {
    error: IoError::Os(errno::EIO),
    text: "can't get block status",
};

/// How far a status of `len` bytes leads into `left`; `None` if nowhere.
fn progress(len: u64, left: u64) -> Option<u64> {
    Some(len.min(left)).filter(|len| *len > 0)
}

/// The state flags of `base:allocation`.
fn allocation(flags: StatusFlags) -> u64 {
    let hole = if flags.contains(StatusFlags::DATA) {
        0
    } else {
        state::HOLE
    };
    let zero = if flags.contains(StatusFlags::ZERO) {
        state::ZERO
    } else {
        0
    };
    hole | zero
}
