//! Opening files and devices: descriptors, what they must be, and the alignment they ask for. All of it blocks.

use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::sync::Arc;

use millpond_messages::{Error, ErrorKind, IoError, OpenFlags, Permissions, Result};
use rustix::fs::{
    AtFlags, FileType, FsWord, Mode, OFlags, StatxFlags, fcntl_getfl, fcntl_setfl, fstat, fstatfs, open,
    statx,
};
use rustix::io::Errno;

use millpond_ring::Fd;
use millpond_ring::buffer::{Buffer, OPT_MEM_ALIGN};
use millpond_ring::os::files;

/// Permissions that need a descriptor open for writing.
const WRITERS: Permissions = Permissions::WRITE
    .union(Permissions::WRITE_UNCHANGED)
    .union(Permissions::RESIZE);

/// How a descriptor is open.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Access {
    /// Whether it is opened for writing too.
    pub(super) write: bool,
    /// Whether it bypasses the page cache.
    pub(super) direct: bool,
}

impl Access {
    /// What a node opened with `flags` and used with the permissions `taken` needs. With `auto-read-only` the file is
    /// opened for writing only while there is a writer.
    pub(super) fn new(flags: OpenFlags, taken: Permissions) -> Self {
        let may_write = flags.contains(OpenFlags::RDWR);
        let write = may_write && (!flags.contains(OpenFlags::AUTO_RDONLY) || taken.intersects(WRITERS));
        Self {
            write,
            direct: flags.contains(OpenFlags::NOCACHE),
        }
    }

    fn flags(self) -> OFlags {
        let mode = if self.write { OFlags::RDWR } else { OFlags::RDONLY };
        let direct = if self.direct {
            OFlags::DIRECT
        } else {
            OFlags::empty()
        };
        mode | direct | OFlags::CLOEXEC | OFlags::NOCTTY
    }
}

/// The kinds of files that a node may be made on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    /// A regular file of a file system.
    Regular,
    /// A block device of the host.
    Block,
    /// A character device of the host.
    Character,
}

/// The alignment that direct I/O demands; 1 everywhere without it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Alignment {
    /// Of offsets and lengths, in bytes.
    pub(super) request: u32,
    /// Of memory, in bytes.
    pub(super) memory: u32,
    /// Of discards and zero writes, in bytes; 0 where they may have any.
    pub(super) erase: u32,
}

/// An open descriptor with all that had to be found out about its file.
#[derive(Debug, Clone)]
pub(super) struct Handle {
    pub(super) fd: Fd,
    /// The same file for requests that the ring is to serve at once. See [`open_in_place`].
    pub(super) in_place: Option<Fd>,
    pub(super) access: Access,
    pub(super) kind: Kind,
    pub(super) alignment: Alignment,
    /// The extent size hint in bytes; 0 if there is none.
    pub(super) extent_size_hint: u32,
    /// Whether even calls that a local file system answers from memory may hang, because they wait for another machine or
    /// program.
    pub(super) may_hang: bool,
}

impl Handle {
    /// Opens `filename` for the driver of this name: a regular file for `file`, a device for `host_device`.
    ///
    /// # Errors
    /// The file cannot be opened so, is of another kind, or is a device that refuses writes.
    pub(super) fn open(driver: &str, filename: &str, access: Access) -> Result<Self> {
        let wants_device = driver != "file";
        // A pipe must not hold up the open until it has a writer, only to be refused. Devices give O_NONBLOCK other
        // meanings, and are what was asked for.
        let fd = open_path(filename, filename, access, !wants_device)?;
        let kind = match FileType::from_raw_mode(stat(&fd)?.st_mode) {
            FileType::RegularFile if !wants_device => Kind::Regular,
            FileType::BlockDevice if wants_device => Kind::Block,
            FileType::CharacterDevice if wants_device => Kind::Character,
            _ => return Err(wrong_kind(driver, filename, wants_device)),
        };
        Self::new(fd, kind, access)
    }

    /// Opens the same file anew, whatever its name is by now.
    ///
    /// # Errors
    /// As for [`Handle::open`].
    pub(super) fn reopen(&self, filename: &str, access: Access) -> Result<Self> {
        let link = format!("/proc/self/fd/{}", self.fd.as_raw_fd());
        let fd = match open_path(&link, filename, access, false) {
            Err(error) if error.kind() == ErrorKind::Io(IoError::from_errno(libc::ENOENT)) => {
                let fd = open_path(filename, filename, access, false)?;
                self.check_same(&fd, filename)?;
                fd
            }
            other => other?,
        };
        let may_hang = self.may_hang;
        Ok(Self {
            may_hang,
            ..Self::new(fd, self.kind, access)?
        })
    }

    /// Without `/proc` only the name is left, and by that there may be another file now.
    fn check_same(&self, fd: &OwnedFd, filename: &str) -> Result<()> {
        let (old, new) = (stat(&self.fd)?, stat(fd)?);
        if (old.st_dev, old.st_ino) == (new.st_dev, new.st_ino) {
            return Ok(());
        }
        let text = format!("Could not open '{filename}': another file has that name now");
        Err(Error::new(ErrorKind::NotFound, text))
    }

    fn new(fd: OwnedFd, kind: Kind, access: Access) -> Result<Self> {
        if access.write && kind == Kind::Block && files::is_read_only_device(fd.as_fd()).unwrap_or(false) {
            return Err(Error::io(
                "The device is not writable",
                IoError::from_errno(libc::EACCES),
            ));
        }
        let alignment = alignment(&fd, kind, access)?;
        let extent_size_hint = match kind {
            Kind::Regular => files::extent_size_hint(&fd).unwrap_or(0),
            Kind::Block | Kind::Character => 0,
        };
        let file_system = match kind {
            Kind::Regular => fstatfs(&fd).ok().map(|about| about.f_type),
            Kind::Block | Kind::Character => None,
        };
        let is_among = |types: &[FsWord]| file_system.is_some_and(|found| types.contains(&found));
        let in_place = match access.direct {
            false if is_among(&[TMPFS]) => open_in_place(&fd, access).map(Arc::new),
            _ => None,
        };
        Ok(Self {
            may_hang: kind == Kind::Regular && !is_among(&LOCAL),
            fd: Arc::new(fd),
            in_place,
            access,
            kind,
            alignment,
            extent_size_hint,
        })
    }
}

fn stat(fd: impl AsFd) -> Result<rustix::fs::Stat> {
    fstat(fd).map_err(|error| Error::io("Could not stat file", errno(error)))
}

fn wrong_kind(driver: &str, filename: &str, wants_device: bool) -> Error {
    let kind = if wants_device {
        "either a character or block device"
    } else {
        "a regular file"
    };
    let text = format!("'{driver}' driver requires '{filename}' to be {kind}");
    Error::new(ErrorKind::InvalidArgument, text)
}

/// Opens `path`, which errors call `filename`.
fn open_path(path: &str, filename: &str, access: Access, nonblocking: bool) -> Result<OwnedFd> {
    let extra = if nonblocking {
        OFlags::NONBLOCK
    } else {
        OFlags::empty()
    };
    let fd = open(path, access.flags() | extra, Mode::empty()).map_err(|error| {
        if error == Errno::INVAL && access.direct && lacks_direct_io(path, access, extra) {
            let text = format!("Could not open '{filename}': filesystem does not support O_DIRECT");
            return Error::caused_by(ErrorKind::Io(IoError::Invalid), text, errno(error));
        }
        Error::io(&format!("Could not open '{filename}'"), errno(error))
    })?;
    if nonblocking {
        // If the flag stayed on, the ring would answer EAGAIN rather than wait for the disk.
        let flags = fcntl_getfl(&fd).map(|flags| flags - OFlags::NONBLOCK);
        flags
            .and_then(|flags| fcntl_setfl(&fd, flags))
            .map_err(|error| Error::io(&format!("Could not open '{filename}'"), errno(error)))?;
    }
    Ok(fd)
}

/// The type of tmpfs, whose files lie in memory.
const TMPFS: FsWord = 0x0102_1994;

/// The types of file systems that know lengths and locks without asking anybody. Any call to another, such as NFS and FUSE, may
/// hang.
const LOCAL: [FsWord; 13] = [
    TMPFS,
    0x8584_58f6, // ramfs
    0x9584_58f6, // hugetlbfs
    0xef53,      // ext2, ext3, ext4
    0x5846_5342, // xfs
    0x9123_683e, // btrfs
    0xf2f5_2010, // f2fs
    0x2fc1_2fc1, // zfs
    0xca45_1a4e, // bcachefs
    0x3153_464a, // jfs
    0x4d44,      // vfat
    0x2011_bab0, // exfat
    0x794c_7630, // overlayfs, which has its files on one of the others
];

/// Opens a file that lies in memory once more, so that the ring reads and writes it in place. The kernel does not say of
/// tmpfs that it never waits for a disk, so io_uring hands each request to a thread: two wake-ups for a copy of some bytes.
/// With these two flags, which tmpfs itself does not look at, it tries at once. The other descriptor stays as it is, for
/// what is large enough to be worth a thread, and for the locks. Nothing is lost where this fails: kernels before 6.6 refuse
/// such flags.
fn open_in_place(fd: &OwnedFd, access: Access) -> Option<OwnedFd> {
    let link = format!("/proc/self/fd/{}", fd.as_raw_fd());
    let flags = access.flags() | OFlags::DIRECT | OFlags::NONBLOCK;
    let opened = open(link, flags, Mode::empty());
    opened
        .inspect_err(|error| tracing::debug!(%error, "a file in memory is served by threads"))
        .ok()
}

/// Whether an open was refused because of direct I/O.
fn lacks_direct_io(path: &str, access: Access, extra: OFlags) -> bool {
    open(
        path,
        Access {
            direct: false,
            ..access
        }
        .flags()
            | extra,
        Mode::empty(),
    )
    .is_ok()
}

/// The rustix error as an I/O error.
pub(super) fn errno(error: Errno) -> IoError {
    IoError::from_errno(error.raw_os_error())
}

fn alignment(fd: &OwnedFd, kind: Kind, access: Access) -> Result<Alignment> {
    let logical = match kind {
        Kind::Block => rustix::fs::ioctl_blksszget(fd)
            .ok()
            .filter(|size| is_alignment(*size)),
        Kind::Regular | Kind::Character => None,
    };
    let erase = logical.unwrap_or(0);
    if !access.direct {
        return Ok(Alignment {
            request: 1,
            memory: 1,
            erase,
        });
    }
    let reported = reported_alignment(fd);
    let request = logical
        .or(reported.map(|(request, _)| request))
        .or_else(|| probe_request_alignment(fd));
    let memory = reported
        .map(|(_, memory)| memory)
        .or_else(|| probe_memory_alignment(fd, request?));
    match (request, memory) {
        (Some(request), Some(memory)) => Ok(Alignment {
            request,
            memory,
            erase,
        }),
        _ => Err(Error::new(
            ErrorKind::Unsupported,
            "Could not find working O_DIRECT alignment",
        )),
    }
}

/// The largest alignment that is accepted as true.
const MAX_ALIGNMENT: u32 = 64 << 10;

fn is_alignment(bytes: u32) -> bool {
    bytes.is_power_of_two() && bytes <= MAX_ALIGNMENT
}

/// The alignment of requests and of memory that the kernel reports (Linux 6.1, some file systems).
fn reported_alignment(fd: &OwnedFd) -> Option<(u32, u32)> {
    let facts = statx(fd, "", AtFlags::EMPTY_PATH, StatxFlags::DIOALIGN).ok()?;
    let reported = facts.stx_mask & StatxFlags::DIOALIGN.bits() != 0;
    let pair = (facts.stx_dio_offset_align, facts.stx_dio_mem_align);
    Some(pair).filter(|(request, memory)| reported && is_alignment(*request) && is_alignment(*memory))
}

/// The alignments that are tried, in bytes. If 1 works, the file system does not care, or does not say before real I/O: then
/// the largest is taken.
const GUESSES: [u32; 5] = [1, 512, 1024, 2048, 4096];

fn probe_request_alignment(fd: &OwnedFd) -> Option<u32> {
    let mut buffer = Buffer::zeroed(OPT_MEM_ALIGN);
    first_that_works(|guess| can_read(fd, buffer.get_mut(..guess)))
}

fn probe_memory_alignment(fd: &OwnedFd, request: u32) -> Option<u32> {
    let mut buffer = Buffer::zeroed(2 * MAX_ALIGNMENT as usize);
    first_that_works(|guess| can_read(fd, buffer.get_mut(guess..guess + request as usize)))
}

fn first_that_works(mut works: impl FnMut(usize) -> bool) -> Option<u32> {
    let first = GUESSES.into_iter().find(|guess| works(*guess as usize));
    first.map(|guess| if guess == 1 { OPT_MEM_ALIGN as u32 } else { guess })
}

/// Whether a read at the start of the file into this memory is well-formed, whatever else may be wrong with it.
fn can_read(fd: &OwnedFd, memory: Option<&mut [u8]>) -> bool {
    memory.is_some_and(|memory| rustix::io::pread(fd, memory, 0) != Err(Errno::INVAL))
}
