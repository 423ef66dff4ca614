//! Changes of the graph, one a file.

pub mod activate;
pub mod amend;
pub mod backing_link;
pub mod check;
pub mod children;
pub mod commit;
pub mod create;
pub mod delete;
pub mod exchange;
pub mod iothreads;
pub mod links;
pub mod reopen;
pub mod replace;
pub mod resize;
pub mod roots;
pub mod shutdown;
pub mod snapshot;
