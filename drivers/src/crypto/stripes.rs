//! A key spread over many stripes, all of which are needed to find it: whoever overwrites a part of them has erased the key.

use super::{Hash, KeyBytes};

/// Replaces each part of a stripe that is as long as a digest by the digest of its number and itself.
fn diffuse(hash: &Hash, stripe: &mut [u8]) {
    for (number, part) in (0_u32..).zip(stripe.chunks_mut(hash.len)) {
        let mixed = hash.digest(&[&number.to_be_bytes(), part]);
        part.iter_mut()
            .zip(mixed.iter())
            .for_each(|(byte, new)| *byte = *new);
    }
}

fn mix(into: &mut [u8], other: &[u8]) {
    into.iter_mut()
        .zip(other)
        .for_each(|(byte, other)| *byte ^= other);
}

/// What the stripes but the last come to.
fn chain<'a>(hash: &Hash, key_len: usize, stripes: impl Iterator<Item = &'a [u8]>) -> KeyBytes {
    let mut sum = KeyBytes::new(vec![0; key_len]);
    for stripe in stripes {
        mix(&mut sum, stripe);
        diffuse(hash, &mut sum);
    }
    sum
}

/// The key of `key_len` bytes that was spread over `material`.
pub(super) fn merge(hash: &Hash, key_len: usize, material: &[u8]) -> KeyBytes {
    let last = material.len().saturating_sub(key_len);
    let (before, last) = material.split_at(last);
    let mut key = chain(hash, key_len, before.chunks_exact(key_len.max(1)));
    mix(&mut key, last);
    key
}

/// Spreads a key over `material`, which is filled with random bytes: its last stripe is made to fit.
pub(super) fn split(hash: &Hash, key: &[u8], material: &mut [u8]) {
    let last = material.len().saturating_sub(key.len());
    let (before, last) = material.split_at_mut(last);
    let sum = chain(hash, key.len(), before.chunks_exact(key.len().max(1)));
    last.copy_from_slice(key);
    mix(last, &sum);
}
