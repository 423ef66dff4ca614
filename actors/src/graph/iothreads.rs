//! Where the graph's iothreads come from: threads of the system, or what an embedder or a simulator brings.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use futures_util::future::BoxFuture;
use millpond_messages::graph::IothreadOptions;
use millpond_ring::Engine;

use millpond_engine::iothread::{IoThread, IoThreadConfig, PollParams};
use millpond_engine::node::{EventSink, Mail, serve};

/// An iothread that runs, and its thread's id on the host.
pub type Started = (IoThread<Mail>, u32);

/// An iothread that is being started. The graph goes on meanwhile.
pub type Starting = BoxFuture<'static, io::Result<Started>>;

/// Starts iothreads whose nodes tell of events by the sink. It must not block.
pub type IothreadFactory = Box<dyn FnMut(&IothreadOptions, EventSink) -> Starting + Send>;

/// Iothreads that are threads of the system, with rings of this engine.
#[must_use]
pub fn system_iothreads(engine: Engine) -> IothreadFactory {
    Box::new(move |options, events| {
        let config = IoThreadConfig {
            name: options.id.clone(),
            poll: poll_params(options),
            engine,
            cpus: (!options.cpu_affinity.is_empty())
                .then(|| options.cpu_affinity.iter().map(|cpu| usize::from(*cpu)).collect()),
            aio_max_batch: clamped(options.aio_max_batch),
            pool_threads: usize::try_from(options.thread_pool_max)
                .unwrap_or(usize::MAX)
                .max(1),
        };
        let thread = Arc::new(AtomicU32::new(0));
        let told = Arc::clone(&thread);
        let starting = IoThread::begin(config, move |local| {
            told.store(
                rustix::thread::gettid().as_raw_nonzero().get().unsigned_abs(),
                Ordering::Release,
            );
            serve(local, events)
        });
        Box::pin(async move {
            let iothread = starting.await?;
            Ok((iothread, thread.load(Ordering::Acquire)))
        })
    })
}

/// An iothread's polling. Negative values were refused before.
#[must_use]
pub fn poll_params(options: &IothreadOptions) -> PollParams {
    PollParams {
        max_ns: u64::try_from(options.poll_max_ns).unwrap_or(0),
        grow: u64::try_from(options.poll_grow).unwrap_or(0),
        shrink: u64::try_from(options.poll_shrink).unwrap_or(0),
    }
}

fn clamped(value: i64) -> u32 {
    u32::try_from(value.max(0)).unwrap_or(u32::MAX)
}
