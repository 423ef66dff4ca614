//! Binary records: bincode in frames with a length and a cap, for logs of messages and for later replay.
//!
//! A frame is a little-endian `u32` count of bytes, then that many bytes of bincode (standard configuration).
//! Version 1: [`MessageRecord`] as it stands here.

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::common::{IoThreadId, NodeId};
use crate::io::OperationKind;

/// The longest frame that is written or read, in bytes.
pub const FRAME_MAX: usize = 1 << 20;
const LENGTH_BYTES: usize = size_of::<u32>();

/// Why a frame cannot be written or read.
#[derive(Debug, thiserror::Error)]
pub enum FrameError {
    /// Longer than [`FRAME_MAX`].
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

/// One message between actors, as a log keeps it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct MessageRecord {
    /// Nanoseconds since the process started.
    pub at_ns: u64,
    /// Where it went.
    pub iothread: IoThreadId,
    /// The node that it concerns.
    pub node: NodeId,
    /// What it was.
    pub event: MessageEvent,
}

/// What happened.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum MessageEvent {
    /// A request was admitted.
    Admitted(OperationKind),
    /// A request was parked at the gate.
    Parked(OperationKind),
    /// A request was answered.
    Answered(OperationKind),
    /// A quiesce was asked for, by token.
    Quiesce(u64),
    /// A quiesce was answered.
    Quiesced(u64),
    /// A section ended.
    Resume(u64),
}

#[cfg(test)]
mod tests {
    use super::*;

    fn every_event() -> Vec<MessageEvent> {
        vec![
            MessageEvent::Admitted(OperationKind::Read),
            MessageEvent::Parked(OperationKind::Write),
            MessageEvent::Answered(OperationKind::Flush),
            MessageEvent::Quiesce(1),
            MessageEvent::Quiesced(2),
            MessageEvent::Resume(u64::MAX),
        ]
    }

    #[test]
    fn every_record_comes_back_as_it_was() {
        let mut log = Vec::new();
        for event in every_event() {
            let record = MessageRecord {
                at_ns: 7,
                iothread: IoThreadId(3),
                node: NodeId(9),
                event,
            };
            log.clear();
            write_frame(&record, &mut log).unwrap();
            assert_eq!(read_frame::<MessageRecord>(&log).unwrap(), (record, log.len()));
        }
    }

    #[test]
    fn the_bytes_of_a_record_are_fixed() {
        let record = MessageRecord {
            at_ns: 1,
            iothread: IoThreadId(2),
            node: NodeId(3),
            event: MessageEvent::Admitted(OperationKind::Write),
        };
        let mut log = Vec::new();
        write_frame(&record, &mut log).unwrap();
        assert_eq!(log, [5, 0, 0, 0, 1, 2, 3, 0, 1]);
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
