//! What the kernel's side of a device is asked.

use std::fmt::Debug;
use std::io;
use std::os::fd::BorrowedFd;
use std::sync::Arc;

use millpond_ring::Fd;
use millpond_ring::os::vduse::{DeviceMemory, QueueFacts, VduseDevice};

use crate::export::virtio::vring::Interrupt;

/// The kernel's side of a device that this process serves. No call waits for anybody.
pub(super) trait Kernel: Debug + Send + Sync {
    /// The features that the driver has chosen.
    fn features(&self) -> io::Result<u64>;

    /// A queue as the driver has it now.
    fn queue(&self, index: u16) -> io::Result<QueueFacts>;

    /// Has the driver of a queue say by an event counter that there are requests, or by none.
    fn set_kick(&self, index: u16, kick: Option<BorrowedFd<'_>>) -> io::Result<()>;

    /// Tells the driver of a queue that there are answers.
    fn interrupt(&self, index: u16) -> io::Result<()>;

    /// The first memory that has one of these addresses, if any has.
    fn memory(&self, first: u64, last: u64) -> io::Result<Option<DeviceMemory>>;

    /// Has the driver read another capacity, in sectors, and tells it so if there is one.
    fn set_capacity(&self, sectors: u64) -> io::Result<()>;
}

impl Kernel for VduseDevice<Fd> {
    fn features(&self) -> io::Result<u64> {
        Self::features(self)
    }

    fn queue(&self, index: u16) -> io::Result<QueueFacts> {
        Self::queue(self, index.into())
    }

    fn set_kick(&self, index: u16, kick: Option<BorrowedFd<'_>>) -> io::Result<()> {
        Self::set_kick(self, index.into(), kick)
    }

    fn interrupt(&self, index: u16) -> io::Result<()> {
        Self::interrupt(self, index.into())
    }

    fn memory(&self, first: u64, last: u64) -> io::Result<Option<DeviceMemory>> {
        Self::memory(self, first, last)
    }

    fn set_capacity(&self, sectors: u64) -> io::Result<()> {
        // The capacity comes first in the configuration.
        self.set_config(0, sectors.to_le_bytes())?;
        match self.config_changed() {
            // Nobody uses it yet.
            Err(error) if error.kind() == io::ErrorKind::InvalidInput => Ok(()),
            told => told,
        }
    }
}

/// The interrupt of one queue.
#[derive(Debug)]
pub(super) struct QueueInterrupt {
    pub(super) kernel: Arc<dyn Kernel>,
    pub(super) index: u16,
}

impl Interrupt for QueueInterrupt {
    fn interrupt(&self) -> io::Result<()> {
        self.kernel.interrupt(self.index)
    }
}
