//! Requests taken apart, and the replies to them.

use crate::Outcome;
use crate::load::MOST_BYTES;

/// Bytes of a request without its data.
const REQUEST: usize = 28;
const REQUEST_MAGIC: [u8; 4] = 0x2560_9513_u32.to_be_bytes();
const CMD_READ: u16 = 0;
const CMD_WRITE: u16 = 1;
const CMD_DISC: u16 = 2;

/// A reply's header with room for its data behind it.
#[derive(Debug, Clone, Copy)]
pub(super) struct Reply {
    header: [u8; 28],
    /// Bytes of the header.
    pub len: usize,
    /// Bytes of data that follow.
    pub data: usize,
}

impl Reply {
    /// The header's bytes.
    pub fn header(&self) -> &[u8] {
        &self.header[..self.len]
    }
}

/// Takes a connection's requests apart as their bytes come.
#[derive(Debug)]
pub(super) struct Requests {
    structured: bool,
    /// Data of a write that is still to come, in bytes.
    skip: usize,
    /// The client has said goodbye.
    pub ended: bool,
}

impl Requests {
    pub fn new(structured: bool) -> Requests {
        Requests {
            structured,
            skip: 0,
            ended: false,
        }
    }

    /// Takes requests from the front of `bytes`, and returns how many bytes are of no more use.
    ///
    /// # Errors
    /// They are no request, or one of too many bytes.
    #[inline]
    pub fn take(&mut self, bytes: &[u8], mut reply: impl FnMut(Reply)) -> Outcome<usize> {
        let mut at = 0;
        loop {
            let passed = self.skip.min(bytes.len() - at);
            self.skip -= passed;
            at += passed;
            let header = bytes.get(at..).and_then(|rest| rest.first_chunk::<REQUEST>());
            let Some(header) = header.filter(|_| !self.ended) else {
                return Ok(at);
            };
            at += REQUEST;
            let length = u32::from_be_bytes([header[24], header[25], header[26], header[27]]);
            if !header.starts_with(&REQUEST_MAGIC) {
                return Err("not a request".into());
            }
            match u16::from_be_bytes([header[6], header[7]]) {
                CMD_READ | CMD_WRITE if u64::from(length) > MOST_BYTES => {
                    return Err(format!("a request of {length} bytes").into());
                }
                CMD_READ => reply(self.reply(header, length)),
                CMD_WRITE => {
                    self.skip = length as usize;
                    reply(self.reply(header, 0));
                }
                CMD_DISC => self.ended = true,
                _ => reply(self.reply(header, 0)),
            }
        }
    }

    #[inline]
    fn reply(&self, request: &[u8; REQUEST], data: u32) -> Reply {
        let mut header = [0; 28];
        let cookie = &request[8..16];
        let len = if self.structured {
            header[..4].copy_from_slice(&0x668e_33ef_u32.to_be_bytes());
            // The last chunk, and data at an offset if there is any.
            header[5] = 1;
            header[7] = u8::from(data > 0);
            header[8..16].copy_from_slice(cookie);
            let length = if data > 0 { data + 8 } else { 0 };
            header[16..20].copy_from_slice(&length.to_be_bytes());
            header[20..].copy_from_slice(&request[16..24]);
            if data > 0 { 28 } else { 20 }
        } else {
            header[..4].copy_from_slice(&0x6744_6698_u32.to_be_bytes());
            header[8..16].copy_from_slice(cookie);
            16
        };
        Reply {
            header,
            len,
            data: data as usize,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(command: u8, length: u32) -> Vec<u8> {
        let mut request = [&REQUEST_MAGIC[..], &[0, 0, 0, command], &[7; 8], &[0; 8]].concat();
        request.extend(length.to_be_bytes());
        request
    }

    #[test]
    fn requests_are_found_however_they_are_cut() {
        let all = [
            request(0, 100),
            request(1, 50),
            vec![1; 50],
            request(3, 0),
            request(2, 0),
        ]
        .concat();
        for size in 1..=all.len() {
            let (mut requests, mut replies, mut kept) = (Requests::new(false), Vec::new(), Vec::new());
            for piece in all.chunks(size) {
                kept.extend_from_slice(piece);
                let used = requests
                    .take(&kept, |reply| replies.push((reply.len, reply.data)))
                    .unwrap();
                kept.drain(..used);
            }
            assert_eq!(replies, [(16, 100), (16, 0), (16, 0)], "in pieces of {size}");
            assert!(requests.ended && kept.is_empty());
        }
    }

    #[test]
    fn what_is_no_request_is_refused() {
        for bytes in [vec![0; 28], request(0, u32::MAX)] {
            assert!(Requests::new(true).take(&bytes, |_| ()).is_err());
        }
    }
}
