//! What a sector's number becomes before the mode begins with it.

use cipher::BlockEncrypt;
use cipher::generic_array::GenericArray;
use cipher::typenum::U16;

/// Encrypts one block of 16 bytes.
pub(super) trait BlockKey: Send + Sync {
    /// Encrypts the block in place.
    fn encrypt(&self, block: &mut [u8; 16]);
}

impl<C: BlockEncrypt<BlockSize = U16> + Send + Sync> BlockKey for C {
    fn encrypt(&self, block: &mut [u8; 16]) {
        let into: &mut GenericArray<u8, U16> = block.into();
        self.encrypt_block(into);
    }
}

/// Makes initialisation vectors of sector numbers.
pub(super) enum Ivs {
    /// The low 32 bits of the number.
    Plain,
    /// The number, all 64 bits.
    Plain64,
    /// The number, encrypted with a key of its own.
    Essiv(Box<dyn BlockKey>),
}

impl Ivs {
    /// Puts the vector of `sector` into `iv`, which is a block of the cipher: the bytes behind the number are zero.
    pub fn fill(&self, sector: u64, iv: &mut [u8]) {
        let mut block = [0; 16];
        let number = sector.to_le_bytes();
        let used = if matches!(self, Self::Plain) { 4 } else { 8 };
        block
            .iter_mut()
            .zip(&number[..used])
            .for_each(|(byte, new)| *byte = *new);
        if let Self::Essiv(key) = self {
            key.encrypt(&mut block);
        }
        iv.iter_mut().zip(block).for_each(|(byte, new)| *byte = new);
    }
}
