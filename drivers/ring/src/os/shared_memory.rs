//! Memory of other processes, mapped from files that they passed: a guest's, and what is shared with it.
//!
//! Whoever has the other end may cut the file short at any time. Then a page that was mapped is there no more, and the
//! next look at it raises SIGBUS, which ends a process that is not prepared for it. Here each mapping is noted in a table
//! that a handler of the signal looks at: a mapping whose file is gone becomes zeroes of this process alone, and
//! [`SharedMapping::is_cut`] says so from then on. A SIGBUS anywhere else is left to whoever had it before.
//!
//! A file whose pages come from another program or another machine is not mapped: whoever serves it could let the thread
//! that looks at a page wait forever.

use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::ptr::null_mut;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};

use rustix::fs::fstatfs;
use vm_memory::{FileOffset, GuestAddress, GuestMemoryMmap, GuestRegionMmap, MmapRegion};

/// How many mappings a process can have at once.
const PLACES: usize = 4096;

/// A range of addresses that may be cut. Free while `start` is 0; of no meaning while `len` is.
struct Place {
    start: AtomicUsize,
    len: AtomicUsize,
    cut: AtomicBool,
}

/// A table of fixed size, since the handler of a signal can wait for nobody.
static TABLE: [Place; PLACES] = [const {
    Place {
        start: AtomicUsize::new(0),
        len: AtomicUsize::new(0),
        cut: AtomicBool::new(false),
    }
}; PLACES];

/// File systems whose pages come from elsewhere, by the kernel's numbers: FUSE, NFS, SMB (two), 9p, Ceph, AFS.
const REMOTE: [u64; 7] = [
    0x6573_5546,
    0x6969,
    0xff53_4d42,
    0xfe53_4d42,
    0x0102_1997,
    0x00c3_6400,
    0x5346_414f,
];

/// The kernel's number of the file system of large pages.
const LARGE_PAGES: u64 = 0x9584_58f6;

/// What was done about SIGBUS before.
static BEFORE: OnceLock<libc::sigaction> = OnceLock::new();

/// A part of a file that another process passed, mapped for reading and writing.
#[derive(Debug)]
pub struct SharedMapping {
    region: Arc<MmapRegion>,
    place: &'static Place,
}

impl std::fmt::Debug for Place {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let (start, len) = (&self.start, &self.len);
        f.debug_struct("Place")
            .field("start", start)
            .field("len", len)
            .finish_non_exhaustive()
    }
}

/// Where a region of a guest's memory comes from.
#[derive(Debug)]
pub struct RegionSource {
    /// The file that was passed.
    pub file: OwnedFd,
    /// The region's first byte in the file; a multiple of its page size.
    pub offset: u64,
    /// The region's length in bytes.
    pub len: u64,
    /// Its first byte as the guest counts.
    pub guest: u64,
    /// Its first byte as the program counts that runs the guest.
    pub user: u64,
    /// What is written there is seen by the others who have the file. If not, the file need not be open for writing, and
    /// what is written is seen here alone.
    pub is_writable: bool,
}

/// A region of a guest's memory.
#[derive(Debug)]
pub struct GuestRegion {
    mapping: SharedMapping,
    guest: u64,
    user: u64,
    len: u64,
}

/// A guest's memory: its regions, at the addresses that the guest knows them by.
#[derive(Debug)]
pub struct GuestMemory {
    regions: Vec<Arc<GuestRegion>>,
    space: GuestMemoryMmap,
}

impl SharedMapping {
    /// Maps `len` bytes of a file from `offset` on.
    ///
    /// # Errors
    /// The file cannot be mapped, its pages come from elsewhere or do not fill the mapping, or too much is mapped already. One
    /// that is shorter is cut from the start.
    pub fn new(file: OwnedFd, offset: u64, len: u64) -> io::Result<Self> {
        Self::map(file, offset, len, libc::MAP_SHARED)
    }

    /// The same; `flags` say who sees what is written.
    fn map(file: OwnedFd, offset: u64, len: u64, flags: libc::c_int) -> io::Result<Self> {
        let file_system = fstatfs(&file)?;
        // The number has 32 bits, with a sign on some machines.
        let kind = file_system.f_type as u64 & u64::from(u32::MAX);
        if REMOTE.contains(&kind) {
            return Err(io::Error::other("its pages come from another program or machine"));
        }
        // A mapping of large pages can be replaced as a whole only.
        if kind == LARGE_PAGES && !len.is_multiple_of(file_system.f_bsize as u64) {
            return Err(io::Error::other("its length is no multiple of its pages"));
        }
        prepare_for_cuts()?;
        let size = usize::try_from(len).map_err(|_| io::ErrorKind::InvalidInput)?;
        let source = FileOffset::new(File::from(file), offset);
        let protection = libc::PROT_READ | libc::PROT_WRITE;
        let region = MmapRegion::build(Some(source), size, protection, flags | libc::MAP_NORESERVE);
        let region = Arc::new(region.map_err(io::Error::other)?);
        let start = region.as_ptr().addr();
        let place = TABLE.iter().find(|place| {
            let free = place
                .start
                .compare_exchange(0, start, Ordering::AcqRel, Ordering::Relaxed);
            free.is_ok()
        });
        let place = place.ok_or_else(|| io::Error::other("too many regions of memory are mapped"))?;
        place.cut.store(false, Ordering::Relaxed);
        place.len.store(size, Ordering::Release);
        Ok(Self { region, place })
    }

    /// The memory. What is in it may change at any time.
    #[must_use]
    pub fn memory(&self) -> &MmapRegion {
        &self.region
    }

    /// Whether the file was cut short, so that nothing here is shared any more.
    #[must_use]
    pub fn is_cut(&self) -> bool {
        self.place.cut.load(Ordering::Relaxed)
    }
}

impl Drop for SharedMapping {
    fn drop(&mut self) {
        // Before the memory goes: its addresses may be somebody else's then.
        self.place.len.store(0, Ordering::Release);
        self.place.start.store(0, Ordering::Release);
    }
}

impl GuestRegion {
    /// Maps a region.
    ///
    /// # Errors
    /// As [`SharedMapping::new`], or its addresses go past the last one that there is.
    pub fn map(source: RegionSource) -> io::Result<Self> {
        let RegionSource {
            file,
            offset,
            len,
            guest,
            user,
            is_writable,
        } = source;
        let ends = guest.checked_add(len).and(user.checked_add(len));
        if len == 0 || ends.is_none() {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        let sharing = if is_writable {
            libc::MAP_SHARED
        } else {
            libc::MAP_PRIVATE
        };
        let mapping = SharedMapping::map(file, offset, len, sharing)?;
        Ok(Self {
            mapping,
            guest,
            user,
            len,
        })
    }

    /// The first address that the guest knows it by.
    #[must_use]
    pub const fn first(&self) -> u64 {
        self.guest
    }

    /// The last address that the guest knows it by.
    #[must_use]
    pub const fn last(&self) -> u64 {
        // It has at least one byte, and its end was checked.
        self.guest + (self.len - 1)
    }

    /// Whether it is the region of `len` bytes at these addresses of the guest and of the program that runs it.
    #[must_use]
    pub fn is(&self, guest: u64, user: u64, len: u64) -> bool {
        (self.guest, self.user, self.len) == (guest, user, len)
    }
}

impl GuestMemory {
    /// The memory that these regions are together.
    ///
    /// # Errors
    /// There is none, or two share an address of the guest.
    pub fn new(mut regions: Vec<Arc<GuestRegion>>) -> io::Result<Self> {
        regions.sort_unstable_by_key(|region| region.guest);
        let mapped = regions.iter().map(|region| {
            let memory = Arc::clone(&region.mapping.region);
            GuestRegionMmap::with_arc(memory, GuestAddress(region.guest))
        });
        let mapped: Option<Vec<_>> = mapped.collect();
        let mapped = mapped.ok_or(io::ErrorKind::InvalidInput)?;
        let space = GuestMemoryMmap::from_regions(mapped).map_err(io::Error::other)?;
        Ok(Self { regions, space })
    }

    /// The memory by the guest's addresses. What is in it may change at any time.
    #[must_use]
    pub fn space(&self) -> &GuestMemoryMmap {
        &self.space
    }

    /// What the guest calls a byte that the program calls `user`, if it has it.
    #[must_use]
    pub fn guest_address(&self, user: u64) -> Option<GuestAddress> {
        self.regions.iter().find_map(|region| {
            let offset = user
                .checked_sub(region.user)
                .filter(|offset| *offset < region.len)?;
            Some(GuestAddress(region.guest + offset))
        })
    }

    /// Whether a file of it was cut short, so that the guest does not see what is written here.
    #[must_use]
    pub fn is_cut(&self) -> bool {
        self.regions.iter().any(|region| region.mapping.is_cut())
    }
}

/// Has the process survive that a mapped file is cut short.
fn prepare_for_cuts() -> io::Result<()> {
    if BEFORE.get().is_some() {
        return Ok(());
    }
    let mut before = std::mem::MaybeUninit::<libc::sigaction>::zeroed();
    let mut action = std::mem::MaybeUninit::<libc::sigaction>::zeroed();
    // SAFETY: it is numbers and a set of bits, of which all zero is a value; the mask is of no signal.
    let action = unsafe { action.assume_init_mut() };
    action.sa_sigaction = bus_error as extern "C" fn(_, _, _) as usize;
    action.sa_flags = libc::SA_SIGINFO | libc::SA_RESTART | libc::SA_ONSTACK;
    // SAFETY: `action` names a handler that is safe to run at any time (see there), and `before` has room for the answer.
    if unsafe { libc::sigaction(libc::SIGBUS, action, before.as_mut_ptr()) } != 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the kernel has written it.
    let before = unsafe { before.assume_init() };
    // Who comes second finds the handler itself, which is not what was there before.
    if before.sa_sigaction != action.sa_sigaction {
        // It is there only if somebody was quicker.
        let _ = BEFORE.set(before);
    }
    Ok(())
}

/// The handler of SIGBUS. It may run between any two instructions of its thread, and so it only looks at the table, which
/// is made of atomic numbers, and makes system calls.
extern "C" fn bus_error(_signal: libc::c_int, info: *mut libc::siginfo_t, _context: *mut libc::c_void) {
    // SAFETY: with SA_SIGINFO the kernel passes what it knows of the signal.
    let info = unsafe { &*info };
    // SAFETY: what it knows of a bus error has an address.
    let address = unsafe { info.si_addr() }.addr();
    // SAFETY: it gives a pointer to this thread's own number.
    let errno = unsafe { libc::__errno_location() };
    // SAFETY: the pointer is to this thread's own number.
    let kept = unsafe { *errno };
    if !TABLE.iter().any(|place| replace(place, address)) {
        let before = BEFORE
            .get()
            .map_or(null_mut(), |before| std::ptr::from_ref(before).cast_mut());
        // SAFETY: `before` is a whole action that was in force once, or null, which changes nothing. The instruction that
        // failed runs again then, with that action.
        unsafe { libc::sigaction(libc::SIGBUS, before, null_mut()) };
    }
    // SAFETY: as above.
    unsafe { *errno = kept };
}

/// Puts zeroes in a mapping's place if an address is in it; false if it is not, or that failed.
fn replace(place: &Place, address: usize) -> bool {
    let start = place.start.load(Ordering::Acquire);
    let len = place.len.load(Ordering::Acquire);
    // A place that was given to another mapping in between is not the one that this thread is looking at.
    let same = place.start.load(Ordering::Acquire) == start;
    if !same || start == 0 || address < start || address - start >= len {
        return false;
    }
    let protection = libc::PROT_READ | libc::PROT_WRITE;
    let flags = libc::MAP_FIXED | libc::MAP_ANONYMOUS | libc::MAP_PRIVATE | libc::MAP_NORESERVE;
    let at = std::ptr::without_provenance_mut::<libc::c_void>(start);
    // SAFETY: the range is a mapping of this module, all of it: a mapping is in the table only as long as it exists. It is
    // looked at by volatile accesses alone, which do not mind what is behind the addresses.
    let mapped = unsafe { libc::mmap(at, len, protection, flags, -1, 0) };
    if mapped == libc::MAP_FAILED {
        return false;
    }
    place.cut.store(true, Ordering::Relaxed);
    true
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::fs::{MemfdFlags, ftruncate, memfd_create};
    use vm_memory::{Bytes, VolatileMemory};

    fn file(len: u64) -> OwnedFd {
        let file = memfd_create("memory", MemfdFlags::CLOEXEC).unwrap();
        ftruncate(&file, len).unwrap();
        file
    }

    fn region(file: &OwnedFd, guest: u64, user: u64) -> io::Result<GuestRegion> {
        let file = file.try_clone().unwrap();
        GuestRegion::map(RegionSource {
            file,
            offset: 4096,
            len: 8192,
            guest,
            user,
            is_writable: true,
        })
    }

    #[test]
    fn what_is_written_where_the_guest_may_only_read_is_not_seen_by_it() {
        let file = file(2 * 4096);
        let path = format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(&file));
        let source = |is_writable| RegionSource {
            file: File::open(&path).expect("a file can be opened anew").into(),
            offset: 0,
            len: 2 * 4096,
            guest: 0,
            user: 0,
            is_writable,
        };
        assert!(
            GuestRegion::map(source(true)).is_err(),
            "it is open for reading alone"
        );
        let memory = GuestMemory::new(vec![Arc::new(GuestRegion::map(source(false)).unwrap())]).unwrap();
        memory.space().write_obj(7_u64, GuestAddress(8)).unwrap();
        assert_eq!(memory.space().read_obj::<u64>(GuestAddress(8)).unwrap(), 7);
        let mut seen = [0; 8];
        rustix::io::pread(&file, &mut seen, 8).unwrap();
        assert_eq!(seen, [0; 8]);
    }

    #[test]
    fn a_file_that_is_cut_short_becomes_zeroes_and_is_told_of() {
        let file = file(3 * 4096);
        let memory = GuestMemory::new(vec![Arc::new(region(&file, 0x1000, 0x70_0000).unwrap())]).unwrap();
        memory.space().write_obj(7_u64, GuestAddress(0x2000)).unwrap();
        assert_eq!(memory.space().read_obj::<u64>(GuestAddress(0x2000)).unwrap(), 7);
        assert!(!memory.is_cut());
        ftruncate(&file, 0).unwrap();
        assert_eq!(memory.space().read_obj::<u64>(GuestAddress(0x2000)).unwrap(), 0);
        assert!(memory.is_cut());
        // What comes into its place is whole.
        drop(memory);
        ftruncate(&file, 3 * 4096).unwrap();
        let again = GuestMemory::new(vec![Arc::new(region(&file, 0, 0).unwrap())]).unwrap();
        again.space().write_obj(7_u64, GuestAddress(0)).unwrap();
        assert!(!again.is_cut());
    }

    #[test]
    fn regions_are_found_by_both_kinds_of_address_and_must_not_overlap() {
        let file = file(3 * 4096);
        let (low, high) = (
            region(&file, 0, 0x1_0000).unwrap(),
            region(&file, 0x8000, 0x9_0000).unwrap(),
        );
        let memory = GuestMemory::new(vec![Arc::new(high), Arc::new(low)]).unwrap();
        assert_eq!(memory.guest_address(0x1_0001), Some(GuestAddress(1)));
        assert_eq!(memory.guest_address(0x9_1fff), Some(GuestAddress(0x9fff)));
        assert_eq!(memory.guest_address(0x9_2000), None);
        assert_eq!(memory.guest_address(0), None);
        let two = vec![
            Arc::new(region(&file, 0, 0).unwrap()),
            Arc::new(region(&file, 0x1000, 0).unwrap()),
        ];
        assert!(GuestMemory::new(two).is_err());
        assert!(GuestMemory::new(Vec::new()).is_err());
        assert!(region(&file, u64::MAX - 100, 0).is_err());
    }

    #[test]
    fn what_is_past_the_end_of_its_file_is_cut_from_the_start() {
        let mapping = SharedMapping::new(file(4096), 0, 8192).unwrap();
        let memory = mapping.memory().get_slice(0, 8192).unwrap();
        memory.write_obj(7_u8, 4095).unwrap();
        assert!(!mapping.is_cut());
        memory.write_obj(7_u8, 4096).unwrap();
        assert!(mapping.is_cut());
        assert!(SharedMapping::new(file(4096), 1, 4096).is_err());
    }
    #[test]
    fn a_mapping_is_made_of_whole_large_pages() {
        let flags = MemfdFlags::CLOEXEC | MemfdFlags::HUGETLB;
        let file = memfd_create("memory", flags).expect("the kernel has large pages");
        let page = fstatfs(&file).unwrap().f_bsize as u64;
        assert!(page > 4096);
        let error = SharedMapping::new(file.try_clone().unwrap(), 0, page + 4096).unwrap_err();
        assert!(error.to_string().contains("no multiple"), "{error}");
        // None may be free on this machine: it is mapped all the same, and cut as soon as it is looked at.
        let mapping = SharedMapping::new(file, 0, page).unwrap();
        mapping
            .memory()
            .get_slice(0, 8)
            .unwrap()
            .write_obj(7_u64, 0)
            .unwrap();
        assert!(mapping.is_cut());
    }
}
