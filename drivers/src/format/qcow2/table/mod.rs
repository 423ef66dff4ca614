//! Tables in memory: the cache, loads and new tables, the write-back, and the guard against writing over any of them.

pub(crate) mod cache;
mod load;
mod make;
pub(crate) mod overlap;
mod writeback;
