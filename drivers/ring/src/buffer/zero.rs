//! The fast test for "all bytes are zero".

/// Whether every byte of `bytes` is zero. Stops at the first block that is not.
pub fn is_zero(bytes: &[u8]) -> bool {
    // Long enough that the compiler makes vector code of a block, short enough to stop early.
    const BLOCK: usize = 256;
    let quick = |index: usize| bytes.get(index).is_none_or(|&byte| byte == 0);
    // Data seldom starts, ends and is zero in the middle: three looks settle most of it.
    if !(quick(0) && quick(bytes.len() / 2) && quick(bytes.len().wrapping_sub(1))) {
        return false;
    }
    let mut blocks = bytes.chunks_exact(BLOCK);
    blocks.all(|block| block.iter().fold(0, |all, byte| all | byte) == 0)
        && blocks.remainder().iter().all(|&byte| byte == 0)
}
