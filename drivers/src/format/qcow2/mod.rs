//! qcow2: an image format with allocation on write, backing files, zero clusters, compression and refcounts.
//!
//! # How it works
//! An image's tables live in `state::State`, which changes only in synchronous steps. A step that misses something
//! (a table that is not cached, a cluster that another write was given) changes nothing and says what it needs; the
//! driver gets that and tries again. So no lock is held across a wait, and the common case answers at once.
//!
//! ```text
//!   locate ----> state.locate ----------> Extent
//!   place  ----> state.place  ----------> Placement, ticket
//!   settle ----> state.link / give_back
//!                  | Need(Slice | Refblock | Table | Writeback | Allocation)
//!                  v
//!                satisfy: load, make, write back or wait; then the step again
//! ```
//!
//! # Where things are
//! - `layout` has what the format defines, and the types that keep guest and host offsets apart; `header` has the header.
//! - `state` is what an open image keeps in memory; `image` runs its steps, `wait` is how one request waits for another.
//! - `table` caches, loads, makes and writes back tables; `refcount` counts, allocates, checks and repairs.
//! - `snapshot` has the snapshots inside the image, and a machine's state beside the disk.
//! - `encryption` opens, makes and changes images whose guest data is encrypted, and takes that data to and from the file.
//! - `data` answers requests for the guest's data, `data::subcluster` in images that have subclusters; the rest is one file
//!   for each thing that is asked of an image.
//!
//! # What reaches the file, and when
//! Changed tables stay in memory until a flush, the cache's bounds, or the close. A write-back takes a snapshot of all
//! that changed at one moment and writes it in this order, so that a crash at any point leaves at most leaked clusters:
//!
//! 1. refcount blocks, then the refcount table's entries for new ones;
//! 2. a flush, which also makes data durable that was copied to new clusters; an external data file is flushed too;
//! 3. L2 slices, a flush, and L1 entries;
//! 4. where references were dropped: a flush, and only then the refcounts go down and the clusters may be used again.
//!
//! The format is described in QEMU's `docs/interop/qcow2.txt`.

mod activate;
mod amend;
mod bitmaps;
mod create;
mod data;
mod driver;
mod encryption;
mod exchange;
mod file;
mod header;
mod image;
mod info;
mod kind;
mod layout;
mod measure;
mod open;
mod options;
mod refcount;
mod saved;
mod snapshot;
mod state;
mod table;
mod truncate;
mod wait;

pub use kind::Qcow2Kind;
