//! The futures of operations: each names a slot, and turns the slot's result into what its caller asked for.

use std::any::Any;
use std::future::Future;
use std::io;
use std::marker::PhantomData;
use std::os::fd::{FromRawFd, OwnedFd};
use std::panic::resume_unwind;
use std::pin::Pin;
use std::task::{Context, Poll};

use futures_channel::oneshot;

use super::op::{Op, SlotId};
use super::ring::Ring;
use crate::buffer::{Buffer, Buffers};

/// How a finished operation is shown to its caller.
pub trait Kind {
    /// What the future resolves to.
    type Output;

    /// Makes it from the raw result and the operation that owned the buffers.
    fn finish(result: i32, op: Op) -> Self::Output;
}

/// An operation in flight.
///
/// Dropping it asks for the operation's end; what the kernel may still touch stays in the slot until the
/// operation really ended.
#[must_use = "dropping an operation cancels it"]
#[derive(Debug)]
pub struct Pending<K> {
    ring: Ring,
    /// None once the result was fetched.
    id: Option<SlotId>,
    kind: PhantomData<fn() -> K>,
}

impl<K: Kind> Pending<K> {
    #[inline]
    pub(super) fn new(ring: Ring, id: SlotId) -> Self {
        Self {
            ring,
            id: Some(id),
            kind: PhantomData,
        }
    }
}

impl<K: Kind> Future for Pending<K> {
    type Output = K::Output;

    /// # Panics
    /// If polled again after it was ready.
    #[inline]
    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<K::Output> {
        let Some(id) = self.id else {
            panic!("an operation was polled after it ended")
        };
        match self.ring.poll_slot(id, cx.waker()) {
            Poll::Pending => Poll::Pending,
            Poll::Ready((result, op)) => {
                self.id = None;
                Poll::Ready(K::finish(result, op))
            }
        }
    }
}

impl<K> Drop for Pending<K> {
    #[inline]
    fn drop(&mut self) {
        if let Some(id) = self.id {
            self.ring.abandon(id);
        }
    }
}

/// A raw result as Rust has it.
#[inline]
fn io_result(result: i32) -> io::Result<usize> {
    usize::try_from(result).map_err(|_| io::Error::from_raw_os_error(result.wrapping_neg()))
}

/// Bytes moved, and the gather list back.
#[derive(Debug)]
pub enum Moved {}

impl Kind for Moved {
    type Output = (io::Result<usize>, Buffers);

    #[inline]
    fn finish(result: i32, op: Op) -> Self::Output {
        match op {
            Op::Read { bufs, .. } | Op::Write { bufs, .. } | Op::Send { bufs, .. } => {
                (io_result(result), bufs)
            }
            _ => unreachable!("only reads, writes and sends are made with this kind"),
        }
    }
}

/// Bytes received, and the buffer back.
#[derive(Debug)]
pub enum Received {}

impl Kind for Received {
    type Output = (io::Result<usize>, Buffer);

    #[inline]
    fn finish(result: i32, op: Op) -> Self::Output {
        match op {
            Op::Recv { buf, .. } => (io_result(result), buf),
            _ => unreachable!("only receives are made with this kind"),
        }
    }
}

/// The operation is done, or has failed.
#[derive(Debug)]
pub enum Finished {}

impl Kind for Finished {
    type Output = io::Result<()>;

    fn finish(result: i32, _: Op) -> Self::Output {
        io_result(result).map(drop)
    }
}

/// A new connection of a listening socket.
#[derive(Debug)]
pub enum Accepted {}

impl Kind for Accepted {
    type Output = io::Result<OwnedFd>;

    fn finish(result: i32, _: Op) -> Self::Output {
        io_result(result)?;
        // SAFETY: the kernel just made this descriptor for us, and nobody else knows of it.
        Ok(unsafe { OwnedFd::from_raw_fd(result) })
    }
}

/// The `poll(2)` events that came.
#[derive(Debug)]
pub enum Polled {}

impl Kind for Polled {
    type Output = io::Result<u32>;

    fn finish(result: i32, _: Op) -> Self::Output {
        // A mask is never negative: the conversion back loses nothing.
        io_result(result).map(|mask| mask as u32)
    }
}

/// What a job left: its value, or the panic it ended with.
pub(super) type Outcome<T> = Result<T, Box<dyn Any + Send>>;

/// A job on the thread pool. Dropping it abandons the result; a job that was begun runs to its end.
#[must_use = "the job's result is lost if this is dropped"]
#[derive(Debug)]
pub struct Blocking<T> {
    slot: Pending<Finished>,
    value: oneshot::Receiver<Outcome<T>>,
}

impl<T> Blocking<T> {
    pub(super) fn new(slot: Pending<Finished>, value: oneshot::Receiver<Outcome<T>>) -> Self {
        Self { slot, value }
    }
}

impl<T> Future for Blocking<T> {
    type Output = T;

    /// # Panics
    /// With the job's own panic, if it ended with one.
    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<T> {
        match Pin::new(&mut self.slot).poll(cx) {
            Poll::Pending => Poll::Pending,
            Poll::Ready(_) => match self.value.try_recv() {
                Ok(Some(Ok(value))) => Poll::Ready(value),
                Ok(Some(Err(panic))) => resume_unwind(panic),
                // The job sends before it ends, and the slot completes after: a backend that breaks this is wrong.
                Ok(None) | Err(_) => panic!("a job ended without a result"),
            },
        }
    }
}
