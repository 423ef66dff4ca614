//! What the block layer tells while a tool works, and a tool tells on: the findings of checks, as they are.

use crate::cli::texts::printable;
use crate::log::tell;
use millpond_messages::FINDINGS;
use std::fmt::{Debug, Write};
use tracing::field::{Field, Visit};
use tracing::{Event, Metadata, Subscriber};
use tracing_subscriber::filter::filter_fn;
use tracing_subscriber::layer::{Context, Layer, SubscriberExt};
use tracing_subscriber::util::SubscriberInitExt;

/// Has findings written to standard error from now on, a line each.
pub fn tell_findings() {
    let is_finding = filter_fn(|about: &Metadata<'_>| about.target() == FINDINGS);
    let told = tracing_subscriber::registry().with(Findings.with_filter(is_finding));
    // An embedder may have started logging already: then its choice stands.
    drop(told.try_init());
}

struct Findings;

impl<S: Subscriber> Layer<S> for Findings {
    fn on_event(&self, event: &Event<'_>, _: Context<'_, S>) {
        let mut message = Message::default();
        event.record(&mut message);
        tell(&printable(&message.0));
    }
}

/// The text of an event.
#[derive(Default)]
struct Message(String);

impl Visit for Message {
    fn record_debug(&mut self, field: &Field, value: &dyn Debug) {
        if field.name() == "message" {
            // Nothing is wrong with a text in memory.
            let _ = write!(self.0, "{value:?}");
        }
    }
}
