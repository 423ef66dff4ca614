//! Loads a server over NBD, or a node in this process, from one or more connections and sums up what came of it.
//!
//! A [`Spec`] says what is to be done. [`run`] does it and gives a [`Report`]; [`start`] does it in the background, so
//! that the caller can change the graph meanwhile, and note in the report's timeline when it did.

mod actions;
mod arguments;
mod choice;
mod embedded;
mod generate;
mod measure;
mod nbd;
mod output;
mod plot;
mod progress;
mod record;
mod report;
mod running;
mod spec;
mod stamp;
mod target;
mod timeline;
mod usage;
mod workload;

pub use actions::Action;
pub use arguments::{LoadArguments, main};
pub use choice::Choice;
pub use output::Format;
pub use plot::draw;
pub use record::Tally;
pub use report::{Report, Verified};
pub use running::{Progress, Running, run, start};
pub use spec::{Kind, MOST_BYTES, Pattern, Size, Spec};
pub use stamp::Mismatch;
pub use target::{Endpoint, Target};
pub use timeline::{Mark, Slice, Timeline};
pub use usage::Usage;
pub(crate) use usage::{Meter, Threads};
