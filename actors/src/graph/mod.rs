//! The graph actor: which nodes there are, how they are joined, and every change of that.
//!
//! ```text
//!   QMP, exports, embedders          Graph (control thread)               iothreads
//!     GraphHandle, Addr<Graph> --request--> Policy --effects--> carried out --orders--> nodes
//!                              <---reply---        <---events--------------------------
//! ```
//! All decisions are in [`millpond_graph`]; the [`Graph`] puts handles in place of ids and carries effects out.

mod actor;
mod addresses;
mod asked;
mod change_log;
mod delay;
mod flight;
mod guards;
mod handle;
mod inbox;
mod iothreads;
mod mailbox;
mod memory;
mod names;
mod node_handle;
mod show;

pub use actor::{Graph, GraphConfig, GraphMessage};
pub use asked::Asked;
pub(crate) use asked::unblock_all;
pub use guards::{DrainGuard, FreezeGuard, OpBlockGuard};
pub use handle::GraphHandle;
pub use iothreads::{IothreadFactory, Started, Starting, system_iothreads};
pub use millpond_graph::{Announcement, ImplicitOpens};
pub use node_handle::NodeHandle;
pub use show::graph_json;
