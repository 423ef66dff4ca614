//! Simulated disks: files whose unflushed changes can be lost, torn or failed.
//!
//! The bytes that are read are those of a real file in memory. Beside it stands what would be left after a loss of power:
//! what was flushed, and any part of what was not.

use std::collections::BTreeMap;
use std::fs;
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;

use fastrand::Rng;
use rustix::fs::{AtFlags, CWD, Timespec, Timestamps, utimensat};

use super::oracle::SECTOR;

/// A file on its device.
type Key = (u64, u64);

/// A change of a file.
#[derive(Debug, Clone)]
enum Change {
    Write { offset: u64, bytes: Vec<u8> },
    Zero { offset: u64, len: u64 },
    Resize { len: u64 },
}

#[derive(Debug, Clone)]
struct Entry {
    change: Change,
    /// It was acknowledged as durable by itself.
    durable: bool,
    /// A flush that failed has given it up: it is read, but no flush will ever store it.
    lost: bool,
}

/// A file.
#[derive(Debug)]
pub struct Disk {
    /// Its name in the run's folder.
    pub name: String,
    path: PathBuf,
    /// What was flushed.
    durable: Vec<u8>,
    /// What was changed since, in order.
    log: Vec<Entry>,
    /// How many changes were flushed.
    flushed: u64,
    len: u64,
    /// Requests that are in flight.
    pub in_flight: usize,
    /// Reads return wrong bytes now and then.
    pub rotten: bool,
}

impl Disk {
    /// How many changes there have been: what a flush that begins now makes durable.
    #[must_use]
    pub fn mark(&self) -> u64 {
        self.flushed + self.log.len() as u64
    }

    /// A write has ended.
    pub fn wrote(&mut self, offset: u64, bytes: Vec<u8>, durable: bool) {
        self.len = self.len.max(offset + bytes.len() as u64);
        self.log.push(Entry {
            change: Change::Write { offset, bytes },
            durable,
            lost: false,
        });
    }

    /// `fallocate` has ended.
    pub fn allocated(&mut self, mode: i32, offset: u64, len: u64) {
        let keeps_size = mode & libc::FALLOC_FL_KEEP_SIZE != 0;
        if !keeps_size {
            self.resized(self.len.max(offset + len));
        }
        if mode & (libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_ZERO_RANGE) != 0 {
            self.log.push(Entry {
                change: Change::Zero { offset, len },
                durable: false,
                lost: false,
            });
        }
    }

    fn resized(&mut self, len: u64) {
        if len != self.len {
            self.len = len;
            self.log.push(Entry {
                change: Change::Resize { len },
                durable: false,
                lost: false,
            });
        }
    }

    /// Gives the file a time that no change leaves it with: the kernel's are too coarse to tell changes apart.
    fn mark_time(&self) {
        let never = Timespec {
            tv_sec: 0,
            tv_nsec: 0,
        };
        let times = Timestamps {
            last_access: never,
            last_modification: never,
        };
        // A file that is gone changes no more.
        let _ = utimensat(CWD, &self.path, &times, AtFlags::empty());
    }

    /// Takes note of sectors that hold other bytes than were written here; answers whether there are any.
    fn note_bytes(&mut self) -> bool {
        let mut known = self.durable.clone();
        for entry in &self.log {
            apply(&mut known, &entry.change, |_| true);
        }
        let found = fs::read(&self.path).unwrap_or_default();
        let sector = SECTOR as usize;
        let mut changed = false;
        for (at, bytes) in (0..).zip(found.chunks(sector)) {
            let start = at * sector;
            if known.get(start..start + bytes.len()) != Some(bytes) {
                changed = true;
                self.wrote(start as u64, bytes.to_vec(), false);
            }
        }
        changed
    }

    /// A flush that began at `mark` has ended.
    pub fn flushed(&mut self, mark: u64) {
        let count = self.before(mark);
        for entry in self.log.drain(..count) {
            self.flushed += 1;
            if !entry.lost || entry.durable {
                apply(&mut self.durable, &entry.change, |_| true);
            }
        }
    }

    /// A flush that began at `mark` has failed. As the kernel has it, what could not be stored counts as stored from then
    /// on: it is read for as long as it stays in memory, and later flushes succeed without it.
    pub fn flush_failed(&mut self, mark: u64, random: &mut Rng) {
        let count = self.before(mark);
        for entry in self.log.iter_mut().take(count) {
            // A file's length is in the file system's journal.
            let is_data = !matches!(entry.change, Change::Resize { .. });
            entry.lost |= is_data && random.bool();
        }
    }

    fn before(&self, mark: u64) -> usize {
        let count = usize::try_from(mark.saturating_sub(self.flushed)).unwrap_or(usize::MAX);
        count.min(self.log.len())
    }

    /// What a loss of power leaves: what was flushed, and of the rest whatever `random` pleases.
    #[must_use]
    pub fn crashed(&self, random: &mut Rng) -> Vec<u8> {
        let mut left = self.durable.clone();
        let kept = [0, 4, 8][random.usize(0..3)];
        let torn = random.bool();
        for entry in self.log.iter().filter(|entry| !entry.lost || entry.durable) {
            let whole = random.u32(0..8) < kept;
            let survives =
                |random: &mut Rng| entry.durable || if torn { random.u32(0..8) < kept } else { whole };
            apply(&mut left, &entry.change, |_| survives(random));
        }
        left
    }

    /// What was flushed.
    #[must_use]
    pub fn flushed_bytes(&self) -> &[u8] {
        &self.durable
    }
}

/// Applies those sectors of a change that `survives` keeps.
fn apply(bytes: &mut Vec<u8>, change: &Change, mut survives: impl FnMut(u64) -> bool) {
    let mut put = |bytes: &mut Vec<u8>, offset: u64, len: u64, data: Option<&[u8]>| {
        let mut at = offset;
        while at < offset + len {
            let end = (at / SECTOR + 1).saturating_mul(SECTOR).min(offset + len);
            if survives(at / SECTOR) {
                let (from, to) = (at as usize, end as usize);
                if data.is_some() && bytes.len() < to {
                    bytes.resize(to, 0);
                }
                let to = to.min(bytes.len());
                if from < to {
                    match data {
                        Some(data) => bytes[from..to]
                            .copy_from_slice(&data[(at - offset) as usize..(end - offset) as usize]),
                        None => bytes[from..to].fill(0),
                    }
                }
            }
            at = end;
        }
    };
    match change {
        Change::Write { offset, bytes: data } => put(bytes, *offset, data.len() as u64, Some(data)),
        Change::Zero { offset, len } => put(bytes, *offset, *len, None),
        Change::Resize { len } => {
            if survives(0) {
                bytes.resize(*len as usize, 0);
            }
        }
    }
}

/// All disks of a run.
#[derive(Debug, Default)]
pub struct Disks {
    disks: BTreeMap<Key, Disk>,
}

impl Disks {
    /// The disk behind a descriptor.
    pub fn of(&mut self, fd: impl AsFd) -> &mut Disk {
        let fd = fd.as_fd();
        // A descriptor that is open can be asked.
        let facts = rustix::fs::fstat(fd).expect("the file is open");
        let key = (facts.st_dev, facts.st_ino);
        self.disks.entry(key).or_insert_with(|| {
            let path =
                fs::read_link(format!("/proc/self/fd/{}", fd.as_raw_fd())).expect("the file has a name");
            let name = path
                .file_name()
                .unwrap_or_default()
                .to_string_lossy()
                .into_owned();
            let durable = fs::read(&path).unwrap_or_default();
            Disk {
                name,
                len: durable.len() as u64,
                path,
                durable,
                log: Vec::new(),
                flushed: 0,
                in_flight: 0,
                rotten: false,
            }
        })
    }

    /// All of them, in an order that does not change.
    pub fn all(&mut self) -> impl Iterator<Item = &mut Disk> {
        let mut all: Vec<&mut Disk> = self.disks.values_mut().collect();
        all.sort_by(|one, other| one.name.cmp(&other.name));
        all.into_iter()
    }

    /// A job on a thread of the pool is about to begin, which may do anything to files.
    pub fn mark_times(&mut self) {
        for disk in self.all() {
            disk.mark_time();
        }
    }

    /// Looks which files have another length or other bytes than they had before such a job: it may have cut them, or have had
    /// the kernel copy from one to another. Answers the names of those that have other bytes.
    pub fn note_changes(&mut self) -> Vec<String> {
        let mut changed = Vec::new();
        for disk in self.all() {
            let Ok(facts) = fs::metadata(&disk.path) else {
                continue;
            };
            disk.resized(facts.size());
            if (facts.mtime(), facts.mtime_nsec()) != (0, 0) && disk.note_bytes() {
                changed.push(disk.name.clone());
            }
        }
        changed
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn disk() -> Disk {
        Disk {
            name: String::new(),
            path: PathBuf::new(),
            durable: vec![0; 1024],
            log: Vec::new(),
            flushed: 0,
            len: 1024,
            in_flight: 0,
            rotten: false,
        }
    }

    #[test]
    fn what_was_flushed_is_never_lost_and_what_was_not_may_be() {
        let mut disk = disk();
        disk.wrote(0, vec![1; 512], false);
        let mark = disk.mark();
        disk.wrote(512, vec![2; 512], false);
        disk.wrote(0, vec![3; 256], true);
        disk.flushed(mark);
        let mut second = [false; 2];
        for seed in 0..64 {
            let left = disk.crashed(&mut Rng::with_seed(seed));
            assert_eq!((left[0], left[256]), (3, 1));
            second[usize::from(left[512] == 2)] = true;
        }
        assert_eq!(second, [true; 2]);
    }

    #[test]
    fn what_a_failed_flush_gave_up_is_read_and_never_stored() {
        let mut disk = disk();
        let mut random = Rng::with_seed(1);
        for at in 0..64 {
            disk.wrote(at * 16, vec![1; 16], false);
        }
        disk.flush_failed(disk.mark(), &mut random);
        disk.flushed(disk.mark());
        let stored = disk.flushed_bytes().iter().filter(|byte| **byte == 1).count();
        assert!((256..768).contains(&stored), "{stored} of 1024");
        disk.wrote(0, vec![2; 1024], false);
        disk.flushed(disk.mark());
        assert_eq!(disk.flushed_bytes(), [2; 1024], "what comes later is stored");
    }

    #[test]
    fn files_grow_shrink_and_have_holes() {
        let mut disk = disk();
        disk.wrote(1024, vec![1; 512], false);
        disk.allocated(libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE, 1280, 4096);
        disk.resized(2048);
        disk.flushed(disk.mark());
        assert_eq!(disk.durable.len(), 2048);
        assert_eq!((disk.durable[1279], disk.durable[1280]), (1, 0));
    }
}
