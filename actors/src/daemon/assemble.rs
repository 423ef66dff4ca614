//! Starts the parts of a daemon, and joins them.

use super::Daemon;
use crate::export::ExportRegistry;
use crate::graph::{Graph, GraphConfig, GraphHandle, ImplicitOpens, system_iothreads};
use crate::monitor::EventBus;
use crate::object::Site;
use crate::tls::TlsRegistry;
use millpond_drivers::api::Registry;
use millpond_messages::graph::IothreadOptions;
use millpond_ring::Engine;
use std::io;

impl Daemon {
    /// Starts a daemon on the current actix arbiter, whose nodes may have the drivers of `registry`, those
    /// in `extra_drivers` among them having options that the schema does not know.
    ///
    /// # Errors
    /// The main iothread cannot be started.
    pub fn start(registry: Registry, extra_drivers: Vec<String>) -> io::Result<Self> {
        let main = IothreadOptions {
            id: "main".into(),
            poll_max_ns: 0,
            poll_grow: 0,
            poll_shrink: 0,
            aio_max_batch: 0,
            thread_pool_min: 0,
            thread_pool_max: 64,
            cpu_affinity: Vec::new(),
        };
        Self::start_with(
            GraphConfig {
                registry,
                implicit: ImplicitOpens::default(),
                iothreads: system_iothreads(Engine::Auto),
                main,
            },
            extra_drivers,
        )
        .map(|(daemon, _)| daemon)
    }

    /// Starts a daemon on a graph of the embedder's making, which the handle leads to as well.
    ///
    /// # Errors
    /// The main iothread cannot be started.
    pub fn start_with(config: GraphConfig, extra_drivers: Vec<String>) -> io::Result<(Self, GraphHandle)> {
        let throttle_groups = config.registry.throttle_groups().clone();
        let secrets = config.registry.secrets().clone();
        let tls = TlsRegistry::new(config.registry.client_credentials().clone());
        let (_, graph) = Graph::start(config)?;
        let events = EventBus::default();
        let exports = ExportRegistry::new(graph.clone(), events.clone(), tls.clone());
        let announcements = graph.listen();
        let site = Site {
            graph: graph.clone(),
            throttle_groups,
            secrets,
            tls: tls.clone(),
        };
        let daemon = Self::new(site, exports, events, extra_drivers);
        daemon.announce(announcements);
        Ok((daemon, graph))
    }
}
