//! A front end of vhost-user-blk: the program that runs a virtual machine, and the machine's driver in one.
//!
//! Everything is done by hand, so that a test can also do it wrong.

use std::io::{IoSlice, IoSliceMut, Read, Write};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll};
use rustix::fs::{MemfdFlags, ftruncate, memfd_create};
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage,
    SendFlags, recvmsg, sendmsg,
};
use vm_memory::{Bytes, FileOffset, GuestAddress, GuestMemoryMmap};

/// The argument of `--export` for the node `disk` at this socket, with more options.
pub fn export(socket: &Path, more: &str) -> String {
    format!(
        "vhost-user-blk,id=exp,node-name=disk,addr.type=unix,addr.path={}{more}",
        socket.display()
    )
}

/// How long anything may take.
pub const PATIENCE: Duration = Duration::from_secs(20);

/// Numbers of messages.
pub mod message {
    /// Asks what the device can.
    pub const GET_FEATURES: u32 = 1;
    /// Says what is used of it.
    pub const SET_FEATURES: u32 = 2;
    /// Begins a session of messages.
    pub const SET_OWNER: u32 = 3;
    /// Passes the whole guest's memory.
    pub const SET_MEM_TABLE: u32 = 5;
    /// Says how large a queue is.
    pub const SET_VRING_NUM: u32 = 8;
    /// Says where a ring lies.
    pub const SET_VRING_ADDR: u32 = 9;
    /// Says where a ring begins.
    pub const SET_VRING_BASE: u32 = 10;
    /// Stops a queue, and asks where it stands.
    pub const GET_VRING_BASE: u32 = 11;
    /// Passes how requests are told of, and starts a queue.
    pub const SET_VRING_KICK: u32 = 12;
    /// Passes how answers are told of.
    pub const SET_VRING_CALL: u32 = 13;
    /// Asks what else both can agree on.
    pub const GET_PROTOCOL_FEATURES: u32 = 15;
    /// Says what is agreed on.
    pub const SET_PROTOCOL_FEATURES: u32 = 16;
    /// Asks how many queues there are.
    pub const GET_QUEUE_NUM: u32 = 17;
    /// Has a queue take requests, or none.
    pub const SET_VRING_ENABLE: u32 = 18;
    /// Passes where the back end's own messages go.
    pub const SET_BACKEND_REQ_FD: u32 = 21;
    /// Asks for the device's configuration.
    pub const GET_CONFIG: u32 = 24;
    /// Changes the device's configuration.
    pub const SET_CONFIG: u32 = 25;
    /// Asks for memory to note requests in.
    pub const GET_INFLIGHT_FD: u32 = 31;
    /// Passes memory to note requests in.
    pub const SET_INFLIGHT_FD: u32 = 32;
    /// Asks how many regions there can be.
    pub const GET_MAX_MEM_SLOTS: u32 = 36;
    /// Passes one more region of memory.
    pub const ADD_MEM_REG: u32 = 37;
    /// Takes a region of memory back.
    pub const REM_MEM_REG: u32 = 38;
}

/// Kinds of requests.
pub mod kind {
    /// A read of some sectors.
    pub const IN: u32 = 0;
    /// A write of some sectors.
    pub const OUT: u32 = 1;
    /// A flush of the cache.
    pub const FLUSH: u32 = 4;
    /// A question for the device's name.
    pub const GET_ID: u32 = 8;
    /// A discard of some sectors.
    pub const DISCARD: u32 = 11;
    /// A write of zeroes alone.
    pub const WRITE_ZEROES: u32 = 13;
}

/// Features of rings and of the protocol that the front end knows.
pub mod feature {
    /// Interrupts and kicks only where they are awaited.
    pub const EVENT_IDX: u64 = 1 << 29;
    /// Both can agree on more.
    pub const PROTOCOL: u64 = 1 << 30;
    /// The device is of Virtio 1.
    pub const VERSION_1: u64 = 1 << 32;
    /// Each message can be answered.
    pub const REPLY_ACK: u64 = 1 << 3;
    /// The back end can send messages of its own.
    pub const BACKEND_REQ: u64 = 1 << 5;
    /// The configuration is asked for by messages.
    pub const CONFIG: u64 = 1 << 9;
    /// Requests in flight are noted in shared memory.
    pub const INFLIGHT: u64 = 1 << 12;
}

/// In a descriptor: another follows.
pub const NEXT: u16 = 1;
/// In a descriptor: the device writes there.
pub const WRITE: u16 = 2;
/// In a descriptor: it leads to a table.
pub const INDIRECT: u16 = 4;

/// Where the guest's memory begins as the guest counts.
pub const GUEST: u64 = 0x4000_0000;
/// Where it begins as the front end's program counts.
pub const USER: u64 = 0x7000_0000_0000;
/// Bytes of the guest's memory.
pub const MEMORY: u64 = 64 << 20;
/// Bytes that a ring has for itself.
const RING: u64 = 1 << 16;
/// Where data may lie: behind room for eight rings.
pub const DATA: u64 = GUEST + 8 * RING;
/// Descriptors of a queue.
pub const QUEUE_SIZE: u16 = 128;

/// A queue of the device, as its driver knows it.
pub struct Queue {
    index: u16,
    /// Where the ring lies, from the memory's first byte.
    at: u64,
    kick: OwnedFd,
    call: OwnedFd,
    next_free: u16,
    next_avail: u16,
    next_used: u16,
}

/// A guest's memory. It outlives a connection.
pub struct Guest {
    file: OwnedFd,
    memory: GuestMemoryMmap,
    next_data: u64,
}

/// A front end that is connected.
pub struct FrontEnd {
    socket: UnixStream,
    /// The guest that it runs.
    pub guest: Guest,
    /// The features that the back end offers.
    pub offered: u64,
    /// Whether interrupts are suppressed that nobody awaits.
    pub event_idx: bool,
}

/// A piece of a request: where it lies, its length, its flags.
pub type Piece = (u64, u32, u16);

impl Default for Guest {
    fn default() -> Self {
        let file = memfd_create("guest", MemfdFlags::CLOEXEC).expect("memory can be had");
        ftruncate(&file, MEMORY).expect("memory can be had");
        let copy = std::fs::File::from(file.try_clone().expect("a file can be opened twice"));
        let range = (
            GuestAddress(GUEST),
            MEMORY as usize,
            Some(FileOffset::new(copy, 0)),
        );
        let memory = GuestMemoryMmap::from_ranges_with_files([range]).expect("memory can be mapped");
        Guest {
            file,
            memory,
            next_data: DATA,
        }
    }
}

impl Guest {
    /// The file that the memory is in.
    pub fn file(&self) -> &OwnedFd {
        &self.file
    }

    /// What was put somewhere is of no use any more.
    pub fn forget(&mut self) {
        self.next_data = DATA;
    }

    /// Room for `len` bytes that nothing else uses.
    pub fn room(&mut self, len: usize) -> u64 {
        let at = self.next_data;
        self.next_data += (len as u64).next_multiple_of(16);
        assert!(self.next_data <= GUEST + MEMORY, "the guest is out of memory");
        at
    }

    /// Bytes that lie somewhere.
    pub fn put(&mut self, bytes: &[u8]) -> u64 {
        let at = self.room(bytes.len());
        self.write(at, bytes);
        at
    }

    /// Writes bytes at an address.
    pub fn write(&self, at: u64, bytes: &[u8]) {
        self.memory
            .write_slice(bytes, GuestAddress(at))
            .expect("an address of the guest");
    }

    /// The bytes at an address.
    pub fn read(&self, at: u64, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        self.memory
            .read_slice(&mut bytes, GuestAddress(at))
            .expect("an address of the guest");
        bytes
    }

    /// The byte at an address.
    pub fn read_byte(&self, at: u64) -> u8 {
        let byte = self.memory.read_obj(GuestAddress(at));
        byte.expect("an address of the guest")
    }

    fn number(&self, at: u64) -> u16 {
        let number = self.memory.load::<u16>(GuestAddress(at), Ordering::Acquire);
        number.expect("an address of the guest")
    }

    /// Writes a number that the other side looks at.
    pub fn set_number(&self, at: u64, number: u16) {
        let stored = self.memory.store(number, GuestAddress(at), Ordering::Release);
        stored.expect("an address of the guest");
    }

    /// Writes a descriptor at an address.
    pub fn descriptor(&self, at: u64, (address, len, flags): Piece, next: u16) {
        let mut bytes = Vec::new();
        bytes.extend(address.to_le_bytes());
        bytes.extend(len.to_le_bytes());
        bytes.extend(flags.to_le_bytes());
        bytes.extend(next.to_le_bytes());
        self.write(at, &bytes);
    }

    /// The header of a request.
    pub fn header(&mut self, kind: u32, sector: u64) -> Piece {
        let mut bytes = kind.to_le_bytes().to_vec();
        bytes.extend([0; 4]);
        bytes.extend(sector.to_le_bytes());
        (self.put(&bytes), 16, 0)
    }
}

impl Queue {
    fn descriptors(&self) -> u64 {
        GUEST + self.at
    }

    /// Where the ring of requests lies.
    pub fn available(&self) -> u64 {
        GUEST + self.at + 0x4000
    }

    /// Where the ring of answers lies.
    pub fn used(&self) -> u64 {
        GUEST + self.at + 0x8000
    }

    /// Puts the pieces of a request into the table of descriptors; the first one's number.
    pub fn describe(&mut self, guest: &Guest, pieces: &[Piece]) -> u16 {
        let head = self.next_free;
        for (number, (address, len, flags)) in pieces.iter().enumerate() {
            let this = self.next_free;
            self.next_free = (self.next_free + 1) % QUEUE_SIZE;
            let follows = if number + 1 < pieces.len() { NEXT } else { 0 };
            let at = self.descriptors() + 16 * u64::from(this);
            guest.descriptor(at, (*address, *len, flags | follows), self.next_free);
        }
        head
    }

    /// Makes the request that begins with descriptor `head` available.
    pub fn offer(&mut self, guest: &Guest, head: u16) {
        let place = u64::from(self.next_avail % QUEUE_SIZE);
        guest.set_number(self.available() + 4 + 2 * place, head);
        self.next_avail = self.next_avail.wrapping_add(1);
        guest.set_number(self.available() + 2, self.next_avail);
    }

    /// Tells the device of the requests that were made available last, if it waits for that; whether it does.
    pub fn kick_where_awaited(&self, guest: &Guest, event_idx: bool, offered: u16) -> bool {
        std::sync::atomic::fence(Ordering::SeqCst);
        let awaited = match event_idx {
            true => {
                let event = guest.number(self.used() + 4 + 8 * u64::from(QUEUE_SIZE));
                self.next_avail.wrapping_sub(event).wrapping_sub(1) < offered
            }
            false => guest.number(self.used()) & 1 == 0,
        };
        if awaited {
            self.kick();
        }
        awaited
    }

    /// Tells the device.
    pub fn kick(&self) {
        rustix::io::write(&self.kick, &1_u64.to_ne_bytes()).expect("an eventfd can be written");
    }

    /// What the device is told by, to be used later.
    pub fn take_kick(&self) -> OwnedFd {
        self.kick.try_clone().expect("an eventfd can be opened twice")
    }

    /// The next answer, if there is one: the request's first descriptor, and the bytes written.
    pub fn answer(&mut self, guest: &Guest) -> Option<(u16, u32)> {
        if guest.number(self.used() + 2) == self.next_used {
            return None;
        }
        let at = self.used() + 4 + 8 * u64::from(self.next_used % QUEUE_SIZE);
        self.next_used = self.next_used.wrapping_add(1);
        // The device interrupts at the next answer again.
        guest.set_number(self.available() + 4 + 2 * u64::from(QUEUE_SIZE), self.next_used);
        let element = guest
            .memory
            .read_obj::<u64>(GuestAddress(at))
            .expect("an address of the guest");
        Some((element as u16, (element >> 32) as u32))
    }

    /// Waits for the next answer, by interrupts.
    ///
    /// # Errors
    /// None has come for so long.
    pub fn wait_for(&mut self, guest: &Guest, patience: Duration) -> Result<(u16, u32), String> {
        let end = Instant::now() + patience;
        loop {
            if let Some(answer) = self.answer(guest) {
                return Ok(answer);
            }
            let left = end.saturating_duration_since(Instant::now());
            if left.is_zero() || !readable(self.call.as_fd(), left) {
                return Err(format!("queue {} was not answered", self.index));
            }
            let mut count = [0; 8];
            rustix::io::read(&self.call, &mut count).expect("an eventfd can be read");
        }
    }

    /// How many requests were made available, and answered.
    pub fn counts(&self) -> (u16, u16) {
        (self.next_avail, self.next_used)
    }
}

/// Whether there is something to be read within a time.
fn readable(fd: BorrowedFd<'_>, within: Duration) -> bool {
    let mut fds = [PollFd::from_borrowed_fd(fd, PollFlags::IN)];
    let timeout = Timespec::try_from(within).expect("a time of seconds");
    poll(&mut fds, Some(&timeout)).is_ok_and(|ready| ready > 0)
}

/// A counter that wakes who waits for it.
pub fn event() -> OwnedFd {
    eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK).expect("an eventfd can be had")
}

/// The bytes of numbers of 64 bits.
pub fn words(words: &[u64]) -> Vec<u8> {
    words.iter().flat_map(|word| word.to_le_bytes()).collect()
}

/// The bytes of a ring's number and another one.
pub fn state(index: u32, number: u32) -> Vec<u8> {
    words(&[u64::from(index) | u64::from(number) << 32])
}

impl FrontEnd {
    /// Connects with a new guest, and agrees on what both sides know.
    pub fn connect(path: impl AsRef<Path>) -> FrontEnd {
        FrontEnd::connect_with(path, Guest::default(), true)
    }

    /// The same with a guest that there is already, and interrupts that are suppressed or not.
    pub fn connect_with(path: impl AsRef<Path>, guest: Guest, event_idx: bool) -> FrontEnd {
        let mut front_end = FrontEnd::bare(path, guest);
        front_end.event_idx = event_idx;
        front_end.offered = front_end.ask_number(message::GET_FEATURES);
        let rings = if event_idx { feature::EVENT_IDX } else { 0 };
        let chosen = front_end.offered & (feature::PROTOCOL | feature::VERSION_1 | 1 << 28 | rings);
        let protocol = front_end.ask_number(message::GET_PROTOCOL_FEATURES);
        let known = feature::CONFIG | feature::BACKEND_REQ | feature::INFLIGHT | feature::REPLY_ACK;
        front_end.tell(message::SET_PROTOCOL_FEATURES, &words(&[protocol & known]), &[]);
        front_end.tell(message::SET_OWNER, &[], &[]);
        front_end.tell(message::SET_FEATURES, &words(&[chosen]), &[]);
        front_end
    }

    /// Connects, and says nothing.
    pub fn bare(path: impl AsRef<Path>, guest: Guest) -> FrontEnd {
        let socket = UnixStream::connect(path).expect("a back end listens");
        socket
            .set_read_timeout(Some(PATIENCE))
            .expect("a socket has a time limit");
        FrontEnd {
            socket,
            guest,
            offered: 0,
            event_idx: false,
        }
    }

    /// Sends a message that is not answered.
    pub fn tell(&mut self, request: u32, payload: &[u8], files: &[BorrowedFd<'_>]) {
        self.send(request, 1, payload, files)
            .expect("the back end is there");
    }

    /// Sends a message with flags of the caller's choice.
    ///
    /// # Errors
    /// The back end is gone.
    pub fn send(
        &mut self,
        request: u32,
        flags: u32,
        payload: &[u8],
        files: &[BorrowedFd<'_>],
    ) -> std::io::Result<()> {
        let mut bytes = Vec::new();
        for word in [request, flags, payload.len() as u32] {
            bytes.extend(word.to_le_bytes());
        }
        bytes.extend(payload);
        self.send_raw(&bytes, files)
    }

    /// Sends bytes as they are.
    ///
    /// # Errors
    /// The back end is gone.
    pub fn send_raw(&mut self, bytes: &[u8], files: &[BorrowedFd<'_>]) -> std::io::Result<()> {
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(16))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        if !files.is_empty() {
            assert!(
                control.push(SendAncillaryMessage::ScmRights(files)),
                "so many descriptors"
            );
        }
        let sent = sendmsg(
            &self.socket,
            &[IoSlice::new(bytes)],
            &mut control,
            SendFlags::NOSIGNAL,
        )?;
        self.socket.write_all(&bytes[sent..])
    }

    /// Sends a message, and gives what it is answered with.
    ///
    /// # Errors
    /// It is not.
    pub fn try_ask(
        &mut self,
        request: u32,
        flags: u32,
        payload: &[u8],
        files: &[BorrowedFd<'_>],
    ) -> std::io::Result<(Vec<u8>, Vec<OwnedFd>)> {
        self.send(request, flags, payload, files)?;
        let mut header = [0; 12];
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(2))];
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let received = recvmsg(
            &self.socket,
            &mut [IoSliceMut::new(&mut header)],
            &mut control,
            RecvFlags::CMSG_CLOEXEC,
        )?;
        let mut passed = Vec::new();
        for message in control.drain() {
            if let RecvAncillaryMessage::ScmRights(files) = message {
                passed.extend(files);
            }
        }
        if received.bytes == 0 {
            return Err(std::io::ErrorKind::UnexpectedEof.into());
        }
        self.socket.read_exact(&mut header[received.bytes..])?;
        let word = |at: usize| u32::from_le_bytes(header[at..at + 4].try_into().expect("four bytes"));
        assert_eq!((word(0), word(4)), (request, 5), "the header of an answer");
        let mut answer = vec![0; word(8) as usize];
        self.socket.read_exact(&mut answer)?;
        Ok((answer, passed))
    }

    /// The answer to a message.
    pub fn ask(&mut self, request: u32, payload: &[u8]) -> Vec<u8> {
        let answer = self.try_ask(request, 1, payload, &[]);
        answer.expect("the back end answers").0
    }

    /// The number that a message is answered with.
    pub fn ask_number(&mut self, request: u32) -> u64 {
        let answer = self.ask(request, &[]);
        u64::from_le_bytes(answer.try_into().expect("a number of eight bytes"))
    }

    /// The device's configuration.
    pub fn config(&mut self, len: u32) -> Vec<u8> {
        let mut payload = [0, len, 0].map(u32::to_le_bytes).concat();
        payload.resize(12 + len as usize, 0);
        self.ask(message::GET_CONFIG, &payload).split_off(12)
    }

    /// Whether the back end has ended the connection, within the time that anything may take.
    pub fn is_cut(&mut self) -> bool {
        let mut byte = [0];
        match self.socket.read(&mut byte) {
            Ok(read) => read == 0,
            Err(error) => error.kind() == std::io::ErrorKind::ConnectionReset,
        }
    }

    /// What SET_MEM_TABLE says of the guest's memory.
    pub fn memory_table() -> Vec<u8> {
        words(&[1, GUEST, MEMORY, USER, 0])
    }

    /// Passes the guest's memory.
    pub fn pass_memory(&mut self) {
        let file = self.guest.file.try_clone().expect("a file can be opened twice");
        self.tell(message::SET_MEM_TABLE, &Self::memory_table(), &[file.as_fd()]);
    }

    /// Sets up a queue with an empty ring, and starts it.
    pub fn start_queue(&mut self, index: u16) -> Queue {
        let queue = Queue {
            index,
            at: RING * u64::from(index),
            kick: event(),
            call: event(),
            next_free: 0,
            next_avail: 0,
            next_used: 0,
        };
        self.guest.write(queue.available(), &[0; 0x1000]);
        self.guest.write(queue.used(), &[0; 0x1000]);
        self.restart_queue(&queue, 0);
        queue
    }

    /// Starts a queue with the ring as it is, from request `base` on.
    pub fn restart_queue(&mut self, queue: &Queue, base: u16) {
        let number = u32::from(queue.index);
        let user = |address: u64| address - GUEST + USER;
        self.tell(message::SET_VRING_NUM, &state(number, QUEUE_SIZE.into()), &[]);
        self.tell(message::SET_VRING_BASE, &state(number, base.into()), &[]);
        let (descriptors, used, available) = (queue.descriptors(), queue.used(), queue.available());
        let addresses = [number.into(), user(descriptors), user(used), user(available), 0];
        self.tell(message::SET_VRING_ADDR, &words(&addresses), &[]);
        self.tell(
            message::SET_VRING_CALL,
            &words(&[number.into()]),
            &[queue.call.as_fd()],
        );
        self.tell(message::SET_VRING_ENABLE, &state(number, 1), &[]);
        self.tell(
            message::SET_VRING_KICK,
            &words(&[number.into()]),
            &[queue.kick.as_fd()],
        );
    }

    /// Stops a queue; how many requests it has taken.
    pub fn stop_queue(&mut self, queue: &Queue) -> u32 {
        let answer = self.ask(message::GET_VRING_BASE, &state(queue.index.into(), 0));
        u32::from_le_bytes(answer[4..8].try_into().expect("four bytes"))
    }

    /// Begins a request: `given` goes to the device, and `room` bytes are for what comes back. Gives the place of those, with
    /// the status behind them.
    pub fn begin(&mut self, queue: &mut Queue, kind: u32, sector: u64, given: &[&[u8]], room: usize) -> u64 {
        let back = self.prepare(queue, kind, sector, given, room);
        queue.kick();
        back
    }

    /// The same, but the device is not told.
    pub fn prepare(
        &mut self,
        queue: &mut Queue,
        kind: u32,
        sector: u64,
        given: &[&[u8]],
        room: usize,
    ) -> u64 {
        let mut pieces = vec![self.guest.header(kind, sector)];
        for bytes in given {
            pieces.push((self.guest.put(bytes), bytes.len() as u32, 0));
        }
        let back = self.guest.room(room + 1);
        self.guest.write(back, &vec![0; room]);
        self.guest.write(back + room as u64, &[0xff]);
        if room > 0 {
            pieces.push((back, room as u32, WRITE));
        }
        pieces.push((back + room as u64, 1, WRITE));
        let head = queue.describe(&self.guest, &pieces);
        queue.offer(&self.guest, head);
        back
    }

    /// Makes a request, and waits for its end: its status, and what came back.
    pub fn request(
        &mut self,
        queue: &mut Queue,
        kind: u32,
        sector: u64,
        given: &[&[u8]],
        room: usize,
    ) -> (u8, Vec<u8>) {
        self.guest.forget();
        let back = self.begin(queue, kind, sector, given, room);
        queue.wait_for(&self.guest, PATIENCE).expect("an answer");
        let mut bytes = self.guest.read(back, room + 1);
        let status = bytes.pop().expect("a status");
        (status, bytes)
    }

    /// Disconnects; the guest goes on.
    pub fn leave(self) -> Guest {
        self.guest
    }
}
