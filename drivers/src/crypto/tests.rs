//! The modes beside the simplest way to write them, and keys split into stripes.

use aes::Aes128;
use cipher::{BlockDecrypt, BlockEncrypt, KeyInit};
use millpond_messages::qapi::schema::{
    QCryptoCipherAlgo, QCryptoCipherMode, QCryptoHashAlgo, QCryptoIVGenAlgo,
};

use super::stripes::{merge, split};
use super::{CipherSpec, Hash, SECTOR, cbc_unwrap, fill_random, random};

fn spec(mode: QCryptoCipherMode) -> CipherSpec {
    CipherSpec {
        algorithm: QCryptoCipherAlgo::Aes128,
        mode,
        ivgen: QCryptoIVGenAlgo::Plain64,
        ivgen_hash: None,
    }
}

/// The mode XTS, a block at a time, with its tweak doubled a byte at a time.
fn simple_xts(key: &[u8; 32], first: u64, sectors: &mut [u8], encrypts: bool) {
    let data = Aes128::new_from_slice(&key[..16]).unwrap();
    let other = Aes128::new_from_slice(&key[16..]).unwrap();
    for (at, sector) in sectors.chunks_mut(SECTOR).enumerate() {
        let mut tweak = [0; 16];
        tweak[..8].copy_from_slice(&first.wrapping_add(at as u64).to_le_bytes());
        other.encrypt_block((&mut tweak).into());
        for block in sector.chunks_mut(16) {
            block.iter_mut().zip(tweak).for_each(|(byte, mask)| *byte ^= mask);
            match encrypts {
                true => data.encrypt_block(block.into()),
                false => data.decrypt_block(block.into()),
            }
            block.iter_mut().zip(tweak).for_each(|(byte, mask)| *byte ^= mask);
            let mut carry = 0;
            for byte in &mut tweak {
                let next = *byte >> 7;
                *byte = *byte << 1 | carry;
                carry = next;
            }
            tweak[0] ^= 0x87 * carry;
        }
    }
}

#[test]
fn many_blocks_at_once_are_what_each_is_alone() {
    let key = random::<32>().unwrap();
    let cipher = spec(QCryptoCipherMode::Xts).with_key(&key).unwrap();
    for sectors in [1, 2, 31, 32, 33, 100] {
        for first in [0, 7, u64::from(u32::MAX), u64::MAX - 3] {
            let mut data = vec![0; sectors * SECTOR];
            fill_random(&mut data).unwrap();
            let (plain, mut simple) = (data.clone(), data.clone());
            cipher.encrypt(first, &mut data);
            simple_xts(&key, first, &mut simple, true);
            assert!(data == simple, "{sectors} sectors from {first}");
            cipher.decrypt(first, &mut data);
            assert!(data == plain, "{sectors} sectors from {first}");
            cipher.decrypt(first, &mut data);
            simple_xts(&key, first, &mut simple, false);
            simple_xts(&key, first, &mut simple, false);
            assert!(data == simple, "{sectors} sectors from {first}");
        }
    }
}

#[test]
fn every_sector_is_encrypted_by_its_number() {
    for mode in [
        QCryptoCipherMode::Cbc,
        QCryptoCipherMode::Ctr,
        QCryptoCipherMode::Xts,
    ] {
        let key = random::<32>().unwrap();
        let spec = spec(mode);
        let cipher = spec.with_key(&key[..spec.key_len().unwrap()]).unwrap();
        let mut together = vec![0; 5 * SECTOR];
        cipher.encrypt(3, &mut together);
        let (one, other) = together.split_at(SECTOR);
        assert_ne!(one, &other[..SECTOR], "{mode:?}");
        for (at, sector) in together.chunks(SECTOR).enumerate() {
            let mut alone = vec![0; SECTOR];
            cipher.encrypt(3 + at as u64, &mut alone);
            assert_eq!(alone, sector, "{mode:?}");
        }
        cipher.decrypt(3, &mut together);
        assert!(together.iter().all(|byte| *byte == 0), "{mode:?}");
    }
}

#[test]
fn a_key_is_found_from_all_its_stripes_and_no_fewer() {
    for algorithm in [
        QCryptoHashAlgo::Sha1,
        QCryptoHashAlgo::Sha256,
        QCryptoHashAlgo::Sha512,
    ] {
        let hash = Hash::find(algorithm).unwrap();
        for len in [16, 24, 64] {
            let key = &random::<64>().unwrap()[..len];
            let mut material = vec![0; len * 50];
            fill_random(&mut material).unwrap();
            split(&hash, key, &mut material);
            assert_eq!(&merge(&hash, len, &material)[..], key);
            material[len * 20] ^= 1;
            assert_ne!(&merge(&hash, len, &material)[..], key);
        }
    }
}

#[test]
fn a_wrapped_secret_needs_a_key_of_the_right_length_and_whole_blocks() {
    assert!(cbc_unwrap(&[0; 32], &[0; 16], &[0; 32]).is_some());
    assert!(cbc_unwrap(&[0; 31], &[0; 16], &[0; 32]).is_none());
    assert!(cbc_unwrap(&[0; 32], &[0; 15], &[0; 32]).is_none());
    assert!(cbc_unwrap(&[0; 32], &[0; 16], &[0; 31]).is_none());
}
