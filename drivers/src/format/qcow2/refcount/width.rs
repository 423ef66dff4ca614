//! Refcounts of another width: all are written anew behind what the image uses, and the header then takes them at once.
//!
//! Until then the old table and its blocks count, and what is written lies where they count nothing: an image that was being
//! changed when the program ended is as it was. Afterwards the old ones are free.

use std::collections::{BTreeSet, HashSet};

use millpond_messages::{Error, ErrorKind, IoError, IoResult, Result};

use super::counts::{get, set};
use crate::format::qcow2::header::MAX_REFTABLE_BYTES;
use crate::format::qcow2::image::Qcow2;
use crate::format::qcow2::layout::bytes::table_to_be;
use crate::format::qcow2::layout::entry::refblock;
use crate::format::qcow2::layout::geometry::Geometry;
use crate::format::qcow2::layout::space::{HostCluster, HostOffset};
use crate::format::qcow2::state::State;
use crate::format::qcow2::table::cache::Cache;

/// The refcounts as they are stored, read a block at a time.
struct OldCounts<'a> {
    image: &'a Qcow2,
    geometry: Geometry,
    table: Vec<u64>,
    /// The clusters of the table and its blocks, which will be free.
    own: HashSet<HostCluster>,
}

/// Where the new table and its blocks go.
struct Plan {
    /// The table's first cluster; the blocks follow the table.
    first: HostCluster,
    table_clusters: u64,
    /// The numbers of the blocks that count anything.
    blocks: BTreeSet<u64>,
}

impl Plan {
    /// How many clusters the table and its blocks take.
    fn count(&self) -> u64 {
        self.table_clusters + self.blocks.len() as u64
    }

    fn has(&self, cluster: HostCluster) -> bool {
        cluster >= self.first && cluster < self.first + self.count()
    }

    /// The clusters of the blocks, with the number of each.
    fn block_places(&self) -> impl Iterator<Item = (u64, HostCluster)> + '_ {
        let first = self.first + self.table_clusters;
        let places = first.row(self.blocks.len() as u64);
        self.blocks.iter().copied().zip(places)
    }
}

impl OldCounts<'_> {
    /// The bytes of a block; none where it is missing and counts nothing.
    async fn block(&self, number: u64) -> IoResult<Option<Vec<u8>>> {
        let place = self.table.get(number as usize).copied().and_then(refblock);
        let Some(place) = place else { return Ok(None) };
        if !place.is_aligned(&self.geometry) {
            return Err(IoError::Corrupt);
        }
        let bytes = self
            .image
            .file
            .read_vec(place, self.geometry.cluster_size() as usize)
            .await?;
        Ok(Some(bytes.to_vec()))
    }

    /// The refcounts that `block` of another geometry takes over, which are not 0: each with its place in that block.
    async fn of_block(&self, new: &Geometry, block: u64) -> IoResult<Vec<(usize, u64)>> {
        let (start, end) = (new.refblock_start(block), new.refblock_start(block + 1));
        let (first, _) = self.geometry.refblock_of(start);
        let (last, _) = self.geometry.refblock_of(end - 1);
        let mut found = Vec::new();
        for number in first..=last {
            let Some(bytes) = self.block(number).await? else {
                continue;
            };
            let clusters = self.geometry.refblock_start(number);
            let entries = clusters.row(self.geometry.refblock_entries()).enumerate();
            for (at, cluster) in entries.filter(|(_, cluster)| (start..end).contains(cluster)) {
                let count = get(&bytes, self.geometry.refcount_order, at);
                if count != 0 && !self.own.contains(&cluster) {
                    found.push(((cluster - start) as usize, count));
                }
            }
        }
        Ok(found)
    }

    /// How many blocks of another geometry count all that these do.
    fn blocks(&self, new: &Geometry) -> u64 {
        let end = self.geometry.refblock_start(self.table.len() as u64);
        end.get().div_ceil(new.refblock_entries())
    }
}

fn too_large() -> Error {
    Error::io(
        "Could not change the width of refcounts",
        IoError::Os(millpond_messages::error::errno::EFBIG),
    )
}

fn failed(error: IoError) -> Error {
    Error::io("Could not change the width of refcounts", error)
}

impl State {
    /// The clusters that the refcount table and its blocks take.
    fn refcount_clusters(&self) -> HashSet<HostCluster> {
        let table = self.header.reftable_offset.cluster(&self.geometry);
        let table = table.row(u64::from(self.header.reftable_clusters));
        let blocks = self.reftable.iter().filter_map(|entry| refblock(*entry));
        table
            .chain(blocks.map(|block| block.cluster(&self.geometry)))
            .collect()
    }

    /// Goes on with other refcounts, none of which is in memory.
    fn take_refcounts(&mut self, table: Vec<u64>) {
        self.geometry = self.header.geometry(self.settings.slice_size);
        self.reftable = table;
        self.refblocks = Cache::new(self.settings.refblocks);
        self.free_hint = HostCluster::default();
        self.compressed_end = HostOffset::default();
        self.mark_again();
    }

    /// Something may be in the file up to here, also where what writes it fails: clusters there do not read as zeroes any more.
    fn no_longer_untouched(&mut self, end: HostOffset) {
        self.file_end = self.file_end.max(end);
    }
}

impl Qcow2 {
    /// Gives refcounts another width, of `1 << order` bits. The node is still.
    pub(crate) async fn set_refcount_width(&self, order: u32) -> Result<()> {
        // The old counts are read from the file, where none of them lags behind then.
        self.flush_and_close().await?;
        let (old, header) = {
            let state = self.state.borrow();
            let old = OldCounts {
                image: self,
                geometry: state.geometry,
                table: state.reftable.clone(),
                own: state.refcount_clusters(),
            };
            (old, state.header.clone())
        };
        let mut new = old.geometry;
        new.refcount_order = order;
        let plan = self.plan_refcounts(&old, &new).await?;
        let end = (plan.first + plan.count()).offset(&new);
        self.state.borrow_mut().no_longer_untouched(end);
        let table = self.write_refcounts(&old, &new, &plan).await.map_err(failed)?;
        let mut changed = header;
        changed.refcount_order = order;
        changed.reftable_offset = plan.first.offset(&new);
        changed.reftable_clusters = u32::try_from(plan.table_clusters).map_err(|_| too_large())?;
        self.replace_header(changed, |header, old| *header = old).await?;
        self.state.borrow_mut().take_refcounts(table);
        Ok(())
    }

    /// Looks at all refcounts: whether they have room, and which blocks there will be.
    async fn plan_refcounts(&self, old: &OldCounts<'_>, new: &Geometry) -> Result<Plan> {
        let mut used = BTreeSet::new();
        let end = self.file.end().await.map_err(failed)?;
        let end = end.max(self.state.borrow().file_end).round_up(new);
        let mut first = end.cluster(new);
        for block in 0..old.blocks(new) {
            let counts = old.of_block(new, block).await.map_err(failed)?;
            let start = new.refblock_start(block);
            if let Some((at, count)) = counts.iter().find(|(_, count)| *count > new.refcount_max()) {
                let (bits, place) = (1 << new.refcount_order, (start + *at as u64).offset(new));
                let text = format!(
                    "Cannot decrease refcount entry width to {bits} bits: Cluster at offset {place:#x} has a refcount of \
                     {count}"
                );
                return Err(Error::new(ErrorKind::InvalidArgument, text));
            }
            if let Some((last, _)) = counts.last() {
                used.insert(block);
                first = first.max(start + (*last as u64 + 1));
            }
        }
        let mut plan = Plan {
            first,
            table_clusters: 0,
            blocks: used,
        };
        // The table and its blocks are counted too, which may take more of them.
        loop {
            let before = plan.count();
            let entries = plan.blocks.last().map_or(0, |last| last + 1);
            if entries > MAX_REFTABLE_BYTES / 8 {
                return Err(too_large());
            }
            plan.table_clusters = new.clusters(entries * 8);
            let (from, _) = new.refblock_of(plan.first);
            let (to, _) = new.refblock_of(plan.first + plan.count());
            plan.blocks.extend(from..=to);
            if plan.count() == before {
                return Ok(plan);
            }
        }
    }

    /// Writes the new blocks, and then the table; answers the table. All of it is durable.
    async fn write_refcounts(&self, old: &OldCounts<'_>, new: &Geometry, plan: &Plan) -> IoResult<Vec<u64>> {
        let entries = plan.blocks.last().map_or(0, |last| last + 1);
        let mut table = vec![0; entries as usize];
        for (block, place) in plan.block_places() {
            let mut bytes = vec![0; new.cluster_size() as usize];
            for (at, count) in old.of_block(new, block).await? {
                set(&mut bytes, new.refcount_order, at, count);
            }
            let own = new.refblock_start(block).row(new.refblock_entries()).enumerate();
            for (at, _) in own.filter(|(_, cluster)| plan.has(*cluster)) {
                set(&mut bytes, new.refcount_order, at, 1);
            }
            let offset = place.offset(new);
            self.file.write(offset, bytes.into()).await?;
            if let Some(entry) = table.get_mut(block as usize) {
                *entry = offset.get();
            }
        }
        let mut bytes = table_to_be(&table);
        bytes.resize(new.bytes(plan.table_clusters) as usize, 0);
        self.file.write(plan.first.offset(new), bytes.into()).await?;
        self.file.flush().await?;
        Ok(table)
    }
}
