//! Binary records: bincode in frames with a length and a cap, for logs of messages.
//!
//! A frame is a little-endian `u32` count of bytes, then that many bytes of bincode (standard configuration).
//! A flight record is [`FLIGHT_MAGIC`], a [`FlightHeader`] and a [`FlightThread`] for each thread.
//! Version 1: the types as they stand here.

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::handshake::PendingRequest;

/// The longest frame that is written or read, in bytes.
pub const FRAME_MAX: usize = 1 << 20;

/// What a flight record begins with; the number is its version.
pub const FLIGHT_MAGIC: &[u8; 16] = b"millpond flight1";

const LENGTH_BYTES: usize = size_of::<u32>();

/// Why a frame cannot be written or read.
#[derive(Debug, thiserror::Error)]
pub enum FrameError {
    /// A frame is longer than [`FRAME_MAX`].
    #[error("a frame of {0} bytes is longer than the {FRAME_MAX} allowed")]
    TooLong(usize),
    /// The bytes end before the frame does.
    #[error("the frame is cut short")]
    Short,
    /// The bytes are no value of that type.
    #[error("the frame holds no such record")]
    Decode(#[from] bincode::error::DecodeError),
    /// The value cannot be written.
    #[error("the record cannot be encoded")]
    Encode(#[from] bincode::error::EncodeError),
    /// The value ends before the frame does.
    #[error("{0} bytes follow the record within its frame")]
    Trailing(usize),
}

/// Appends `value` as one frame.
///
/// # Errors
/// The value is too long or cannot be encoded; `out` is then as it was.
pub fn write_frame<T: Serialize>(value: &T, out: &mut Vec<u8>) -> Result<(), FrameError> {
    let start = out.len();
    let written = bincode::serde::encode_to_vec(value, bincode::config::standard())?;
    let len = u32::try_from(written.len())
        .ok()
        .filter(|_| written.len() <= FRAME_MAX);
    let Some(len) = len else {
        out.truncate(start);
        return Err(FrameError::TooLong(written.len()));
    };
    out.extend_from_slice(&len.to_le_bytes());
    out.extend_from_slice(&written);
    Ok(())
}

/// Reads one frame from the start of `bytes`: the value, and how many bytes it took.
///
/// # Errors
/// The frame is too long, cut short, holds something else, or more than one value.
pub fn read_frame<T: DeserializeOwned>(bytes: &[u8]) -> Result<(T, usize), FrameError> {
    let (head, rest) = bytes
        .split_first_chunk::<LENGTH_BYTES>()
        .ok_or(FrameError::Short)?;
    let len = usize::try_from(u32::from_le_bytes(*head)).unwrap_or(usize::MAX);
    if len > FRAME_MAX {
        return Err(FrameError::TooLong(len));
    }
    let body = rest.get(..len).ok_or(FrameError::Short)?;
    let config = bincode::config::standard().with_limit::<FRAME_MAX>();
    let (value, used) = bincode::serde::decode_from_slice(body, config)?;
    if used != len {
        return Err(FrameError::Trailing(len - used));
    }
    Ok((value, LENGTH_BYTES + len))
}

/// One message between actors, as the thread that saw it keeps it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct MessageRecord {
    /// Nanoseconds since the process started.
    pub at_ns: u64,
    /// What happened to the message.
    pub event: MessageEvent,
    /// What kind of message it was, by its place in the list of kinds.
    pub kind: u8,
    /// The node that it concerns; 0 for none.
    pub node: u64,
    /// The first byte of the range.
    pub offset: u64,
    /// The length of the range in bytes.
    pub len: u64,
    /// What joins the message and its answer: a place in the node's count, an order's id, a token, a request's id.
    pub number: u64,
    /// Who sent it: a root edge, or 0.
    pub from: u64,
}

/// What happened to a message.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum MessageEvent {
    /// A request began and ended in one step.
    Served,
    /// A request was admitted.
    Admitted,
    /// A request was answered.
    Answered,
    /// An order of the graph actor has come to the iothread.
    Ordered,
    /// The iothread told the graph actor.
    Told,
    /// The graph actor sent an order.
    Sent,
    /// The graph actor heard of an event.
    Heard,
    /// The graph actor was asked.
    Asked,
    /// The graph actor has answered.
    Replied,
}

impl MessageEvent {
    /// All of them, in order of their numbers.
    pub const ALL: [Self; 9] = [
        Self::Served,
        Self::Admitted,
        Self::Answered,
        Self::Ordered,
        Self::Told,
        Self::Sent,
        Self::Heard,
        Self::Asked,
        Self::Replied,
    ];
}

/// The first frame of a flight record: what it is of.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FlightHeader {
    /// Why it was written.
    pub reason: String,
    /// The number of the process.
    pub process: u32,
    /// When, in nanoseconds since the process started.
    pub at_ns: u64,
    /// The kinds of messages by name.
    pub kinds: Vec<String>,
    /// How many threads follow, a frame each.
    pub threads: u32,
}

/// What a thread knows beyond its records.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum ThreadState {
    /// It was asked and told what it has open.
    Told,
    /// It was asked and did not answer in time: it is stuck, or has ended.
    Silent,
    /// It was not asked, or has nothing to tell.
    NotAsked,
}

/// The frame of one thread.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FlightThread {
    /// The thread's name, cut to its first letters.
    pub name: String,
    /// Whether it told what it has open.
    pub state: ThreadState,
    /// How many records it has written since it began; the last of them follow.
    pub written: u64,
    /// The last messages, oldest first.
    pub records: Vec<MessageRecord>,
    /// The names of its nodes.
    pub nodes: Vec<(u64, String)>,
    /// Requests that are in flight, by the name of the node where they entered.
    pub in_flight: Vec<(String, PendingRequest)>,
    /// Messages that a policy holds back.
    pub held: Vec<HeldMessage>,
}

/// A message that a policy holds back.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct HeldMessage {
    /// The actor that sent the message.
    pub sender: String,
    /// Whom it is for.
    pub receiver: String,
    /// The kind of message that it is.
    pub kind: String,
    /// The node that it concerns, or nothing.
    pub node: String,
    /// How long it has been held, in nanoseconds.
    pub age_ns: u64,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(event: MessageEvent) -> MessageRecord {
        MessageRecord {
            at_ns: 1,
            event,
            kind: 2,
            node: 3,
            offset: 4096,
            len: 512,
            number: 4,
            from: 5,
        }
    }

    #[test]
    fn every_record_comes_back_as_it_was() {
        let mut log = Vec::new();
        for event in MessageEvent::ALL {
            log.clear();
            write_frame(&record(event), &mut log).unwrap();
            assert_eq!(
                read_frame::<MessageRecord>(&log).unwrap(),
                (record(event), log.len())
            );
        }
    }

    #[test]
    fn the_bytes_of_a_record_are_fixed() {
        let mut log = Vec::new();
        write_frame(&record(MessageEvent::Admitted), &mut log).unwrap();
        assert_eq!(log, [12, 0, 0, 0, 1, 1, 2, 3, 251, 0, 16, 251, 0, 2, 4, 5]);
    }

    #[test]
    fn frames_past_the_cap_are_refused_both_ways() {
        let mut log = vec![1];
        assert!(matches!(
            write_frame(&vec![0_u8; FRAME_MAX], &mut log),
            Err(FrameError::TooLong(_))
        ));
        assert_eq!(log, [1]);
        let lying = u32::MAX.to_le_bytes();
        assert!(matches!(read_frame::<u8>(&lying), Err(FrameError::TooLong(_))));
        assert!(matches!(
            read_frame::<u8>(&[4, 0, 0, 0, 1]),
            Err(FrameError::Short)
        ));
        assert!(matches!(
            read_frame::<u8>(&[2, 0, 0, 0, 1, 1]),
            Err(FrameError::Trailing(1))
        ));
    }
}
