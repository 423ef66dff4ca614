//! The graph's policy: a plain synchronous struct that takes requests and events, and returns effects.
//!
//! It has no thread, no clock and does no I/O, so a test, a simulator or a model checker can drive it: the actor around
//! it only carries effects out. Mutations run one at a time in the order they came; drained sections begin and end, and
//! questions are answered, whatever mutation waits.
//!
//! ```text
//!   policy                       the queue: which request runs when
//!   change                       mutations, one a file
//!   immediate, query, open       what waits for no turn; questions; from options or names to nodes
//!   transaction                  the steps of a mutation, each with what undoes it
//!   world, state, undo           what is known, and how procedures wait for nodes
//!   sections, value              drained sections; the graph as a value
//!   new_image                    what an image that is to be made is to be
//!   effect, procedure, order     what is wanted done, and what runs
//! ```
//! A module imports from its own line and from those below it, never from one above. The only circle is in `open`, whose
//! four files are one recursion.
#![forbid(unsafe_code)]

mod change;
mod effect;
mod immediate;
pub mod new_image;
mod notices;
mod open;
mod order;
mod policy;
mod procedure;
mod query;
mod sections;
mod state;
mod transaction;
mod undo;
mod value;
mod world;

pub use effect::{Announcement, Effect, ImplicitOpens, PolicyEvent, Reply, RequestId};
pub use new_image::NewImage;
pub use order::{Address, Ids, IothreadOrder, NewRoot, NodeOrder, NodeTask, Open, Order, Wiring};
pub use policy::Policy;
pub use sections::Cover;

#[cfg(test)]
mod tests;
