//! A driver, a device that is served for it, and the node behind that.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use futures_channel::mpsc;
use millpond_engine::node::Client;
use millpond_messages::Permissions;
use millpond_messages::graph::{IothreadOptions, RootRequest, RootUser};
use millpond_ring::os::process::watched;
use millpond_ring::os::vduse::QueueFacts;
use millpond_ring::{Engine, Fd};
use rustix::fs::{MemfdFlags, memfd_create};
use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::sync::watch;
use zerocopy::{FromBytes, IntoBytes};

use super::kernel::{FakeKernel, Mapped};
use crate::export::seat::Seats;
use crate::export::vduse::driver::{DriverSide, Parts};
use crate::export::vduse::export::Server;
use crate::export::vduse::journal;
use crate::export::vduse::kernel::Kernel;
use crate::export::vduse::message::{Channel, RawRequest, RawResponse};
use crate::export::virtio::config::feature;
use crate::export::virtio::device::{Device, Shape, serial};
use crate::graph::{Graph, GraphConfig, GraphHandle, ImplicitOpens, system_iothreads};

/// How long anything may take.
const PATIENCE: Duration = Duration::from_secs(20);
/// How many queues the device has.
pub const QUEUES: u16 = 2;
/// How many descriptors a queue has at most.
pub const QUEUE_SIZE: u16 = 64;
/// Bytes of the disk.
pub const DISK: u64 = 1 << 20;
/// Where the rings are, 64 KiB for each.
pub const RINGS: u64 = 0x10_0000;
/// Bytes of all rings.
const RINGS_LEN: u64 = 0x2_0000;
/// Where data is: not beside the rings.
pub const DATA: u64 = 0x100_0000;
/// Bytes of data.
pub const DATA_LEN: u64 = 0x10_0000;

/// In a status: the driver is ready.
pub const DRIVER_OK: u8 = 4;
/// In a descriptor: another follows.
const NEXT: u16 = 1;
/// In a descriptor: the device writes there.
pub const WRITE: u16 = 2;
/// In a descriptor: it leads to a table.
pub const INDIRECT: u16 = 4;

/// A queue as its driver counts.
#[derive(Default, Clone, Copy)]
struct Counts {
    available: u16,
    used: u16,
}

/// What a test has in its hands.
pub struct World {
    pub kernel: Arc<FakeKernel>,
    pub rings: File,
    pub data: File,
    /// What the disk holds.
    pub disk: tempfile::NamedTempFile,
    pub folder: tempfile::TempDir,
    client: Client,
    messages: Option<AsyncFd<Fd>>,
    closing: watch::Sender<bool>,
    served: Option<actix_rt::task::JoinHandle<()>>,
    counts: [Counts; QUEUES as usize],
    next_data: u64,
}

/// A file of some bytes in memory.
pub fn memory(len: u64) -> File {
    let file = File::from(memfd_create("memory", MemfdFlags::CLOEXEC).expect("memory can be had"));
    file.set_len(len).expect("memory can be had");
    file
}

/// Runs a test with a device over a node: `more` are options of that.
pub fn with_world<F: Future<Output = World>>(test: impl FnOnce(World) -> F) {
    actix_rt::System::new().block_on(async {
        let config = GraphConfig {
            registry: millpond_drivers::builtin::builtin(),
            implicit: ImplicitOpens::Allow,
            iothreads: system_iothreads(Engine::Auto),
            main: IothreadOptions::named("main"),
        };
        let (_, graph) = Graph::start(config).expect("an iothread can be started");
        let world = World::new(&graph).await;
        let mut world = tokio::time::timeout(3 * PATIENCE, test(world))
            .await
            .expect("a test ends");
        world.stop_serving().await;
        graph.close_all().await.expect("everything closes");
    });
}

impl World {
    async fn new(graph: &GraphHandle) -> Self {
        let disk = tempfile::NamedTempFile::new().expect("a file");
        disk.as_file().set_len(DISK).expect("room");
        let node = serde_json::json!({"driver": "file", "node-name": "disk", "filename": disk.path()});
        let options = node.as_object().cloned().unwrap_or_default();
        graph.add_node(options).await.expect("the file opens");
        let client = graph.attach(RootRequest::new(
            "disk",
            RootUser::Embedder("test".to_owned()),
            Permissions::CONSISTENT_READ | Permissions::WRITE,
        ));
        let client = client.await.expect("it is free");
        let (rings, data) = (memory(RINGS_LEN), memory(DATA_LEN));
        let kernel = Arc::new(FakeKernel::default());
        {
            let mut state = kernel.state();
            state.features = feature::VERSION_1 | feature::ACCESS_PLATFORM | feature::RING_INDIRECT_DESC;
            state.queues = (0..QUEUES).map(good_queue).collect();
            state.kicks = (0..QUEUES).map(|_| None).collect();
            state.interrupts = vec![0; usize::from(QUEUES)];
            for (start, file) in [(RINGS, &rings), (DATA, &data)] {
                let len = file.metadata().expect("memory has a length").len();
                state.memory.push(Mapped {
                    start,
                    last: start + len - 1,
                    file: file.try_clone().expect("a file can be opened twice"),
                    offset: 0,
                    is_writable: true,
                });
            }
        }
        Self {
            kernel,
            rings,
            data,
            disk,
            folder: tempfile::tempdir().expect("a folder"),
            client,
            messages: None,
            closing: watch::channel(false).0,
            served: None,
            counts: Default::default(),
            next_data: DATA,
        }
    }

    /// Where requests in flight are noted.
    pub fn journal(&self) -> PathBuf {
        self.folder.path().join("journal")
    }

    /// Serves the device, as a process does that has made it, or found it.
    pub async fn serve(&mut self, is_new: bool) {
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let pair = socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None);
        let (ours, its) = pair.expect("sockets can be had");
        let shape = Shape {
            block_size: 512,
            queues: QUEUES,
            longest: QUEUE_SIZE,
            writable: true,
            serial: serial("a serial number that is too long"),
            transport: feature::ACCESS_PLATFORM,
        };
        let (faults, faulty) = mpsc::unbounded();
        let (lookups, wanted) = mpsc::unbounded();
        let in_flight = journal::open(&self.journal(), QUEUES, is_new).expect("a journal");
        let mut driver = DriverSide::new(Parts {
            kernel: Arc::clone(&self.kernel) as Arc<dyn Kernel>,
            device: Arc::new(Device::new(DISK, shape)),
            seats: Seats::new(self.client.clone()),
            queue_size: QUEUE_SIZE,
            in_flight: Arc::new(in_flight),
            faults,
            lookups,
        });
        if !is_new {
            driver.length_changed();
            driver.resume().await.expect("what is set up can be served");
        }
        self.closing = watch::channel(false).0;
        let server = Server {
            name: "test".to_owned(),
            channel: Channel::new(&Arc::new(its)).expect("it can be watched"),
            driver,
            faults: faulty,
            lookups: wanted,
            closing: self.closing.subscribe(),
        };
        self.messages = Some(watched(Arc::new(ours)).expect("it can be watched"));
        self.served = Some(actix_rt::spawn(server.serve(mpsc::unbounded().1)));
    }

    /// Serves it no more.
    pub async fn stop_serving(&mut self) {
        self.closing.send_replace(true);
        if let Some(served) = self.served.take() {
            served.await.expect("it ends well");
        }
        self.messages = None;
    }

    /// Sends a message and waits for its answer: whether it was obeyed, and what queue has taken how many requests.
    pub async fn tell(&self, kind: u32, body: &[u8]) -> (bool, u32, u16) {
        let mut request = RawRequest {
            kind,
            id: 77,
            reserved: [0; 4],
            body: [0; 128],
        };
        request.body[..body.len()].copy_from_slice(body);
        let messages = self.messages.as_ref().expect("it is served");
        rustix::io::write(messages.get_ref(), request.as_bytes()).expect("it is served");
        let mut bytes = [0; size_of::<RawResponse>()];
        let receive = |socket: &Fd| Ok(rustix::io::read(socket, &mut bytes)?);
        let received = tokio::time::timeout(PATIENCE, messages.async_io(Interest::READABLE, receive)).await;
        let received = received.expect("a message is answered").expect("it is served");
        assert_eq!(received, bytes.len());
        let response = RawResponse::read_from_bytes(&bytes).expect("it is as long");
        assert_eq!(response.id, 77);
        (response.result == 0, response.index, response.taken)
    }

    /// Sets the status of the device; whether that was obeyed.
    pub async fn set_status(&self, status: u8) -> bool {
        self.tell(1, &[status]).await.0
    }

    /// Says that memory has changed.
    pub async fn memory_changed(&self, first: u64, last: u64) {
        let body = [first.to_ne_bytes(), last.to_ne_bytes()].concat();
        assert!(self.tell(2, &body).await.0);
    }

    /// The driver resets the device, and begins its rings anew.
    pub async fn reset(&mut self) {
        assert!(self.set_status(0).await);
        self.counts = Default::default();
        let zeroes = vec![0; usize::try_from(RINGS_LEN).expect("it is small")];
        self.rings.write_all_at(&zeroes, 0).expect("memory is written");
    }

    /// Room for bytes that lie somewhere in the driver's memory.
    pub fn put(&mut self, bytes: &[u8]) -> u64 {
        let at = self.next_data;
        self.next_data += (bytes.len() as u64).next_multiple_of(16);
        assert!(self.next_data <= DATA + DATA_LEN, "the driver is out of memory");
        self.data
            .write_all_at(bytes, at - DATA)
            .expect("memory is written");
        at
    }

    /// The bytes somewhere in the driver's memory.
    pub fn get(&self, at: u64, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        self.data
            .read_exact_at(&mut bytes, at - DATA)
            .expect("memory is read");
        bytes
    }

    /// Puts a request onto a ring: the pieces from descriptor `head` on.
    pub fn offer(&mut self, queue: u16, head: u16, pieces: &[(u64, u32, u16)]) {
        for (number, (at, len, flags)) in (0_u16..).zip(pieces) {
            let (this, follows) = (head + number, usize::from(number) + 1 < pieces.len());
            let flags = flags | if follows { NEXT } else { 0 };
            let descriptor = descriptor(*at, *len, flags, this + 1);
            self.set_ring(queue, 16 * u64::from(this), &descriptor);
        }
        let counts = &mut self.counts[usize::from(queue)];
        let place = u64::from(counts.available % QUEUE_SIZE);
        counts.available = counts.available.wrapping_add(1);
        let available = counts.available;
        self.set_ring(queue, 0x4004 + 2 * place, &head.to_le_bytes());
        self.set_ring(queue, 0x4002, &available.to_le_bytes());
    }

    fn set_ring(&self, queue: u16, at: u64, bytes: &[u8]) {
        let written = self.rings.write_all_at(bytes, 0x1_0000 * u64::from(queue) + at);
        written.expect("memory is written");
    }

    /// Writes the number of answers on a ring, as if they had been given.
    pub fn set_used(&mut self, queue: u16, used: u16) {
        self.set_ring(queue, 0x8002, &used.to_le_bytes());
        self.await_from(queue, used);
    }

    /// The driver has seen so many answers, and wants to be told of the next one.
    fn await_from(&mut self, queue: u16, used: u16) {
        self.counts[usize::from(queue)].used = used;
        let event = 0x4004 + 2 * u64::from(QUEUE_SIZE);
        self.set_ring(queue, event, &used.to_le_bytes());
    }

    /// Tells the device that there are requests.
    pub fn kick(&self, queue: u16) {
        let state = self.kernel.state();
        let kick = state.kicks[usize::from(queue)]
            .as_ref()
            .expect("the queue has started");
        rustix::io::write(kick, &1_u64.to_ne_bytes()).expect("a counter can be written");
    }

    fn ring_number(&self, queue: u16, at: u64) -> u16 {
        let mut bytes = [0; 2];
        let read = self
            .rings
            .read_exact_at(&mut bytes, 0x1_0000 * u64::from(queue) + at);
        read.expect("memory is read");
        u16::from_le_bytes(bytes)
    }

    /// The first descriptor of the next request that was answered, if there is one.
    pub fn answered(&mut self, queue: u16) -> Option<u16> {
        let used = self.counts[usize::from(queue)].used;
        if self.ring_number(queue, 0x8002) == used {
            return None;
        }
        self.await_from(queue, used.wrapping_add(1));
        Some(self.ring_number(queue, 0x8004 + 8 * u64::from(used % QUEUE_SIZE)))
    }

    /// Waits for the next answer, and for the interrupt that tells of it.
    pub async fn wait(&mut self, queue: u16) -> u16 {
        loop {
            let kernel = Arc::clone(&self.kernel);
            let mut interrupted = std::pin::pin!(kernel.interrupted());
            // From here on an interrupt is noted.
            let _ = futures_util::poll!(&mut interrupted);
            if let Some(head) = self.answered(queue) {
                return head;
            }
            let waited = tokio::time::timeout(PATIENCE, interrupted).await;
            waited.expect("a request is answered, and the driver told of it");
        }
    }

    /// The header of a request, somewhere in memory.
    pub fn header(&mut self, kind: u32, sector: u64) -> (u64, u32, u16) {
        let mut bytes = kind.to_le_bytes().to_vec();
        bytes.extend([0; 4]);
        bytes.extend(sector.to_le_bytes());
        (self.put(&bytes), 16, 0)
    }

    /// Has a request served that begins with descriptor `head`; its status.
    pub async fn request(
        &mut self,
        queue: u16,
        head: u16,
        kind: u32,
        sector: u64,
        data: &[(u64, u32, u16)],
    ) -> u8 {
        let status = self.put(&[0xff]);
        let mut pieces = vec![self.header(kind, sector)];
        pieces.extend(data);
        pieces.push((status, 1, WRITE));
        self.offer(queue, head, &pieces);
        self.kick(queue);
        assert_eq!(self.wait(queue).await, head);
        self.get(status, 1)[0]
    }

    /// Waits until something holds that nothing tells of.
    pub async fn until(&self, condition: impl Fn(&Self) -> bool) {
        let waited = tokio::time::timeout(PATIENCE, async {
            while !condition(self) {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        });
        waited.await.expect("it comes to hold");
    }
}

/// A descriptor as it lies in memory.
pub fn descriptor(at: u64, len: u32, flags: u16, next: u16) -> Vec<u8> {
    let mut bytes = at.to_le_bytes().to_vec();
    bytes.extend(len.to_le_bytes());
    bytes.extend(flags.to_le_bytes());
    bytes.extend(next.to_le_bytes());
    bytes
}

/// A queue as a driver of good will sets it up.
pub fn good_queue(index: u16) -> QueueFacts {
    let at = RINGS + 0x1_0000 * u64::from(index);
    QueueFacts {
        size: QUEUE_SIZE.into(),
        descriptors: at,
        available: at + 0x4000,
        used: at + 0x8000,
        taken: 0,
        ready: true,
    }
}
