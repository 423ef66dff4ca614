//! An open quorum: every request sent to all children, and their answers counted.

use std::cell::RefCell;
use std::rc::Rc;

use futures_util::future::join_all;
use millpond_messages::error::errno::{EIO, ENOMEM};
use millpond_messages::io::Preallocation;
use millpond_messages::qapi::QuorumOpType;
use millpond_messages::{
    ChildSlot, Error, ErrorKind, IoError, IoResult, Range, RequestFlags, Result, StatusFlags,
};

use super::kind::{Reads, Settings};
use super::vote::{self, Version};
use crate::api::bytes_in;
use crate::api::reopen::not_supported;
use crate::api::{
    Abilities, Ability, AllocationTicket, Answer, At, Child, Driver, Extent, LengthSource, Lifecycle, Moved,
    Notice, Notices, Placement, Purpose, ReopenRequest, SavesState, Transfer,
};
use crate::replica::copies::{Ranges, Use, copy, copy_of, first_difference};
use millpond_ring::buffer::{Buffer, Buffers};

const FAILED: IoError = IoError::Os(EIO);

/// A node of the driver that is open.
pub(super) struct Quorum {
    node_name: String,
    settings: Settings,
    /// Never empty. A request keeps the list that it began with.
    children: RefCell<Rc<[Child]>>,
    ranges: Ranges,
    notices: Notices,
}

impl Quorum {
    pub fn new(node_name: String, settings: Settings, notices: Notices, children: &[Child]) -> Self {
        Self {
            node_name,
            settings,
            children: RefCell::new(children.into()),
            ranges: Ranges::default(),
            notices,
        }
    }

    fn children(&self) -> Rc<[Child]> {
        Rc::clone(&self.children.borrow())
    }

    fn report_bad(&self, operation: QuorumOpType, error: Option<IoError>, child: usize, range: Range) {
        let (offset, len) = (range.offset(), range.len());
        self.notices.report(Notice::BadChild {
            operation,
            error,
            child,
            offset,
            len,
        });
    }

    fn report_errors(&self, operation: QuorumOpType, results: &[IoResult<()>], range: Range) {
        for (child, result) in results.iter().enumerate() {
            if let Err(error) = result {
                self.report_bad(operation, Some(*error), child, range);
            }
        }
    }

    /// Whether enough children have succeeded; if not, fails as most of those that failed.
    fn count(&self, results: &[IoResult<()>]) -> IoResult<()> {
        let successes = results.iter().filter(|result| result.is_ok()).count();
        if successes >= self.settings.threshold {
            return Ok(());
        }
        let errors = results.iter().filter_map(|result| result.err());
        Err(vote::common_error(errors).unwrap_or(FAILED))
    }

    fn report_no_quorum(&self, range: Range) {
        let (offset, len) = (range.offset(), range.len());
        self.notices.report(Notice::NoQuorum { offset, len });
    }

    /// As [`Quorum::count`], for a request with a range: failures are told.
    fn conclude(&self, operation: QuorumOpType, results: &[IoResult<()>], range: Range) -> IoResult<()> {
        self.report_errors(operation, results, range);
        self.count(results).inspect_err(|_| self.report_no_quorum(range))
    }

    async fn read_first(&self, offset: u64, mut buffers: Buffers) -> Transfer {
        let len = bytes_in(&buffers);
        let range = range_of(offset, &buffers);
        let mut result = Err(FAILED);
        for (index, child) in self.children().iter().enumerate() {
            (result, buffers) = child.read(offset, buffers).await;
            match result {
                Ok(()) => break,
                Err(error) => self.report_bad(QuorumOpType::Read, Some(error), index, range),
            }
            if bytes_in(&buffers) != len {
                // They were lost with the iothread that had them.
                break;
            }
        }
        (result, buffers)
    }

    async fn read_by_vote(&self, offset: u64, buffers: Buffers) -> Transfer {
        let len = buffers.len();
        let range = range_of(offset, &buffers);
        let _shared = self.ranges.hold(range.offset(), range.len(), Use::Read).await;
        let children = self.children();
        // The first child reads into the request's own buffers: where all agree, nothing is copied.
        let spare = (1..children.len()).map(|_| Buffer::try_alloc(len).map(Buffers::from));
        let Some(spare) = spare.collect::<Option<Vec<Buffers>>>() else {
            return (Err(IoError::Os(ENOMEM)), buffers);
        };
        let all = std::iter::once(buffers).chain(spare);
        let reads = children
            .iter()
            .zip(all)
            .map(|(child, into)| child.read(offset, into));
        let mut reads: Vec<Transfer> = join_all(reads).await;
        let results: Vec<IoResult<()>> = reads.iter().map(|(result, _)| *result).collect();
        let result = match self.conclude(QuorumOpType::Read, &results, range) {
            Ok(()) => self.elect(offset, &mut reads).await,
            Err(error) => Err(error),
        };
        give_back(result, reads, len)
    }

    /// Finds what most children have, and puts it into the first one's buffers.
    async fn elect(&self, offset: u64, reads: &mut [Transfer]) -> IoResult<()> {
        let versions = vote::versions(reads);
        if let ([first, second, ..], Reads::Verify) = (&versions[..], self.settings.reads) {
            return self.mismatch(offset, reads, first, second);
        }
        let Some(winner) = vote::winner(&versions) else {
            return Err(FAILED);
        };
        let Some(best) = winner.first().copied() else {
            return Err(FAILED);
        };
        let range = reads
            .get(best)
            .map_or(Range::default(), |(_, data)| range_of(offset, data));
        if versions.len() > 1 {
            if winner.len() < self.settings.threshold {
                self.report_no_quorum(range);
                return Err(FAILED);
            }
            let losers: Vec<usize> = versions
                .iter()
                .filter(|other| *other != winner)
                .flatten()
                .copied()
                .collect();
            for child in &losers {
                self.report_bad(QuorumOpType::Read, None, *child, range);
            }
            if self.settings.reads == (Reads::Vote { rewrite: true }) {
                self.rewrite(offset, reads, best, &losers).await;
            }
        }
        if let [own, rest @ ..] = reads
            && let Some((_, data)) = best.checked_sub(1).and_then(|best| rest.get(best))
        {
            copy(data, &mut own.1);
        }
        Ok(())
    }

    /// Two children differ that must not.
    fn mismatch(&self, offset: u64, reads: &[Transfer], first: &Version, second: &Version) -> IoResult<()> {
        let data = |version: &Version| reads.get(*version.first()?).map(|(_, data)| data);
        if let Some((first, second)) = data(first).zip(data(second))
            && let Some(at) = first_difference(first, second)
        {
            let len = bytes_in(first);
            let at = offset.saturating_add(u64::try_from(at).unwrap_or(u64::MAX));
            let message = format!("quorum: offset={offset} bytes={len} contents mismatch at offset {at}");
            self.notices.report(Notice::Mismatch { message });
        }
        Err(FAILED)
    }

    /// Stores the version that won in the children that have another. It is an attempt: nobody is told if it fails.
    async fn rewrite(&self, offset: u64, reads: &[Transfer], best: usize, losers: &[usize]) {
        let Some((_, data)) = reads.get(best) else { return };
        let children = self.children();
        let writes = losers.iter().filter_map(|loser| {
            let copy = copy_of(data)?;
            Some(children.get(*loser)?.write(offset, copy, RequestFlags::empty()))
        });
        for (result, _) in join_all(writes).await {
            if let Err(error) = result {
                tracing::debug!(%error, node = %self.node_name, "a child that disagreed could not be rewritten");
            }
        }
    }

    async fn write_all(&self, offset: u64, buffers: Buffers, flags: RequestFlags) -> Transfer {
        let (size, range) = (buffers.len(), range_of(offset, &buffers));
        let _alone = self.ranges.hold(range.offset(), range.len(), Use::Write).await;
        let children = self.children();
        let copies: Option<Vec<Buffers>> = (1..children.len()).map(|_| copy_of(&buffers)).collect();
        let Some(copies) = copies else {
            return (Err(IoError::Os(ENOMEM)), buffers);
        };
        let all = std::iter::once(buffers).chain(copies);
        let writes = children
            .iter()
            .zip(all)
            .map(|(child, data)| child.write(offset, data, flags));
        let writes: Vec<Transfer> = join_all(writes).await;
        let results: Vec<IoResult<()>> = writes.iter().map(|(result, _)| *result).collect();
        let result = self.conclude(QuorumOpType::Write, &results, range);
        give_back(result, writes, size)
    }

    async fn zero_all(&self, range: Range, flags: RequestFlags) -> IoResult<()> {
        let _alone = self.ranges.hold(range.offset(), range.len(), Use::Write).await;
        let children = self.children();
        let zeroes = children.iter().map(|child| child.write_zeroes(range, flags));
        let results = join_all(zeroes).await;
        self.conclude(QuorumOpType::Write, &results, range)
    }

    async fn flush_all(&self) -> IoResult<()> {
        let children = self.children();
        let results = join_all(children.iter().map(Child::flush)).await;
        self.report_errors(QuorumOpType::Flush, &results, Range::default());
        self.count(&results)
    }

    async fn common_length(&self) -> IoResult<u64> {
        let children = self.children();
        let mut common = None;
        for child in children.iter() {
            let length = child.length().await?;
            if *common.get_or_insert(length) != length {
                return Err(FAILED);
            }
        }
        common.ok_or(FAILED)
    }

    /// Zeroes are only what all children have as such; where one has data, or cannot tell, there is data.
    async fn status(&self, want_zero: bool, range: Range) -> IoResult<Extent> {
        let (mut zero, mut data) = (range.len(), 0);
        for (index, child) in self.children().iter().enumerate() {
            match child.block_status(range, want_zero, true).await {
                Ok(status) if status.len == 0 => {}
                Ok(status) if status.flags.contains(StatusFlags::ZERO) => zero = zero.min(status.len),
                Ok(status) => data = data.max(status.len),
                Err(error) => {
                    self.report_bad(QuorumOpType::Read, Some(error), index, range);
                    data = range.len();
                    break;
                }
            }
        }
        Ok(if data > 0 {
            Extent::new(data, At::Own)
        } else {
            Extent::new(zero, At::Zero { reserved: None })
        })
    }
}

/// The range of a read or write. The node has checked that it ends within the largest offset.
fn range_of(offset: u64, buffers: &Buffers) -> Range {
    Range::between(offset, offset.saturating_add(bytes_in(buffers)))
}

/// The end of a request that the first child had the buffers of. They may be lost with an iothread.
fn give_back(result: IoResult<()>, transfers: Vec<Transfer>, len: usize) -> Transfer {
    let own = transfers.into_iter().next().map(|(_, buffers)| buffers);
    match own {
        Some(own) if own.len() == len => (result, own),
        lost => (result.and(Err(IoError::Cancelled)), lost.unwrap_or_default()),
    }
}

impl Driver for Quorum {
    fn abilities(&self) -> Abilities {
        Abilities {
            write_zeroes: Ability::Native,
            zero_unmap: true,
            discard: Ability::None,
            fua: Ability::Emulated,
            // Each child sees to it.
            grows: true,
            length: LengthSource::Children,
            ..Abilities::default()
        }
    }

    fn locate(&self, purpose: Purpose, range: Range) -> Answer<'_, IoResult<Extent>> {
        match purpose {
            Purpose::Read => Answer::ready(Ok(Extent::new(range.len(), At::Own))),
            Purpose::Status { want_zero } => Answer::wait(self.status(want_zero, range)),
        }
    }

    fn read(
        self: Rc<Self>,
        offset: u64,
        buffers: Buffers,
        _flags: RequestFlags,
    ) -> Answer<'static, Transfer> {
        match self.settings.reads {
            Reads::Fifo => Answer::wait(async move { self.read_first(offset, buffers).await }),
            Reads::Vote { .. } | Reads::Verify => {
                Answer::wait(async move { self.read_by_vote(offset, buffers).await })
            }
        }
    }

    fn place(&self, range: Range, _flags: RequestFlags) -> Answer<'_, IoResult<Placement>> {
        Answer::ready(Ok(Placement::own(range.len())))
    }

    fn settle(&self, _ticket: AllocationTicket, written: IoResult<()>) -> Answer<'_, IoResult<()>> {
        Answer::ready(written)
    }

    fn write(
        self: Rc<Self>,
        offset: u64,
        buffers: Buffers,
        flags: RequestFlags,
    ) -> Answer<'static, Transfer> {
        Answer::wait(async move { self.write_all(offset, buffers, flags).await })
    }

    fn write_zeroes(&self, range: Range, flags: RequestFlags) -> Answer<'_, IoResult<()>> {
        // A child that cannot would be left behind while the others have zeroes already.
        if flags.contains(RequestFlags::NO_FALLBACK) {
            return Answer::ready(Err(IoError::NotSupported));
        }
        Answer::wait(self.zero_all(range, flags))
    }

    fn discard(&self, _range: Range) -> Answer<'_, IoResult<()>> {
        // What children read as after that may differ.
        Answer::ready(Err(IoError::NotSupported))
    }

    fn flush(&self) -> Answer<'_, IoResult<()>> {
        Answer::wait(self.flush_all())
    }

    fn truncate(
        &self,
        _size: u64,
        _exact: bool,
        _preallocation: Preallocation,
        _flags: RequestFlags,
    ) -> Answer<'_, Result<()>> {
        Answer::ready(Err(Error::new(
            ErrorKind::Unsupported,
            "Image format driver does not support resize",
        )))
    }

    fn length(&self) -> Answer<'_, IoResult<u64>> {
        Answer::wait(self.common_length())
    }

    fn allocated_size(&self) -> Answer<'_, IoResult<u64>> {
        Answer::ready(Err(IoError::NotSupported))
    }
}

impl Lifecycle for Quorum {
    fn reopen_prepare(&self, _request: ReopenRequest) -> Answer<'_, Result<()>> {
        Answer::ready(Err(not_supported("quorum", &self.node_name)))
    }

    fn children_changed(&self, children: &[Child]) {
        self.children.replace(children.into());
    }

    fn exchange_prepare(&self, _slots: &[ChildSlot]) -> Answer<'_, Result<()>> {
        // Only the length is kept, and that by the node, which asks for it again.
        Answer::ready(Ok(()))
    }

    fn saved_state(&self) -> Option<&dyn SavesState> {
        None
    }

    fn depart(&self) -> Moved {
        // Nothing is in flight, so no range is in use.
        let state = (self.node_name.clone(), self.settings, self.notices.clone());
        Moved::new(state, |(node_name, settings, notices), children, _| {
            Rc::new(Quorum::new(node_name, settings, notices, &children))
        })
    }

    fn close(&self) -> Answer<'_, Result<()>> {
        Answer::ready(Ok(()))
    }
}
