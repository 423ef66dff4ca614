//! What tests of a live graph begin with.

use std::future::Future;

use millpond::graph::{Graph, GraphConfig, GraphHandle, ImplicitOpens, system_iothreads};
use millpond_drivers::api::Registry;
use millpond_drivers::builtin::builtin;
use millpond_messages::graph::IothreadOptions;
use millpond_ring::Engine;

/// Runs a test with a graph of Millpond's own drivers, and closes everything at its end.
pub fn with_graph<F: Future<Output = ()>>(test: impl FnOnce(GraphHandle) -> F) {
    with_graph_of(builtin(), test);
}

/// The same with the drivers of a registry.
pub fn with_graph_of<F: Future<Output = ()>>(registry: Registry, test: impl FnOnce(GraphHandle) -> F) {
    actix_rt::System::new().block_on(async {
        let config = GraphConfig {
            registry,
            implicit: ImplicitOpens::Allow,
            iothreads: system_iothreads(Engine::Auto),
            main: IothreadOptions::named("main"),
        };
        let (_, graph) = Graph::start(config).expect("an iothread can be started");
        test(graph.clone()).await;
        graph.close_all().await.expect("everything closes");
    });
}
