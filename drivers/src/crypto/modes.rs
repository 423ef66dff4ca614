//! The modes in which a cipher encrypts sectors, each over the cipher's calls for several blocks at once.

use cipher::generic_array::{ArrayLength, GenericArray};
use cipher::inout::InOutBuf;
use cipher::typenum::{U16, Unsigned};
use cipher::{
    Block, BlockBackend, BlockCipher, BlockClosure, BlockDecrypt, BlockDecryptMut, BlockEncrypt,
    BlockEncryptMut, BlockSizeUser, InnerIvInit, ParBlocks,
};

use super::SECTOR;
use super::ivs::Ivs;

/// Encrypts and decrypts whole sectors in place, of which the first has a number.
pub(crate) trait SectorCipher: Send + Sync {
    /// Encrypts sectors, the first of which is number `first`.
    fn encrypt(&self, first: u64, sectors: &mut [u8]);

    /// Decrypts sectors, the first of which is number `first`.
    fn decrypt(&self, first: u64, sectors: &mut [u8]);
}

/// What stands for the cipher of data that nobody may look at: no key is known, and nothing passes.
pub(crate) struct Locked;

impl SectorCipher for Locked {
    fn encrypt(&self, _: u64, sectors: &mut [u8]) {
        sectors.fill(0);
    }

    fn decrypt(&self, _: u64, sectors: &mut [u8]) {
        sectors.fill(0);
    }
}

/// A cipher as it is used here.
pub(super) trait Cipher: BlockCipher + BlockEncrypt + BlockDecrypt + Send + Sync {}

impl<C: BlockCipher + BlockEncrypt + BlockDecrypt + Send + Sync> Cipher for C {}

/// Bytes as blocks of a cipher; a rest is left out.
fn blocks<N: ArrayLength<u8>>(bytes: &mut [u8]) -> &mut [GenericArray<u8, N>] {
    InOutBuf::from(bytes).into_chunks::<N>().0.into_out()
}

/// Sectors with their numbers.
fn numbered(first: u64, sectors: &mut [u8]) -> impl Iterator<Item = (u64, &mut [u8])> {
    let sectors = sectors.chunks_exact_mut(SECTOR).enumerate();
    sectors.map(move |(at, sector)| (first.wrapping_add(at as u64), sector))
}

/// Each block by itself.
pub(super) struct Ecb<C>(pub C);

impl<C: Cipher> SectorCipher for Ecb<C> {
    fn encrypt(&self, _first: u64, sectors: &mut [u8]) {
        self.0.encrypt_blocks(blocks(sectors));
    }

    fn decrypt(&self, _first: u64, sectors: &mut [u8]) {
        self.0.decrypt_blocks(blocks(sectors));
    }
}

/// Each block mixed with the one before.
pub(super) struct Cbc<C> {
    pub cipher: C,
    pub ivs: Ivs,
}

impl<C: Cipher> Cbc<C> {
    fn iv(&self, sector: u64) -> Block<C> {
        let mut iv = Block::<C>::default();
        self.ivs.fill(sector, &mut iv);
        iv
    }
}

impl<C: Cipher> SectorCipher for Cbc<C> {
    fn encrypt(&self, first: u64, sectors: &mut [u8]) {
        for (number, sector) in numbered(first, sectors) {
            let mut mode = cbc::Encryptor::<&C>::inner_iv_init(&self.cipher, &self.iv(number));
            mode.encrypt_blocks_mut(blocks(sector));
        }
    }

    fn decrypt(&self, first: u64, sectors: &mut [u8]) {
        for (number, sector) in numbered(first, sectors) {
            let mut mode = cbc::Decryptor::<&C>::inner_iv_init(&self.cipher, &self.iv(number));
            mode.decrypt_blocks_mut(blocks(sector));
        }
    }
}

/// A counter, encrypted and mixed into the data. The counter begins with the sector's vector, which is why sectors share
/// parts of it: this mode is here to open what others have made.
pub(super) struct Ctr<C> {
    pub cipher: C,
    pub ivs: Ivs,
}

impl<C: Cipher> Ctr<C> {
    fn mix(&self, first: u64, sectors: &mut [u8]) {
        for (number, sector) in numbered(first, sectors) {
            let mut counter = Block::<C>::default();
            self.ivs.fill(number, &mut counter);
            let mut stream = [0; SECTOR];
            for block in blocks::<C::BlockSize>(&mut stream) {
                block.clone_from(&counter);
                increment(&mut counter);
            }
            self.cipher.encrypt_blocks(blocks(&mut stream));
            sector
                .iter_mut()
                .zip(stream)
                .for_each(|(byte, mask)| *byte ^= mask);
        }
    }
}

/// The next of a counter whose last byte counts fastest.
fn increment(counter: &mut [u8]) {
    for byte in counter.iter_mut().rev() {
        *byte = byte.wrapping_add(1);
        if *byte != 0 {
            break;
        }
    }
}

impl<C: Cipher> SectorCipher for Ctr<C> {
    fn encrypt(&self, first: u64, sectors: &mut [u8]) {
        self.mix(first, sectors);
    }

    fn decrypt(&self, first: u64, sectors: &mut [u8]) {
        self.mix(first, sectors);
    }
}

/// Each block by its place, with a second key that encrypts the sector's vector.
pub(super) struct Xts<C> {
    pub data: C,
    pub tweak: C,
    pub ivs: Ivs,
}

/// Sectors whose tweaks are encrypted together.
const BATCH: usize = 32;

type Block16 = GenericArray<u8, U16>;

impl<C: Cipher + BlockSizeUser<BlockSize = U16>> Xts<C> {
    /// Runs `pass` over the sectors, some at a time, with their first tweaks.
    fn run(&self, first: u64, sectors: &mut [u8], pass: impl Fn(&C, Pass<'_>)) {
        let mut number = first;
        for sectors in sectors.chunks_mut(BATCH * SECTOR) {
            let mut tweaks = [Block16::default(); BATCH];
            let tweaks = &mut tweaks[..sectors.len() / SECTOR];
            for tweak in tweaks.iter_mut() {
                self.ivs.fill(number, tweak);
                number = number.wrapping_add(1);
            }
            self.tweak.encrypt_blocks(tweaks);
            pass(&self.data, Pass { sectors, tweaks });
        }
    }
}

impl<C: Cipher + BlockSizeUser<BlockSize = U16>> SectorCipher for Xts<C> {
    fn encrypt(&self, first: u64, sectors: &mut [u8]) {
        self.run(first, sectors, |cipher, pass| cipher.encrypt_with_backend(pass));
    }

    fn decrypt(&self, first: u64, sectors: &mut [u8]) {
        self.run(first, sectors, |cipher, pass| cipher.decrypt_with_backend(pass));
    }
}

/// One way over some sectors: each block is mixed with its tweak, put through the cipher, and mixed with the tweak again.
struct Pass<'a> {
    sectors: &'a mut [u8],
    /// The tweak of each sector's first block.
    tweaks: &'a [Block16],
}

impl BlockSizeUser for Pass<'_> {
    type BlockSize = U16;
}

impl BlockClosure for Pass<'_> {
    #[inline(always)]
    fn call<B: BlockBackend<BlockSize = U16>>(self, backend: &mut B) {
        for (sector, tweak) in self.sectors.chunks_exact_mut(SECTOR).zip(self.tweaks) {
            let mut tweak = u128::from_le_bytes((*tweak).into());
            let mut groups = sector.chunks_exact_mut(16 * B::ParBlocksSize::USIZE);
            for group in &mut groups {
                let mut tweaks = ParBlocks::<B>::default();
                let mut work = ParBlocks::<B>::default();
                let places = blocks::<U16>(group);
                for ((place, work), own) in places.iter().zip(work.iter_mut()).zip(tweaks.iter_mut()) {
                    *own = tweak.to_le_bytes().into();
                    *work = mixed(place, own);
                    tweak = doubled(tweak);
                }
                backend.proc_par_blocks((&mut work).into());
                for ((place, work), own) in places.iter_mut().zip(work.iter()).zip(tweaks.iter()) {
                    *place = mixed(work, own);
                }
            }
            for place in blocks::<U16>(groups.into_remainder()) {
                let own = tweak.to_le_bytes().into();
                let mut work = mixed(place, &own);
                backend.proc_block((&mut work).into());
                *place = mixed(&work, &own);
                tweak = doubled(tweak);
            }
        }
    }
}

/// Two blocks mixed, as numbers rather than byte by byte.
#[inline(always)]
fn mixed(one: &Block16, other: &Block16) -> Block16 {
    let number = |block: &Block16| u128::from_ne_bytes((*block).into());
    (number(one) ^ number(other)).to_ne_bytes().into()
}

/// The tweak of the next block: twice this one, in the field of 2^128 elements that the mode calculates in.
#[inline(always)]
const fn doubled(tweak: u128) -> u128 {
    (tweak << 1) ^ ((tweak >> 127) * 0x87)
}
