//! A drain that takes long is told of in the log, with what it waits for. The time is the test's.

use std::io::{self, Write};
use std::time::Duration;

use crossbeam_channel::{Receiver, Sender, unbounded};
use millpond::graph::{Graph, GraphConfig, GraphHandle, ImplicitOpens, system_iothreads};
use millpond_messages::graph::{IothreadOptions, ListDrains};
use millpond_ring::Engine;
use millpond_ring::buffer::Buffers;
use serde_json::json;

use super::world::{READ_WRITE, node, object, registry, root};

/// Sends what is logged.
struct Log(Sender<String>);

impl Write for Log {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        // The test may have ended.
        let _ = self.0.send(String::from_utf8_lossy(line).into_owned());
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// The warnings logged by the time that the actor and the nodes have had every chance to.
async fn warnings(graph: &GraphHandle, log: &Receiver<String>) -> Vec<String> {
    for _ in 0..20 {
        graph.ask(ListDrains).await.unwrap();
    }
    log.try_iter().collect()
}

#[test]
fn a_drain_that_takes_long_is_told_of_once_with_what_it_waits_for() {
    let (tell, log) = unbounded();
    let subscriber = tracing_subscriber::fmt()
        .with_ansi(false)
        .with_max_level(tracing::Level::WARN)
        .with_writer(move || Log(tell.clone()))
        .finish();
    let _logging = tracing::subscriber::set_default(subscriber);
    actix_rt::System::new().block_on(async {
        tokio::time::pause();
        // While something blocks, the clock moves only when it is told to.
        let (_until_the_end, blocks) = unbounded::<()>();
        tokio::task::spawn_blocking(move || blocks.recv().is_err());
        let (registry, nodes) = registry(&["n"]);
        let config = GraphConfig {
            registry,
            implicit: ImplicitOpens::Allow,
            iothreads: system_iothreads(Engine::Auto),
            main: IothreadOptions::named("main"),
        };
        let (_, graph) = Graph::start(config).unwrap();
        let options = object(json!({"driver": "test-memory", "node-name": "n"}));
        graph.add_node(options).await.unwrap();
        let client = graph.attach(root("n", READ_WRITE)).await.unwrap();

        let still = graph.drain(node("n"), "quick").await.unwrap();
        tokio::time::advance(Duration::from_secs(60)).await;
        assert_eq!(
            warnings(&graph, &log).await,
            [""; 0],
            "a still section waits for nothing"
        );
        drop(still);
        // The actor runs where the test does: it must have had its turn before the test blocks.
        graph.ask(ListDrains).await.unwrap();

        nodes["n"].hold(true);
        let mut request = Box::pin(client.read(4096, Buffers::zeroed(512)));
        assert!(futures_util::poll!(&mut request).is_pending());
        let held = nodes["n"].held_read();
        let mut drain = Box::pin(graph.drain(node("n"), "patient"));
        assert!(futures_util::poll!(&mut drain).is_pending());
        assert_eq!(warnings(&graph, &log).await, [""; 0]);
        tokio::time::advance(Duration::from_millis(990)).await;
        assert_eq!(warnings(&graph, &log).await, [""; 0], "not slow yet");
        tokio::time::advance(Duration::from_millis(20)).await;
        let told = warnings(&graph, &log).await;
        assert_eq!(told.len(), 1, "{told:?}");
        for part in [
            "a drain takes long",
            "patient",
            "seconds=1",
            "'n'",
            "a read of 512 bytes at 4096",
        ] {
            assert!(told[0].contains(part), "{part} is not in {}", told[0]);
        }
        tokio::time::advance(Duration::from_secs(3600)).await;
        assert_eq!(warnings(&graph, &log).await, [""; 0], "told of once");

        nodes["n"].hold(false);
        held.go.send(()).unwrap();
        drop(drain.await.unwrap());
        request.await.0.unwrap();
        graph.close_all().await.unwrap();
    });
}
