//! Changes of a volume's keys: what takes long is done before the node stands still, and what is left is written then.

use std::sync::Arc;

use millpond_messages::graph::Options;
use millpond_messages::{Error, ErrorKind, Result};

use super::driver::Luks;
use super::kind::{named_password, password};
use super::volume::Volume;
use crate::crypto::fill_random;
use crate::crypto::luks::{ERASURES, KeyChange, LuksHeader, MasterKey, SlotKey, SlotState, cost};

/// A change that only has to be written, and the header that it was prepared for.
pub(super) struct Prepared {
    header: Arc<LuksHeader>,
    step: Step,
}

enum Step {
    /// A key is put into a slot.
    Put(usize, SlotKey),
    /// The keys of some slots are erased.
    Erase(Vec<usize>),
}

impl Luks {
    /// Checks a change, and makes what is to be written. Requests go on meanwhile.
    pub(super) async fn prepare_change(&self, options: Options, force: bool) -> Result<Prepared> {
        let change = KeyChange::parse(options)?;
        // Another node may have changed the keys of this volume.
        let header = Arc::new(self.header.read().await?);
        let step = match change.state {
            SlotState::Active => self.prepare_put(&header, &change, force).await?,
            SlotState::Inactive => self.prepare_erase(&header, &change, force).await?,
        };
        Ok(Prepared { header, step })
    }

    async fn prepare_put(&self, header: &Arc<LuksHeader>, change: &KeyChange, force: bool) -> Result<Step> {
        let slot = change.free_slot(header, force)?;
        let new = named_password(&self.secrets, change.new_secret.as_deref())?;
        let current = match &change.secret {
            Some(id) => self.secrets.password(id)?,
            None => password(&self.secrets, &self.options)?,
        };
        let key = self.header.unlock(&self.ring, header, &current).await?;
        let (header, time) = (Arc::clone(header), change.iter_time);
        let lock = move || {
            let iterations = cost(&header.hash, header.key_len, time)?;
            MasterKey::lock(&key, &header, new.bytes(), iterations)
        };
        Ok(Step::Put(slot, self.ring.blocking(lock).await?))
    }

    async fn prepare_erase(&self, header: &Arc<LuksHeader>, change: &KeyChange, force: bool) -> Result<Step> {
        let slot = change.keyslot()?;
        let Some(old) = &change.old_secret else {
            let slots: Vec<usize> = slot.into_iter().collect();
            for slot in &slots {
                KeyChange::check_erasable(header, *slot, force)?;
            }
            return Ok(Step::Erase(slots));
        };
        let old = self.secrets.password(old)?;
        let mut slots = Vec::new();
        for candidate in slot.map_or(0..header.slots.len(), |slot| slot..slot + 1) {
            let found = self
                .header
                .unlock_slot(&self.ring, header, candidate, &old)
                .await?;
            if found.is_some() {
                slots.push(candidate);
            }
        }
        if let Some(slot) = slot {
            if slots.is_empty() {
                let text = format!(
                    "Given keyslot {slot} doesn't contain the given old password for erase operation"
                );
                return Err(Error::new(ErrorKind::InvalidArgument, text));
            }
            KeyChange::check_erasable(header, slot, force)?;
        } else {
            KeyChange::check_all_erasable(header, &slots, force)?;
        }
        Ok(Step::Erase(slots))
    }

    /// Writes a change that was prepared. The node is still.
    pub(super) async fn change_keys(&self, prepared: Prepared) -> Result<()> {
        let Prepared { header: seen, step } = prepared;
        let mut header = self.header.read().await?;
        if header.encode()? != seen.encode()? {
            let text = "The keys of the image have changed meanwhile";
            return Err(Error::new(ErrorKind::InUse, text));
        }
        let changed = match step {
            Step::Put(slot, key) => self.put_key(&mut header, slot, &key).await,
            Step::Erase(slots) => self.erase_keys(&mut header, &slots).await,
        };
        // Where a change failed halfway, the header is what was stored of it.
        let header = match changed {
            Ok(()) => header,
            Err(_) => self.header.read().await.unwrap_or(header),
        };
        self.take_header(header)?;
        changed
    }

    /// The stripes are stored before the header says that they are there.
    async fn put_key(&self, header: &mut LuksHeader, slot: usize, key: &SlotKey) -> Result<()> {
        self.header.write_stripes(header, slot, &key.material).await?;
        self.header.flush().await?;
        header.slots[slot].take(key);
        self.header.write(header).await?;
        self.header.flush().await
    }

    /// The header says that keys are gone before their stripes are written over.
    async fn erase_keys(&self, header: &mut LuksHeader, slots: &[usize]) -> Result<()> {
        for slot in slots {
            header.slots[*slot].clear();
        }
        self.header.write(header).await?;
        self.header.flush().await?;
        let mut noise = vec![0; header.material_len()];
        for slot in slots {
            for _ in 0..ERASURES {
                fill_random(&mut noise)?;
                self.header.write_stripes(header, *slot, &noise).await?;
            }
        }
        self.header.flush().await
    }

    /// Goes on with another header: the master key is the same, and so is what encrypts the data.
    fn take_header(&self, header: LuksHeader) -> Result<()> {
        let old = Arc::clone(&self.volume.borrow());
        if header.digest != old.header.digest {
            let text = "The image below is another one than was opened";
            return Err(Error::new(ErrorKind::Corrupt, text));
        }
        let cipher = Arc::clone(&old.cipher);
        self.volume.replace(Arc::new(Volume { header, cipher }));
        Ok(())
    }
}
