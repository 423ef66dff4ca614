//! Snapshots inside the image: their table, and what makes, deletes, applies and shows one.
//!
//! A snapshot is a copy of the L1 table. What it leads to is referred to once more, so that writes go elsewhere. The file
//! changes its mind in one write of the header each time: which snapshots there are, or which L1 table and length the disk
//! has. Before and behind that, counts are too high at worst. The flags that say what may be overwritten in place cannot be
//! brought in line with the counts in one write: meanwhile the image is marked dirty, and whoever opens it next mends them.
//! They are wrong in a way that no data depends on, also where the mark is not known (version 2).

mod change;
mod guard;
mod references;
pub(crate) mod table;
mod vm_state;
