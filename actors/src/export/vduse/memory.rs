//! The memory that a driver lets its device use, by the addresses that the driver gives: mapped as far as it is known.

use std::io;
use std::sync::Arc;

use millpond_ring::os::shared_memory::{GuestMemory, GuestRegion, RegionSource};
use millpond_ring::os::vduse::DeviceMemory;

use super::kernel::Kernel;

/// How many regions of memory a driver may have mapped at once.
const MOST_REGIONS: usize = 512;

/// Why memory cannot be had.
#[derive(Debug, thiserror::Error)]
pub(super) enum MemoryError {
    /// The kernel does not tell.
    #[error("the kernel does not tell what is at 0x{at:x}: {error}")]
    Untold { at: u64, error: io::Error },
    /// What the kernel tells makes no sense.
    #[error("the kernel tells of memory from 0x{start:x} to 0x{last:x}, which it was not asked about")]
    Senseless { start: u64, last: u64 },
    /// It is there, and cannot be mapped.
    #[error("the memory from 0x{start:x} to 0x{last:x} cannot be mapped: {error}")]
    Unmappable { start: u64, last: u64, error: io::Error },
    /// There are too many regions.
    #[error("the driver uses more than {MOST_REGIONS} regions of memory")]
    TooMany,
}

/// What is mapped of a driver's memory.
#[derive(Debug, Default)]
pub(super) struct DriverMemory {
    regions: Vec<Arc<GuestRegion>>,
    /// All regions; none while there are none.
    whole: Option<Arc<GuestMemory>>,
}

/// Whether a region has one of these addresses.
fn overlaps(region: &GuestRegion, first: u64, last: u64) -> bool {
    region.first() <= last && first <= region.last()
}

impl DriverMemory {
    /// What queues are to use.
    pub(super) const fn whole(&self) -> Option<&Arc<GuestMemory>> {
        self.whole.as_ref()
    }

    /// The last address of the region that has this one, if any has.
    fn known(&self, at: u64) -> Option<u64> {
        let mut regions = self.regions.iter();
        let region = regions.find(|region| overlaps(region, at, at));
        region.map(|region| region.last())
    }

    /// Whether it has an address.
    pub(super) fn has(&self, at: u64) -> bool {
        self.known(at).is_some()
    }

    /// Maps what there is from one address to another. Where there is nothing, it stays so.
    ///
    /// # Errors
    /// What is there cannot be used. What was mapped before it is.
    pub(super) fn map(&mut self, kernel: &dyn Kernel, first: u64, last: u64) -> Result<(), MemoryError> {
        let mapped = self.map_regions(kernel, first, last);
        self.put_together();
        mapped
    }

    fn map_regions(&mut self, kernel: &dyn Kernel, first: u64, last: u64) -> Result<(), MemoryError> {
        let mut at = Some(first);
        while let Some(start) = at.filter(|at| *at <= last) {
            let end = match self.known(start) {
                Some(end) => end,
                None => {
                    let found = kernel.memory(start, last);
                    let found = found.map_err(|error| MemoryError::Untold { at: start, error })?;
                    let Some(found) = found else { break };
                    self.add(found, start, last)?
                }
            };
            at = end.checked_add(1);
        }
        Ok(())
    }

    /// Maps a region that was found between two addresses; answers where it ends.
    fn add(&mut self, found: DeviceMemory, first: u64, wanted: u64) -> Result<u64, MemoryError> {
        let DeviceMemory {
            start,
            last,
            file,
            offset,
            is_readable,
            is_writable,
        } = found;
        if start > last || last < first || start > wanted {
            return Err(MemoryError::Senseless { start, last });
        }
        if !is_readable {
            // No file can be mapped for writing alone.
            return Ok(last);
        }
        // What was known there is of a time before.
        self.regions.retain(|region| !overlaps(region, start, last));
        if self.regions.len() >= MOST_REGIONS {
            return Err(MemoryError::TooMany);
        }
        let unmappable = |error| MemoryError::Unmappable { start, last, error };
        let len = (last - start).checked_add(1);
        let source = RegionSource {
            file,
            offset,
            len: len.ok_or_else(|| unmappable(io::ErrorKind::InvalidInput.into()))?,
            guest: start,
            user: start,
            is_writable,
        };
        self.regions
            .push(Arc::new(GuestRegion::map(source).map_err(unmappable)?));
        Ok(last)
    }

    /// Looks anew at what was known from one address to another.
    ///
    /// # Errors
    /// What is there now cannot be used. Nothing is known of it then.
    pub(super) fn refresh(&mut self, kernel: &dyn Kernel, first: u64, last: u64) -> Result<(), MemoryError> {
        let (gone, kept): (Vec<_>, _) = std::mem::take(&mut self.regions)
            .into_iter()
            .partition(|region| overlaps(region, first, last));
        self.regions = kept;
        let mut mapped = Ok(());
        for region in gone {
            // Where a request is in flight it must be found again, if it is there still.
            let again = self.map_regions(kernel, region.first(), region.last());
            mapped = mapped.and(again);
        }
        self.put_together();
        mapped
    }

    /// Forgets all that is mapped.
    pub(super) fn clear(&mut self) {
        *self = Self::default();
    }

    fn put_together(&mut self) {
        // Regions that share no address are memory, unless there is none.
        self.whole = GuestMemory::new(self.regions.clone()).ok().map(Arc::new);
    }
}
