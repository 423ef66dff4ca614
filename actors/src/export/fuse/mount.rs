//! Mounting and unmounting: system calls that may wait, for threads of their own.

use std::io::{self, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use millpond_messages::{Error, ErrorKind, IoError, Result};
use rustix::fs::{AtFlags, CWD, Mode, OFlags, StatxFlags, fcntl_getfl, fcntl_setfl, makedev, open, statx};
use rustix::io::Errno;
use rustix::mount::{MountFlags, UnmountFlags};
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SocketFlags, SocketType, recvmsg,
    socketpair,
};
use rustix::process::{getgid, getuid};

use super::wire::MAX_TRANSFER;

/// The device that the kernel asks by.
const DEVICE: &str = "/dev/fuse";
/// What mounts and unmounts for users who may not: of libfuse 3, or else 2.
const HELPERS: [&str; 2] = ["fusermount3", "fusermount"];

/// A file that an export may cover.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct File {
    /// Its own path, without links.
    pub(super) path: PathBuf,
    /// The device that it is on.
    pub(super) device: u64,
}

/// An export as it was mounted.
#[derive(Debug)]
pub(super) struct Mounted {
    /// Where the kernel's messages are read and answered. Reading it never waits.
    pub(super) channel: OwnedFd,
    /// The number of the file system.
    pub(super) device: u64,
}

fn failed_to_stat(given: &str, error: &io::Error) -> Error {
    let text = format!("Failed to stat '{given}'");
    let code = error.raw_os_error().unwrap_or(Errno::IO.raw_os_error());
    Error::io(&text, IoError::from_errno(code))
}

/// Looks for the file that a user names; whoever serves what is mounted there is not asked.
///
/// # Errors
/// QEMU's text: there is none.
pub(super) fn find(given: &str) -> Result<File> {
    let found = std::fs::canonicalize(given).and_then(|path| {
        let device = device_at(&path)?;
        Ok(File { path, device })
    });
    found.map_err(|error| failed_to_stat(given, &error))
}

/// The number of the file system that a path leads to.
fn device_at(path: &Path) -> io::Result<u64> {
    let status = statx(CWD, path, AtFlags::STATX_DONT_SYNC, StatxFlags::TYPE)?;
    Ok(makedev(status.stx_dev_major, status.stx_dev_minor))
}

/// Checks that a file can be covered. A file system there whose server is gone is unmounted: a daemon that was killed left it.
///
/// # Errors
/// QEMU's texts: it cannot be looked at, or is not a regular file.
pub(super) fn check(given: &str, path: &Path) -> Result<()> {
    let mut looked = std::fs::metadata(path);
    if is_left(&looked) {
        tracing::warn!(
            mountpoint = given,
            "what a dead FUSE server has left there is unmounted"
        );
        if let Err(error) = detach(path) {
            tracing::warn!(mountpoint = given, %error, "it cannot be unmounted");
        }
        looked = std::fs::metadata(path);
    }
    let looked = looked.map_err(|error| failed_to_stat(given, &error))?;
    if looked.file_type().is_file() {
        return Ok(());
    }
    let text = format!("'{given}' is not a regular file");
    Err(Error::new(ErrorKind::InvalidArgument, text))
}

/// Whether the server of the file system is gone, or went while it was asked.
fn is_left<T>(looked: &io::Result<T>) -> bool {
    let error = looked.as_ref().err().and_then(Errno::from_io_error);
    matches!(error, Some(Errno::NOTCONN | Errno::CONNABORTED))
}

/// Mounts an export over a file. Nobody can look at it before its messages are answered.
///
/// # Errors
/// The system's, or what a helper says: that other users are not allowed, for instance.
pub(super) fn mount(path: &Path, allow_other: bool) -> io::Result<Mounted> {
    let channel = match mount_as_root(path, allow_other) {
        Err(Errno::PERM) => mount_by_helper(path, allow_other)?,
        mounted => mounted?,
    };
    fcntl_setfl(&channel, fcntl_getfl(&channel)? | OFlags::NONBLOCK)?;
    let device = device_at(path)?;
    Ok(Mounted { channel, device })
}

/// What is said of a mount, whoever makes it.
fn options(allow_other: bool) -> String {
    let others = if allow_other { ",allow_other" } else { "" };
    format!("default_permissions,max_read={MAX_TRANSFER}{others}")
}

fn mount_as_root(path: &Path, allow_other: bool) -> std::result::Result<OwnedFd, Errno> {
    let flags = OFlags::RDWR | OFlags::CLOEXEC | OFlags::NONBLOCK;
    let channel = open(DEVICE, flags, Mode::empty()).map_err(|error| match error {
        // Who may not open it has a helper that may.
        Errno::ACCESS => Errno::PERM,
        error => error,
    })?;
    let (user, group) = (getuid().as_raw(), getgid().as_raw());
    let data = format!(
        "fd={},rootmode=100000,user_id={user},group_id={group},{}",
        channel.as_raw_fd(),
        options(allow_other)
    );
    let data = std::ffi::CString::new(data).map_err(|_nul| Errno::INVAL)?;
    let flags = MountFlags::NOSUID | MountFlags::NODEV;
    rustix::mount::mount(DEVICE, path, "fuse", flags, data.as_c_str())?;
    Ok(channel)
}

/// Has a helper mount it, which passes the descriptor over a socket.
fn mount_by_helper(path: &Path, allow_other: bool) -> io::Result<OwnedFd> {
    let flags = SocketFlags::CLOEXEC;
    let (ours, theirs) = socketpair(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
    run_helper(|helper| {
        let options = format!("rw,nosuid,nodev,{}", options(allow_other));
        helper.arg("-o").arg(options).arg("--").arg(path);
        // The socket is the helper's standard input, which it has no other use for.
        helper.env("_FUSE_COMMFD", "0").stdin(theirs.try_clone()?);
        Ok(())
    })?;
    drop(theirs);
    received(&ours)
}

/// The descriptor that came over a socket.
fn received(socket: &OwnedFd) -> io::Result<OwnedFd> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut ancillary = RecvAncillaryBuffer::new(&mut space);
    let mut byte = [0];
    let mut parts = [IoSliceMut::new(&mut byte)];
    recvmsg(socket, &mut parts, &mut ancillary, RecvFlags::CMSG_CLOEXEC)?;
    let mut descriptors = ancillary.drain().filter_map(|message| match message {
        RecvAncillaryMessage::ScmRights(mut descriptors) => descriptors.next(),
        _ => None,
    });
    let passed = descriptors.next();
    passed.ok_or_else(|| io::Error::other("the helper passed no descriptor"))
}

/// Runs the first helper that is installed.
fn run_helper(describe: impl Fn(&mut Command) -> io::Result<()>) -> io::Result<()> {
    for name in HELPERS {
        let mut helper = Command::new(name);
        helper.stdin(Stdio::null()).stdout(Stdio::null());
        describe(&mut helper)?;
        let output = match helper.output() {
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            output => output?,
        };
        if output.status.success() {
            return Ok(());
        }
        let said = String::from_utf8_lossy(&output.stderr);
        return Err(io::Error::other(said.trim().to_owned()));
    }
    let text = "only root can mount without fusermount3, which is not installed";
    Err(io::Error::new(io::ErrorKind::NotFound, text))
}

/// Unmounts an export, also while its file is open; what is mapped of it is written first. If another file system is at its
/// place by now, or none, nothing is done.
pub(super) fn unmount(path: &Path, device: u64) {
    if device_at(path).ok() != Some(device) {
        return;
    }
    if let Err(error) = detach(path) {
        tracing::warn!(mountpoint = %path.display(), %error, "a FUSE export cannot be unmounted");
    }
}

/// Unmounts what is at a path: nobody finds it any more, and it ends when the last file is closed.
fn detach(path: &Path) -> io::Result<()> {
    let flags = UnmountFlags::DETACH | UnmountFlags::NOFOLLOW;
    match rustix::mount::unmount(path, flags) {
        Err(Errno::PERM) => run_helper(|helper| {
            helper.args(["-u", "-z", "-q", "--"]).arg(path);
            Ok(())
        }),
        unmounted => Ok(unmounted?),
    }
}
