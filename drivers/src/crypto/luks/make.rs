//! New headers, and how many iterations take a wished time.

use std::time::Duration;

use millpond_messages::io::Preallocation;
use millpond_messages::qapi::schema::{
    QCryptoCipherAlgo, QCryptoCipherMode, QCryptoHashAlgo, QCryptoIVGenAlgo,
};
use millpond_messages::{Error, IoError, Result};
use rustix::time::{ClockId, clock_gettime};

use super::super::{CipherSpec, Hash, random};
use super::header::{LuksHeader, SLOTS, Slot, layout};
use super::slots::{MasterKey, SlotKey};
use super::{DIGEST, MOST_ITERATIONS, SALT, SECTOR_BYTES, STRIPES};

/// Milliseconds that a password takes unless asked otherwise.
const DEFAULT_TIME: u64 = 2000;

/// The fewest iterations, however slow the machine is.
const LEAST_ITERATIONS: u64 = 1000;

/// The time that is measured at the least: what is shorter says little.
const MEASURED: Duration = Duration::from_millis(50);

/// The iterations that measuring begins with.
const FIRST_TRY: u32 = 1 << 12;

/// What a new volume is to be.
#[derive(Debug, serde::Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub(crate) struct NewVolume {
    /// The secret that opens it.
    pub key_secret: Option<String>,
    cipher_alg: Option<QCryptoCipherAlgo>,
    cipher_mode: Option<QCryptoCipherMode>,
    ivgen_alg: Option<QCryptoIVGenAlgo>,
    ivgen_hash_alg: Option<QCryptoHashAlgo>,
    hash_alg: Option<QCryptoHashAlgo>,
    iter_time: Option<i64>,
    /// Bytes of its data.
    pub size: u64,
    /// What is allocated of it.
    #[serde(default)]
    pub preallocation: Preallocation,
}

impl NewVolume {
    /// How it is encrypted, and the digest of its passwords.
    ///
    /// # Errors
    /// What is asked for is not served, or does not go together.
    pub fn spec(&self) -> Result<(CipherSpec, Hash)> {
        let ivgen = self.ivgen_alg.unwrap_or(QCryptoIVGenAlgo::Plain64);
        let own_hash = (ivgen == QCryptoIVGenAlgo::Essiv).then_some(QCryptoHashAlgo::Sha256);
        let spec = CipherSpec {
            algorithm: self.cipher_alg.unwrap_or(QCryptoCipherAlgo::Aes256),
            mode: self.cipher_mode.unwrap_or(QCryptoCipherMode::Xts),
            ivgen,
            ivgen_hash: self.ivgen_hash_alg.or(own_hash),
        };
        spec.check()?;
        // That the digest is served is to be known before anything is written.
        spec.ivgen_hash.map(Hash::find).transpose()?;
        Ok((
            spec,
            Hash::find(self.hash_alg.unwrap_or(QCryptoHashAlgo::Sha256))?,
        ))
    }

    /// Bytes of its header with all places for keys.
    ///
    /// # Errors
    /// What is asked for is not served.
    pub fn header_len(&self) -> Result<u64> {
        let (spec, _) = self.spec()?;
        let key_len = spec.key_len()?;
        let (_, payload) = layout(u32::try_from(key_len).unwrap_or(u32::MAX))?;
        Ok(u64::from(payload) * SECTOR_BYTES)
    }

    /// Makes the header of it, with its only key in the first slot. It is meant to take long: not on an iothread.
    ///
    /// # Errors
    /// There are no random bytes, or more iterations are asked for than there can be.
    pub fn build(&self, password: &[u8], is_detached: bool) -> Result<(LuksHeader, SlotKey)> {
        let (spec, hash) = self.spec()?;
        let key_len = spec.key_len()?;
        let (starts, payload) = layout(u32::try_from(key_len).unwrap_or(u32::MAX))?;
        let slot = |start| Slot {
            active: false,
            iterations: 0,
            salt: [0; SALT],
            start,
            stripes: STRIPES,
        };
        let mut header = LuksHeader {
            spec,
            hash,
            payload: if is_detached { 0 } else { payload },
            key_len,
            digest: [0; DIGEST],
            digest_salt: random()?,
            digest_iterations: 0,
            uuid: uuid()?,
            slots: starts.map(slot),
        };
        let iterations = cost(&hash, key_len, self.iter_time)?;
        // The digest is only there to tell the key: an eighth of the time is enough for that, as QEMU has it.
        header.digest_iterations = iterations.max(LEAST_ITERATIONS as u32 * 8) / 8;
        let key = MasterKey::new(key_len)?;
        header.digest = key.digest(&header);
        let locked = key.lock(&header, password, iterations)?;
        let first: &mut [Slot; SLOTS] = &mut header.slots;
        if let Some(slot) = first.first_mut() {
            slot.take(&locked);
        }
        Ok((header, locked))
    }
}

impl Slot {
    /// Forgets the key, as far as the header tells of it.
    pub fn clear(&mut self) {
        (self.active, self.iterations, self.salt) = (false, 0, [0; SALT]);
    }

    /// Takes a key in: the header says so, the stripes go elsewhere.
    pub fn take(&mut self, key: &SlotKey) {
        (self.active, self.iterations, self.salt) = (true, key.iterations, key.salt);
    }
}

/// A random UUID, as text.
fn uuid() -> Result<[u8; 40]> {
    let mut bytes = random::<16>()?;
    // Version 4, of the usual variant.
    bytes[6] = bytes[6] & 0x0f | 0x40;
    bytes[8] = bytes[8] & 0x3f | 0x80;
    let mut text = String::with_capacity(36);
    for (at, byte) in bytes.iter().enumerate() {
        if matches!(at, 4 | 6 | 8 | 10) {
            text.push('-');
        }
        text.push_str(&format!("{byte:02x}"));
    }
    let mut field = [0; 40];
    field
        .iter_mut()
        .zip(text.bytes())
        .for_each(|(byte, new)| *byte = new);
    Ok(field)
}

/// How many iterations take a wished time in milliseconds, for keys of `key_len` bytes. Measures, and so takes long.
///
/// # Errors
/// There would be more than there can be.
pub(crate) fn cost(hash: &Hash, key_len: usize, milliseconds: Option<i64>) -> Result<u32> {
    let wished = milliseconds.map_or(Some(DEFAULT_TIME), |time| u64::try_from(time).ok());
    let per_second = rate(hash, key_len);
    let out_of_range = |text: String| Error::io(&text, IoError::from_errno(ERANGE));
    let wished = wished.and_then(|time| per_second.checked_mul(time));
    let Some(wished) = wished else {
        let text = format!("PBKDF iterations {per_second} too large to scale");
        return Err(out_of_range(text));
    };
    let wished = (wished / 1000).max(LEAST_ITERATIONS);
    let found = u32::try_from(wished)
        .ok()
        .filter(|count| *count <= MOST_ITERATIONS);
    found.ok_or_else(|| out_of_range(format!("PBKDF iterations {wished} larger than {MOST_ITERATIONS}")))
}

/// The host's number for a result out of range.
const ERANGE: i32 = 34;

/// Iterations a second, by this thread's own time: what else runs on the machine does not make passwords cheaper.
fn rate(hash: &Hash, key_len: usize) -> u64 {
    let mut rounds = FIRST_TRY;
    loop {
        let start = thread_time();
        hash.derive(b"password", &[0; SALT], rounds, key_len);
        let took = thread_time().saturating_sub(start);
        if took >= MEASURED || rounds > u32::MAX / 2 {
            let nanoseconds = took.as_nanos().max(1);
            let rate = u128::from(rounds) * 1_000_000_000 / nanoseconds;
            return u64::try_from(rate).unwrap_or(u64::MAX);
        }
        rounds *= 2;
    }
}

fn thread_time() -> Duration {
    let time = clock_gettime(ClockId::ThreadCPUTime);
    let seconds = u64::try_from(time.tv_sec).unwrap_or_default();
    Duration::new(seconds, u32::try_from(time.tv_nsec).unwrap_or_default())
}
