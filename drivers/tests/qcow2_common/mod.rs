//! What the qcow2 tests stand on: a file in memory that answers late and remembers what reached it, a small choke point
//! that does with a driver's answers what a node does, an executor that notices deadlocks, and `qemu-img`.

#![allow(dead_code, reason = "each test binary uses its own part")]
#![allow(clippy::unwrap_used, reason = "tests fail by panicking")]

mod qemu;

use std::cell::{Cell, RefCell};
use std::future::Future;
use std::path::Path;
use std::pin::pin;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, Wake, Waker};

use millpond_drivers::api::{
    Answer, At, Child, ChildPort, CreateRequest, Driver, DriverKind, OpenRequest, Opened, Purpose, Target,
};
use millpond_drivers::format::qcow2::Qcow2Kind;
use millpond_drivers::secret::{SecretOptions, SecretSource, Secrets};
use millpond_messages::io::{Operation, Outcome, Preallocation, Value};
use millpond_messages::qapi::schema::QCryptoSecretFormat;
use millpond_messages::{
    BlockStatus, ChildSlot, IoError, IoResult, Limits, OpenFlags, Range, RequestFlags, StatusFlags,
};
use millpond_ring::buffer::Buffers;
use millpond_ring::{Backend, Completion, Engine, Monotonic, Op, Ring, RingStats, SleepFor, SlotId, Slots};

#[allow(unused_imports, reason = "not every test file runs every program")]
pub use qemu::{PASSWORD, check, contents, qemu_img, qemu_io, run};

/// A small generator of pseudo-random numbers: a failure is repeated by its seed.
#[derive(Clone)]
pub struct Random(u64);

impl Random {
    pub fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    pub fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 11
    }

    /// A number below `end`.
    pub fn below(&mut self, end: u64) -> u64 {
        self.next() % end.max(1)
    }
}

/// What reached a file, in order.
#[derive(Clone)]
pub enum Event {
    Write(u64, Vec<u8>),
    Discard(u64, u64),
    Truncate(u64),
    Flush,
    /// The same in the data file.
    Data(Box<Event>),
}

/// A file in memory.
pub struct Store {
    pub bytes: RefCell<Vec<u8>>,
    pub log: RefCell<Vec<Event>>,
    /// The file that remembers what reaches this one, which is its data file.
    image: RefCell<Option<Rc<Store>>>,
    pub record: Cell<bool>,
    pub fail_writes: Cell<bool>,
    /// So many writes and flushes from now on succeed, and the one behind them fails.
    pub fail_after: Cell<Option<u64>>,
    /// Requests that have begun and not ended, those among them that nobody waits for any more.
    pub under_way: Cell<usize>,
    /// Where the disk under the file is full.
    pub room: Cell<u64>,
    random: RefCell<Random>,
    /// The most turns that a request takes before and after its effect.
    pub latency: Cell<u64>,
}

impl Store {
    pub fn new(bytes: Vec<u8>, seed: u64) -> Rc<Self> {
        Rc::new(Self {
            bytes: RefCell::new(bytes),
            log: RefCell::default(),
            image: RefCell::default(),
            record: Cell::new(false),
            fail_writes: Cell::new(false),
            fail_after: Cell::new(None),
            under_way: Cell::new(0),
            room: Cell::new(1 << 30),
            random: RefCell::new(Random::new(seed)),
            latency: Cell::new(4),
        })
    }

    pub fn open(path: &Path, seed: u64) -> Rc<Self> {
        Self::new(std::fs::read(path).unwrap(), seed)
    }

    pub fn save(&self, path: &Path) {
        std::fs::write(path, &*self.bytes.borrow()).unwrap();
    }

    pub fn child(self: &Rc<Self>) -> Child {
        Child::new(Rc::new(Port(Rc::clone(self))))
    }

    async fn pause(&self) {
        let turns = self.random.borrow_mut().below(self.latency.get() + 1);
        for _ in 0..turns {
            yield_now().await;
        }
    }

    /// A data file of this image, whose log has what reaches either of them.
    pub fn data_file(self: &Rc<Self>, bytes: Vec<u8>, seed: u64) -> Rc<Self> {
        let data = Self::new(bytes, seed);
        data.image.replace(Some(Rc::clone(self)));
        data
    }

    fn note(&self, event: Event) {
        if let Some(image) = &*self.image.borrow() {
            return image.note(Event::Data(Box::new(event)));
        }
        if self.record.get() {
            self.log.borrow_mut().push(event);
        }
    }

    async fn run(self: Rc<Self>, operation: Operation<Buffers>) -> Outcome<Buffers> {
        self.under_way.set(self.under_way.get() + 1);
        self.pause().await;
        let outcome = self.act(operation);
        self.pause().await;
        self.under_way.set(self.under_way.get() - 1);
        outcome
    }

    /// Whether this is the request that fails.
    fn fails(&self, operation: &Operation<Buffers>) -> bool {
        if !matches!(operation, Operation::Write { .. } | Operation::Flush) {
            return false;
        }
        let left = self.fail_after.get();
        self.fail_after.set(left.and_then(|left| left.checked_sub(1)));
        left == Some(0)
    }

    fn act(&self, operation: Operation<Buffers>) -> Outcome<Buffers> {
        if self.fails(&operation) {
            let buffers = match operation {
                Operation::Write { buffers, .. } => Some(buffers),
                _ => None,
            };
            return Outcome {
                result: Err(IoError::Os(5)),
                buffers,
            };
        }
        let mut bytes = self.bytes.borrow_mut();
        let done = Outcome::plain(Ok(Value::Done));
        match operation {
            Operation::Read { offset, buffers, .. }
                if !Range::new(offset, buffers.len() as u64)
                    .is_ok_and(|range| millpond_messages::check_range(range, true).is_ok()) =>
            {
                Outcome {
                    result: Err(IoError::OutOfRange),
                    buffers: Some(buffers),
                }
            }
            Operation::Read {
                offset, mut buffers, ..
            } => {
                let len = buffers.len();
                buffers.fill_zero(0..len);
                if let Some(from) = bytes.get(offset as usize..) {
                    buffers.copy_from_slice(0, &from[..len.min(from.len())]);
                }
                Outcome {
                    result: Ok(Value::Done),
                    buffers: Some(buffers),
                }
            }
            Operation::Write { offset, buffers, .. }
                if self.fail_writes.get() || offset > self.room.get() =>
            {
                Outcome {
                    result: Err(IoError::NoSpace),
                    buffers: Some(buffers),
                }
            }
            Operation::Write { offset, buffers, .. } => {
                let data = buffers.to_vec();
                put(&mut bytes, offset, &data);
                self.note(Event::Write(offset, data));
                Outcome {
                    result: Ok(Value::Done),
                    buffers: Some(buffers),
                }
            }
            Operation::WriteZeroes { range, .. } if range.end() > self.room.get() => {
                Outcome::plain(Err(IoError::NoSpace))
            }
            Operation::WriteZeroes { range, .. } => {
                let data = vec![0; range.len() as usize];
                put(&mut bytes, range.offset(), &data);
                self.note(Event::Write(range.offset(), data));
                done
            }
            Operation::Discard { range } => {
                discard(&mut bytes, range.offset(), range.len());
                self.note(Event::Discard(range.offset(), range.len()));
                done
            }
            Operation::Flush => {
                self.note(Event::Flush);
                done
            }
            Operation::Truncate { size, .. } if size > self.room.get() => {
                Outcome::plain(Err(IoError::NoSpace))
            }
            Operation::Truncate { size, .. } => {
                bytes.resize(size as usize, 0);
                self.note(Event::Truncate(size));
                done
            }
            Operation::Length | Operation::AllocatedSize => {
                Outcome::plain(Ok(Value::Bytes(bytes.len() as u64)))
            }
            Operation::BlockStatus { range, .. } => {
                let len = range.len();
                let status = BlockStatus {
                    flags: StatusFlags::DATA,
                    len,
                    map: None,
                    depth: 0,
                };
                Outcome::plain(Ok(Value::Status(status)))
            }
            Operation::Copy(_) | Operation::Snapshot(_) | Operation::Mirror(_) | Operation::Map { .. } => {
                unreachable!("a format is no job")
            }
        }
    }
}

/// Stores bytes, growing the file if need be.
pub fn put(bytes: &mut Vec<u8>, offset: u64, data: &[u8]) {
    let (start, end) = (offset as usize, offset as usize + data.len());
    if bytes.len() < end {
        bytes.resize(end, 0);
    }
    bytes[start..end].copy_from_slice(data);
}

/// What a discard leaves is not zeroes, so that whoever relies on them is found out.
pub fn discard(bytes: &mut [u8], offset: u64, len: u64) {
    let end = bytes.len().min(offset.saturating_add(len) as usize);
    if let Some(range) = bytes.get_mut(offset as usize..end) {
        range.fill(0xdd);
    }
}

struct Port(Rc<Store>);

impl ChildPort for Port {
    fn request(&self, operation: Operation<Buffers>) -> Answer<'static, Outcome<Buffers>> {
        Answer::wait(Rc::clone(&self.0).run(operation))
    }

    fn limits(&self) -> Limits {
        Limits::default()
    }

    fn is_connected(&self) -> bool {
        true
    }

    fn node_name(&self) -> String {
        "file".into()
    }

    fn filename(&self) -> String {
        "file".into()
    }
}

struct Nothing;

impl ChildPort for Nothing {
    fn request(&self, _operation: Operation<Buffers>) -> Answer<'static, Outcome<Buffers>> {
        Answer::ready(Outcome::plain(Err(IoError::NoMedium)))
    }

    fn limits(&self) -> Limits {
        Limits::default()
    }

    fn is_connected(&self) -> bool {
        false
    }

    fn node_name(&self) -> String {
        String::new()
    }

    fn filename(&self) -> String {
        String::new()
    }
}

/// Comes back in the next turn.
pub async fn yield_now() {
    let mut again = true;
    std::future::poll_fn(move |context| {
        if std::mem::take(&mut again) {
            context.waker().wake_by_ref();
            return Poll::Pending;
        }
        Poll::Ready(())
    })
    .await;
}

/// Jobs run when the ring turns, on this thread.
#[derive(Default)]
struct Jobs(Vec<SlotId>);

impl Backend for Jobs {
    fn engine(&self) -> Engine {
        Engine::Other
    }

    fn submit(&mut self, id: SlotId, op: &mut Op) {
        match op {
            Op::Blocking(job) => {
                if let Some(job) = job.take() {
                    job();
                }
                self.0.push(id);
            }
            other => panic!("qcow2 started {other:?} on the ring"),
        }
    }

    fn cancel(&mut self, _id: SlotId, _op: &mut Op) {}

    fn has_work(&mut self) -> bool {
        !self.0.is_empty()
    }

    fn turn(&mut self, _slots: &mut Slots, _sleep_for: SleepFor, done: &mut Vec<Completion>) {
        done.extend(self.0.drain(..).map(|id| Completion { id, result: 0 }));
    }

    fn stats(&self) -> RingStats {
        RingStats::default()
    }
}

pub fn ring() -> Ring {
    let wake = Arc::new(millpond_ring::Wake::new().unwrap());
    Ring::with_backend(Box::new(Jobs::default()), wake, Rc::new(Monotonic))
}

struct Flag(AtomicBool);

impl Wake for Flag {
    fn wake(self: Arc<Self>) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// Runs a future to its end. Panics if nothing is left that could wake it.
pub fn block_on<F: Future>(ring: &Ring, future: F) -> F::Output {
    let flag = Arc::new(Flag(AtomicBool::new(true)));
    let waker = Waker::from(Arc::clone(&flag));
    let mut context = Context::from_waker(&waker);
    let mut future = pin!(future);
    loop {
        if flag.0.swap(false, Ordering::Relaxed)
            && let Poll::Ready(value) = future.as_mut().poll(&mut context)
        {
            return value;
        }
        if ring.has_work() {
            ring.turn(millpond_ring::Wait::No);
        } else {
            assert!(
                flag.0.load(Ordering::Relaxed),
                "deadlock: nothing is left that could go on"
            );
        }
    }
}

/// An open image behind a choke point.
pub struct Disk {
    pub driver: Rc<dyn Driver>,
    pub file: Child,
    backing: Child,
    data_file: Child,
    tracked: RefCell<Vec<(u64, u64, u64, bool)>>,
    next: Cell<u64>,
}

pub type Options = millpond_messages::graph::Options;

pub fn options(json: serde_json::Value) -> Options {
    json.as_object().unwrap().clone()
}

pub const READ_WRITE: OpenFlags = OpenFlags::RDWR.union(OpenFlags::UNMAP);

/// The driver, with the password of encrypted images as the secret `s`.
fn kind() -> Qcow2Kind {
    let secrets = Secrets::default();
    let secret = SecretOptions {
        source: SecretSource::Data(PASSWORD.as_bytes().to_vec().into()),
        format: QCryptoSecretFormat::Raw,
        wrapped_by: None,
    };
    secrets.add("s", secret.load(&secrets).unwrap());
    Qcow2Kind::new(secrets)
}

/// Opens an image.
pub async fn open(
    store: &Rc<Store>,
    backing: Option<&Rc<Store>>,
    options: Options,
    flags: OpenFlags,
    ring: &Ring,
) -> millpond_messages::Result<(Disk, Opened)> {
    open_over(store, backing, None, options, flags, ring).await
}

/// Opens an image that may have its data in another file.
pub async fn open_over(
    store: &Rc<Store>,
    backing: Option<&Rc<Store>>,
    data_file: Option<&Rc<Store>>,
    options: Options,
    flags: OpenFlags,
    ring: &Ring,
) -> millpond_messages::Result<(Disk, Opened)> {
    let file = store.child();
    let child = |store: Option<&Rc<Store>>| store.map_or_else(|| Child::new(Rc::new(Nothing)), Store::child);
    let (backing, data_file) = (child(backing), child(data_file));
    let request = OpenRequest {
        node_name: "fmt".into(),
        options,
        flags,
        children: vec![file.clone(), backing.clone(), data_file.clone()],
        ring: ring.clone(),
        notices: millpond_drivers::api::Notices::nowhere(),
    };
    let opened = kind().open(request).await?;
    let driver = Rc::clone(&opened.driver);
    let disk = Disk {
        driver,
        file,
        backing,
        data_file,
        tracked: RefCell::default(),
        next: Cell::new(0),
    };
    Ok((disk, opened))
}

/// Makes an image.
pub async fn create(store: &Rc<Store>, options: Options, ring: &Ring) -> millpond_messages::Result<()> {
    create_over(store, None, options, ring).await
}

/// Makes an image that may have its data in another file.
pub async fn create_over(
    store: &Rc<Store>,
    data_file: Option<&Rc<Store>>,
    options: Options,
    ring: &Ring,
) -> millpond_messages::Result<()> {
    kind()
        .create(CreateRequest {
            header: None,
            data_file: data_file.map(Store::child),
            options,
            file: Some(store.child()),
            ring: ring.clone(),
        })
        .await
}

struct Tracked<'a>(&'a Disk, u64);

impl Drop for Tracked<'_> {
    fn drop(&mut self) {
        self.0.tracked.borrow_mut().retain(|entry| entry.0 != self.1);
    }
}

impl Disk {
    /// The child that a driver means.
    fn child(&self, slot: ChildSlot) -> &Child {
        [&self.file, &self.backing, &self.data_file][slot.index()]
    }

    async fn track(&self, start: u64, end: u64, alone: bool) -> Tracked<'_> {
        loop {
            let clash =
                |entry: &(u64, u64, u64, bool)| (alone || entry.3) && entry.1 < end && start < entry.2;
            if !self.tracked.borrow().iter().any(clash) {
                break;
            }
            yield_now().await;
        }
        let id = self.next.replace(self.next.get() + 1);
        self.tracked.borrow_mut().push((id, start, end, alone));
        Tracked(self, id)
    }

    async fn alone(&self, offset: u64, len: u64) -> Tracked<'_> {
        let grain = self.driver.abilities().serialise_granularity;
        self.track(
            offset / grain * grain,
            (offset + len).next_multiple_of(grain),
            true,
        )
        .await
    }

    pub async fn read(&self, offset: u64, len: u64) -> IoResult<Vec<u8>> {
        let _tracked = self.track(offset, offset + len, false).await;
        self.read_untracked(offset, len).await
    }

    async fn read_untracked(&self, offset: u64, len: u64) -> IoResult<Vec<u8>> {
        let size = self.driver.length().await?;
        let mut data = Vec::new();
        while (data.len() as u64) < len {
            let at = offset + data.len() as u64;
            let left = len - data.len() as u64;
            if at >= size {
                data.resize(len as usize, 0);
                break;
            }
            let extent = self
                .driver
                .locate(Purpose::Read, Range::new(at, left.min(size - at))?)
                .await?;
            assert!(extent.len > 0 && extent.len <= left);
            let part = extent.len as usize;
            let piece = match extent.at {
                At::Zero { .. } => vec![0; part],
                At::Child { slot, offset } => self.child(slot).read_vec(offset, part).await?.to_vec(),
                At::Unallocated if self.backing.is_connected() => {
                    self.backing.read_vec(at, part).await?.to_vec()
                }
                At::Unallocated => vec![0; part],
                At::Special | At::Own => self.read_own(at, part as u64).await?,
            };
            data.extend(piece);
        }
        Ok(data)
    }

    /// Reads with the driver, in the blocks that it asks for.
    async fn read_own(&self, offset: u64, len: u64) -> IoResult<Vec<u8>> {
        let align = u64::from(self.driver.abilities().limits.request_alignment.max(1));
        let (start, end) = (offset / align * align, (offset + len).next_multiple_of(align));
        let buffers = Buffers::alloc((end - start) as usize);
        let (result, buffers) = Rc::clone(&self.driver)
            .read(start, buffers, RequestFlags::empty())
            .await;
        result?;
        let from = (offset - start) as usize;
        Ok(buffers.to_vec()[from..from + len as usize].to_vec())
    }

    /// Writes with the driver, which stores whole blocks: nobody else has the first and the last.
    async fn write_own(&self, offset: u64, data: &[u8]) -> IoResult<()> {
        let align = u64::from(self.driver.abilities().limits.request_alignment.max(1));
        let end = offset + data.len() as u64;
        let (start, stop) = (offset / align * align, end.next_multiple_of(align));
        let mut block = self.read_untracked(start, offset - start).await?;
        block.extend_from_slice(data);
        block.extend(self.read_untracked(end, stop - end).await?);
        Rc::clone(&self.driver)
            .write(start, block.into(), RequestFlags::empty())
            .await
            .0
    }

    pub async fn write(&self, offset: u64, data: &[u8]) -> IoResult<()> {
        let align = u64::from(self.driver.abilities().limits.request_alignment.max(1));
        let end = offset + data.len() as u64;
        let (start, stop) = (offset / align * align, end.next_multiple_of(align));
        let _tracked = self.track(start, stop, align > 1).await;
        self.write_untracked(offset, data).await
    }

    async fn write_untracked(&self, offset: u64, data: &[u8]) -> IoResult<()> {
        let mut done = 0;
        while done < data.len() {
            let at = offset + done as u64;
            let left = (data.len() - done) as u64;
            let placement = self
                .driver
                .place(Range::new(at, left)?, RequestFlags::empty())
                .await?;
            assert!(placement.len > 0 && placement.len <= left);
            let part = &data[done..done + placement.len as usize];
            let Target::Child { slot, offset: target } = placement.target else {
                self.write_own(at, part).await?;
                done += part.len();
                continue;
            };
            let target = (self.child(slot), target);
            let result = self
                .copy_and_write(at, part, placement.head, placement.tail, target)
                .await;
            if let Some(ticket) = placement.ticket {
                self.driver.settle(ticket, result).await?;
            }
            result?;
            done += part.len();
        }
        Ok(())
    }

    async fn copy_and_write(
        &self,
        at: u64,
        part: &[u8],
        head: u64,
        tail: u64,
        (file, target): (&Child, u64),
    ) -> IoResult<()> {
        let mut all = self.read_untracked(at - head, head).await?;
        let behind = self.read_untracked(at + part.len() as u64, tail).await?;
        all.extend_from_slice(part);
        all.extend(behind);
        file.write(target, all.into(), RequestFlags::empty()).await.0
    }

    pub async fn zero(&self, offset: u64, len: u64, flags: RequestFlags) -> IoResult<()> {
        let _alone = self.alone(offset, len).await;
        let align = u64::from(self.driver.abilities().limits.write_zeroes_alignment);
        let (mut at, end) = (offset, offset + len);
        while at < end {
            let past = at % align;
            let whole = (end - at) / align * align;
            let piece = match (past, whole) {
                (0, 0) => end - at,
                (0, whole) => whole,
                (past, _) => (end - at).min(align - past),
            };
            match self.driver.write_zeroes(Range::new(at, piece)?, flags).await {
                Err(IoError::NotSupported) => self.write_untracked(at, &vec![0; piece as usize]).await?,
                result => result?,
            }
            at += piece;
        }
        Ok(())
    }

    /// Discards the whole clusters of a range; answers which.
    pub async fn discard(&self, offset: u64, len: u64) -> IoResult<(u64, u64)> {
        let size = self.driver.length().await?;
        let align = u64::from(self.driver.abilities().limits.discard_alignment);
        let start = offset.next_multiple_of(align);
        let end = if offset + len >= size {
            size
        } else {
            (offset + len) / align * align
        };
        if start >= end {
            return Ok((0, 0));
        }
        let _alone = self.alone(start, end - start).await;
        self.driver.discard(Range::between(start, end)).await?;
        Ok((start, end))
    }

    pub async fn flush(&self) -> IoResult<()> {
        self.driver.flush().await?;
        self.file.flush().await?;
        if self.data_file.is_connected() {
            self.data_file.flush().await?;
        }
        Ok(())
    }

    pub async fn resize(&self, size: u64, preallocation: Preallocation) -> millpond_messages::Result<()> {
        let _alone = self.alone(0, u64::MAX >> 1).await;
        self.driver
            .truncate(size, true, preallocation, RequestFlags::empty())
            .await
    }

    /// Goes on with the driver's state as another iothread would.
    pub fn move_away(self, ring: &Ring) -> Self {
        let children = vec![self.file.clone(), self.backing.clone(), self.data_file.clone()];
        let driver = self.driver.depart().arrive(children, ring.clone());
        Self { driver, ..self }
    }

    pub async fn close(self) -> millpond_messages::Result<()> {
        self.driver.close().await
    }
}
