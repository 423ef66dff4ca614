//! A block layer inside another program: the graph on a thread of its own, used from any executor.

use std::io;
use std::thread::JoinHandle;

use futures_channel::oneshot;
use millpond_drivers::api::Registry;
use millpond_messages::{Error, ErrorKind, Result};
use millpond_ring::Engine;
use millpond_ring::os::process::{Preference, prefer_this_thread};

use crate::graph::{Graph, GraphConfig, GraphHandle, ImplicitOpens, system_iothreads};
use millpond_engine::delay::{Chaos, DelayRules};

/// What a block layer is started with. The defaults are those of the daemon.
pub struct BlockLayerConfig {
    /// The drivers that nodes may have: [`millpond_drivers::builtin::builtin`], and the embedder's own.
    pub registry: Registry,
    /// Whether backing files that images name are opened.
    pub implicit: ImplicitOpens,
    /// What the iothreads' rings run on.
    pub engine: Engine,
    /// The delay rules in force from the start; [`GraphHandle::set_chaos`] changes it.
    pub chaos: Option<DelayRules>,
    /// How much the scheduler prefers the control thread, where this process may have that.
    pub preference: Preference,
}

impl Default for BlockLayerConfig {
    fn default() -> Self {
        Self {
            registry: millpond_drivers::builtin::builtin(),
            implicit: ImplicitOpens::Allow,
            engine: Engine::Auto,
            chaos: None,
            preference: Preference::default(),
        }
    }
}

/// A running block layer. A program that has an actix system of its own starts a [`Graph`] in that instead.
#[must_use = "the block layer stops when this is dropped"]
pub struct BlockLayer {
    graph: GraphHandle,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
    ended: oneshot::Receiver<()>,
}

impl BlockLayer {
    /// Starts the control thread with the graph actor, and the main iothread.
    ///
    /// # Errors
    /// A thread, or the main iothread's ring, cannot be made.
    pub async fn start(config: BlockLayerConfig) -> io::Result<Self> {
        let (stop, stopped) = oneshot::channel();
        let (end, ended) = oneshot::channel();
        let (tell, started) = oneshot::channel();
        let thread = std::thread::Builder::new()
            .name("millpond".to_owned())
            .spawn(move || {
                // A process that may not have that has a block layer all the same.
                drop(prefer_this_thread(config.preference));
                actix_rt::System::new().block_on(async move {
                    match start_graph(config) {
                        Ok(graph) => {
                            // Whoever started us may have given up: then there is no one to stop us either.
                            drop(tell.send(Ok(graph)));
                            // An error means that the block layer was dropped, which stops it too.
                            stopped.await.unwrap_or(());
                        }
                        Err(error) => drop(tell.send(Err(error))),
                    }
                });
                drop(end);
            })?;
        let graph = started
            .await
            .unwrap_or_else(|_| Err(io::Error::other("the control thread died")))?;
        Ok(Self {
            graph,
            stop: Some(stop),
            thread: Some(thread),
            ended,
        })
    }

    /// The graph, for any thread and any executor.
    #[must_use]
    pub const fn graph(&self) -> &GraphHandle {
        &self.graph
    }

    /// Flushes and closes every node, then ends the threads.
    ///
    /// # Errors
    /// A node could not be flushed or closed; everything has ended all the same.
    pub async fn shut_down(mut self) -> Result<()> {
        let closed = self.graph.close_all().await;
        self.stop = None;
        // The sender is dropped when the control thread's work is over: what is left of it does not wait for anything.
        (&mut self.ended).await.unwrap_or(());
        let ended = self.thread.take().is_none_or(|thread| thread.join().is_ok());
        if ended {
            closed
        } else {
            Err(Error::new(ErrorKind::Closed, "The control thread panicked"))
        }
    }
}

fn start_graph(config: BlockLayerConfig) -> io::Result<GraphHandle> {
    let chaos = config.chaos.map(Chaos::new);
    let (_, graph) = Graph::start(GraphConfig {
        registry: config.registry,
        implicit: config.implicit,
        iothreads: system_iothreads(config.engine),
        main: millpond_messages::graph::IothreadOptions::named("main"),
    })?;
    if chaos.is_some() {
        // In force before anything that is asked later; nobody needs to know since when.
        drop(graph.set_chaos(chaos));
    }
    Ok(graph)
}
