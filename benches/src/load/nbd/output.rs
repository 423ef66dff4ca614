//! Requests on their way out: formatted one after the other, the data of writes left where it is.

use std::io::{self, IoSlice};

use super::super::generate::Ask;
use super::super::spec::Kind;
use super::stream::Stream;

const REQUEST_MAGIC: [u8; 4] = 0x2560_9513_u32.to_be_bytes();

const CMD_DISC: u8 = 2;

/// Bytes of a request without its data.
const HEADER: usize = 28;

/// Pieces of memory in one call: the kernel takes 1024.
const MOST_PIECES: usize = 256;

/// Data that follows a header.
#[derive(Debug)]
struct Data {
    /// Where in the headers' bytes the data comes.
    at: usize,
    slot: usize,
    len: usize,
}

/// What is to be sent.
#[derive(Debug, Default)]
pub(super) struct Output {
    headers: Vec<u8>,
    data: Vec<Data>,
    /// Headers that have been sent, in bytes.
    sent: usize,
    /// How many of `data` have been sent whole.
    whole: usize,
    /// Bytes of the next data that have been sent.
    part: usize,
}

/// The command that a request of this kind is.
const fn command(kind: Kind) -> u8 {
    match kind {
        Kind::Read => 0,
        Kind::Write => 1,
        Kind::Flush => 3,
        Kind::Trim => 4,
        Kind::Zero => 6,
    }
}

impl Output {
    /// Whether there is nothing to be sent.
    #[inline]
    pub fn is_empty(&self) -> bool {
        self.headers.is_empty()
    }

    /// Adds a request; the data of a write is that of `slot`.
    #[inline]
    pub fn add(&mut self, ask: &Ask, cookie: u64, slot: usize) {
        let mut header = [0; HEADER];
        header[..4].copy_from_slice(&REQUEST_MAGIC);
        header[7] = command(ask.kind);
        header[8..16].copy_from_slice(&cookie.to_be_bytes());
        header[16..24].copy_from_slice(&ask.offset.to_be_bytes());
        header[24..].copy_from_slice(&ask.len.to_be_bytes());
        self.headers.extend(header);
        if ask.kind == Kind::Write {
            self.data.push(Data {
                at: self.headers.len(),
                slot,
                len: ask.len as usize,
            });
        }
    }

    /// Adds the end of the connection.
    pub fn disconnect(&mut self) {
        let mut header = [0; HEADER];
        header[..4].copy_from_slice(&REQUEST_MAGIC);
        header[7] = CMD_DISC;
        self.headers.extend(header);
    }

    /// Sends as much as there is room for. `data` gives the data of a slot, of at least the write's length.
    #[inline]
    pub fn send<'a>(&mut self, stream: &Stream, data: impl Fn(usize) -> &'a [u8]) -> io::Result<()> {
        while !self.is_empty() {
            let sent = if self.data.is_empty() {
                stream.send_now(&[IoSlice::new(&self.headers[self.sent..])])
            } else {
                stream.send_now(&self.pieces(&data))
            };
            match sent? {
                Some(count) => self.advance(count),
                None => return Ok(()),
            }
        }
        Ok(())
    }

    /// What is left, in order, up to the number of pieces that one call takes.
    fn pieces<'a: 'b, 'b>(&'b self, bytes: &impl Fn(usize) -> &'a [u8]) -> Vec<IoSlice<'b>> {
        let mut pieces = Vec::with_capacity(MOST_PIECES.min(2 * (self.data.len() - self.whole) + 1));
        let (mut at, mut part) = (self.sent, self.part);
        for data in &self.data[self.whole..] {
            if pieces.len() + 2 > MOST_PIECES {
                return pieces;
            }
            if at < data.at {
                pieces.push(IoSlice::new(&self.headers[at..data.at]));
            }
            pieces.push(IoSlice::new(&bytes(data.slot)[part..data.len]));
            (at, part) = (data.at, 0);
        }
        if at < self.headers.len() {
            pieces.push(IoSlice::new(&self.headers[at..]));
        }
        pieces
    }

    /// Notes that so many more bytes were sent.
    fn advance(&mut self, mut count: usize) {
        loop {
            let next = self.data.get(self.whole);
            let headers = next.map_or(self.headers.len(), |data| data.at) - self.sent;
            if count < headers {
                self.sent += count;
                return;
            }
            self.sent += headers;
            count -= headers;
            let Some(data) = next else { break };
            let left = data.len - self.part;
            if count < left {
                self.part += count;
                return;
            }
            count -= left;
            self.whole += 1;
            self.part = 0;
        }
        self.headers.clear();
        self.data.clear();
        (self.sent, self.whole, self.part) = (0, 0, 0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ask(kind: Kind, len: u32) -> Ask {
        Ask { kind, offset: 0, len }
    }

    #[test]
    fn a_write_is_followed_by_its_data_however_it_is_cut() {
        let payload = [b'a'; 100];
        let fill = |output: &mut Output| {
            for (slot, kind) in [Kind::Read, Kind::Write, Kind::Write, Kind::Flush]
                .into_iter()
                .enumerate()
            {
                output.add(&ask(kind, 50), slot as u64, slot);
            }
        };
        let mut whole = Output::default();
        fill(&mut whole);
        let bytes = |output: &Output| -> Vec<u8> {
            output
                .pieces(&|_| &payload[..])
                .iter()
                .flat_map(|piece| piece.to_vec())
                .collect()
        };
        let all = bytes(&whole);
        assert_eq!(all.len(), 4 * HEADER + 100);
        assert_eq!(all[2 * HEADER..2 * HEADER + 50], payload[..50]);
        for step in 1..=all.len() {
            let mut output = Output::default();
            fill(&mut output);
            let mut sent: Vec<u8> = Vec::new();
            while !output.is_empty() {
                let left = bytes(&output);
                let count = step.min(left.len());
                sent.extend(&left[..count]);
                output.advance(count);
            }
            assert!(sent == all, "in steps of {step}");
        }
    }

    #[test]
    fn no_call_has_more_pieces_than_the_kernel_takes() {
        let mut output = Output::default();
        for slot in 0..2000 {
            output.add(&ask(Kind::Write, 1), slot as u64, slot);
        }
        assert!(output.pieces(&|_| &[1][..]).len() <= MOST_PIECES);
    }
}
