//! Changes of a volume's keys: what takes long is done before the node stands still, and what is left is written then.

use std::sync::Arc;

use millpond_messages::{Error, ErrorKind, Result};
use millpond_ring::Ring;

use super::header_file::HeaderFile;
use super::volume::Volume;
use crate::crypto::fill_random;
use crate::crypto::luks::{ERASURES, KeyChange, LuksHeader, MasterKey, SlotKey, SlotState, cost};
use crate::secret::{Password, Secrets};

/// A change that only has to be written, and the header that it was prepared for.
pub(crate) struct Prepared {
    header: Arc<LuksHeader>,
    step: Step,
}

enum Step {
    /// A key is put into a slot.
    Put(usize, SlotKey),
    /// The keys of some slots are erased.
    Erase(Vec<usize>),
}

/// The places for keys of an open volume, and what it takes to change them.
pub(crate) struct KeySlots<'a> {
    pub file: &'a HeaderFile,
    pub ring: &'a Ring,
    pub secrets: &'a Secrets,
}

impl KeySlots<'_> {
    /// Checks a change, and makes what is to be written. Requests go on meanwhile. `current` is the password that the volume
    /// was opened with.
    pub async fn prepare(
        &self,
        change: KeyChange,
        current: impl FnOnce() -> Result<Password>,
        force: bool,
    ) -> Result<Prepared> {
        // Another node may have changed the keys of this volume.
        let header = Arc::new(self.file.read().await?);
        let step = match change.state {
            SlotState::Active => self.prepare_put(&header, &change, current, force).await?,
            SlotState::Inactive => self.prepare_erase(&header, &change, force).await?,
        };
        Ok(Prepared { header, step })
    }

    async fn prepare_put(
        &self,
        header: &Arc<LuksHeader>,
        change: &KeyChange,
        current: impl FnOnce() -> Result<Password>,
        force: bool,
    ) -> Result<Step> {
        let slot = change.free_slot(header, force)?;
        let new = self
            .secrets
            .required_password(change.new_secret.as_deref(), "key-secret")?;
        let current = match &change.secret {
            Some(id) => self.secrets.password(id)?,
            None => current()?,
        };
        let key = self.file.unlock(self.ring, header, &current).await?;
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
            let found = self.file.unlock_slot(self.ring, header, candidate, &old).await?;
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

    /// Writes a change that was prepared, of the volume that was opened as `old`. The node is still. Answers the volume as
    /// it is then, also where the change failed halfway: what was stored of it counts.
    pub async fn change(&self, old: &Volume, prepared: Prepared) -> (Result<()>, Option<Volume>) {
        let Prepared { header: seen, step } = prepared;
        let mut header = match self.unchanged(&seen).await {
            Ok(header) => header,
            Err(error) => return (Err(error), None),
        };
        let changed = match step {
            Step::Put(slot, key) => self.put_key(&mut header, slot, &key).await,
            Step::Erase(slots) => self.erase_keys(&mut header, &slots).await,
        };
        let header = match changed {
            Ok(()) => header,
            Err(_) => self.file.read().await.unwrap_or(header),
        };
        match old.with_header(header) {
            Some(volume) => (changed, Some(volume)),
            None => (Err(another()), None),
        }
    }

    /// The header, if it is still as it was seen.
    async fn unchanged(&self, seen: &LuksHeader) -> Result<LuksHeader> {
        let header = self.file.read().await?;
        if header.encode()? == seen.encode()? {
            return Ok(header);
        }
        let text = "The keys of the image have changed meanwhile";
        Err(Error::new(ErrorKind::InUse, text))
    }

    /// Puts a key into a slot. Where the slot has one, the new key is in a free slot too until it is in its own: at any moment
    /// one of the two passwords opens the volume.
    async fn put_key(&self, header: &mut LuksHeader, slot: usize, key: &SlotKey) -> Result<()> {
        if !header.slots[slot].active {
            return self.put_into(header, slot, key).await;
        }
        // Where no slot is free, all others have keys that open the volume meanwhile.
        let spare = header.slots.iter().position(|slot| !slot.active);
        if let Some(spare) = spare {
            self.put_into(header, spare, key).await?;
        }
        header.slots[slot].clear();
        self.file.write_erased(header).await?;
        self.file.flush().await?;
        self.put_into(header, slot, key).await?;
        match spare {
            Some(spare) => self.erase_keys(header, &[spare]).await,
            None => Ok(()),
        }
    }

    /// Puts a key into a slot that has none. The stripes are stored before the header says that they are there.
    async fn put_into(&self, header: &mut LuksHeader, slot: usize, key: &SlotKey) -> Result<()> {
        self.file.write_stripes(header, slot, &key.material).await?;
        self.file.flush().await?;
        header.slots[slot].take(key);
        self.file.write(header).await?;
        self.file.flush().await
    }

    /// The header says that keys are gone before their stripes are written over.
    async fn erase_keys(&self, header: &mut LuksHeader, slots: &[usize]) -> Result<()> {
        for slot in slots {
            header.slots[*slot].clear();
        }
        self.file.write_erased(header).await?;
        self.file.flush().await?;
        let mut noise = vec![0; header.material_len()];
        for slot in slots {
            for _ in 0..ERASURES {
                fill_random(&mut noise)?;
                self.file.write_stripes(header, *slot, &noise).await?;
            }
        }
        self.file.flush().await
    }
}

fn another() -> Error {
    let text = "The image below is another one than was opened";
    Error::new(ErrorKind::Corrupt, text)
}
