//! The graph actor's mailbox: what any thread sends, the control thread receives, and nobody takes a lock for it.
//!
//! The runtime's own way to wake a task from another thread goes through a queue behind a lock. This one does not: messages
//! are in a queue without locks, and a receiver that has seen it empty sleeps as iothreads do, by a word of three states and
//! an eventfd that the runtime watches. The bell is rung only for a receiver that sleeps: one system call then, and none for
//! all that comes before it has woken. A sender on the receiver's own thread wakes its task directly.

use std::cell::RefCell;
use std::io;
use std::os::fd::OwnedFd;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll, Waker};

use crossbeam_channel::TryRecvError;
use futures_core::Stream;
use millpond_engine::iothread::Local;
use millpond_ring::Wake;
use tokio::io::unix::AsyncFd;

use millpond_ring::os::process::watched;

/// Names a mailbox. Never reused.
type Id = u64;

thread_local! {
    /// The receivers of this thread that wait, with their tasks. Mostly one, on the control thread.
    static WAITING_HERE: RefCell<Vec<(Id, Waker)>> = const { RefCell::new(Vec::new()) };
}

/// Puts messages into a mailbox, from any thread.
pub struct Sender<M> {
    id: Id,
    /// Used without blocking on either side, so that nobody is in its list of sleepers.
    queue: crossbeam_channel::Sender<M>,
    wake: Arc<Wake>,
}

/// Takes messages out, in the order in which each sender put them in. It is not woken to hear that there are no senders any
/// more: whoever has it keeps one.
pub struct Receiver<M> {
    id: Id,
    queue: crossbeam_channel::Receiver<M>,
    wake: Arc<Wake>,
    /// The eventfd, which is never read: each time it is rung is an edge.
    bell: AsyncFd<Arc<OwnedFd>>,
    /// It has announced to sleep.
    parked: bool,
}

/// A mailbox, received from on the current runtime.
///
/// # Errors
/// There is no descriptor left.
pub fn mailbox<M>() -> io::Result<(Sender<M>, Receiver<M>)> {
    static NEXT: AtomicU64 = AtomicU64::new(0);
    let id = NEXT.fetch_add(1, Ordering::Relaxed);
    let wake = Arc::new(Wake::new()?);
    let (sender, receiver) = crossbeam_channel::unbounded();
    let bell = watched(Arc::new(wake.bell().try_clone_to_owned()?))?;
    Ok((
        Sender {
            id,
            queue: sender,
            wake: Arc::clone(&wake),
        },
        Receiver {
            id,
            queue: receiver,
            wake,
            bell,
            parked: false,
        },
    ))
}

impl<M> Sender<M> {
    /// Puts a message in. False if the receiver is gone, and the message with it.
    pub fn send(&self, message: M) -> bool {
        self.send_and(message, |wake| wake.wake())
    }

    /// The same from an iothread that may have more to send at once: the receiver is woken for all of it.
    pub fn send_with_others(&self, message: M) -> bool {
        self.send_and(message, Local::wake_later)
    }

    fn send_and(&self, message: M, wake: impl FnOnce(&Arc<Wake>)) -> bool {
        let sent = self.queue.send(message).is_ok();
        let waker = WAITING_HERE.with_borrow(|waiting| {
            let here = waiting.iter().find(|(id, _)| *id == self.id);
            here.map(|(_, waker)| waker.clone())
        });
        match waker {
            Some(waker) => waker.wake(),
            None => wake(&self.wake),
        }
        sent
    }
}

impl<M> Clone for Sender<M> {
    fn clone(&self) -> Self {
        Self {
            id: self.id,
            queue: self.queue.clone(),
            wake: Arc::clone(&self.wake),
        }
    }
}

impl<M> Receiver<M> {
    fn forget_waker(&self) {
        let forget = |waiting: &RefCell<Vec<(Id, Waker)>>| {
            let mut waiting = waiting.borrow_mut();
            let at = waiting.iter().position(|(id, _)| *id == self.id)?;
            Some(waiting.swap_remove(at))
        };
        // A thread that ends has forgotten all by then. A waker is dropped outside of the borrow.
        drop(WAITING_HERE.try_with(forget));
    }

    fn keep_waker(&self, waker: &Waker) {
        WAITING_HERE.with_borrow_mut(
            |waiting| match waiting.iter_mut().find(|(id, _)| *id == self.id) {
                Some((_, other)) => other.clone_from(waker),
                None => waiting.push((self.id, waker.clone())),
            },
        );
    }

    /// Has the runtime look at the bell. What rang before this call is accounted for by a look at the word.
    fn watch(&self, context: &mut Context<'_>) {
        loop {
            match self.bell.poll_read_ready(context) {
                Poll::Ready(Ok(mut rung)) => rung.clear_ready(),
                // The runtime ends, and this with it.
                Poll::Ready(Err(_)) | Poll::Pending => return,
            }
        }
    }
}

/// No message is in it.
impl<M> Unpin for Receiver<M> {}

impl<M> Stream for Receiver<M> {
    type Item = M;

    fn poll_next(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<M>> {
        let this = self.get_mut();
        if std::mem::take(&mut this.parked) {
            this.wake.unpark();
        }
        loop {
            match this.queue.try_recv() {
                Ok(message) => return Poll::Ready(Some(message)),
                Err(TryRecvError::Disconnected) => return Poll::Ready(None),
                Err(TryRecvError::Empty) => {}
            }
            // Woken since the last look: another one is due.
            if !this.wake.try_park() {
                continue;
            }
            this.watch(context);
            // Rung meanwhile, by a runtime that looks at its descriptors on another thread.
            if !this.wake.is_parked() {
                this.wake.unpark();
                continue;
            }
            this.parked = true;
            this.keep_waker(context.waker());
            return Poll::Pending;
        }
    }
}

impl<M> Drop for Receiver<M> {
    fn drop(&mut self) {
        self.forget_waker();
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use futures_util::{FutureExt, StreamExt};

    use super::*;

    fn run<F: Future>(future: F) -> F::Output {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        let future = async { tokio::time::timeout(Duration::from_secs(60), future).await };
        runtime.expect("a runtime").block_on(future).expect("it ends")
    }

    #[test]
    fn what_many_threads_send_arrives_in_each_ones_order() {
        const EACH: usize = 10_000;
        run(async {
            let (sender, mut receiver) = mailbox().expect("a descriptor");
            let threads: Vec<_> = (0..3_usize)
                .map(|thread| {
                    let sender = sender.clone();
                    std::thread::spawn(move || {
                        for number in 0..EACH {
                            assert!(sender.send((thread, number)));
                            if number % 64 == 0 {
                                // The receiver falls asleep.
                                std::thread::yield_now();
                            }
                        }
                    })
                })
                .collect();
            let mut next = [0; 3];
            while next != [EACH; 3] {
                let (thread, number) = receiver.next().await.expect("there is a sender");
                assert_eq!(number, next[thread]);
                next[thread] += 1;
            }
            threads
                .into_iter()
                .for_each(|thread| thread.join().expect("it sends all"));
        });
    }

    #[test]
    fn a_sleeper_is_rung_for_once_from_another_thread_and_never_from_its_own() {
        run(async {
            let (sender, mut receiver) = mailbox().expect("a descriptor");
            let here = sender.clone();
            tokio::join!(
                async {
                    assert_eq!(receiver.next().await, Some(1));
                },
                async { assert!(here.send(1)) },
            );
            assert_eq!(sender.wake.rung(), 0);
            assert_eq!(receiver.next().now_or_never(), None, "it sleeps");
            let thread = std::thread::spawn(move || {
                for number in 2..10 {
                    assert!(sender.send(number));
                }
            });
            thread.join().expect("it sends");
            assert_eq!(receiver.wake.rung(), 1);
            let rest: Vec<i32> = receiver.take(8).collect().await;
            assert_eq!(rest, (2..10).collect::<Vec<_>>());
        });
    }

    #[test]
    fn without_a_receiver_nothing_is_sent() {
        run(async {
            let (sender, receiver) = mailbox().expect("a descriptor");
            drop(receiver);
            assert!(!sender.send(()));
        });
    }
}
