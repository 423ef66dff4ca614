//! A kernel's side without a kernel: what a test says of the device is what its server is told.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::{Mutex, MutexGuard};

use millpond_ring::os::vduse::{DeviceMemory, QueueFacts};
use tokio::sync::Notify;

use crate::export::vduse::kernel::Kernel;

/// Memory that the driver lets the device use.
#[derive(Debug)]
pub struct Mapped {
    pub start: u64,
    pub last: u64,
    pub file: File,
    pub offset: u64,
    pub is_writable: bool,
}

#[derive(Debug, Default)]
pub struct State {
    pub features: u64,
    pub queues: Vec<QueueFacts>,
    pub kicks: Vec<Option<OwnedFd>>,
    pub memory: Vec<Mapped>,
    /// What is answered whatever memory is asked for.
    pub senseless: Option<(u64, u64)>,
    /// The addresses that were asked for.
    pub asked: Vec<u64>,
    pub interrupts: Vec<usize>,
    /// How many interrupts fail, because the driver is not ready.
    pub unready: usize,
    pub capacity: Option<u64>,
}

#[derive(Debug, Default)]
pub struct FakeKernel {
    /// Behind a lock, as the kernel's own is: this stands for the kernel, in tests alone.
    state: Mutex<State>,
    interrupted: Notify,
}

impl FakeKernel {
    pub fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("no test has panicked with it")
    }

    /// Ends when a queue has interrupted since this was called.
    pub fn interrupted(&self) -> impl Future<Output = ()> {
        self.interrupted.notified()
    }
}

impl Kernel for FakeKernel {
    fn features(&self) -> io::Result<u64> {
        Ok(self.state().features)
    }

    fn queue(&self, index: u16) -> io::Result<QueueFacts> {
        let state = self.state();
        let queue = state.queues.get(usize::from(index)).copied();
        queue.ok_or_else(|| io::ErrorKind::InvalidInput.into())
    }

    fn set_kick(&self, index: u16, kick: Option<BorrowedFd<'_>>) -> io::Result<()> {
        let kick = kick.map(|kick| kick.try_clone_to_owned()).transpose()?;
        let mut state = self.state();
        let place = state.kicks.get_mut(usize::from(index));
        *place.ok_or(io::ErrorKind::InvalidInput)? = kick;
        Ok(())
    }

    fn interrupt(&self, index: u16) -> io::Result<()> {
        let mut state = self.state();
        if state.unready > 0 {
            state.unready -= 1;
            return Err(io::ErrorKind::InvalidInput.into());
        }
        let count = state.interrupts.get_mut(usize::from(index));
        *count.ok_or(io::ErrorKind::NotFound)? += 1;
        self.interrupted.notify_waiters();
        Ok(())
    }

    fn memory(&self, first: u64, last: u64) -> io::Result<Option<DeviceMemory>> {
        let mut state = self.state();
        state.asked.push(first);
        if let Some((start, last)) = state.senseless {
            let file = File::open("/dev/zero")?.into();
            return Ok(Some(DeviceMemory {
                start,
                last,
                file,
                offset: 0,
                is_readable: true,
                is_writable: false,
            }));
        }
        let mut found: Vec<_> = state
            .memory
            .iter()
            .filter(|mapped| mapped.start <= last && first <= mapped.last)
            .collect();
        found.sort_by_key(|mapped| mapped.start);
        let Some(mapped) = found.first() else {
            return Ok(None);
        };
        Ok(Some(DeviceMemory {
            start: mapped.start,
            last: mapped.last,
            file: mapped.file.as_fd().try_clone_to_owned()?,
            offset: mapped.offset,
            is_readable: true,
            is_writable: mapped.is_writable,
        }))
    }

    fn set_capacity(&self, sectors: u64) -> io::Result<()> {
        self.state().capacity = Some(sectors);
        Ok(())
    }
}
