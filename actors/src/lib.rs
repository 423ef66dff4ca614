//! A user-space block layer: disk images opened, served, snapshotted and moved between threads while they are in use, with
//! no lock on any path that a request or a change of the graph takes.
//!
//! ```
//! use millpond::embed::{BlockLayer, BlockLayerConfig};
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! # let folder = tempfile::tempdir()?;
//! # std::env::set_current_dir(&folder)?;
//! futures_executor::block_on(async {
//!     let layer = BlockLayer::start(BlockLayerConfig::default()).await?;
//!     layer.create("disk.qcow2", 1 << 30).await?;
//!     let mut disk = layer.open("disk.qcow2").await?;
//!
//!     disk.write_at(b"before", 4096).await?;
//!     disk.snapshot("overlay.qcow2").await?; // disk.qcow2 stays as it is now
//!     disk.write_at(b"after ", 4096).await?;
//!     disk.flush().await?;
//!
//!     let mut bytes = [0; 6];
//!     disk.read_at(&mut bytes, 4096).await?;
//!     assert_eq!(&bytes, b"after ");
//!
//!     disk.close().await?;
//!     let old = layer.open("disk.qcow2").read_only().await?;
//!     old.read_at(&mut bytes, 4096).await?;
//!     assert_eq!(&bytes, b"before");
//! #   old.close().await?;
//!     layer.shut_down().await?;
//!     Ok(())
//! })
//! # }
//! ```
//!
//! # Architecture
//!
//! QEMU sorts the functions of its block layer into *global state* and *I/O* by comments and assertions. Here each operation
//! is of one of four classes, and using it from the wrong place does not compile:
//!
//! | class | who runs it | how the compiler holds it |
//! | --- | --- | --- |
//! | helper | anybody | a function of [`millpond_messages`], which has no handles |
//! | global state | the graph actor, one change at a time | a message by a [`GraphHandle`](graph::GraphHandle) |
//! | I/O | the node's iothread, asked from any thread | a message by a [`Client`](node::Client) |
//! | home | code that runs on the node's iothread already | types that are not `Send`, such as [`HomeClient`](node::HomeClient) |
//!
//! The actors:
//!
//! | actor | where | owns |
//! | --- | --- | --- |
//! | [`Graph`](graph::Graph) | control thread | nodes, edges, permissions, names: every decision about them is [`millpond_graph`]'s |
//! | exports, jobs, monitors | control thread | their own state, and the root edges that they use nodes by |
//! | [`IoThread`](iothread::IoThread) | a thread of its own | a ring, a mailbox, tasks, and the nodes that live there |
//! | node | one iothread | its driver, its edges, its gate |
//!
//! A request, from an export or a [`Client`](node::Client) to a file:
//!
//! ```text
//!   client ---> root edge ---> gate ---> node ---edge---> node ---> ring ---> kernel
//!               checks what    counts    asks its driver where
//!               may be asked   it in     the range is: here, below,
//!                                        nowhere; goes on there
//! ```
//!
//! On the node's own iothread all of that is one call; from another thread the request is put into the iothread's mailbox.
//!
//! A drain, which every change of the graph begins with:
//!
//! ```text
//!   graph actor              nodes, parents first
//!     Quiesce -------------> close the gate: new requests wait there, in order
//!                            those in flight end; the count falls to zero
//!             <------------- Quiesced
//!     (changes edges, drivers, permissions, iothreads)
//!     Resume --------------> open the gate: what waited goes on
//! ```
//!
//! The graph actor never waits for it: it answers questions meanwhile, and says what a drain waits for.
//!
//! # Glossary
//!
//! | word | what it is | in QEMU |
//! | --- | --- | --- |
//! | abilities | what a driver says that it can do by itself | fields of `BlockDriver` |
//! | block layer | all of this, inside a program | block layer |
//! | client | a handle on a root edge, by which requests are sent | `BlockBackend` |
//! | cluster | the unit in which an image format allocates | cluster |
//! | control thread | the thread of the graph actor, monitors and exports | main loop |
//! | delay policy | rules that hold messages back, to test what relies on luck | none |
//! | discard | a range's content is of no use any more | discard |
//! | drain | bringing nodes to rest: a section during which no request is in flight | drained section |
//! | driver | what makes a node a file, a qcow2 image, a filter | `BlockDriver` |
//! | edge | what joins a parent to a node, with a role and permissions | `BdrvChild` |
//! | export | what serves a node to other programs | `BlockExport` |
//! | extent | a range that is in one state, and where it is | block status |
//! | filter | a node that passes on what its child has | filter |
//! | flight record | the last messages of every thread | trace |
//! | format | a driver that keeps an image's structure | format |
//! | frozen edge | an edge that a job relies on | frozen `BdrvChild` |
//! | gate | where requests wait while a node is drained | `quiesce_counter` |
//! | graph | all nodes and edges | graph |
//! | graph actor | the owner of the graph | main loop with the graph lock |
//! | home | the iothread where a node lives | `AioContext` |
//! | in flight | counted in and not answered yet | `in_flight` |
//! | iothread | a thread with a ring and nodes | `IOThread` |
//! | job | work on nodes that takes long, with states and verbs | `Job` |
//! | L1, L2 table | the two levels that say where clusters are | L1, L2 table |
//! | mailbox | where an iothread takes messages from | bottom halves |
//! | node | a driver with its children, by name | `BlockDriverState` |
//! | op blocker | what forbids an operation on a node | op blocker |
//! | overlay | an image on top of a backing image | overlay |
//! | permission | what a parent does with a node, and what it lets others do | permission |
//! | policy | the decisions of the graph actor | none |
//! | protocol | a driver that reaches storage | protocol |
//! | refcount | how often a cluster is referred to | refcount |
//! | ring | what an iothread waits in: io_uring, or epoll and threads | `AioContext` |
//! | role | what a child is to its parent: data, metadata, filtered, backing | `BdrvChildRole` |
//! | root edge | an edge whose parent is a user: an export, a job, an embedder | root `BdrvChild` |
//! | section | the time between the beginning of a drain and its end | drained section |
//! | still | said of a section: no request is in flight in it | quiesced |
//! | token | the name of one drain, which its nodes' answers carry | none |
//! | transaction | changes of which all happen or none | transaction |
//! | user | who is behind a root edge | `BlockBackend`'s owner |
//!
//! # Where things are
//!
//! [`disk`] is the shortest way to an image, [`embed`] starts a block layer, [`graph`] is all that can be asked of it,
//! [`node`] has the clients, [`image`] makes images and [`measure`] tells how large they will be, and [`millpond_drivers`] what
//! a driver of one's own must do. The feature `daemon`, which is on unless it is turned off, adds the program: command line,
//! monitors, exports and logs.
#![forbid(unsafe_code)]

#[cfg(feature = "daemon")]
pub mod cli;
#[cfg(feature = "daemon")]
pub mod daemon;
pub mod disk;
pub mod embed;
#[cfg(feature = "daemon")]
pub mod export;
pub mod flight;
pub mod graph;
pub mod image;
#[cfg(feature = "daemon")]
pub mod job;
#[cfg(feature = "daemon")]
pub mod log;
pub mod measure;
#[cfg(feature = "daemon")]
pub mod monitor;
#[cfg(feature = "daemon")]
mod object;
#[cfg(feature = "daemon")]
pub mod qmp;
#[cfg(feature = "daemon")]
mod socket;
#[cfg(feature = "daemon")]
mod tls;

pub use millpond_engine::{delay, iothread, node};
