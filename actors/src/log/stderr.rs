//! Standard error, for the one thread that may wait for it.

use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::{Errno, retry_on_intr, write};
use std::io::{self, Write};

/// Standard error, without a buffer. Where another process has made the file non-blocking, it waits all the same.
#[derive(Debug)]
pub(super) struct Stderr;

impl Write for Stderr {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let stderr = rustix::stdio::stderr();
        loop {
            match retry_on_intr(|| write(stderr, bytes)) {
                Err(Errno::AGAIN) => {
                    let mut writable = [PollFd::new(&stderr, PollFlags::OUT)];
                    retry_on_intr(|| poll(&mut writable, None))?;
                }
                written => return Ok(written?),
            }
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
