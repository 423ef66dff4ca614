//! Images copied, piece after piece, by block status: what converts and concatenates them.
//!
//! ```text
//!   Scan      asks the sources what they are made of, and cuts that into pieces
//!     |       several at once, in the order of the disk unless that does not matter
//!   Copy      reads them, leaves zeroes out, writes the rest
//! ```
//! Sources, target and this code are on threads of their own. What is under way is a population: the memory of a copy is that of
//! so many pieces.

mod pieces;
mod pool;
mod scan;
mod sparse;

pub use pieces::{Copy, CopyFault, Way};
pub use pool::BufferPool;
pub use scan::{Kind, Scan, Shape, Source};
pub use sparse::Sparse;
