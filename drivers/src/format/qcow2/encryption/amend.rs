//! Changes of an encrypted image's keys, as `x-blockdev-amend` and `qemu-img amend` ask for them and with their words.

use std::sync::Arc;

use millpond_messages::graph::Options;
use millpond_messages::{Error, ErrorKind, Result};
use serde_json::Value;

use super::method::{Encryption, PreparedKeys};
use crate::crypto::luks::KeyChange;
use crate::format::luks::{HeaderFile, KeySlots, Volume};
use crate::format::qcow2::header::CryptMethod;
use crate::format::qcow2::header::extensions::CryptoHeader;
use crate::format::qcow2::image::Qcow2;
use crate::format::qcow2::layout::entry::{l2_table, refblock};

/// What the dotted names of options about encryption begin with, and what follows in those that can be changed.
const ENCRYPT: &str = "encrypt.";
const AMENDED: &[&str] = &["state", "new-secret", "old-secret", "keyslot", "iter-time"];

fn unsupported(text: &'static str) -> Error {
    Error::new(ErrorKind::Unsupported, text)
}

/// What a user asks for of encryption.
struct Wanted {
    options: Options,
    /// It is one object with its format, as QMP has it, and not options by their dotted names.
    by_qmp: bool,
}

impl Wanted {
    /// Takes from an image's options those about its encryption.
    fn of(options: &Options) -> Option<Self> {
        if let Some(Value::Object(options)) = options.get("encrypt") {
            let options = options.clone();
            return Some(Self {
                options,
                by_qmp: true,
            });
        }
        let dotted = options.iter().filter_map(|(name, value)| {
            let name = name.strip_prefix(ENCRYPT).filter(|name| AMENDED.contains(name))?;
            // Command lines give numbers as text.
            let number = value.as_str().and_then(|text| text.parse::<i64>().ok());
            let is_number = matches!(name, "keyslot" | "iter-time");
            let value = number
                .filter(|_| is_number)
                .map_or_else(|| value.clone(), Value::from);
            Some((name.to_owned(), value))
        });
        let options: Options = dotted.collect();
        (!options.is_empty()).then_some(Self {
            options,
            by_qmp: false,
        })
    }

    /// Reads the change that an image encrypted in this way can have.
    fn change(mut self, method: Option<CryptMethod>) -> Result<KeyChange> {
        let format = self.options.shift_remove("format");
        let is_other = format.as_ref().is_some_and(|format| format != "luks");
        match (method, self.by_qmp) {
            (None, true) => Err(unsupported("image is not encrypted, can't amend")),
            (None, false) => {
                let text = "Can't amend encryption options - encryption not present";
                Err(Error::new(ErrorKind::InvalidArgument, text))
            }
            (Some(_), true) if is_other => Err(unsupported(
                "Amend can't be used to change the qcow2 encryption format",
            )),
            (Some(CryptMethod::Aes), true) => Err(unsupported(
                "Only LUKS encryption options can be amended for qcow2 with blockdev-amend",
            )),
            (Some(CryptMethod::Aes), false) => {
                let text = "Only LUKS encryption options can be amended";
                Err(Error::new(ErrorKind::InvalidArgument, text))
            }
            (Some(CryptMethod::Luks), _) => KeyChange::parse(self.options),
        }
    }
}

/// Whether an option of an image is about its keys.
pub(crate) fn is_about_keys(name: &str) -> bool {
    let member = name.strip_prefix(ENCRYPT);
    name == "encrypt" || member.is_some_and(|member| AMENDED.contains(&member))
}

impl Qcow2 {
    fn key_slots<'a>(&'a self, file: &'a HeaderFile) -> KeySlots<'a> {
        KeySlots {
            file,
            ring: &self.ring,
            secrets: &self.secrets,
        }
    }

    /// Makes what a change of keys among `options` has to write, if one is asked for. Requests go on meanwhile.
    pub(crate) async fn prepare_keys(&self, options: &Options, force: bool) -> Result<Option<PreparedKeys>> {
        let Some(wanted) = Wanted::of(options) else {
            return Ok(None);
        };
        let (method, place, writable) = {
            let state = self.state.borrow();
            let header = &state.header;
            (header.encryption, header.extensions.crypto(), state.writable)
        };
        let change = wanted.change(method)?;
        if !writable {
            return Err(Error::new(ErrorKind::ReadOnly, "Image is read-only"));
        }
        let place = place.ok_or_else(|| unsupported("image is not encrypted, can't amend"))?;
        self.check_keys_alone(place)?;
        let file = self.file.luks_header(place);
        let current = || self.given.borrow().password();
        let change = self.key_slots(&file).prepare(change, current, force).await?;
        Ok(Some(PreparedKeys { change, place }))
    }

    /// Writes a change of keys that was prepared. The node is still.
    pub(crate) async fn change_keys(&self, prepared: PreparedKeys) -> Result<()> {
        let PreparedKeys { change, place } = prepared;
        let old = self.luks_volume().filter(|_| {
            let state = self.state.borrow();
            state.header.extensions.crypto() == Some(place)
        });
        let Some(old) = old else {
            let text = "The keys of the image have changed meanwhile";
            return Err(Error::new(ErrorKind::InUse, text));
        };
        self.check_keys_alone(place)?;
        let file = self.file.luks_header(place);
        let (changed, volume) = self.key_slots(&file).change(&old, change).await;
        if let Some(volume) = volume {
            self.state.borrow_mut().encryption = Some(Encryption::Luks(Arc::new(volume)));
        }
        changed
    }

    fn luks_volume(&self) -> Option<Arc<Volume>> {
        match &self.state.borrow().encryption {
            Some(Encryption::Luks(volume)) => Some(Arc::clone(volume)),
            _ => None,
        }
    }

    /// Refuses to write keys where the image has tables: it contradicts itself.
    fn check_keys_alone(&self, place: CryptoHeader) -> Result<()> {
        let state = self.state.borrow();
        let size = state.geometry.cluster_size();
        let tables = state.l1.iter().filter_map(|entry| l2_table(*entry));
        let blocks = state.reftable.iter().filter_map(|entry| refblock(*entry));
        let inactive = state.snapshots.iter().map(|snapshot| {
            let len = u64::from(snapshot.l1_entries) * 8;
            (snapshot.l1_offset, len)
        });
        let whole = tables.chain(blocks).map(|table| (table, size));
        if whole
            .chain(inactive)
            .any(|(start, len)| place.touches(start, len))
        {
            let text = "Encryption header overlaps with the image's tables";
            return Err(Error::new(ErrorKind::Corrupt, text));
        }
        Ok(())
    }
}
