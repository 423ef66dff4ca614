//! Replies on their way to a client: collected while the iothread works, sent in one gather.

use std::cell::{RefCell, RefMut};
use std::collections::VecDeque;
use std::future::poll_fn;
use std::rc::Rc;
use std::task::{Poll, Waker};

use millpond_ring::buffer::{Buffer, Buffers};

use super::budget::{Budget, Permit};

/// Bytes of headers that share one allocation.
const SLAB: usize = 4096;
/// Replies of at least so many bytes get memory of their own.
const LARGE: usize = 1024;
/// A batch with so many pieces takes no more: the kernel's bound is 1024 for one call.
const MAX_PIECES: usize = 512;
/// A batch with so many bytes takes no more, so that what was sent gives its room back while the next goes out.
const MAX_BATCH_BYTES: usize = 2 << 20;

/// What goes out in one call, with what it holds of the client's budget.
#[derive(Debug)]
pub(super) struct Batch {
    buffers: Buffers,
    bytes: usize,
    /// Given back when the batch was sent, or could not be.
    permit: Permit,
}

impl Batch {
    /// The bytes, and what to drop when they were sent.
    pub(super) fn into_parts(self) -> (Buffers, Permit) {
        (self.buffers, self.permit)
    }
}

/// The queue of one connection.
#[derive(Debug)]
pub(super) struct Outbox {
    budget: Rc<Budget>,
    inner: RefCell<Inner>,
}

#[derive(Debug)]
struct Inner {
    batches: VecDeque<Batch>,
    /// Memory that headers are written to; its first `used` bytes are not in a batch yet.
    slab: Buffer,
    used: usize,
    /// A header being made.
    scratch: Vec<u8>,
    sender: Option<Waker>,
    closed: bool,
}

impl Outbox {
    pub(super) fn new(budget: &Rc<Budget>) -> Self {
        Self {
            budget: Rc::clone(budget),
            inner: RefCell::new(Inner {
                batches: VecDeque::new(),
                slab: Buffer::new(),
                used: 0,
                scratch: Vec::new(),
                sender: None,
                closed: false,
            }),
        }
    }

    /// Adds a chunk: its header, as `header` writes it, and its data. With a request's last chunk (or its only one) comes
    /// the request's permit, given back when the chunk was sent.
    pub(super) fn add(
        &self,
        header: impl FnOnce(&mut Vec<u8>),
        data: Option<Buffers>,
        permit: Option<Permit>,
    ) {
        let mut inner = self.inner.borrow_mut();
        if inner.closed {
            // The permit wakes the receiving task, which must find the queue free.
            drop(inner);
            return drop((data, permit));
        }
        inner.open_batch(&self.budget);
        inner.header(header);
        if let Some(data) = data {
            inner.data(data);
        }
        inner.permit(permit);
        Self::wake(inner);
    }

    /// The same for a request's only chunk, whose header has room right before the data.
    pub(super) fn add_whole(
        &self,
        header: impl FnOnce(&mut Vec<u8>),
        room: Buffer,
        data: Buffers,
        permit: Permit,
    ) {
        let mut inner = self.inner.borrow_mut();
        if inner.closed {
            drop(inner);
            return drop((room, data, permit));
        }
        inner.open_batch(&self.budget);
        inner.header_in(header, room);
        inner.data(data);
        inner.permit(Some(permit));
        Self::wake(inner);
    }

    fn wake(mut inner: RefMut<'_, Inner>) {
        let sender = inner.sender.take();
        drop(inner);
        if let Some(sender) = sender {
            sender.wake();
        }
    }

    /// The next batch, as soon as there is one; `None` once the outbox was closed.
    ///
    /// Whoever adds the first reply makes the sender ready, behind all tasks that are ready by then: their replies go
    /// out in the same call.
    pub(super) async fn next(&self) -> Option<Batch> {
        poll_fn(|context| {
            let mut inner = self.inner.borrow_mut();
            if inner.closed {
                return Poll::Ready(None);
            }
            inner.cut();
            if let Some(batch) = inner.batches.pop_front() {
                return Poll::Ready(Some(batch));
            }
            inner.sender = Some(context.waker().clone());
            Poll::Pending
        })
        .await
    }

    /// Throws away what is queued, and what will be.
    pub(super) fn close(&self) {
        let mut inner = self.inner.borrow_mut();
        inner.closed = true;
        let batches = std::mem::take(&mut inner.batches);
        let sender = inner.sender.take();
        drop(inner);
        drop(batches);
        if let Some(sender) = sender {
            sender.wake();
        }
    }
}

impl Inner {
    /// Sees to it that the last batch takes more.
    fn open_batch(&mut self, budget: &Rc<Budget>) {
        let full = |batch: &Batch| batch.buffers.count() >= MAX_PIECES || batch.bytes >= MAX_BATCH_BYTES;
        if self.batches.back().is_none_or(full) {
            self.cut();
            self.batches.push_back(Batch {
                buffers: Buffers::new(),
                bytes: 0,
                permit: Permit::empty(budget),
            });
        }
    }

    fn header(&mut self, header: impl FnOnce(&mut Vec<u8>)) {
        self.scratch.clear();
        header(&mut self.scratch);
        self.write();
    }

    /// Puts a header where there is room for it; it is just as long.
    fn header_in(&mut self, header: impl FnOnce(&mut Vec<u8>), mut room: Buffer) {
        self.scratch.clear();
        header(&mut self.scratch);
        debug_assert_eq!(room.len(), self.scratch.len());
        room.copy_from_slice(&self.scratch);
        self.cut();
        self.piece(room);
    }

    fn data(&mut self, data: Buffers) {
        if data.is_empty() {
            return;
        }
        self.cut();
        data.into_iter().for_each(|data| self.piece(data));
    }

    fn permit(&mut self, permit: Option<Permit>) {
        if let (Some(batch), Some(permit)) = (self.batches.back_mut(), permit) {
            batch.permit.merge(permit);
        }
    }

    /// Puts the header just made where it will be sent from.
    fn write(&mut self) {
        let len = self.scratch.len();
        if len >= LARGE {
            self.cut();
            let piece = Buffer::from(std::mem::take(&mut self.scratch));
            return self.piece(piece);
        }
        if self.slab.len() - self.used < len {
            self.cut();
            self.slab = Buffer::alloc(SLAB);
        }
        let end = self.used + len;
        self.slab[self.used..end].copy_from_slice(&self.scratch);
        self.used = end;
    }

    /// Ends the piece of headers that is being written.
    fn cut(&mut self) {
        if self.used > 0 {
            let piece = self.slab.split_to(self.used);
            self.used = 0;
            self.piece(piece);
        }
    }

    fn piece(&mut self, piece: Buffer) {
        // Nothing is put anywhere before there is a batch that it belongs to.
        if let Some(batch) = self.batches.back_mut() {
            batch.bytes += piece.len();
            batch.buffers.push_joined(piece);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::budget::Pool;
    use super::*;
    use futures_util::FutureExt;

    fn bytes(outbox: &Outbox) -> Vec<(usize, Vec<u8>)> {
        std::iter::from_fn(|| outbox.next().now_or_never().flatten())
            .map(|batch| (batch.buffers.count(), batch.buffers.to_vec()))
            .collect()
    }

    #[test]
    fn replies_without_data_share_one_piece_and_data_is_not_copied() {
        let budget = Budget::new(&Pool::new(0));
        let outbox = Outbox::new(&budget);
        let data = Buffer::from_slice(b"data");
        let address = data.as_ptr();
        outbox.add(|out| out.extend(b"ab"), None, None);
        outbox.add(|out| out.extend(b"cd"), Some(data.into()), None);
        outbox.add(|out| out.extend(b"ef"), None, budget.try_admit(4));
        let batch = outbox.next().now_or_never().flatten().unwrap();
        assert_eq!(batch.buffers.to_vec(), b"abcddataef");
        assert_eq!(batch.buffers.count(), 3);
        assert_eq!(batch.buffers.iter().nth(1).unwrap().as_ptr(), address);
        assert!(budget.settled().now_or_never().is_none());
        drop(batch);
        assert!(budget.settled().now_or_never().is_some());
    }

    #[test]
    fn replies_that_lie_behind_each_other_are_one_piece() {
        let budget = Budget::new(&Pool::new(0));
        let outbox = Outbox::new(&budget);
        let mut memory = Buffer::alloc(20);
        let mut whole = |text: &'static [u8; 6]| {
            let (room, mut data) = (memory.split_to(2), memory.split_to(4));
            data.copy_from_slice(&text[2..]);
            let header = |out: &mut Vec<u8>| out.extend(&text[..2]);
            outbox.add_whole(header, room, data.into(), budget.try_admit(4).unwrap());
        };
        whole(b"h1aaaa");
        whole(b"h2bbbb");
        outbox.add(|out| out.extend(b"hx"), None, None);
        whole(b"h3cccc");
        let batch = outbox.next().now_or_never().flatten().unwrap();
        assert_eq!(batch.buffers.to_vec(), b"h1aaaah2bbbbhxh3cccc");
        assert_eq!(batch.buffers.count(), 3);
    }

    #[test]
    fn order_survives_slabs_large_replies_and_batches() {
        let budget = Budget::new(&Pool::new(0));
        let outbox = Outbox::new(&budget);
        let mut expected = Vec::new();
        for i in 0..3000_usize {
            let header = vec![i as u8; if i % 97 == 0 { 2000 } else { 1 + i % 40 }];
            let data = (i % 3 == 0).then(|| vec![!(i as u8); i % 300]);
            expected.extend_from_slice(&header);
            expected.extend(data.iter().flatten());
            outbox.add(
                |out| out.extend_from_slice(&header),
                data.map(Buffers::from),
                None,
            );
        }
        let batches = bytes(&outbox);
        assert!(batches.len() > 1);
        assert!(batches.iter().all(|(pieces, _)| *pieces <= MAX_PIECES + 2));
        assert_eq!(
            batches
                .into_iter()
                .flat_map(|(_, bytes)| bytes)
                .collect::<Vec<_>>(),
            expected
        );
    }

    #[test]
    fn a_closed_outbox_holds_nothing() {
        let budget = Budget::new(&Pool::new(0));
        let outbox = Outbox::new(&budget);
        outbox.add(|out| out.push(1), None, budget.try_admit(1));
        outbox.close();
        outbox.add(|out| out.push(1), None, budget.try_admit(1));
        assert!(budget.settled().now_or_never().is_some());
        assert!(outbox.next().now_or_never().flatten().is_none());
    }
}
