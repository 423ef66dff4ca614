//! A client for each kind of export, all with the same calls, so that what every export must do is tested by one table.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use rustix::fs::{FallocateFlags, fallocate};
use serde_json::{Value, json};

use crate::PATIENCE;
use crate::daemon::Daemon;
use crate::fuse::{self, Mount, Offered};
use crate::image::with;
use crate::nbd::wire::*;
use crate::nbd::{Request, Session};
use crate::vhost::{FrontEnd, Queue, kind};

/// The kinds of exports that a client here is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// The network block device.
    Nbd,
    /// A virtual machine's disk.
    VhostUserBlk,
    /// A file, by the device of the kernel.
    Fuse,
    /// A file, over io_uring.
    FuseOverIoUring,
}

/// Every kind.
pub const KINDS: [Kind; 4] = [Kind::Nbd, Kind::VhostUserBlk, Kind::Fuse, Kind::FuseOverIoUring];

/// The id of the export.
pub const ID: &str = "exp";

/// An export, and the way to it. Dropped, a mount is gone.
#[derive(Debug)]
pub struct Exported {
    kind: Kind,
    place: PathBuf,
    _mount: Option<Mount>,
    /// The kernel offers io_uring as long as it is needed.
    _offered: Option<Offered>,
    uri: String,
    name: String,
    address: Option<crate::nbd::Address>,
}

/// A user of an export.
pub trait Client: Send {
    /// How many bytes the disk has.
    fn length(&mut self) -> u64;

    /// Makes a request, and waits for its end: what was read.
    ///
    /// # Errors
    /// It was refused, or the export is gone.
    fn call(&mut self, request: &Request) -> Result<Vec<u8>, String>;

    /// Goes, and the export knows it.
    fn leave(self: Box<Self>);

    /// Begins a request, and is gone before its end.
    fn die_amid(self: Box<Self>, request: &Request);
}

impl Kind {
    /// Its name in QMP.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Kind::Nbd => "nbd",
            Kind::VhostUserBlk => "vhost-user-blk",
            Kind::Fuse | Kind::FuseOverIoUring => "fuse",
        }
    }

    /// Whether its users have a file.
    #[must_use]
    pub fn is_file(self) -> bool {
        matches!(self, Kind::Fuse | Kind::FuseOverIoUring)
    }

    /// Requests can begin and end at multiples of so many bytes.
    #[must_use]
    pub fn granularity(self) -> u64 {
        match self {
            Kind::VhostUserBlk => 512,
            _ => 1,
        }
    }

    /// Zeroes and discards can begin and end at multiples of so many bytes, whatever the image: as with QEMU, calls on files
    /// never write the zeroes that an image has no way to note.
    #[must_use]
    pub fn zero_granularity(self) -> u64 {
        match self {
            _ if self.is_file() => 64 << 10,
            _ => self.granularity(),
        }
    }

    /// Whether a client that is connected keeps an export from being removed, as with QEMU.
    #[must_use]
    pub fn keeps(self) -> bool {
        self == Kind::Nbd
    }

    /// Has a daemon, with an NBD server, export a node.
    #[track_caller]
    pub fn export(self, daemon: &mut Daemon, node: &str, more: &Value) -> Exported {
        self.export_as(daemon, ID, node, more)
    }

    /// The same under an id.
    #[track_caller]
    pub fn export_as(self, daemon: &mut Daemon, id: &str, node: &str, more: &Value) -> Exported {
        let options = json!({"type": self.name(), "id": id, "node-name": node});
        let offered = (self == Kind::FuseOverIoUring).then(Offered::new);
        let (place, own) = match self {
            Kind::Nbd => (PathBuf::new(), json!({ "name": id })),
            Kind::VhostUserBlk => {
                let place = daemon.dir().join(id);
                let own = json!({"addr": {"type": "unix", "path": place}});
                (place, own)
            }
            Kind::Fuse | Kind::FuseOverIoUring => {
                let place = fuse::mountpoint(daemon, id);
                let over_io_uring = if self == Kind::Fuse { "off" } else { "on" };
                let own = json!({"mountpoint": place, "x-millpond-io-uring": over_io_uring});
                (place, own)
            }
        };
        daemon.qmp.ok("block-export-add", with(with(options, &own), more));
        Exported {
            kind: self,
            _mount: self.is_file().then(|| Mount::at(place.clone())),
            _offered: offered,
            uri: daemon.uri(id),
            name: id.to_owned(),
            address: (self == Kind::Nbd).then(|| daemon.address()),
            place,
        }
    }
}

impl Exported {
    /// A new client.
    #[track_caller]
    pub fn connect(&self) -> Box<dyn Client> {
        match (self.kind, &self.address) {
            (Kind::VhostUserBlk, _) => {
                let mut front_end = FrontEnd::connect(&self.place);
                front_end.pass_memory();
                let queue = front_end.start_queue(0);
                Box::new(Guest { front_end, queue })
            }
            (_, Some(address)) => {
                let session = crate::nbd::Connect::default().open(address, &self.name);
                Box::new(Remote {
                    session,
                    uri: self.uri.clone(),
                })
            }
            (..) => Box::new(Mounted {
                file: open(&self.place),
                path: self.place.clone(),
            }),
        }
    }
}

struct Remote {
    session: Session,
    uri: String,
}

impl Client for Remote {
    fn length(&mut self) -> u64 {
        // A client of NBD learns the length as it connects, and never again.
        let info = crate::tool::run("nbdinfo", &["--size", &self.uri]);
        info.trim().parse().expect("nbdinfo prints a number")
    }

    fn call(&mut self, request: &Request) -> Result<Vec<u8>, String> {
        let answer = self.session.call(request).map_err(|error| error.to_string())?;
        match answer.error {
            0 => Ok(answer.data),
            error => Err(format!("error {error}")),
        }
    }

    fn leave(self: Box<Self>) {
        let left = self.session.disconnect();
        left.expect("a goodbye closes the connection");
    }

    fn die_amid(mut self: Box<Self>, request: &Request) {
        self.session.submit(request).expect("a request can be sent");
    }
}

struct Guest {
    front_end: FrontEnd,
    queue: Queue,
}

/// What a request is on a virtual machine's queue: its kind, its sector, what is given with it, and room for what is read.
fn on_queue(request: &Request) -> (u32, u64, Vec<u8>, usize) {
    let (sector, count) = (request.offset / 512, request.length / 512);
    let segment = || {
        let mut segment = sector.to_le_bytes().to_vec();
        segment.extend(count.to_le_bytes());
        segment
    };
    match request.command {
        CMD_READ => (kind::IN, sector, Vec::new(), request.length as usize),
        CMD_WRITE => (kind::OUT, sector, request.payload.clone(), 0),
        CMD_FLUSH => (kind::FLUSH, 0, Vec::new(), 0),
        CMD_TRIM => (kind::DISCARD, 0, segment(), 0),
        _ => (kind::WRITE_ZEROES, 0, segment(), 0),
    }
}

impl Client for Guest {
    fn length(&mut self) -> u64 {
        let sectors = self.front_end.config(8);
        512 * u64::from_le_bytes(sectors.try_into().expect("eight bytes"))
    }

    fn call(&mut self, request: &Request) -> Result<Vec<u8>, String> {
        let (kind, sector, given, room) = on_queue(request);
        self.front_end.guest.forget();
        let given: Vec<_> = given.chunks(1 << 20).collect();
        let back = self.front_end.begin(&mut self.queue, kind, sector, &given, room);
        self.queue.wait_for(&self.front_end.guest, PATIENCE)?;
        let mut bytes = self.front_end.guest.read(back, room + 1);
        match bytes.pop() {
            Some(0) => Ok(bytes),
            status => Err(format!("status {status:?}")),
        }
    }

    fn leave(self: Box<Self>) {}

    fn die_amid(mut self: Box<Self>, request: &Request) {
        let (kind, sector, given, room) = on_queue(request);
        self.front_end
            .begin(&mut self.queue, kind, sector, &[&given], room);
    }
}

struct Mounted {
    file: File,
    path: PathBuf,
}

fn open(path: &Path) -> File {
    let writable = OpenOptions::new().read(true).write(true).open(path);
    // What is exported to be read alone cannot be opened otherwise.
    let file = writable.or_else(|_| File::open(path));
    file.expect("an export can be opened")
}

impl Client for Mounted {
    fn length(&mut self) -> u64 {
        fuse::length(&self.path)
    }

    fn call(&mut self, request: &Request) -> Result<Vec<u8>, String> {
        let Request { offset, length, .. } = *request;
        let punch = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
        let done: io::Result<()> = match request.command {
            CMD_READ => {
                let mut room = vec![0; length as usize];
                let read = self.file.read_exact_at(&mut room, offset);
                return read.map(|()| room).map_err(|error| error.to_string());
            }
            CMD_WRITE => self.file.write_all_at(&request.payload, offset),
            CMD_FLUSH => self.file.sync_all(),
            CMD_TRIM => fallocate(&self.file, punch, offset, length).map_err(io::Error::from),
            _ => fallocate(&self.file, FallocateFlags::ZERO_RANGE, offset, length).map_err(io::Error::from),
        };
        done.map(|()| Vec::new()).map_err(|error| error.to_string())
    }

    fn leave(self: Box<Self>) {}

    /// A process that is killed.
    fn die_amid(self: Box<Self>, request: &Request) {
        let mut child = begin_copy(&self.path, request);
        child.kill().expect("a process can be killed");
        child.wait().expect("a process ends");
    }
}

/// A process that writes a request's bytes into a file; it has begun.
fn begin_copy(path: &Path, request: &Request) -> Child {
    let mut child = Command::new("dd")
        .args(["conv=notrunc", "oflag=seek_bytes", "status=none"])
        .arg(format!("bs={}", request.length))
        .arg(format!("seek={}", request.offset))
        .arg(format!("of={}", path.display()))
        .stdin(Stdio::piped())
        .spawn()
        .expect("dd can be run");
    let mut input = child.stdin.take().expect("dd reads from here");
    io::Write::write_all(&mut input, &request.payload).expect("dd reads what it writes");
    child
}
