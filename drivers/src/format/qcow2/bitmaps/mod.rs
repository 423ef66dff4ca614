//! Dirty bitmaps that the image stores: the directory that lists them, and what is known of it while the image is open.
//!
//! ```text
//!   header extension --> directory --> a bitmap's table --> clusters of bits
//!                        (names, flags)  (a cluster, all zeroes or all ones)
//! ```
//! What a bitmap says is kept by the node while the image is open, and stored when the image is closed or becomes read-only.
//! From the first change of the image until then the directory calls it in use, so that nobody relies on what the file says
//! of it: but for who finds a `log` of what has changed since, which `logging` keeps. `load` reads bitmaps, `store` writes
//! and removes them.

pub(super) mod listed;
mod load;
mod log;
mod logging;
mod store;
