//! A job of the tests' own: a user that copies from one node to another, sector by sector and over again, until it is
//! told to finish.
//!
//! It has a pause point between two sectors, and callbacks at its end that flush.

use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};

use futures_util::future::{AbortHandle, Abortable, Aborted};
use millpond::graph::GraphHandle;
use millpond::node::HomeClient;
use millpond_messages::error::errno::EIO;
use millpond_messages::graph::{RootRequest, RootUser};
use millpond_messages::{IoError, IoResult, Permissions, RequestFlags, RootId};
use millpond_ring::buffer::Buffers;

use super::world::{READ_WRITE, SIZE, Sent, World, on_home, root, wait};

/// Where a job's code runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Runs {
    /// As a task on the iothread where its source lived when it began.
    AtHome,
    /// On a thread of its own.
    OnThread,
}

/// What a job meets.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fails {
    Never,
    InRun,
    InPrepare,
}

/// What the test sees of a job, and tells it.
#[derive(Default)]
pub struct State {
    /// Sectors copied.
    pub copied: AtomicU32,
    /// It waits at its pause point.
    pub paused: AtomicBool,
    /// It shall come to its end.
    finish: AtomicBool,
    /// Callbacks that have run: prepare, commit, abort.
    pub callbacks: [AtomicBool; 3],
}

pub struct Job {
    pub state: Arc<State>,
    end: Sent<Result<IoResult<()>, Aborted>>,
    abort: AbortHandle,
    roots: [RootId; 2],
    graph: GraphHandle,
}

impl Job {
    pub fn start(world: &World, source: &str, target: &str, runs: Runs, fails: Fails) -> Self {
        Self::start_with(world, source, target, runs, fails, async {})
    }

    /// A job that does something more once it has committed.
    pub fn start_with(
        world: &World,
        source: &str,
        target: &str,
        runs: Runs,
        fails: Fails,
        then: impl Future<Output = ()> + Send + 'static,
    ) -> Self {
        let hold = |node: &str, permissions: Permissions| {
            let request = RootRequest {
                user: RootUser::Job("job".to_owned()),
                ..root(node, permissions)
            };
            wait(world.graph.attach(request)).expect("the job can hold its nodes")
        };
        let source = hold(source, Permissions::CONSISTENT_READ);
        let target = hold(target, READ_WRITE);
        let state = Arc::new(State::default());
        let roots = [source.root(), target.root()];
        let home = source.clone();
        let (seen, (here, there)) = (Arc::clone(&state), (source.clone(), target));
        let work = move || async move {
            let result = Work {
                source: here.here(),
                target: there.here(),
                state: seen,
                fails,
            }
            .run()
            .await;
            if result.is_ok() {
                then.await;
            }
            result
        };
        let (abort, registration) = AbortHandle::new_pair();
        let end = match runs {
            Runs::AtHome => on_home(&home, move || Abortable::new(work(), registration)),
            Runs::OnThread => {
                let (tell, end) = futures_channel::oneshot::channel();
                std::thread::spawn(move || tell.send(wait(Abortable::new(work(), registration))).is_ok());
                Box::pin(async move { end.await.expect("the job ends") })
            }
        };
        Self {
            state,
            end,
            abort,
            roots,
            graph: world.graph.clone(),
        }
    }

    /// How many sectors it has copied.
    pub fn copied(&self) -> u32 {
        self.state.copied.load(Ordering::SeqCst)
    }

    pub fn is_paused(&self) -> bool {
        self.state.paused.load(Ordering::SeqCst)
    }

    pub fn finish(&self) {
        self.state.finish.store(true, Ordering::SeqCst);
    }

    pub fn has_ended(&mut self) -> bool {
        super::world::is_ready(&mut self.end)
    }

    /// Lets the job come to its end, and lets go of its nodes.
    pub fn complete(self) -> IoResult<()> {
        self.finish();
        let result = wait(self.end).expect("nobody cancelled it");
        for root in self.roots {
            wait(self.graph.detach(root)).expect("the job holds its nodes");
        }
        result
    }

    /// The job's result, if its nodes are gone already.
    pub fn ended(self) -> IoResult<()> {
        wait(self.end).expect("nobody cancelled it")
    }

    /// Ends the job wherever it is: what it had under way is no longer waited for.
    pub fn cancel(self) {
        self.abort.abort();
        assert_eq!(wait(self.end), Err(Aborted));
        for root in self.roots {
            wait(self.graph.detach(root)).expect("the job holds its nodes");
        }
    }
}

/// The job's own side.
struct Work {
    source: HomeClient,
    target: HomeClient,
    state: Arc<State>,
    fails: Fails,
}

impl Work {
    async fn run(&self) -> IoResult<()> {
        let mut result = self.copy().await;
        if result.is_ok() {
            result = self.prepare().await;
        }
        let callback = usize::from(result.is_err()) + 1;
        self.flush().await?;
        self.state.callbacks[callback].store(true, Ordering::SeqCst);
        result
    }

    async fn copy(&self) -> IoResult<()> {
        let mut offset = 0;
        loop {
            self.pause_point().await;
            if self.state.finish.load(Ordering::SeqCst) {
                break;
            }
            let (result, buffers) = self.source.read(offset, Buffers::zeroed(512)).await;
            result?;
            let (result, _) = self.target.write(offset, buffers, RequestFlags::empty()).await;
            result?;
            offset = (offset + 512) % SIZE as u64;
            self.state.copied.fetch_add(1, Ordering::SeqCst);
        }
        if self.fails == Fails::InRun {
            Err(IoError::Os(EIO))
        } else {
            Ok(())
        }
    }

    async fn pause_point(&self) {
        yield_now().await;
        while !(self.source.is_open() && self.target.is_open()) {
            self.state.paused.store(true, Ordering::SeqCst);
            self.source.wait_open().await;
            self.target.wait_open().await;
            self.state.paused.store(false, Ordering::SeqCst);
        }
    }

    async fn prepare(&self) -> IoResult<()> {
        self.flush().await?;
        self.state.callbacks[0].store(true, Ordering::SeqCst);
        if self.fails == Fails::InPrepare {
            return Err(IoError::Os(EIO));
        }
        Ok(())
    }

    async fn flush(&self) -> IoResult<()> {
        self.source.flush().await?;
        self.target.flush().await
    }
}

/// Lets the other tasks of the thread run, so that a job on nodes that answer at once leaves room for mail.
async fn yield_now() {
    let mut yielded = false;
    std::future::poll_fn(|context| {
        if std::mem::replace(&mut yielded, true) {
            return std::task::Poll::Ready(());
        }
        context.waker().wake_by_ref();
        std::task::Poll::Pending
    })
    .await;
}
