//! `x-millpond-query-iothreads`: what iothreads have done, as each tells it itself.

use millpond_engine::node::OrderOutcome;
use millpond_messages::graph::IothreadReport;

use crate::order::IothreadOrder;
use crate::state::IothreadEntry;
use crate::world::World;

/// The name by which the main iothread is shown: it is no object, and has no id.
const MAIN: &str = "main";

/// An iothread's name, for people.
pub fn shown_name(entry: &IothreadEntry) -> &str {
    entry.options.as_ref().map_or(MAIN, |options| &options.id)
}

/// All iothreads, the main one first. One that ends meanwhile is left out.
pub async fn reports(world: &World) -> Vec<IothreadReport> {
    let asked: Vec<_> = world
        .with(|state| state.iothreads.clone())
        .into_iter()
        .map(|(id, entry)| (id, entry, world.ask_iothread(id, IothreadOrder::Counters)))
        .collect();
    let mut reports = Vec::with_capacity(asked.len());
    for (id, entry, answer) in asked {
        let OrderOutcome::Counters(counters) = answer.await else {
            continue;
        };
        reports.push(IothreadReport {
            id: shown_name(&entry).to_owned(),
            thread_id: entry.thread,
            nodes: world.graph(|graph| u64::try_from(graph.population(id)).unwrap_or(u64::MAX)),
            cpu_affinity: entry
                .options
                .map(|options| options.cpu_affinity)
                .unwrap_or_default(),
            counters: *counters,
        });
    }
    reports
}
