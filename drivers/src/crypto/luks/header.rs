//! A LUKS header as it is stored: read without trust, checked, and written.

use millpond_messages::qapi::schema::{QCryptoBlockInfoLUKS, QCryptoBlockInfoLUKSSlot};
use millpond_messages::{Error, ErrorKind, Result};

use super::super::{CipherSpec, Hash};
use super::{DIGEST, MOST_ITERATIONS, SALT, SECTOR_BYTES, STRIPES};

/// Bytes of the header without the keys.
pub(crate) const HEADER_LEN: usize = 592;

/// Places for keys in a header.
pub(crate) const SLOTS: usize = 8;

/// What a header begins with, and the version behind it.
const MAGIC: &[u8; 6] = b"LUKS\xba\xbe";
const VERSION: u16 = 1;

/// Sectors at the start that no key may be in: the header, rounded up to what disks write at once.
const HEADER_SECTORS: u32 = 8;

/// How a slot says that it is in use, or that it is not.
const ACTIVE: u32 = 0x00ac_71f3;
const INACTIVE: u32 = 0x0000_dead;

/// Bytes of a name in the header, its terminator included.
const NAME: usize = 32;
/// Bytes of the UUID as text.
const UUID: usize = 40;

/// A place for a key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Slot {
    /// It has a key that a password opens.
    pub active: bool,
    /// How often the digest of the password is iterated.
    pub iterations: u32,
    /// What is mixed into the password.
    pub salt: [u8; SALT],
    /// The first sector of the stripes.
    pub start: u32,
    /// How many stripes there are.
    pub stripes: u32,
}

/// What a header says, checked.
#[derive(Debug, Clone)]
pub(crate) struct LuksHeader {
    /// How the data is encrypted, and the stripes too.
    pub spec: CipherSpec,
    /// The digest that makes keys of passwords.
    pub hash: Hash,
    /// The first sector of the data; 0 where that is in another file.
    pub payload: u32,
    /// Bytes of the master key.
    pub key_len: usize,
    /// The digest of the master key, with its salt and how often it is iterated.
    pub digest: [u8; DIGEST],
    pub digest_salt: [u8; SALT],
    pub digest_iterations: u32,
    /// The volume's UUID, as text.
    pub uuid: [u8; UUID],
    /// The places for keys, used or not.
    pub slots: [Slot; SLOTS],
}

fn corrupt(text: impl Into<std::borrow::Cow<'static, str>>) -> Error {
    Error::new(ErrorKind::Corrupt, text)
}

/// Takes the fields of a header one after the other.
struct Fields<'a>(&'a [u8]);

impl Fields<'_> {
    fn take<const N: usize>(&mut self) -> Result<[u8; N]> {
        let (field, rest) = self
            .0
            .split_first_chunk::<N>()
            .ok_or_else(|| corrupt("Volume is not in LUKS format"))?;
        self.0 = rest;
        Ok(*field)
    }

    fn number(&mut self) -> Result<u32> {
        Ok(u32::from_be_bytes(self.take()?))
    }

    /// A text that must end within its field.
    fn name(&mut self, what: &str) -> Result<String> {
        let field = self.take::<NAME>()?;
        let text = field
            .iter()
            .position(|byte| *byte == 0)
            .and_then(|end| field.get(..end));
        let text = text.ok_or_else(|| corrupt(format!("LUKS header {what} is not NUL terminated")))?;
        Ok(String::from_utf8_lossy(text).into_owned())
    }

    /// A slot, and what it says of its state.
    fn slot(&mut self) -> Result<(u32, Slot)> {
        let state = self.number()?;
        let slot = Slot {
            active: state == ACTIVE,
            iterations: self.number()?,
            salt: self.take()?,
            start: self.number()?,
            stripes: self.number()?,
        };
        Ok((state, slot))
    }
}

/// Whether an image that begins like this is a volume of the version that is served.
pub(crate) fn is_luks(head: &[u8]) -> bool {
    let version = head.get(MAGIC.len()..MAGIC.len() + 2);
    head.starts_with(MAGIC) && version == Some(VERSION.to_be_bytes().as_slice())
}

impl LuksHeader {
    /// Reads a header from its bytes.
    ///
    /// # Errors
    /// Names what is wrong with it, in QEMU's words.
    pub fn parse(bytes: &[u8]) -> Result<Self> {
        let mut fields = Fields(bytes);
        if &fields.take::<6>()? != MAGIC {
            return Err(corrupt("Volume is not in LUKS format"));
        }
        let version = u16::from_be_bytes(fields.take()?);
        if version != VERSION {
            let text = format!("LUKS version {version} is not supported");
            return Err(Error::new(ErrorKind::Unsupported, text));
        }
        let (family, mode) = (fields.name("cipher name")?, fields.name("cipher mode")?);
        let hash = fields.name("hash spec")?;
        let (payload, key_len) = (fields.number()?, fields.number()?);
        let (digest, digest_salt, digest_iterations) = (fields.take()?, fields.take()?, fields.number()?);
        let uuid = fields.take()?;
        let mut slots = Vec::with_capacity(SLOTS);
        for _ in 0..SLOTS {
            slots.push(fields.slot()?);
        }
        check_places(payload, key_len, digest_iterations, &slots)?;
        let slots = slots.into_iter().map(|(_, slot)| slot).collect::<Vec<_>>();
        let key_len = usize::try_from(key_len).map_err(|_| corrupt("The master key is too long"))?;
        Ok(Self {
            spec: CipherSpec::parse(&family, &mode, key_len)?,
            hash: Hash::named(&hash)?,
            payload,
            key_len,
            digest,
            digest_salt,
            digest_iterations,
            uuid,
            slots: slots
                .try_into()
                .map_err(|_| corrupt("Volume is not in LUKS format"))?,
        })
    }

    /// The header as it is stored.
    ///
    /// # Errors
    /// Its cipher has no name in headers.
    pub fn encode(&self) -> Result<Vec<u8>> {
        let mut bytes = Vec::with_capacity(HEADER_LEN);
        bytes.extend(MAGIC);
        bytes.extend(VERSION.to_be_bytes());
        let names = [
            self.spec.family()?.to_owned(),
            self.spec.mode_text()?,
            self.hash.name().to_owned(),
        ];
        for name in names {
            let end = bytes.len() + NAME;
            bytes.extend(name.bytes().take(NAME - 1));
            bytes.resize(end, 0);
        }
        bytes.extend(self.payload.to_be_bytes());
        let key_len = u32::try_from(self.key_len).map_err(|_| corrupt("The master key is too long"))?;
        bytes.extend(key_len.to_be_bytes());
        bytes.extend(self.digest);
        bytes.extend(self.digest_salt);
        bytes.extend(self.digest_iterations.to_be_bytes());
        bytes.extend(self.uuid);
        for slot in &self.slots {
            bytes.extend(if slot.active { ACTIVE } else { INACTIVE }.to_be_bytes());
            bytes.extend(slot.iterations.to_be_bytes());
            bytes.extend(slot.salt);
            bytes.extend(slot.start.to_be_bytes());
            bytes.extend(slot.stripes.to_be_bytes());
        }
        Ok(bytes)
    }

    /// Where the data begins, in bytes.
    pub fn payload_offset(&self) -> u64 {
        u64::from(self.payload) * SECTOR_BYTES
    }

    /// Where the header ends with all its places for keys, in bytes.
    pub fn end(&self) -> u64 {
        let sectors = self.material_len() as u64 / SECTOR_BYTES;
        let ends = self.slots.iter().map(|slot| u64::from(slot.start) + sectors);
        let end = ends.max().unwrap_or_default();
        end.next_multiple_of(u64::from(HEADER_SECTORS)) * SECTOR_BYTES
    }

    /// Whether this is a header of the same volume as another: with the same master key, used in the same way.
    pub fn is_of_same_volume(&self, other: &Self) -> bool {
        self.spec == other.spec
            && self.key_len == other.key_len
            && self.hash.algorithm == other.hash.algorithm
            && self.digest_iterations == other.digest_iterations
            && self.digest_salt == other.digest_salt
            && self.digest == other.digest
    }

    /// Whether the data is in another file than the header.
    pub const fn is_detached(&self) -> bool {
        self.payload == 0
    }

    /// Bytes of a slot's stripes, rounded up to sectors.
    pub fn material_len(&self) -> usize {
        (self.key_len * STRIPES as usize).next_multiple_of(SECTOR_BYTES as usize)
    }

    /// What the header says, as queries show it.
    pub fn info(&self) -> QCryptoBlockInfoLUKS {
        let slots = self.slots.iter().map(|slot| QCryptoBlockInfoLUKSSlot {
            active: slot.active,
            iters: slot.active.then_some(i64::from(slot.iterations)),
            stripes: slot.active.then_some(i64::from(slot.stripes)),
            key_offset: i64::from(slot.start) * SECTOR_BYTES.cast_signed(),
        });
        let uuid = self.uuid.split(|byte| *byte == 0).next().unwrap_or_default();
        QCryptoBlockInfoLUKS {
            cipher_alg: self.spec.algorithm,
            cipher_mode: self.spec.mode,
            ivgen_alg: self.spec.ivgen,
            ivgen_hash_alg: self.spec.ivgen_hash,
            hash_alg: self.hash.algorithm,
            detached_header: self.is_detached(),
            payload_offset: self.payload_offset().cast_signed(),
            master_key_iters: i64::from(self.digest_iterations),
            uuid: String::from_utf8_lossy(uuid).into_owned(),
            slots: slots.collect(),
        }
    }
}

/// Sectors of a slot's stripes.
pub(super) fn material_sectors(key_len: u32) -> u64 {
    (u64::from(key_len) * u64::from(STRIPES)).div_ceil(SECTOR_BYTES)
}

/// Where a new header has its keys, each after the one before and rounded up as the header is, and then the data.
pub(super) fn layout(key_len: u32) -> Result<([u32; SLOTS], u32)> {
    let step = u32::try_from(material_sectors(key_len)).ok();
    let step = step.and_then(|sectors| sectors.checked_next_multiple_of(HEADER_SECTORS));
    let end = step.and_then(|step| step.checked_mul(SLOTS as u32)?.checked_add(HEADER_SECTORS));
    let (Some(step), Some(end)) = (step, end) else {
        return Err(corrupt("The master key is too long"));
    };
    let mut starts = [HEADER_SECTORS; SLOTS];
    for (start, number) in starts.iter_mut().zip(0_u32..) {
        // Less than the end, which was counted without overflow.
        *start += number * step;
    }
    Ok((starts, end))
}

/// Checks that nothing of a header lies on anything else, and what its numbers must be.
fn check_places(payload: u32, key_len: u32, iterations: u32, slots: &[(u32, Slot)]) -> Result<()> {
    if payload > 0 && payload < HEADER_SECTORS {
        return Err(corrupt("LUKS payload is overlapping with the header"));
    }
    if iterations == 0 {
        return Err(corrupt("LUKS key iteration count is zero"));
    }
    if iterations > MOST_ITERATIONS {
        let text = format!("LUKS key iteration count {iterations} is larger than {MOST_ITERATIONS}");
        return Err(corrupt(text));
    }
    // Keys begin where the header's units do, so each has what is left of its last one.
    let sectors = material_sectors(key_len).next_multiple_of(u64::from(HEADER_SECTORS));
    let range = |slot: &Slot| (u64::from(slot.start), u64::from(slot.start) + sectors);
    for (number, (state, slot)) in slots.iter().enumerate() {
        check_slot(number, *state, slot)?;
        let (start, end) = range(slot);
        if slot.start < HEADER_SECTORS {
            let text = format!("Keyslot {number} is overlapping with the LUKS header");
            return Err(corrupt(text));
        }
        if payload > 0 && end > u64::from(payload) {
            let text = format!("Keyslot {number} is overlapping with the encrypted payload");
            return Err(corrupt(text));
        }
        for (later, (_, other)) in slots.iter().enumerate().skip(number + 1) {
            let (other_start, other_end) = range(other);
            if start < other_end && other_start < end {
                let text = format!("Keyslots {number} and {later} are overlapping in the header");
                return Err(corrupt(text));
            }
        }
    }
    Ok(())
}

fn check_slot(number: usize, state: u32, slot: &Slot) -> Result<()> {
    if slot.stripes != STRIPES {
        let stripes = slot.stripes.cast_signed();
        let text = format!("Keyslot {number} is corrupted (stripes {stripes} != {STRIPES})");
        return Err(corrupt(text));
    }
    if state != ACTIVE && state != INACTIVE {
        let text = format!("Keyslot {number} state (active/disable) is corrupted");
        return Err(corrupt(text));
    }
    if slot.active && slot.iterations == 0 {
        return Err(corrupt(format!("Keyslot {number} iteration count is zero")));
    }
    if slot.active && slot.iterations > MOST_ITERATIONS {
        let count = slot.iterations;
        let text = format!("Keyslot {number} iteration count {count} is larger than {MOST_ITERATIONS}");
        return Err(corrupt(text));
    }
    Ok(())
}
