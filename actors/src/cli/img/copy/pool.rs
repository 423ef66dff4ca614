//! Memory for pieces, used again and again: fresh memory costs a page fault for each of its pages.

use std::cell::RefCell;

use millpond_messages::error::errno::ENOMEM;
use millpond_messages::{IoError, IoResult};
use millpond_ring::buffer::{Buffer, Buffers};

/// Storage that is read and written directly wants memory that begins at a multiple of this.
const ALIGNMENT: usize = 4096;

/// Buffers that are not in use.
#[derive(Default)]
pub struct BufferPool(RefCell<Vec<Buffer>>);

impl BufferPool {
    /// Memory for so many bytes, with anything in it.
    ///
    /// # Errors
    /// There is not so much.
    pub fn take(&self, len: usize) -> IoResult<Buffers> {
        let spare = &mut *self.0.borrow_mut();
        let fits = spare.iter().position(|buffer| buffer.len() == len);
        let buffer = match fits {
            Some(fits) => spare.swap_remove(fits),
            None => Buffer::try_aligned(len, ALIGNMENT).ok_or(IoError::from_errno(ENOMEM))?,
        };
        Ok(buffer.into())
    }

    /// Keeps memory that is not needed any more, if it is `len` bytes in one piece.
    pub fn give_back(&self, buffers: Buffers, len: usize) {
        if buffers.count() == 1 && buffers.len() == len {
            self.0.borrow_mut().push(buffers.into_single());
        }
    }
}
