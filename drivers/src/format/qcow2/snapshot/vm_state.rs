//! A machine's state, which is stored behind the end of the disk until a snapshot takes it.

use millpond_messages::{IoError, IoResult, MAX_LENGTH};

use crate::format::qcow2::image::Qcow2;
use crate::format::qcow2::layout::index::L1Index;
use crate::format::qcow2::layout::space::GuestOffset;
use crate::format::qcow2::state::State;
use crate::format::qcow2::wait::Key;
use millpond_ring::buffer::Buffers;

impl State {
    /// The L1 entry that the machine's state starts with: the first that the disk has no part in.
    fn vm_state_index(&self) -> u64 {
        self.geometry.l1_entries(self.header.size)
    }

    /// Where a part of the machine's state is.
    fn vm_state_at(&self, offset: u64, len: u64) -> IoResult<GuestOffset> {
        let start = self.vm_state_index() << self.geometry.l2_span_bits();
        let at = start.checked_add(offset);
        let end = at.and_then(|at| at.checked_add(len));
        match (at, end) {
            (Some(at), Some(end)) if end <= MAX_LENGTH => Ok(GuestOffset::new(at)),
            _ => Err(IoError::OutOfRange),
        }
    }

    /// Takes the machine's state out of the L1 table; answers the entries that it had.
    fn take_vm_state(&mut self) -> Vec<u64> {
        let first = self.vm_state_index();
        let taken = self.l1.get(first as usize..).unwrap_or_default().to_vec();
        for (&entry, index) in taken.iter().zip(first..) {
            if entry != 0 {
                self.set_l1(L1Index(index), 0);
            }
        }
        taken
    }
}

impl Qcow2 {
    /// Stores a part of the machine's state.
    pub(crate) async fn save_vm_state(&self, offset: u64, state: Buffers) -> IoResult<()> {
        let _held = self.waits.hold(Key::Resize).await;
        let len = state.len() as u64;
        let mut at = self.state.borrow().vm_state_at(offset, len)?;
        self.run(|state| state.check_writable()).await?;
        self.grow_l1(at.get() + len).await?;
        let bytes = state.to_vec();
        let mut rest = bytes.as_slice();
        let cluster = self.state.borrow().geometry.cluster_size();
        while !rest.is_empty() {
            let in_cluster = at.in_cluster(&self.state.borrow().geometry);
            let (part, behind) = rest.split_at(rest.len().min((cluster - in_cluster) as usize));
            self.store(at, part.to_vec().into()).await?;
            at += part.len() as u64;
            rest = behind;
        }
        Ok(())
    }

    /// Reads a part of the machine's state. A backing file has no part in it.
    pub(crate) async fn load_vm_state(&self, offset: u64, len: usize) -> IoResult<Buffers> {
        let at = self.state.borrow().vm_state_at(offset, len as u64)?;
        let (read, buffers) = self.read_special(at, Buffers::zeroed(len)).await;
        read.map(|()| buffers)
    }

    /// Gives up the machine's state that is stored behind the disk.
    pub(crate) async fn drop_vm_state(&self) -> IoResult<()> {
        self.run(|state| state.check_writable()).await?;
        let taken = self.state.borrow_mut().take_vm_state();
        if taken.iter().all(|entry| *entry == 0) {
            return Ok(());
        }
        self.write_back_all().await?;
        self.lower_references(&taken).await
    }
}
