//! Changes of a volume's keys, with what keeps users from locking themselves out.

use millpond_messages::graph::Options;
pub(crate) use millpond_messages::qapi::schema::QCryptoBlockLUKSKeyslotState as SlotState;
use millpond_messages::{Error, ErrorKind, Result};

use super::header::{LuksHeader, SLOTS};
use crate::api::parse_options;

/// How often the stripes of an erased key are written over.
pub(crate) const ERASURES: usize = 40;

/// A change of a volume's keys, as a user asks for it.
#[derive(Debug, Clone, serde::Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub(crate) struct KeyChange {
    /// Whether a key is put in or erased.
    pub state: SlotState,
    /// The secret that opens the volume afterwards.
    pub new_secret: Option<String>,
    /// The secret whose keys are erased.
    pub old_secret: Option<String>,
    keyslot: Option<i64>,
    /// Milliseconds that the new secret takes.
    pub iter_time: Option<i64>,
    /// The secret that opens the volume now; the one that it was opened with unless given.
    pub secret: Option<String>,
}

fn invalid(text: impl Into<std::borrow::Cow<'static, str>>) -> Error {
    Error::new(ErrorKind::InvalidArgument, text)
}

impl KeyChange {
    /// Reads a change, and checks what can be checked without the volume.
    ///
    /// # Errors
    /// QEMU's texts.
    pub fn parse(options: Options) -> Result<Self> {
        let change: Self = parse_options(options)?;
        let refused = match change.state {
            SlotState::Active if change.new_secret.is_none() => {
                "'new-secret' is required to activate a keyslot"
            }
            SlotState::Active if change.old_secret.is_some() => {
                "'old-secret' must not be given when activating keyslots"
            }
            SlotState::Active => return Ok(change),
            SlotState::Inactive if change.new_secret.is_some() => {
                "'new-secret' must not be given when erasing keyslots"
            }
            SlotState::Inactive if change.iter_time.is_some() => {
                "'iter-time' must not be given when erasing keyslots"
            }
            SlotState::Inactive if change.secret.is_some() => {
                "'secret' must not be given when erasing keyslots"
            }
            SlotState::Inactive if change.keyslot.is_none() && change.old_secret.is_none() => {
                "To erase keyslot(s), either explicit keyslot index or the password currently contained in them must \
                 be given"
            }
            SlotState::Inactive => return Ok(change),
        };
        Err(invalid(refused))
    }

    /// The slot that is named, if one is.
    ///
    /// # Errors
    /// There is no such slot.
    pub fn keyslot(&self) -> Result<Option<usize>> {
        let Some(number) = self.keyslot else {
            return Ok(None);
        };
        let slot = usize::try_from(number).ok().filter(|slot| *slot < SLOTS);
        slot.map(Some).ok_or_else(|| {
            let text = format!(
                "Invalid keyslot {number} specified, must be between 0 and {}",
                SLOTS - 1
            );
            invalid(text)
        })
    }

    /// The slot that a key is put in.
    ///
    /// # Errors
    /// It has one already, or no slot is free.
    pub fn free_slot(&self, header: &LuksHeader, force: bool) -> Result<usize> {
        if let Some(slot) = self.keyslot()? {
            if header.slots[slot].active && !force {
                let text = format!("Refusing to overwrite active keyslot {slot} - please erase it first");
                return Err(invalid(text));
            }
            return Ok(slot);
        }
        let free = header.slots.iter().position(|slot| !slot.active);
        free.ok_or_else(|| invalid("Can't add a keyslot - all keyslots are in use"))
    }

    /// Checks that a slot may be erased.
    ///
    /// # Errors
    /// It is erased, or nobody could open the volume any more.
    pub fn check_erasable(header: &LuksHeader, slot: usize, force: bool) -> Result<()> {
        if !header.slots[slot].active && !force {
            // The blank at the end is QEMU's: programs match on the text.
            return Err(invalid(format!(
                "Given keyslot {slot} is already erased (inactive) "
            )));
        }
        if header.slots[slot].active && active(header) == 1 && !force {
            let text = format!(
                "Attempt to erase the only active keyslot {slot} which will erase all the data in the image irreversibly \
                 - refusing operation"
            );
            return Err(invalid(text));
        }
        Ok(())
    }

    /// Checks that the slots which a password opens may be erased.
    ///
    /// # Errors
    /// There are none, or nobody could open the volume any more.
    pub fn check_all_erasable(header: &LuksHeader, slots: &[usize], force: bool) -> Result<()> {
        if slots.is_empty() {
            return Err(invalid(
                "No keyslots match given (old) password for erase operation",
            ));
        }
        if slots.len() == active(header) && !force {
            return Err(invalid(
                "All the active keyslots match the (old) password that was given and erasing them will erase all the data \
                 in the image irreversibly - refusing operation",
            ));
        }
        Ok(())
    }
}

/// How many slots have a key.
fn active(header: &LuksHeader) -> usize {
    header.slots.iter().filter(|slot| slot.active).count()
}
