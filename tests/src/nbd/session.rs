//! A connection in transmission: requests out, answers in, any number in flight.

use std::collections::HashMap;
use std::io::{self, BufReader, Read, Write};
use std::sync::mpsc;

use super::Stream;
use super::wire::*;

/// What was negotiated.
#[derive(Debug, Clone, Default)]
pub struct Info {
    /// Size of the export in bytes.
    pub size: u64,
    /// Transmission flags.
    pub flags: u16,
    /// Minimum, preferred and maximum block size, if the server told.
    pub block_size: Option<[u32; 3]>,
    /// Metadata contexts: id and name.
    pub contexts: Vec<(u32, String)>,
    /// Whether replies are structured.
    pub structured: bool,
    /// Whether headers are extended.
    pub extended: bool,
}

impl Info {
    /// Takes in one information item of a reply to GO or INFO.
    pub fn learn(&mut self, data: &[u8]) -> Result<(), String> {
        let mut fields = Fields(data);
        match fields.u16()? {
            INFO_EXPORT => {
                self.size = fields.u64()?;
                self.flags = fields.u16()?;
            }
            INFO_BLOCK_SIZE => self.block_size = Some([fields.u32()?, fields.u32()?, fields.u32()?]),
            _ => {}
        }
        Ok(())
    }
}

/// A request, not yet numbered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Request {
    /// The command.
    pub command: u16,
    /// Command flags.
    pub flags: u16,
    /// Offset in bytes.
    pub offset: u64,
    /// Length in bytes.
    pub length: u64,
    /// Data of a write.
    pub payload: Vec<u8>,
}

impl Request {
    /// A request without payload.
    pub fn new(command: u16, offset: u64, length: u64) -> Request {
        Request {
            command,
            flags: 0,
            offset,
            length,
            payload: Vec::new(),
        }
    }

    /// Reads `length` bytes.
    pub fn read(offset: u64, length: u64) -> Request {
        Request::new(CMD_READ, offset, length)
    }

    /// Writes `payload`.
    pub fn write(offset: u64, payload: Vec<u8>) -> Request {
        Request {
            payload: payload.clone(),
            ..Request::new(CMD_WRITE, offset, payload.len() as u64)
        }
    }

    /// Flushes all writes that were answered before.
    pub fn flush() -> Request {
        Request::new(CMD_FLUSH, 0, 0)
    }

    /// Discards a range.
    pub fn trim(offset: u64, length: u64) -> Request {
        Request::new(CMD_TRIM, offset, length)
    }

    /// Writes zeroes.
    pub fn zero(offset: u64, length: u64) -> Request {
        Request::new(CMD_WRITE_ZEROES, offset, length)
    }

    /// The same with these flags.
    pub fn flags(mut self, flags: u16) -> Request {
        self.flags |= flags;
        self
    }

    /// The bytes on the wire.
    pub fn encode(&self, cookie: u64, extended: bool) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(32 + self.payload.len());
        if extended {
            let flags = self.flags
                | if self.command == CMD_WRITE {
                    CMD_FLAG_PAYLOAD_LEN
                } else {
                    0
                };
            bytes.extend(EXTENDED_REQUEST_MAGIC.to_be_bytes());
            bytes.extend(flags.to_be_bytes());
        } else {
            bytes.extend(REQUEST_MAGIC.to_be_bytes());
            bytes.extend(self.flags.to_be_bytes());
        }
        bytes.extend(self.command.to_be_bytes());
        bytes.extend(cookie.to_be_bytes());
        bytes.extend(self.offset.to_be_bytes());
        if extended {
            bytes.extend(self.length.to_be_bytes());
        } else {
            bytes.extend(
                u32::try_from(self.length)
                    .expect("a compact header has 32 bits")
                    .to_be_bytes(),
            );
        }
        bytes.extend(&self.payload);
        bytes
    }
}

/// A stretch of a block status reply.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Extent {
    /// Length in bytes.
    pub length: u64,
    /// Status flags of the context.
    pub flags: u64,
}

/// The whole answer to one request.
#[derive(Debug, Clone, Default)]
pub struct Answer {
    /// The request's number.
    pub cookie: u64,
    /// The error on the wire; 0 is success.
    pub error: u32,
    /// The error's text, if the server sent one.
    pub message: String,
    /// Data of a read.
    pub data: Vec<u8>,
    /// Parts of a structured read: offset, length, and whether it is a hole.
    pub pieces: Vec<(u64, u64, bool)>,
    /// Extents by context id.
    pub extents: Vec<(u32, Vec<Extent>)>,
}

/// A request that waits for the rest of its answer.
#[derive(Debug)]
struct Pending {
    command: u16,
    offset: u64,
    length: u64,
    answer: Answer,
}

/// A connection in transmission.
#[derive(Debug)]
pub struct Session {
    /// What was negotiated.
    pub info: Info,
    output: Output,
    input: BufReader<Stream>,
    pending: HashMap<u64, Pending>,
    next_cookie: u64,
}

/// How requests reach the socket.
#[derive(Debug)]
enum Output {
    /// Written by the caller, who may wait while the server does not read.
    Direct(Stream),
    /// Written by a thread, so that the caller can go on taking answers.
    Thread(mpsc::Sender<Vec<u8>>),
}

impl Session {
    pub(super) fn new(stream: Stream, info: Info) -> Session {
        let output = stream.try_clone().expect("a socket can be cloned");
        Session {
            info,
            output: Output::Direct(output),
            input: BufReader::with_capacity(256 << 10, stream),
            pending: HashMap::new(),
            next_cookie: 1,
        }
    }

    /// Lets a thread do the writing: needed as soon as many requests are in flight, since a server that waits for its
    /// answers to be taken does not read further requests.
    pub fn pipelined(mut self) -> Session {
        if let Output::Direct(mut stream) = self.output {
            let (sender, receiver) = mpsc::channel::<Vec<u8>>();
            std::thread::spawn(move || {
                while let Ok(bytes) = receiver.recv() {
                    // A broken connection shows to the reader, which reports it.
                    if stream.write_all(&bytes).is_err() {
                        return;
                    }
                }
            });
            self.output = Output::Thread(sender);
        }
        self
    }

    /// The socket, for saying what no method says.
    pub fn stream(&mut self) -> &mut Stream {
        self.input.get_mut()
    }

    /// How many requests are in flight.
    pub fn in_flight(&self) -> usize {
        self.pending.len()
    }

    /// Sends a request and returns its number.
    pub fn submit(&mut self, request: &Request) -> io::Result<u64> {
        let cookie = self.next_cookie;
        self.next_cookie += 1;
        let answer = Answer {
            cookie,
            ..Answer::default()
        };
        let (command, offset, length) = (request.command, request.offset, request.length);
        self.pending.insert(
            cookie,
            Pending {
                command,
                offset,
                length,
                answer,
            },
        );
        self.send_bytes(request.encode(cookie, self.info.extended))?;
        Ok(cookie)
    }

    /// Sends bytes as they are.
    pub fn send_bytes(&mut self, bytes: Vec<u8>) -> io::Result<()> {
        match &mut self.output {
            Output::Direct(stream) => stream.write_all(&bytes),
            Output::Thread(sender) => sender.send(bytes).map_err(|_| io::ErrorKind::BrokenPipe.into()),
        }
    }

    /// Waits for the next answer to any request in flight.
    pub fn complete(&mut self) -> io::Result<Answer> {
        loop {
            let magic = u32::from_be_bytes(self.take()?);
            let finished = match magic {
                SIMPLE_REPLY_MAGIC => Some(self.simple_reply()?),
                STRUCTURED_REPLY_MAGIC if self.info.structured && !self.info.extended => self.chunk(false)?,
                EXTENDED_REPLY_MAGIC if self.info.extended => self.chunk(true)?,
                _ => return Err(invalid(format!("a reply begins with {magic:#x}"))),
            };
            if let Some(answer) = finished {
                return Ok(answer);
            }
        }
    }

    /// Sends a request and waits for its answer; no other may be in flight.
    pub fn call(&mut self, request: &Request) -> io::Result<Answer> {
        let cookie = self.submit(request)?;
        let answer = self.complete()?;
        if answer.cookie == cookie {
            Ok(answer)
        } else {
            Err(invalid("an answer to another request".to_owned()))
        }
    }

    /// Sends a request that must succeed.
    #[track_caller]
    pub fn ok(&mut self, request: &Request) -> Answer {
        let answer = self
            .call(request)
            .unwrap_or_else(|error| panic!("{}: {error}", brief(request)));
        assert_eq!(answer.error, 0, "{} failed: {}", brief(request), answer.message);
        answer
    }

    /// Sends a request that must fail, and returns the error on the wire.
    #[track_caller]
    pub fn refused(&mut self, request: &Request) -> u32 {
        let answer = self
            .call(request)
            .unwrap_or_else(|error| panic!("{}: {error}", brief(request)));
        assert_ne!(answer.error, 0, "{} should have failed", brief(request));
        answer.error
    }

    /// Reads, which must succeed.
    #[track_caller]
    pub fn read(&mut self, offset: u64, length: u64) -> Vec<u8> {
        self.ok(&Request::read(offset, length)).data
    }

    /// Reads the whole export in pieces that any server takes.
    #[track_caller]
    pub fn read_all(&mut self) -> Vec<u8> {
        let mut data = Vec::new();
        while (data.len() as u64) < self.info.size {
            let left = self.info.size - data.len() as u64;
            data.extend(self.read(data.len() as u64, left.min(4 << 20)));
        }
        data
    }

    /// Writes, which must succeed.
    #[track_caller]
    pub fn write(&mut self, offset: u64, data: &[u8]) {
        self.ok(&Request::write(offset, data.to_vec()));
    }

    /// Flushes, which must succeed.
    #[track_caller]
    pub fn flush(&mut self) {
        self.ok(&Request::flush());
    }

    /// The extents of the whole export in one context, neighbours of equal flags joined.
    #[track_caller]
    pub fn status_all(&mut self, context: &str) -> Vec<Extent> {
        let found = self.info.contexts.iter().find(|(_, name)| name == context);
        let id = found
            .unwrap_or_else(|| panic!("context {context} was not negotiated"))
            .0;
        let mut extents: Vec<Extent> = Vec::new();
        let mut offset = 0;
        while offset < self.info.size {
            // Whole sectors below the compact header's limit.
            let length = (self.info.size - offset).min(u64::from(u32::MAX - 511));
            let answer = self.ok(&Request::new(CMD_BLOCK_STATUS, offset, length));
            let of_context = answer.extents.into_iter().find(|(of, _)| *of == id);
            let of_context = of_context
                .unwrap_or_else(|| panic!("no extents of {context} at {offset}"))
                .1;
            assert!(!of_context.is_empty(), "an empty list of extents at {offset}");
            for extent in of_context {
                offset += extent.length;
                match extents.last_mut() {
                    Some(last) if last.flags == extent.flags => last.length += extent.length,
                    _ => extents.push(extent),
                }
            }
        }
        extents
    }

    /// Says goodbye, and waits until the server has closed the connection.
    pub fn disconnect(mut self) -> io::Result<()> {
        self.send_bytes(Request::new(CMD_DISC, 0, 0).encode(0, self.info.extended))?;
        self.input.get_mut().wait_closed()
    }

    fn simple_reply(&mut self) -> io::Result<Answer> {
        let error = u32::from_be_bytes(self.take()?);
        let cookie = u64::from_be_bytes(self.take()?);
        let pending = self
            .pending
            .remove(&cookie)
            .ok_or_else(|| invalid(format!("nobody asked {cookie}")))?;
        let mut answer = pending.answer;
        answer.error = error;
        if pending.command == CMD_READ && error == 0 {
            if self.info.structured {
                return Err(invalid("a read was answered by a simple reply".to_owned()));
            }
            answer.data = self.payload(pending.length)?;
        }
        Ok(answer)
    }

    /// Takes in one chunk; the whole answer if it was the last.
    fn chunk(&mut self, extended: bool) -> io::Result<Option<Answer>> {
        let flags = u16::from_be_bytes(self.take()?);
        let kind = u16::from_be_bytes(self.take()?);
        let cookie = u64::from_be_bytes(self.take()?);
        let length = if extended {
            let _offset = u64::from_be_bytes(self.take()?);
            u64::from_be_bytes(self.take()?)
        } else {
            u64::from(u32::from_be_bytes(self.take()?))
        };
        let payload = self.payload(length)?;
        let pending = self
            .pending
            .get_mut(&cookie)
            .ok_or_else(|| invalid(format!("nobody asked {cookie}")))?;
        pending.take_chunk(kind, &payload).map_err(invalid)?;
        if flags & REPLY_FLAG_DONE == 0 {
            return Ok(None);
        }
        match self.pending.remove(&cookie) {
            Some(pending) => pending.finish().map(Some).map_err(invalid),
            None => Ok(None),
        }
    }

    fn take<const N: usize>(&mut self) -> io::Result<[u8; N]> {
        let mut bytes = [0; N];
        self.input.read_exact(&mut bytes)?;
        Ok(bytes)
    }

    fn payload(&mut self, length: u64) -> io::Result<Vec<u8>> {
        if length > 64 << 20 {
            return Err(invalid(format!("a payload of {length} bytes")));
        }
        let mut bytes = vec![0; length as usize];
        self.input.read_exact(&mut bytes)?;
        Ok(bytes)
    }
}

impl Pending {
    fn take_chunk(&mut self, kind: u16, payload: &[u8]) -> Result<(), String> {
        let mut fields = Fields(payload);
        match kind {
            REPLY_NONE => Ok(()),
            REPLY_OFFSET_DATA => {
                let at = fields.u64()?;
                self.place(at, fields.0, fields.0.len() as u64, false)
            }
            REPLY_OFFSET_HOLE => {
                let (at, length) = (fields.u64()?, fields.u32()?);
                self.place(at, &[], u64::from(length), true)
            }
            REPLY_BLOCK_STATUS => self.take_extents(fields, false),
            REPLY_BLOCK_STATUS_EXT => self.take_extents(fields, true),
            REPLY_ERROR | REPLY_ERROR_OFFSET => {
                self.answer.error = fields.u32()?;
                let length = usize::from(fields.u16()?);
                let text = fields.0.get(..length).ok_or("an error's text is cut short")?;
                self.answer.message = String::from_utf8_lossy(text).into_owned();
                Ok(())
            }
            _ => Err(format!("a chunk of type {kind}")),
        }
    }

    fn take_extents(&mut self, mut fields: Fields, wide: bool) -> Result<(), String> {
        let context = fields.u32()?;
        if wide {
            fields.u32()?;
        }
        let mut extents = Vec::new();
        while !fields.0.is_empty() {
            let extent = match wide {
                true => Extent {
                    length: fields.u64()?,
                    flags: fields.u64()?,
                },
                false => Extent {
                    length: fields.u32()?.into(),
                    flags: fields.u32()?.into(),
                },
            };
            if extent.length == 0 {
                return Err("an extent of length 0".to_owned());
            }
            extents.push(extent);
        }
        self.answer.extents.push((context, extents));
        Ok(())
    }

    /// Puts a part of a read where it belongs; a hole is zeroes.
    fn place(&mut self, at: u64, data: &[u8], length: u64, hole: bool) -> Result<(), String> {
        let inside = at
            .checked_sub(self.offset)
            .filter(|start| length <= self.length.saturating_sub(*start));
        let start = inside.ok_or_else(|| format!("a part at {at}+{length} outside the read"))? as usize;
        if self.command != CMD_READ || length == 0 {
            return Err(format!(
                "a part of {length} bytes in an answer to command {}",
                self.command
            ));
        }
        self.answer.data.resize(self.length as usize, 0);
        if !hole {
            self.answer.data[start..start + data.len()].copy_from_slice(data);
        }
        self.answer.pieces.push((at, length, hole));
        Ok(())
    }

    /// Checks that a read was answered wholly and without overlap.
    fn finish(mut self) -> Result<Answer, String> {
        if self.command == CMD_READ && self.answer.error == 0 {
            self.answer.pieces.sort_unstable();
            let mut next = self.offset;
            for (at, length, _) in &self.answer.pieces {
                if *at != next {
                    return Err(format!(
                        "the parts of a read do not join at {next}: {:?}",
                        self.answer.pieces
                    ));
                }
                next += length;
            }
            if next != self.offset + self.length {
                return Err(format!("the parts of a read end at {next}"));
            }
        }
        Ok(self.answer)
    }
}

/// Big-endian fields at the front of a payload.
struct Fields<'a>(&'a [u8]);

impl Fields<'_> {
    fn take<const N: usize>(&mut self) -> Result<[u8; N], String> {
        let (first, rest) = self.0.split_first_chunk::<N>().ok_or("a payload is cut short")?;
        self.0 = rest;
        Ok(*first)
    }

    fn u16(&mut self) -> Result<u16, String> {
        self.take().map(u16::from_be_bytes)
    }

    fn u32(&mut self) -> Result<u32, String> {
        self.take().map(u32::from_be_bytes)
    }

    fn u64(&mut self) -> Result<u64, String> {
        self.take().map(u64::from_be_bytes)
    }
}

fn brief(request: &Request) -> String {
    let Request {
        command,
        flags,
        offset,
        length,
        ..
    } = request;
    format!("command {command} (flags {flags:#x}) at {offset}+{length}")
}

fn invalid(message: String) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, message)
}
