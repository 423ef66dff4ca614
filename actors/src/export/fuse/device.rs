//! The device that the kernel's messages are read from, and the first of them: what kernel and server agree on.

use std::io::{self, IoSliceMut};
use std::sync::Arc;
use std::time::Duration;

use millpond_messages::qapi::MillpondFuseIoUring;
use millpond_ring::Fd;
use millpond_ring::buffer::Buffer;
use millpond_ring::fuse::{FuseEntry, FuseRequest, FuseRing, clone_device};
use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::{Errno, readv, write};

use super::plan::Plan;
use super::standing::Agreement;
use super::wire::{Asked, MAX_TRANSFER, MOST_HEAD, Message, Terms, WRITE_HEAD};

/// Data of a write that is shorter goes to memory of its size, and that which it was read into is used again.
const LARGE: usize = 64 << 10;

/// How long the kernel may take for its first message, which is there as soon as something is mounted.
const GREETING: Duration = Duration::from_secs(5);

/// A message that was taken from the kernel.
pub(super) struct Taken {
    pub(super) message: Message,
    /// What a write is to store; or memory for what is to be read, where the kernel has brought some.
    pub(super) data: Buffer,
    /// What it came by, if that was not the device.
    pub(super) entry: Option<FuseEntry>,
}

/// What one iothread serves an export by.
pub(super) struct Line {
    /// The device, opened for it.
    pub(super) channel: Fd,
    /// What requests come over, if not over the device.
    pub(super) ring: Option<FuseRing>,
}

/// Agrees with the kernel on how a file system that was just mounted is served, by so many iothreads. Waits for the kernel, and
/// nobody can look at the file before.
///
/// # Errors
/// Those of the device.
pub(super) fn agree(
    channel: &Fd,
    lines: usize,
    io_uring: MillpondFuseIoUring,
) -> io::Result<(Agreement, Vec<Line>)> {
    let limit = GREETING.try_into().map_err(io::Error::other)?;
    poll(&mut [PollFd::new(channel, PollFlags::IN)], Some(&limit))?;
    let Taken { message, .. } = take(channel)?;
    let Asked::Init(offered) = message.asked else {
        return Err(io::Error::other("the kernel does not say what it can do"));
    };
    let channels = channels(channel, lines);
    let over_ring = match io_uring {
        MillpondFuseIoUring::Off => Err(io::Error::other("it is off")),
        _ if !offered.allows_io_uring() => Err(io::Error::other(
            "the kernel does not offer it: see the parameter enable_uring of its module fuse",
        )),
        _ => rings(&channels),
    };
    let (max_transfer, rings) = match over_ring {
        Err(error) if io_uring == MillpondFuseIoUring::On => {
            return Err(io::Error::other(format!("no io_uring: {error}")));
        }
        Err(error) => {
            tracing::debug!(%error, "a FUSE export is served by its device, not over io_uring");
            (MAX_TRANSFER, Vec::new())
        }
        Ok(over_ring) => over_ring,
    };
    let terms = Terms {
        max_transfer,
        over_io_uring: !rings.is_empty(),
    };
    // The device takes an answer in one piece.
    write(channel, &offered.agree(message.unique, terms))?;
    let agreement = Agreement {
        direct: offered.allows_direct(),
        max_transfer,
    };
    let mut rings = rings.into_iter();
    let lines = channels.into_iter().map(|channel| Line {
        channel,
        ring: rings.next().flatten(),
    });
    Ok((agreement, lines.collect()))
}

/// The rings by which these channels are served, and the most bytes of one read or write there.
fn rings(channels: &[Fd]) -> io::Result<(u32, Vec<Option<FuseRing>>)> {
    let plan =
        Plan::for_this_machine().ok_or_else(|| io::Error::other("its processors cannot be counted"))?;
    Ok((plan.max_transfer, plan.rings(channels)?))
}

/// The device for so many iothreads: opened for each, or shared where that is not allowed.
fn channels(channel: &Fd, lines: usize) -> Vec<Fd> {
    let mut channels = vec![Arc::clone(channel)];
    while channels.len() < lines {
        let another = clone_device(channel).map_or_else(|_shared| Arc::clone(channel), Arc::new);
        channels.push(another);
    }
    channels
}

/// Takes a message from the device, if there is one. It is read by a system call of its own: through a ring, some kernels wait
/// for a message, and one that comes while such a read is given up would be lost.
pub(super) fn take(channel: &Fd) -> Result<Taken, Errno> {
    let (mut head, mut data) = ([0; MOST_HEAD], Buffer::alloc(MAX_TRANSFER as usize));
    // The data of a write comes to memory that begins where its head ends. What has a longer head goes on there.
    let (first, rest) = head.split_at_mut(WRITE_HEAD);
    let mut parts = [IoSliceMut::new(first), IoSliceMut::new(&mut data)];
    let len = readv(channel, &mut parts)?;
    rest.copy_from_slice(&data[..MOST_HEAD - WRITE_HEAD]);
    let message = parse(head.get(..len).unwrap_or(&head), len)?;
    let data = match message.asked {
        Asked::Write { len, .. } => {
            data.truncate(len as usize);
            own(data)
        }
        _ => Buffer::new(),
    };
    let entry = None;
    Ok(Taken { message, data, entry })
}

/// A message that came over a ring.
///
/// # Errors
/// It is not what it says.
pub(super) fn taken(request: FuseRequest) -> Result<Taken, Errno> {
    let FuseRequest {
        entry,
        head,
        mut payload,
        data_len,
    } = request;
    let message = parse(&head, told_len(&head))?;
    let data = match message.asked {
        Asked::Write { len, .. } if len as usize > data_len => return Err(Errno::PROTO),
        Asked::Write { len, .. } | Asked::Read { len, .. } => {
            payload.truncate(len as usize);
            payload
        }
        _ => Buffer::new(),
    };
    let entry = Some(entry);
    Ok(Taken { message, data, entry })
}

/// How long a message says that it is: what comes over a ring comes in parts, so that nothing else says it.
fn told_len(head: &[u8]) -> usize {
    let told = head.first_chunk().map(|told| u32::from_ne_bytes(*told));
    told.unwrap_or_default() as usize
}

fn parse(head: &[u8], len: usize) -> Result<Message, Errno> {
    Message::parse(head.get(..len).unwrap_or(head), len).map_err(|malformed| {
        tracing::error!(%malformed, "a FUSE export was asked something strange");
        Errno::PROTO
    })
}

/// The data of a write, in memory that is not much larger.
fn own(data: Buffer) -> Buffer {
    match data.len() < LARGE {
        true => Buffer::from_slice(&data),
        false => data,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_is_as_long_as_it_says_and_no_longer_than_what_is_there() {
        let mut head = [0; MOST_HEAD];
        head[..4].copy_from_slice(&(MOST_HEAD as u32 + 9).to_ne_bytes());
        assert_eq!(told_len(&head), MOST_HEAD + 9);
        assert!(parse(&head, MOST_HEAD + 9).is_ok());
        assert_eq!(parse(&head, MOST_HEAD).err(), Some(Errno::PROTO));
        assert_eq!(told_len(&[1, 2]), 0);
    }
}
