//! Memory as a character device: it keeps what was written last, and gives no input.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::io;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll};

use tokio::io::AsyncWrite;

/// How many bytes are kept unless told.
pub const DEFAULT_SIZE: i64 = 65_536;

/// Memory that keeps a number of bytes. Clones are the same memory. It grows as it is filled.
#[derive(Clone, Debug)]
pub struct Ring(Rc<RefCell<Kept>>);

#[derive(Debug)]
struct Kept {
    bytes: VecDeque<u8>,
    size: usize,
}

impl Ring {
    /// Memory for so many bytes.
    ///
    /// # Errors
    /// QEMU's text for a number that is no power of two.
    pub fn new(size: i64) -> Result<Self, String> {
        let size = usize::try_from(size).ok();
        let Some(size) = size.filter(|size| *size == 0 || size.is_power_of_two()) else {
            return Err("size of ringbuf chardev must be power of two".into());
        };
        let bytes = VecDeque::new();
        Ok(Self(Rc::new(RefCell::new(Kept { bytes, size }))))
    }

    /// Adds bytes; the oldest go where there is no room.
    pub fn write(&self, bytes: &[u8]) {
        let kept = &mut *self.0.borrow_mut();
        let new = bytes.len().saturating_sub(kept.size);
        let new = bytes.get(new..).unwrap_or_default();
        let full = (kept.bytes.len() + new.len()).saturating_sub(kept.size);
        kept.bytes.drain(..full.min(kept.bytes.len()));
        kept.bytes.extend(new);
    }

    /// Takes the oldest bytes, at most so many.
    pub fn read(&self, most: usize) -> Vec<u8> {
        let kept = &mut *self.0.borrow_mut();
        let count = most.min(kept.bytes.len());
        kept.bytes.drain(..count).collect()
    }
}

impl AsyncWrite for Ring {
    fn poll_write(self: Pin<&mut Self>, _: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        self.write(bytes);
        Poll::Ready(Ok(bytes.len()))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_keeps_what_was_written_last() {
        let ring = Ring::new(8).expect("a power of two");
        ring.write(b"abcdef");
        assert_eq!(ring.read(2), b"ab");
        ring.write(b"ghijk");
        assert_eq!(ring.read(100), b"defghijk");
        ring.write(b"0123456789");
        assert_eq!(ring.read(3), b"234");
        ring.write(b"");
        assert_eq!(ring.read(8), b"56789");
        let nothing = Ring::new(0).expect("no memory at all");
        nothing.write(b"abc");
        assert_eq!(nothing.read(8), b"");
        assert!(Ring::new(3).is_err() && Ring::new(-8).is_err());
    }
}
