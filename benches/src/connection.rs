//! One NBD connection that keeps a fixed number of requests in flight.
//!
//! All requests that are due go out in one write, and all answers that have come are taken by one read, so that the
//! client costs the server's machine as little as it can. A connection carries only reads or only writes: the answers
//! to writes, and the requests of reads, are so short that neither side ever waits for the other to read.

use std::io::{ErrorKind, Read, Write};
use std::net::TcpStream;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use hdrhistogram::Histogram;

use crate::Outcome;

const OPTION_MAGIC: &[u8; 8] = b"IHAVEOPT";
const REPLY_MAGIC: [u8; 8] = 0x0003_e889_0455_65a9_u64.to_be_bytes();
const REQUEST_MAGIC: [u8; 4] = 0x2560_9513_u32.to_be_bytes();
const SIMPLE_REPLY: u32 = 0x6744_6698;
const STRUCTURED_REPLY: u32 = 0x668e_33ef;
const OPT_GO: u32 = 7;
const OPT_STRUCTURED_REPLY: u32 = 8;
const REP_ACK: u32 = 1;
const REP_INFO: u32 = 3;
const CHUNK_IS_LAST: u16 = 1;
const CHUNK_IS_ERROR: u16 = 1 << 15;

/// Where a server listens, in one of the two forms of an NBD URI: `nbd+unix:///NAME?socket=PATH` and
/// `nbd://HOST:PORT/NAME`.
#[derive(Debug, Clone)]
pub struct Target {
    endpoint: Endpoint,
    export: String,
}

#[derive(Debug, Clone)]
enum Endpoint {
    Unix(PathBuf),
    Tcp(String),
}

impl Target {
    /// An export of a server on a unix socket.
    pub fn unix(path: PathBuf, export: &str) -> Target {
        Target {
            endpoint: Endpoint::Unix(path),
            export: export.to_owned(),
        }
    }

    fn connect(&self) -> std::io::Result<Stream> {
        match &self.endpoint {
            Endpoint::Unix(path) => UnixStream::connect(path).map(Stream::Unix),
            Endpoint::Tcp(address) => {
                let stream = TcpStream::connect(address)?;
                stream.set_nodelay(true)?;
                Ok(Stream::Tcp(stream))
            }
        }
    }

    /// Waits until the server takes connections. Its socket's appearance cannot be awaited, so this asks again every
    /// few milliseconds, up to the limit.
    pub fn wait_ready(&self, limit: Duration) -> Outcome<()> {
        let deadline = Instant::now() + limit;
        loop {
            match self.connect() {
                Ok(_) => return Ok(()),
                Err(error) if Instant::now() > deadline => return Err(error.into()),
                Err(_) => std::thread::sleep(Duration::from_millis(2)),
            }
        }
    }
}

impl std::str::FromStr for Target {
    type Err = String;

    fn from_str(uri: &str) -> Result<Target, String> {
        if let Some(rest) = uri.strip_prefix("nbd+unix:///") {
            let (export, socket) = rest
                .split_once("?socket=")
                .ok_or("a unix URI ends with ?socket=PATH")?;
            return Ok(Target::unix(PathBuf::from(socket), export));
        }
        let rest = uri
            .strip_prefix("nbd://")
            .ok_or("a URI begins with nbd:// or nbd+unix:///")?;
        let (host, export) = rest.split_once('/').unwrap_or((rest, ""));
        let address = if host.contains(':') {
            host.to_owned()
        } else {
            format!("{host}:10809")
        };
        Ok(Target {
            endpoint: Endpoint::Tcp(address),
            export: export.to_owned(),
        })
    }
}

#[derive(Debug)]
enum Stream {
    Unix(UnixStream),
    Tcp(TcpStream),
}

impl Read for Stream {
    fn read(&mut self, bytes: &mut [u8]) -> std::io::Result<usize> {
        match self {
            Stream::Unix(stream) => stream.read(bytes),
            Stream::Tcp(stream) => stream.read(bytes),
        }
    }
}

impl Write for Stream {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        match self {
            Stream::Unix(stream) => stream.write(bytes),
            Stream::Tcp(stream) => stream.write(bytes),
        }
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

/// What one connection does.
#[derive(Debug, Clone, Copy)]
pub struct Work {
    /// Whether it writes; it reads otherwise.
    pub write: bool,
    /// Bytes a request.
    pub block: u32,
    /// Requests in flight.
    pub depth: u16,
    /// Whether to negotiate structured replies.
    pub structured: bool,
    /// Whether offsets rise one by one; they are random otherwise.
    pub sequential: bool,
    /// The part of the export that is used, in bytes; all of it if none is given.
    pub span: Option<u64>,
}

/// A connection in transmission.
#[derive(Debug)]
pub struct Connection {
    stream: Stream,
    work: Work,
    blocks: u64,
    next: u64,
    random: u64,
    started: Vec<Instant>,
    output: Vec<u8>,
    payload: Vec<u8>,
    parser: Parser,
}

impl Connection {
    /// Connects and negotiates. `seed` makes the sequence of offsets.
    pub fn open(target: &Target, work: Work, seed: u64) -> Outcome<Connection> {
        let mut stream = target.connect()?;
        let size = negotiate(&mut stream, &target.export, work.structured)?;
        let span = work.span.unwrap_or(size).min(size);
        let blocks = span / u64::from(work.block.max(1));
        if blocks == 0 || work.depth == 0 {
            return Err(format!("an export of {size} bytes has no room for this work").into());
        }
        Ok(Connection {
            stream,
            work,
            blocks,
            next: 0,
            // An odd multiplier spreads small seeds over all bits.
            random: (seed + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15),
            started: vec![Instant::now(); usize::from(work.depth)],
            output: Vec::new(),
            payload: payload(if work.write { work.block } else { 0 }),
            parser: Parser::new(if work.write { 0 } else { work.block }),
        })
    }

    /// Keeps the connection busy until `until`, adding the latency of each request that began after `from` to
    /// `latencies`, in nanoseconds. Returns how many these were.
    pub fn run(&mut self, from: Instant, until: Instant, latencies: &mut Histogram<u64>) -> Outcome<u64> {
        let mut now = Instant::now();
        for slot in 0..self.work.depth {
            self.request(slot, now);
        }
        let mut input = vec![0; 1 << 20];
        let mut in_flight = usize::from(self.work.depth);
        let mut counted = 0;
        let mut done = Vec::new();
        while in_flight > 0 {
            self.stream.write_all(&self.output)?;
            self.output.clear();
            let length = self.stream.read(&mut input)?;
            if length == 0 {
                return Err("the server closed the connection".into());
            }
            self.parser.take(&input[..length], &mut done)?;
            now = Instant::now();
            for slot in done.drain(..) {
                let started = *self
                    .started
                    .get(usize::from(slot))
                    .ok_or("an answer to no request")?;
                if started >= from {
                    latencies.saturating_record((now - started).as_nanos() as u64);
                    counted += 1;
                }
                if now < until {
                    self.request(slot, now);
                } else {
                    in_flight -= 1;
                }
            }
        }
        Ok(counted)
    }

    fn request(&mut self, slot: u16, now: Instant) {
        let offset = self.next_block() * u64::from(self.work.block);
        self.output.extend(REQUEST_MAGIC);
        self.output.extend([0, 0, 0, u8::from(self.work.write)]);
        self.output.extend(u64::from(slot).to_be_bytes());
        self.output.extend(offset.to_be_bytes());
        self.output.extend(self.work.block.to_be_bytes());
        self.output.extend(&self.payload);
        if let Some(started) = self.started.get_mut(usize::from(slot)) {
            *started = now;
        }
    }

    fn next_block(&mut self) -> u64 {
        if self.work.sequential {
            self.next = (self.next + 1) % self.blocks;
            return self.next;
        }
        // xorshift64: enough to visit blocks in no order.
        self.random ^= self.random << 13;
        self.random ^= self.random >> 7;
        self.random ^= self.random << 17;
        self.random % self.blocks
    }
}

/// Data that no server takes for zeroes.
fn payload(length: u32) -> Vec<u8> {
    (0..length).map(|index| (index % 251 + 1) as u8).collect()
}

/// Takes answers apart as their bytes come, without keeping their data.
#[derive(Debug)]
struct Parser {
    /// Data bytes that follow a successful simple reply.
    data: u32,
    /// Bytes of a header that is not complete yet.
    header: Vec<u8>,
    /// Data bytes to pass over.
    skip: usize,
}

impl Parser {
    fn new(data: u32) -> Parser {
        Parser {
            data,
            header: Vec::with_capacity(32),
            skip: 0,
        }
    }

    /// Takes in bytes and adds the cookies of the answers that end in them to `done`.
    fn take(&mut self, mut bytes: &[u8], done: &mut Vec<u16>) -> Outcome<()> {
        loop {
            let passed = self.skip.min(bytes.len());
            self.skip -= passed;
            bytes = bytes.get(passed..).unwrap_or_default();
            if bytes.is_empty() {
                return Ok(());
            }
            let wanted = match self
                .header
                .first_chunk::<4>()
                .map(|magic| u32::from_be_bytes(*magic))
            {
                None => 4,
                Some(SIMPLE_REPLY) => 16,
                Some(STRUCTURED_REPLY) => 20,
                Some(other) => return Err(format!("an answer begins with {other:#x}").into()),
            };
            let (now, later) = bytes.split_at((wanted - self.header.len()).min(bytes.len()));
            self.header.extend(now);
            bytes = later;
            if self.header.len() == wanted && wanted > 4 {
                if let Some(slot) = self.answer()? {
                    done.push(slot);
                }
                self.header.clear();
            }
        }
    }

    /// Reads a complete header; the slot if it ends an answer. Data of an answer may still follow.
    fn answer(&mut self) -> Outcome<Option<u16>> {
        let mut word = [0; 20];
        word[..self.header.len()].copy_from_slice(&self.header);
        // Cookies are slots, so the last two of their eight bytes tell all.
        let slot = u16::from_be_bytes([word[14], word[15]]);
        if self.header.len() == 16 {
            let error = u32::from_be_bytes([word[4], word[5], word[6], word[7]]);
            if error != 0 {
                return Err(format!("a request failed with error {error}").into());
            }
            self.skip = self.data as usize;
            return Ok(Some(slot));
        }
        let (flags, kind) = (
            u16::from_be_bytes([word[4], word[5]]),
            u16::from_be_bytes([word[6], word[7]]),
        );
        if kind & CHUNK_IS_ERROR != 0 {
            return Err("a request failed".into());
        }
        self.skip = u32::from_be_bytes([word[16], word[17], word[18], word[19]]) as usize;
        Ok((flags & CHUNK_IS_LAST != 0).then_some(slot))
    }
}

/// Takes the connection to transmission; the export's size.
fn negotiate(stream: &mut Stream, export: &str, structured: bool) -> Outcome<u64> {
    let mut greeting = [0; 18];
    stream.read_exact(&mut greeting)?;
    if !greeting.starts_with(b"NBDMAGICIHAVEOPT") {
        return Err("not an NBD server of the new style".into());
    }
    // Fixed new style, no zeroes.
    stream.write_all(&3_u32.to_be_bytes())?;
    if structured {
        option(stream, OPT_STRUCTURED_REPLY, &[])?;
        if option_reply(stream)?.0 != REP_ACK {
            return Err("the server has no structured replies".into());
        }
    }
    let mut go = u32::try_from(export.len())?.to_be_bytes().to_vec();
    go.extend(export.as_bytes());
    go.extend([0, 0]);
    option(stream, OPT_GO, &go)?;
    let mut size = 0;
    loop {
        let (kind, data) = option_reply(stream)?;
        match (kind, data.get(..10)) {
            (REP_ACK, _) => return Ok(size),
            (REP_INFO, Some([0, 0, bytes @ ..])) => size = u64::from_be_bytes(bytes.try_into()?),
            (REP_INFO, _) => {}
            _ => return Err(format!("export {export:?}: {}", String::from_utf8_lossy(&data)).into()),
        }
    }
}

fn option(stream: &mut Stream, option: u32, data: &[u8]) -> Outcome<()> {
    let length = u32::try_from(data.len())?;
    stream.write_all(
        &[
            OPTION_MAGIC,
            &option.to_be_bytes()[..],
            &length.to_be_bytes(),
            data,
        ]
        .concat(),
    )?;
    Ok(())
}

fn option_reply(stream: &mut Stream) -> Outcome<(u32, Vec<u8>)> {
    let mut header = [0; 20];
    stream
        .read_exact(&mut header)
        .map_err(|error| match error.kind() {
            ErrorKind::UnexpectedEof => "the server closed the connection in negotiation".to_owned(),
            _ => error.to_string(),
        })?;
    if header[..8] != REPLY_MAGIC {
        return Err("not a reply to an option".into());
    }
    let kind = u32::from_be_bytes([header[12], header[13], header[14], header[15]]);
    let length = u32::from_be_bytes([header[16], header[17], header[18], header[19]]);
    if length > 1 << 20 {
        return Err(format!("a reply of {length} bytes").into());
    }
    let mut data = vec![0; length as usize];
    stream.read_exact(&mut data)?;
    Ok((kind, data))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Two simple answers to reads of 3 bytes, however their bytes are cut.
    #[test]
    fn answers_are_found_however_they_are_cut() {
        let mut bytes = Vec::new();
        for slot in [7_u64, 300] {
            bytes.extend(SIMPLE_REPLY.to_be_bytes());
            bytes.extend([0; 4]);
            bytes.extend(slot.to_be_bytes());
            bytes.extend([0xaa; 3]);
        }
        for size in 1..=bytes.len() {
            let (mut parser, mut done) = (Parser::new(3), Vec::new());
            for piece in bytes.chunks(size) {
                parser.take(piece, &mut done).unwrap();
            }
            assert_eq!(done, [7, 300], "in pieces of {size}");
        }
    }

    #[test]
    fn a_structured_answer_ends_with_its_last_chunk() {
        let chunk = |flags: u16, data: &[u8]| {
            let mut bytes = STRUCTURED_REPLY.to_be_bytes().to_vec();
            bytes.extend(flags.to_be_bytes());
            bytes.extend([0, 1]);
            bytes.extend(9_u64.to_be_bytes());
            bytes.extend((data.len() as u32).to_be_bytes());
            bytes.extend(data);
            bytes
        };
        let (mut parser, mut done) = (Parser::new(0), Vec::new());
        parser.take(&chunk(0, &[1; 30]), &mut done).unwrap();
        assert!(done.is_empty());
        parser.take(&chunk(1, &[1; 5]), &mut done).unwrap();
        assert_eq!(done, [9]);
    }

    #[test]
    fn both_forms_of_uri_are_understood() {
        let unix: Target = "nbd+unix:///disk?socket=/run/nbd.sock".parse().unwrap();
        assert!(matches!(&unix.endpoint, Endpoint::Unix(path) if path.ends_with("nbd.sock")));
        assert_eq!(unix.export, "disk");
        let tcp: Target = "nbd://localhost/a/b".parse().unwrap();
        assert!(matches!(&tcp.endpoint, Endpoint::Tcp(address) if address == "localhost:10809"));
        assert_eq!(tcp.export, "a/b");
        assert!("http://x".parse::<Target>().is_err());
    }
}
