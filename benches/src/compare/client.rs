//! An NBD client that asks one thing at a time: for connections that idle, and for what the load client does not ask,
//! where an image has data.

use std::io::{ErrorKind, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;

use crate::Outcome;

const REPLY_MAGIC: u64 = 0x0003_e889_0455_65a9;
const REQUEST_MAGIC: u32 = 0x2560_9513;
const STRUCTURED_REPLY_MAGIC: u32 = 0x668e_33ef;
const OPTION_GO: u32 = 7;
const OPTION_STRUCTURED_REPLY: u32 = 8;
const OPTION_SET_META_CONTEXT: u32 = 10;
const REPLY_ACK: u32 = 1;
const REPLY_INFO: u32 = 3;
const REPLY_META_CONTEXT: u32 = 4;
const COMMAND_READ: u16 = 0;
const COMMAND_BLOCK_STATUS: u16 = 7;
const CHUNK_OFFSET_DATA: u16 = 1;
const CHUNK_OFFSET_HOLE: u16 = 2;
const CHUNK_BLOCK_STATUS: u16 = 5;
const FLAG_DONE: u16 = 1;

/// The most bytes a reply may have here: those of the largest read, and of the longest list of extents.
const MOST: u32 = 64 << 20;

/// A connection in transmission, with structured replies.
#[derive(Debug)]
pub struct Client {
    stream: UnixStream,
    size: u64,
}

impl Client {
    /// Connects to an export, with its allocation to be asked for.
    pub fn open(socket: &Path, export: &str) -> Outcome<Client> {
        let mut stream = UnixStream::connect(socket)?;
        let mut greeting = [0; 18];
        stream.read_exact(&mut greeting)?;
        if !greeting.starts_with(b"NBDMAGICIHAVEOPT") {
            return Err("not an NBD server of the new style".into());
        }
        // Fixed new style, no zeroes.
        stream.write_all(&3_u32.to_be_bytes())?;
        let mut client = Client { stream, size: 0 };
        client.option(OPTION_STRUCTURED_REPLY, &[])?;
        let name = [&u32::try_from(export.len())?.to_be_bytes()[..], export.as_bytes()].concat();
        let context = b"base:allocation";
        let query = [
            &name[..],
            &1_u32.to_be_bytes(),
            &u32::try_from(context.len())?.to_be_bytes(),
            context,
        ];
        client.option(OPTION_SET_META_CONTEXT, &query.concat())?;
        client.option(OPTION_GO, &[&name[..], &[0, 0]].concat())?;
        Ok(client)
    }

    /// Bytes of the export.
    pub fn size(&self) -> u64 {
        self.size
    }

    /// Sends an option and takes its replies, up to the one that acknowledges it.
    fn option(&mut self, option: u32, data: &[u8]) -> Outcome<()> {
        let length = u32::try_from(data.len())?.to_be_bytes();
        let parts = [&b"IHAVEOPT"[..], &option.to_be_bytes(), &length, data];
        self.stream.write_all(&parts.concat())?;
        loop {
            if self.number64()? != REPLY_MAGIC || self.number()? != option {
                return Err("not a reply to an option".into());
            }
            let kind = self.number()?;
            let data = self.bytes()?;
            match (kind, data.first_chunk::<10>()) {
                (REPLY_ACK, _) => return Ok(()),
                (REPLY_INFO, Some([0, 0, size @ ..])) => self.size = u64::from_be_bytes(*size),
                (REPLY_INFO | REPLY_META_CONTEXT, _) => {}
                _ => return Err(format!("option {option}: {}", String::from_utf8_lossy(&data)).into()),
            }
        }
    }

    /// Reads a range and throws away what it contains.
    pub fn read(&mut self, offset: u64, length: u32) -> Outcome<()> {
        self.request(COMMAND_READ, offset, length)?;
        let mut got = 0;
        self.chunks(|kind, data| {
            got += match (kind, data) {
                (CHUNK_OFFSET_DATA, data) => data.len().saturating_sub(8),
                (CHUNK_OFFSET_HOLE, [.., a, b, c, d]) => u32::from_be_bytes([*a, *b, *c, *d]) as usize,
                _ => 0,
            };
        })?;
        if got == length as usize {
            Ok(())
        } else {
            Err(format!("{got} bytes in place of {length}").into())
        }
    }

    /// Asks where the export has data, from its front to its end; the number of extents.
    pub fn map(&mut self) -> Outcome<usize> {
        let (mut offset, mut extents) = (0, 0);
        while offset < self.size {
            // A length of 32 bits, on a boundary that every server takes.
            let length = u32::try_from(self.size - offset).unwrap_or(1 << 31);
            self.request(COMMAND_BLOCK_STATUS, offset, length)?;
            let mut told = 0;
            self.chunks(|kind, data| {
                if kind == CHUNK_BLOCK_STATUS {
                    let list = data.get(4..).unwrap_or_default();
                    for extent in list.as_chunks::<8>().0 {
                        told += u64::from(u32::from_be_bytes([extent[0], extent[1], extent[2], extent[3]]));
                        extents += 1;
                    }
                }
            })?;
            if told == 0 {
                return Err("the server tells of no extent".into());
            }
            offset += told;
        }
        Ok(extents)
    }

    fn request(&mut self, command: u16, offset: u64, length: u32) -> Outcome<()> {
        let mut request = REQUEST_MAGIC.to_be_bytes().to_vec();
        request.extend([0, 0]);
        request.extend(command.to_be_bytes());
        request.extend(1_u64.to_be_bytes());
        request.extend(offset.to_be_bytes());
        request.extend(length.to_be_bytes());
        Ok(self.stream.write_all(&request)?)
    }

    /// Takes the chunks of one reply.
    fn chunks(&mut self, mut take: impl FnMut(u16, &[u8])) -> Outcome<()> {
        loop {
            if self.number()? != STRUCTURED_REPLY_MAGIC {
                return Err("not a structured reply".into());
            }
            let word = self.number()?;
            let (flags, kind) = ((word >> 16) as u16, word as u16);
            self.number64()?;
            let data = self.bytes()?;
            if kind & 1 << 15 != 0 {
                return Err(format!("a request failed: {}", String::from_utf8_lossy(&data)).into());
            }
            take(kind, &data);
            if flags & FLAG_DONE != 0 {
                return Ok(());
            }
        }
    }

    fn number(&mut self) -> Outcome<u32> {
        let mut bytes = [0; 4];
        self.fill(&mut bytes)?;
        Ok(u32::from_be_bytes(bytes))
    }

    fn number64(&mut self) -> Outcome<u64> {
        let mut bytes = [0; 8];
        self.fill(&mut bytes)?;
        Ok(u64::from_be_bytes(bytes))
    }

    fn fill(&mut self, bytes: &mut [u8]) -> Outcome<()> {
        self.stream.read_exact(bytes).map_err(|error| match error.kind() {
            ErrorKind::UnexpectedEof => "the server has closed the connection".into(),
            _ => error.into(),
        })
    }

    /// A length and so many bytes.
    fn bytes(&mut self) -> Outcome<Vec<u8>> {
        let length = self.number()?;
        if length > MOST {
            return Err(format!("a reply of {length} bytes").into());
        }
        let mut bytes = vec![0; length as usize];
        self.fill(&mut bytes)?;
        Ok(bytes)
    }
}
