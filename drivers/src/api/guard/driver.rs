//! A driver of a node, behind its guard.

use std::cell::Cell;
use std::rc::Rc;
use std::sync::Arc;

use futures_util::future::LocalBoxFuture;
use millpond_messages::graph::Options;
use millpond_messages::io::{CopyFault, MirrorRequest, Preallocation, Value};
use millpond_messages::qapi::ImageInfoSpecific;
use millpond_messages::saved::{DriverRecord, SavedError};
use millpond_messages::{
    BlockStatus, CheckResult, ChildSlot, ChunkSet, DebugEvent, DebugOrder, DriverInfo, InternalSnapshot,
    IoResult, MomentLine, Permissions, Range, RequestFlags, Result, SnapshotChange,
};

use super::watched::{Health, IfBroken, Watched, drop_of};
use crate::api::{
    Abilities, AllocationTicket, Answer, BackingLink, Child, DataFileLink, DebugPoints, Device, Driver,
    Exchanged, Extent, Image, ImageBitmap, Lifecycle, Mirrored, Moved, Notices, OptionNames, Placement,
    Purpose, ReopenRequest, Repair, SavesState, SnapshotAccess, StoresBitmaps, Transfer,
};
use millpond_ring::Ring;
use millpond_ring::buffer::Buffers;

/// A driver that may panic. Every method of [`Driver`] and of its facets is here: a default would leave out the driver's own.
pub(super) struct Guarded {
    /// None where it panicked on its way to this iothread.
    driver: Option<Rc<dyn Driver>>,
    names: OptionNames,
    health: Rc<Health>,
    /// What it last said: a broken node is asked for it still.
    abilities: Cell<Abilities>,
}

impl Guarded {
    pub(super) fn new(driver: Rc<dyn Driver>, names: OptionNames, health: Rc<Health>) -> Rc<Self> {
        Rc::new(Self {
            driver: Some(driver),
            names,
            health,
            abilities: Cell::default(),
        })
    }

    fn is_broken(&self) -> bool {
        self.driver.is_none() || self.health.broken.get()
    }

    /// Runs code of the driver, unless it is broken.
    #[inline]
    pub(super) fn run<'a, T>(&'a self, code: impl FnOnce(&'a Rc<dyn Driver>) -> T) -> Option<T> {
        let driver = self.driver.as_ref()?;
        self.health.run(|| code(driver))
    }

    /// Has the driver answer, as long as it is whole.
    #[inline]
    pub(super) fn ask<'a, 'b, T: IfBroken + Unpin + 'b>(
        &'a self,
        code: impl FnOnce(&'a Rc<dyn Driver>) -> Answer<'b, T>,
    ) -> Answer<'b, T> {
        match self.run(code) {
            // Most answers are there at once: they pass here without being looked at.
            Some(ready @ Answer::Ready(_)) => ready,
            Some(answer) => watch(answer, &self.health),
            None => Answer::ready(T::if_broken(&self.health)),
        }
    }
}

impl Driver for Guarded {
    fn abilities(&self) -> Abilities {
        if let Some(abilities) = self.run(|driver| driver.abilities()) {
            self.abilities.set(abilities);
        }
        self.abilities.get()
    }

    fn locate(&self, purpose: Purpose, range: Range) -> Answer<'_, IoResult<Extent>> {
        self.ask(|driver| driver.locate(purpose, range))
    }

    fn read(self: Rc<Self>, offset: u64, buffers: Buffers, flags: RequestFlags) -> Answer<'static, Transfer> {
        self.ask(|driver| Rc::clone(driver).read(offset, buffers, flags))
    }

    fn place(&self, range: Range, flags: RequestFlags) -> Answer<'_, IoResult<Placement>> {
        self.ask(|driver| driver.place(range, flags))
    }

    fn settle(&self, ticket: AllocationTicket, written: IoResult<()>) -> Answer<'_, IoResult<()>> {
        self.ask(|driver| driver.settle(ticket, written))
    }

    fn write(
        self: Rc<Self>,
        offset: u64,
        buffers: Buffers,
        flags: RequestFlags,
    ) -> Answer<'static, Transfer> {
        self.ask(|driver| Rc::clone(driver).write(offset, buffers, flags))
    }

    fn write_zeroes(&self, range: Range, flags: RequestFlags) -> Answer<'_, IoResult<()>> {
        self.ask(|driver| driver.write_zeroes(range, flags))
    }

    fn discard(&self, range: Range) -> Answer<'_, IoResult<()>> {
        self.ask(|driver| driver.discard(range))
    }

    fn flush(&self) -> Answer<'_, IoResult<()>> {
        self.ask(|driver| driver.flush())
    }

    fn truncate(
        &self,
        size: u64,
        exact: bool,
        preallocation: Preallocation,
        flags: RequestFlags,
    ) -> Answer<'_, Result<()>> {
        self.ask(|driver| driver.truncate(size, exact, preallocation, flags))
    }

    fn length(&self) -> Answer<'_, IoResult<u64>> {
        self.ask(|driver| driver.length())
    }

    fn allocated_size(&self) -> Answer<'_, IoResult<u64>> {
        self.ask(|driver| driver.allocated_size())
    }

    fn image(&self) -> &dyn Image {
        self
    }

    fn debug(&self) -> &dyn DebugPoints {
        self
    }

    fn device(&self) -> &dyn Device {
        self
    }

    fn snapshot_access(&self) -> &dyn SnapshotAccess {
        self
    }

    fn mirrored(&self) -> &dyn Mirrored {
        self
    }
}

impl Lifecycle for Guarded {
    fn cancel_in_flight(&self) {
        self.run(|driver| driver.cancel_in_flight());
    }

    fn quiesce(&self) -> Answer<'_, ()> {
        self.ask(|driver| driver.quiesce())
    }

    fn resume(&self) {
        self.run(|driver| driver.resume());
    }

    /// A broken driver stands in nobody's way: its users can leave.
    fn permissions_prepare(&self, taken: Permissions, shared: Permissions) -> Answer<'_, Result<()>> {
        if self.is_broken() {
            return Answer::ready(Ok(()));
        }
        self.ask(|driver| driver.permissions_prepare(taken, shared))
    }

    fn permissions_commit(&self) {
        self.run(|driver| driver.permissions_commit());
    }

    fn permissions_abort(&self) {
        self.run(|driver| driver.permissions_abort());
    }

    fn reopen_prepare(&self, request: ReopenRequest) -> Answer<'_, Result<()>> {
        match self.names.check(&request.options) {
            Ok(()) => self.ask(|driver| driver.reopen_prepare(request)),
            Err(error) => Answer::ready(Err(error)),
        }
    }

    fn reopen_commit(&self) {
        self.run(|driver| driver.reopen_commit());
    }

    fn reopen_abort(&self) {
        self.run(|driver| driver.reopen_abort());
    }

    fn invalidate(&self) -> Answer<'_, Result<()>> {
        self.ask(|driver| driver.invalidate())
    }

    fn children_changed(&self, children: &[Child]) {
        self.run(|driver| driver.children_changed(children));
    }

    /// A broken driver goes on with nothing, whatever data is below it.
    fn exchange_prepare(&self, slots: &[ChildSlot]) -> Answer<'_, Result<()>> {
        if self.is_broken() {
            return Answer::ready(Ok(()));
        }
        self.ask(|driver| driver.exchange_prepare(slots))
    }

    fn exchange(self: Rc<Self>, slots: &[ChildSlot]) -> Answer<'static, Result<Exchanged>> {
        if self.is_broken() {
            return Answer::ready(Ok(Exchanged::nothing()));
        }
        let answer = self.ask(|driver| Rc::clone(driver).exchange(slots));
        Answer::wait(async move {
            let exchanged = answer.await?;
            Ok(exchanged.put_back_by(move |put_back| {
                self.health.run(put_back);
            }))
        })
    }

    fn saved_state(&self) -> Option<&dyn SavesState> {
        let saves = self.run(|driver| driver.saved_state().is_some());
        saves.unwrap_or(false).then_some(self as &dyn SavesState)
    }

    /// A broken node moves without its driver, and is as broken where it goes.
    fn depart(&self) -> Moved {
        let health = &self.health;
        let state = GuardedState {
            moved: self.run(|driver| driver.depart()),
            node: health.node.clone(),
            driver: health.driver,
            names: self.names,
            notices: health.notices.clone(),
            reason: health.reason.borrow().clone(),
            abilities: self.abilities.get(),
        };
        Moved::new(state, arrive)
    }

    /// Of a broken driver there is nothing left to be written back.
    fn close(&self) -> Answer<'_, Result<()>> {
        if self.is_broken() {
            return Answer::ready(Ok(()));
        }
        self.ask(|driver| driver.close())
    }
}

impl Image for Guarded {
    fn info(&self) -> DriverInfo {
        self.run(|driver| driver.image().info()).unwrap_or_default()
    }

    fn specific_info(&self) -> Option<ImageInfoSpecific> {
        self.run(|driver| driver.image().specific_info()).flatten()
    }

    fn filename(&self) -> Option<String> {
        self.run(|driver| driver.image().filename()).flatten()
    }

    fn check(&self, repair: Repair) -> Answer<'_, Result<CheckResult>> {
        self.ask(|driver| driver.image().check(repair))
    }

    fn make_empty(&self) -> Answer<'_, Result<()>> {
        self.ask(|driver| driver.image().make_empty())
    }

    fn prepare_amend(&self, options: &Options, force: bool) -> Answer<'_, Result<()>> {
        self.ask(|driver| driver.image().prepare_amend(options, force))
    }

    fn amend(&self, options: &Options, force: bool) -> Answer<'_, Result<()>> {
        self.ask(|driver| driver.image().amend(options, force))
    }

    fn snapshots(&self) -> Vec<InternalSnapshot> {
        self.run(|driver| driver.image().snapshots()).unwrap_or_default()
    }

    fn change_snapshots(&self, change: &SnapshotChange) -> Answer<'_, Result<InternalSnapshot>> {
        self.ask(|driver| driver.image().change_snapshots(change))
    }

    fn save_vm_state(&self, offset: u64, state: Buffers) -> Answer<'_, IoResult<()>> {
        self.ask(|driver| driver.image().save_vm_state(offset, state))
    }

    fn load_vm_state(&self, offset: u64, len: usize) -> Answer<'_, IoResult<Buffers>> {
        self.ask(|driver| driver.image().load_vm_state(offset, len))
    }

    fn data_file(&self) -> Option<DataFileLink> {
        self.run(|driver| driver.image().data_file()).flatten()
    }

    fn change_backing_file(&self, link: Option<BackingLink>) -> Answer<'_, Result<()>> {
        self.ask(|driver| driver.image().change_backing_file(link))
    }

    fn delete_file(&self) -> Answer<'_, Result<()>> {
        self.ask(|driver| driver.image().delete_file())
    }

    fn bitmaps(&self) -> Option<&dyn StoresBitmaps> {
        let stores = self.run(|driver| driver.image().bitmaps().is_some());
        stores.unwrap_or(false).then_some(self as &dyn StoresBitmaps)
    }
}

impl StoresBitmaps for Guarded {
    fn take_read(&self) -> Vec<ImageBitmap> {
        let read = self.run(|driver| driver.image().bitmaps().map(|bitmaps| bitmaps.take_read()));
        read.flatten().unwrap_or_default()
    }

    fn check_new(&self, name: &str, granularity: u64, beside: &[String]) -> Result<()> {
        self.of_bitmaps(|bitmaps| bitmaps.check_new(name, granularity, beside))
    }

    fn mark_in_use(&self) -> Answer<'_, Result<()>> {
        self.ask_bitmaps(|bitmaps| bitmaps.mark_in_use())
    }

    fn store(&self, stored: Vec<ImageBitmap>) -> Answer<'_, Result<()>> {
        self.ask_bitmaps(|bitmaps| bitmaps.store(stored))
    }

    fn store_and_log(&self, stored: Vec<ImageBitmap>) -> Answer<'_, Result<()>> {
        self.ask_bitmaps(|bitmaps| bitmaps.store_and_log(stored))
    }

    fn remove(&self, name: &str) -> Answer<'_, Result<()>> {
        self.ask_bitmaps(|bitmaps| bitmaps.remove(name))
    }
}

impl DebugPoints for Guarded {
    fn debug_event(&self, event: DebugEvent) -> Option<LocalBoxFuture<'static, ()>> {
        let held = self.run(|driver| driver.debug().debug_event(event)).flatten()?;
        Some(Box::pin(Watched::new(held, &self.health)))
    }

    fn debug_order(&self, order: &DebugOrder) -> IoResult<bool> {
        let done = self.run(|driver| driver.debug().debug_order(order));
        done.unwrap_or_else(|| IfBroken::if_broken(&self.health))
    }
}

impl Mirrored for Guarded {
    fn mirror(&self, request: MirrorRequest) -> Answer<'_, IoResult<Value>> {
        self.ask(|driver| driver.mirrored().mirror(request))
    }
}

impl SnapshotAccess for Guarded {
    fn read_then(&self, offset: u64, buffers: Buffers) -> Answer<'_, Transfer> {
        self.ask(|driver| driver.snapshot_access().read_then(offset, buffers))
    }

    fn status_then(&self, range: Range) -> Answer<'_, IoResult<BlockStatus>> {
        self.ask(|driver| driver.snapshot_access().status_then(range))
    }

    fn discard_then(&self, range: Range) -> Answer<'_, IoResult<()>> {
        self.ask(|driver| driver.snapshot_access().discard_then(range))
    }

    fn copy_then(&self, range: Range) -> Answer<'_, IoResult<std::result::Result<(), CopyFault>>> {
        self.ask(|driver| driver.snapshot_access().copy_then(range))
    }

    fn limit(&self, set: &ChunkSet) -> IoResult<()> {
        let limited = self.run(|driver| driver.snapshot_access().limit(set));
        limited.unwrap_or_else(|| IfBroken::if_broken(&self.health))
    }

    fn left(&self) -> IoResult<ChunkSet> {
        let left = self.run(|driver| driver.snapshot_access().left());
        left.unwrap_or_else(|| IfBroken::if_broken(&self.health))
    }

    fn join(&self, line: Arc<MomentLine>) -> Answer<'_, IoResult<()>> {
        self.ask(|driver| driver.snapshot_access().join(line))
    }
}

impl SavesState for Guarded {
    fn save(&self) -> Result<DriverRecord, SavedError> {
        self.of_state(|state| state.save())
    }

    fn restore(&self, record: &DriverRecord) -> Result<(), SavedError> {
        self.of_state(|state| state.restore(record))
    }
}

impl Guarded {
    fn of_bitmaps(&self, code: impl FnOnce(&dyn StoresBitmaps) -> Result<()>) -> Result<()> {
        let done = self.run(|driver| driver.image().bitmaps().map(code)).flatten();
        done.unwrap_or_else(|| IfBroken::if_broken(&self.health))
    }

    fn ask_bitmaps<'a>(
        &'a self,
        code: impl FnOnce(&'a dyn StoresBitmaps) -> Answer<'a, Result<()>>,
    ) -> Answer<'a, Result<()>> {
        self.ask(|driver| match driver.image().bitmaps() {
            Some(bitmaps) => code(bitmaps),
            None => Answer::ready(IfBroken::if_broken(&self.health)),
        })
    }

    fn of_state<T>(
        &self,
        code: impl FnOnce(&dyn SavesState) -> Result<T, SavedError>,
    ) -> Result<T, SavedError> {
        let done = self.run(|driver| driver.saved_state().map(code)).flatten();
        done.unwrap_or_else(|| {
            Err(SavedError::Impossible(
                "the driver keeps no state, or is broken".into(),
            ))
        })
    }
}

impl Drop for Guarded {
    fn drop(&mut self) {
        drop_of(&self.health, self.driver.take());
    }
}

/// What is left of a guarded driver on its way.
struct GuardedState {
    /// None where the driver is broken.
    moved: Option<Moved>,
    node: String,
    driver: &'static str,
    names: OptionNames,
    notices: Notices,
    reason: String,
    abilities: Abilities,
}

fn arrive(state: GuardedState, children: Vec<Child>, ring: Ring) -> Rc<dyn Driver> {
    let health = Health::new(state.node, state.driver, state.notices, true);
    if state.moved.is_none() {
        health.broken.set(true);
        health.reason.replace(state.reason);
    }
    let moved = state.moved;
    let arrived = health.run(|| moved.map(|moved| moved.arrive(children, ring)));
    Rc::new(Guarded {
        driver: arrived.flatten(),
        names: state.names,
        health,
        abilities: Cell::new(state.abilities),
    })
}

/// The same answer, watched. Apart from the calls that are answered at once, which are to stay short.
#[inline(never)]
pub(super) fn watch<'a, T: IfBroken + Unpin + 'a>(
    answer: Answer<'a, T>,
    health: &Rc<Health>,
) -> Answer<'a, T> {
    match answer {
        ready @ Answer::Ready(_) => ready,
        Answer::Wait(future) => Answer::Watched(Watched::new(future, health)),
        // What another has taken care of: a driver that wraps one of a registry.
        other => Answer::Watched(Watched::new(Box::pin(other), health)),
    }
}
