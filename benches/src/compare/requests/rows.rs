//! Which requests are measured, and what is wanted of each.

use crate::compare::Group;
use crate::load::Kind;

/// What is served.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Disk {
    /// A node that keeps nothing.
    Null,
    /// A raw file in memory.
    Raw,
    /// A qcow2 image in memory whose clusters are all allocated.
    Qcow2,
    /// An empty qcow2 image in memory, new for each run.
    Empty,
    /// A qcow2 image in memory whose clusters are all allocated, and encrypted by LUKS.
    Encrypted,
    /// A raw file on a disk, past the page cache.
    DirectRaw,
    /// A qcow2 image on a disk whose clusters are all allocated, past the page cache.
    DirectQcow2,
}

impl Disk {
    /// Whether a disk's speed is in the figures.
    pub fn is_direct(self) -> bool {
        matches!(self, Disk::DirectRaw | Disk::DirectQcow2)
    }

    /// The kind of row.
    pub fn group(self) -> Group {
        if self.is_direct() {
            Group::Disk
        } else {
            Group::Requests
        }
    }
}

/// Something that is wanted of a row.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Goal {
    /// So many times the peer's rate.
    Ratio(f64),
    /// This part of the bare responder's rate.
    Ceiling(f64),
    /// This part of fio's rate without a server between.
    Limit(f64),
    /// This part of Millpond's own rate where the same data is not encrypted.
    Plain(f64),
    /// A p99 of no more than so many times the peer's p50.
    Tail(f64),
    /// No more than this part of the peer's CPU time a request.
    Cpu(f64),
    /// Fewer system calls a request than this.
    Calls(f64),
    /// Less than this part of the peer's instructions a request.
    Instructions(f64),
}

/// One row.
#[derive(Debug, Clone, Copy)]
pub struct Row {
    /// What the table calls it.
    pub name: &'static str,
    /// What is served.
    pub disk: Disk,
    /// Reads or writes.
    pub kind: Kind,
    /// Bytes a request.
    pub block: u64,
    /// Requests in flight.
    pub depth: u32,
    /// What is wanted; rows without are there to compare others with.
    pub goals: &'static [Goal],
}

const KIB: u64 = 1 << 10;

const fn row(
    name: &'static str,
    disk: Disk,
    (kind, block): (Kind, u64),
    depth: u32,
    goals: &'static [Goal],
) -> Row {
    Row {
        name,
        disk,
        kind,
        block,
        depth,
        goals,
    }
}

/// All rows about rates.
pub const ROWS: &[Row] = &[
    row(
        "null, 4 KiB read, 1 in flight",
        Disk::Null,
        (Kind::Read, 4 * KIB),
        1,
        &[Goal::Ratio(2.0), Goal::Tail(3.0)],
    ),
    row(
        "null, 4 KiB read, 32 in flight",
        Disk::Null,
        (Kind::Read, 4 * KIB),
        32,
        &[Goal::Ratio(5.0), Goal::Ceiling(0.8)],
    ),
    row(
        "null, 4 KiB read, 128 in flight",
        Disk::Null,
        (Kind::Read, 4 * KIB),
        128,
        &[Goal::Ratio(6.0), Goal::Ceiling(0.85)],
    ),
    row(
        "null, 4 KiB write, 32 in flight",
        Disk::Null,
        (Kind::Write, 4 * KIB),
        32,
        &[Goal::Ratio(5.0)],
    ),
    row(
        "null, 256 KiB read, 8 in flight",
        Disk::Null,
        (Kind::Read, 256 * KIB),
        8,
        &[Goal::Ratio(3.0)],
    ),
    row(
        "null, 256 KiB write, 8 in flight",
        Disk::Null,
        (Kind::Write, 256 * KIB),
        8,
        &[Goal::Ratio(3.0)],
    ),
    row(
        "raw, 4 KiB read, 32 in flight",
        Disk::Raw,
        (Kind::Read, 4 * KIB),
        32,
        &[],
    ),
    row(
        "raw, 4 KiB write, 32 in flight",
        Disk::Raw,
        (Kind::Write, 4 * KIB),
        32,
        &[],
    ),
    row(
        "qcow2, 4 KiB read, 32 in flight",
        Disk::Qcow2,
        (Kind::Read, 4 * KIB),
        32,
        &[Goal::Ratio(4.0), Goal::Cpu(1.0 / 3.0)],
    ),
    row(
        "qcow2, 4 KiB overwrite, 32 in flight",
        Disk::Qcow2,
        (Kind::Write, 4 * KIB),
        32,
        &[Goal::Ratio(4.0), Goal::Cpu(1.0 / 3.0)],
    ),
    row(
        "qcow2, allocating 4 KiB write, 32 in flight",
        Disk::Empty,
        (Kind::Write, 4 * KIB),
        32,
        &[Goal::Ratio(3.0)],
    ),
    row(
        "qcow2, allocating 64 KiB write, 32 in flight",
        Disk::Empty,
        (Kind::Write, 64 * KIB),
        32,
        &[Goal::Ratio(3.0)],
    ),
    row(
        "qcow2 with LUKS, 64 KiB read, 32 in flight",
        Disk::Encrypted,
        (Kind::Read, 64 * KIB),
        32,
        &[Goal::Plain(0.8)],
    ),
    row(
        "qcow2 with LUKS, 64 KiB overwrite, 32 in flight",
        Disk::Encrypted,
        (Kind::Write, 64 * KIB),
        32,
        &[Goal::Plain(0.8)],
    ),
    row(
        "raw on disk, cache.direct=on, 4 KiB read, 32 in flight",
        Disk::DirectRaw,
        (Kind::Read, 4 * KIB),
        32,
        &[Goal::Limit(0.9)],
    ),
    row(
        "raw on disk, cache.direct=on, 4 KiB write, 32 in flight",
        Disk::DirectRaw,
        (Kind::Write, 4 * KIB),
        32,
        &[Goal::Limit(0.9)],
    ),
    row(
        "qcow2 on disk, cache.direct=on, 4 KiB read, 32 in flight",
        Disk::DirectQcow2,
        (Kind::Read, 4 * KIB),
        32,
        &[Goal::Limit(0.9)],
    ),
    row(
        "qcow2 on disk, cache.direct=on, 4 KiB overwrite, 32 in flight",
        Disk::DirectQcow2,
        (Kind::Write, 4 * KIB),
        32,
        &[Goal::Limit(0.9)],
    ),
];

/// The row whose figures the row about the cost of a request is made of, and what is wanted there.
pub const COST: (&str, &[Goal]) = (
    "null, 4 KiB read, 32 in flight",
    &[Goal::Instructions(0.5), Goal::Calls(0.2)],
);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_row_has_a_name_of_its_own() {
        let mut names: Vec<_> = ROWS.iter().map(|row| row.name).collect();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), ROWS.len());
        assert!(ROWS.iter().any(|row| row.name == COST.0));
    }
}
