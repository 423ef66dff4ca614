//! Memory registered with the rings of all iothreads, so that requests from it need no mapping.

use std::sync::Arc;

use futures_channel::oneshot;
use millpond_messages::{Error, ErrorKind, IoError, Result};
use millpond_ring::buffer::{Region, RegionError, Regions};

use super::handle::GraphHandle;
use super::inbox::{Incoming, MemoryChange, Wish, closed};
use millpond_engine::iothread::{IoThread, Local};
use millpond_engine::node::Mail;

/// Answers when it is dropped: each iothread has a share until its ring has done what was asked, or is gone.
struct Answer(Option<oneshot::Sender<Result<()>>>);

impl Drop for Answer {
    fn drop(&mut self) {
        if let Some(done) = self.0.take() {
            // Whoever asked may not wait for it.
            let _ = done.send(Ok(()));
        }
    }
}

/// The memory that is registered with all rings.
#[derive(Default)]
pub(super) struct Memory {
    regions: Regions,
}

impl Memory {
    /// Carries a change to the iothreads, or refuses it.
    pub(super) fn change<'a>(
        &mut self,
        change: MemoryChange,
        iothreads: impl Iterator<Item = &'a IoThread<Mail>>,
    ) {
        let MemoryChange { wish, region, done } = change;
        let noted = match wish {
            Wish::Register => self.regions.insert(&region).map(drop).map_err(refusal),
            Wish::Unregister => self.forget(&region),
        };
        if let Err(error) = noted {
            // Whoever asked may not wait for it.
            let _ = done.send(Err(error));
            return;
        }
        let answer = Arc::new(Answer(Some(done)));
        for iothread in iothreads {
            ask_ring(iothread, wish, &region, Some(Arc::clone(&answer)));
        }
        // Before the answer, after which nobody should keep it.
        drop(region);
        drop(answer);
    }

    fn forget(&mut self, region: &Arc<Region>) -> Result<()> {
        let pieces = self.regions.remove(region);
        if pieces.is_empty() {
            return Err(Error::new(ErrorKind::NotFound, "The memory is not registered"));
        }
        for piece in pieces {
            self.regions.release(piece);
        }
        Ok(())
    }

    /// Has a new iothread know what the others know.
    pub(super) fn tell_all(&self, iothread: &IoThread<Mail>) {
        for region in self.regions.iter() {
            ask_ring(iothread, Wish::Register, region, None);
        }
    }
}

fn refusal(error: RegionError) -> Error {
    match error {
        RegionError::Full => {
            let kind = ErrorKind::Io(IoError::NoSpace);
            Error::caused_by(kind, "Too much memory is registered already", error)
        }
        RegionError::Overlaps => {
            Error::caused_by(ErrorKind::Exists, "The memory is registered already", error)
        }
    }
}

/// Asks an iothread's ring. Where the kernel refuses, requests go on without.
fn ask_ring(iothread: &IoThread<Mail>, wish: Wish, region: &Arc<Region>, answer: Option<Arc<Answer>>) {
    let region = Arc::clone(region);
    let ask = move || {
        if let Some(local) = Local::current() {
            match wish {
                Wish::Register => {
                    if let Err(error) = local.ring().register(&region) {
                        let iothread = local.name();
                        tracing::warn!(%error, iothread, "memory is not registered: each request from it is mapped");
                    }
                }
                Wish::Unregister => local.ring().unregister(&region),
            }
        }
        // Before the answer, after which nobody should keep the region.
        drop(region);
        drop(answer);
    };
    // An iothread that has ended has no ring.
    drop(iothread.send(Mail::Run(Box::new(ask))));
}

impl GraphHandle {
    /// Registers memory with the rings of all iothreads, also of those started later: reads and writes whose single buffer
    /// lies inside it need no mapping where io_uring runs them. Each iothread's ring locks the pages by itself, which
    /// counts against `RLIMIT_MEMLOCK`; where the kernel refuses, a warning is logged and requests go on without. Answers
    /// when all rings were asked. The region is kept until it is unregistered, or the graph ends.
    ///
    /// # Errors
    /// `Exists` if some of the memory is registered; `NoSpace` if too much is: there are
    /// [`millpond_ring::buffer::PLACES`] places of [`millpond_ring::buffer::MOST_PIECE`] bytes at most.
    pub async fn register_memory(&self, region: &Arc<Region>) -> Result<()> {
        self.memory(Wish::Register, region).await
    }

    /// Has all rings forget memory. Requests in flight end as they would have. Answers when all rings were asked.
    ///
    /// # Errors
    /// `NotFound` if it is not registered.
    pub async fn unregister_memory(&self, region: &Arc<Region>) -> Result<()> {
        self.memory(Wish::Unregister, region).await
    }

    async fn memory(&self, wish: Wish, region: &Arc<Region>) -> Result<()> {
        let (done, answer) = oneshot::channel();
        let region = Arc::clone(region);
        self.post(Incoming::Memory(MemoryChange { wish, region, done }));
        answer.await.unwrap_or_else(|_| Err(closed()))
    }
}
