//! Requests that are begun and not waited for: each is reported when it has ended, while something else is waited for.

use std::future::Future;
use std::task::Poll;
use std::time::Instant;

use futures_util::StreamExt;
use millpond_messages::io::{Operation, Outcome};
use millpond_messages::{IoError, IoResult, Range, RequestFlags};
use millpond_ring::buffer::Buffers;

use super::in_flight::{Begun, Finished};
use super::memory::{READ_FILL, WRITE_FILL, filled};
use super::shell::{Ended, Shell};
use super::shown::Shown;
use super::transfer::{durability, lengths, size, take};
use super::words::cut;

/// `aio_read`: begins a read.
pub async fn read(shell: &mut Shell, words: &[String]) -> Ended {
    let cut = cut(words, "CP:iqrv");
    let mut shown = Shown::default();
    for (option, value) in &cut.options {
        match option {
            'i' => {
                shell.say("injecting invalid read request");
                return Ok(());
            }
            _ => take(shell, &mut shown, *option, value)?,
        }
    }
    let (offset, parts) = match (cut.operands.split_first(), cut.wrong) {
        (Some((offset, parts)), None) if !parts.is_empty() => (offset, parts),
        (_, wrong) => return shell.misused(words, wrong),
    };
    let offset = size(shell, offset)?;
    let parts = lengths(shell, parts)?;
    let flags = RequestFlags::empty();
    let operation = filled(&parts, READ_FILL).map(|buffers| Operation::Read {
        offset,
        buffers,
        flags,
    });
    let begun = Begun {
        shown,
        is_read: true,
        offset,
        len: parts.iter().sum(),
        since: Instant::now(),
    };
    begin(shell, begun, operation).await
}

/// `aio_write`: begins a write.
pub async fn write(shell: &mut Shell, words: &[String]) -> Ended {
    let cut = cut(words, "CfiP:qruz");
    let mut shown = Shown::default();
    let (mut zeroes, mut is_registered) = (false, false);
    let mut flags = durability(shell)?;
    for (option, value) in &cut.options {
        match option {
            'f' => flags |= RequestFlags::FUA,
            'u' => flags |= RequestFlags::MAY_UNMAP,
            'z' => zeroes = true,
            'r' => is_registered = true,
            'i' => {
                shell.say("injecting invalid write request");
                return Ok(());
            }
            _ => take(shell, &mut shown, *option, value)?,
        }
    }
    let (offset, parts) = match (cut.operands.split_first(), cut.wrong) {
        (Some((offset, parts)), None) if !parts.is_empty() => (offset, parts),
        (_, wrong) => return shell.misused(words, wrong),
    };
    if zeroes && parts.len() != 1 {
        return shell.refuse("-z supports only a single length parameter");
    }
    if flags.contains(RequestFlags::MAY_UNMAP) && !zeroes {
        return shell.refuse("-u requires -z to be specified");
    }
    if zeroes && is_registered {
        return shell.refuse("cannot combine zero write with registered I/O buffer");
    }
    let offset = size(shell, offset)?;
    let (len, operation) = match parts {
        [len] if zeroes => {
            let len = size(shell, len)?;
            let range = Range::new(offset, len).map_err(IoError::from);
            (len, range.map(|range| Operation::WriteZeroes { range, flags }))
        }
        parts => {
            let parts = lengths(shell, parts)?;
            let buffers = filled(&parts, shown.pattern.unwrap_or(WRITE_FILL));
            let operation = buffers.map(|buffers| Operation::Write {
                offset,
                buffers,
                flags,
            });
            (parts.iter().sum(), operation)
        }
    };
    let begun = Begun {
        shown,
        is_read: false,
        offset,
        len,
        since: Instant::now(),
    };
    begin(shell, begun, operation).await
}

/// Begins a request: it is on its way when this returns, before any that is begun later.
async fn begin(shell: &mut Shell, request: Begun, operation: IoResult<Operation<Buffers>>) -> Ended {
    let client = shell.image()?.client.clone();
    let mut future = Box::pin(async move {
        let outcome = match operation {
            Ok(operation) => client.request(operation).await,
            Err(error) => Outcome::plain(Err(error)),
        };
        Finished { request, outcome }
    });
    let sent = std::future::poll_fn(|context| Poll::Ready(future.as_mut().poll(context))).await;
    match sent {
        Poll::Ready(finished) => finished.report(&mut shell.out),
        Poll::Pending => shell.in_flight.push(future),
    }
    Ok(())
}

/// `aio_flush`: waits until everything has ended that was begun.
pub async fn flush(shell: &mut Shell) -> Ended {
    while let Some(finished) = shell.in_flight.next().await {
        finished.report(&mut shell.out);
    }
    Ok(())
}
