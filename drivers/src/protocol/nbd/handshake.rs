//! The negotiation with a server, up to where requests begin.

use std::io;

use millpond_messages::nbd::{
    Cursor, HandshakeFlags, MAGIC_OLD, MAGIC_OPTION, MAGIC_OPTION_REPLY, MAGIC_SERVER, MAX_PAYLOAD, Mode,
    PADDING, TransmissionFlags, info, option, reply,
};
use millpond_messages::{Error, ErrorKind, IoError, Result};

use super::inbox::Inbox;
use super::options::{NbdOptions, TlsWanted};
use super::socket::ServerSocket;
use crate::tls::TlsError;

/// Bytes of the head of an answer to an option.
const ANSWER_HEADER: usize = 20;
/// What is told of a server that knows no options, of which TLS is one.
const NO_TLS: &str = "Server does not support STARTTLS";
/// The longest answer to an option that is read, in bytes.
const MAX_ANSWER: u32 = 16 << 10;
/// The most answers to one option.
const MAX_ANSWERS: usize = 64;

/// What was agreed on with a server.
#[derive(Debug, Clone)]
pub(super) struct Agreed {
    /// The length of the export in bytes.
    pub(super) size: u64,
    pub(super) flags: TransmissionFlags,
    pub(super) mode: Mode,
    /// The number of the context of which block status can be asked.
    pub(super) context: Option<u32>,
    /// What offsets and lengths must be multiples of.
    pub(super) min_block: u32,
    /// The size of requests that goes best.
    pub(super) preferred_block: u32,
    /// The most data of a request.
    pub(super) max_data: u32,
}

/// A connection that is being negotiated.
pub(super) struct Negotiation {
    pub(super) socket: ServerSocket,
    pub(super) inbox: Inbox,
}

/// An answer to an option.
struct HandshakeAnswer {
    /// What it is: one of [`reply`].
    kind: u32,
    bytes: Vec<u8>,
}

fn broken(context: &str, error: &io::Error) -> Error {
    if let Some(tls) = error.get_ref().and_then(|inner| inner.downcast_ref::<TlsError>()) {
        return Error::new(ErrorKind::Io(IoError::Invalid), format!("{context}: {tls}"));
    }
    let error = match error.kind() {
        io::ErrorKind::UnexpectedEof => {
            let text = format!("{context}: Unexpected end-of-file before all data were read");
            return Error::new(ErrorKind::Io(IoError::Invalid), text);
        }
        _ => IoError::from_errno(error.raw_os_error().unwrap_or(libc::EIO)),
    };
    Error::io(context, error)
}

fn wrong(text: impl Into<String>) -> Error {
    Error::new(ErrorKind::InvalidArgument, text.into())
}

impl Negotiation {
    /// Agrees on everything for an export.
    ///
    /// # Errors
    /// The server speaks otherwise, or refuses.
    pub(super) async fn run(&mut self, options: &NbdOptions) -> Result<Agreed> {
        if self.u64("magic").await? != MAGIC_SERVER {
            return Err(wrong("Bad initial magic received"));
        }
        match self.u64("server magic").await? {
            MAGIC_OPTION => self.newstyle(options).await,
            MAGIC_OLD if options.tls.is_some() => Err(wrong(NO_TLS)),
            MAGIC_OLD => self.oldstyle(options).await,
            _ => Err(wrong("Bad server magic received")),
        }
    }

    /// Tells the server that no agreement comes of it.
    pub(super) async fn give_up(&mut self) {
        // It may be gone, or know no options.
        drop(self.ask(option::ABORT, &[]).await);
    }

    async fn oldstyle(&mut self, options: &NbdOptions) -> Result<Agreed> {
        if !options.export.is_empty() {
            return Err(wrong("Server does not support non-empty export names"));
        }
        let bytes = self.bytes("export", 8 + 4 + PADDING).await?;
        let mut cursor = Cursor(&bytes);
        let (size, flags) = (cursor.u64().unwrap_or(0), cursor.u32().unwrap_or(0));
        // Those of the transmission are in the lower half.
        checked(Agreed::plain(size, flags as u16))
    }

    async fn newstyle(&mut self, options: &NbdOptions) -> Result<Agreed> {
        let offered = self.bytes("server flags", 2).await?;
        let offered = Cursor(&offered).u16().unwrap_or(0);
        let taken = HandshakeFlags::from_bits_truncate(offered.into());
        self.send(&taken.bits().to_be_bytes()).await?;
        let is_fixed = taken.contains(HandshakeFlags::FIXED_NEWSTYLE);
        match &options.tls {
            Some(_) if !is_fixed => return Err(wrong(NO_TLS)),
            Some(tls) => self.start_tls(tls).await?,
            None => {}
        }
        if !is_fixed {
            return self.export_name(options, taken).await;
        }
        let mode = if self.agree(option::EXTENDED_HEADERS).await? {
            Mode::Extended
        } else if self.agree(option::STRUCTURED_REPLY).await? {
            Mode::Structured
        } else {
            Mode::Simple
        };
        let context = match mode {
            Mode::Simple => None,
            _ => self.set_context(options).await?,
        };
        match self.go(options).await? {
            Some(agreed) => checked(Agreed {
                mode,
                context,
                ..agreed
            }),
            None => self.export_name(options, taken).await,
        }
    }

    /// Goes on inside TLS.
    async fn start_tls(&mut self, tls: &TlsWanted) -> Result<()> {
        let option = option::STARTTLS;
        self.ask(option, &[]).await?;
        let answer = self.answer(option).await?;
        match answer.kind {
            reply::ACK => {}
            reply::ERR_UNSUP => return Err(wrong("Server don't support STARTTLS option")),
            kind if is_refusal(kind) => return Err(refusal(option, &answer)),
            _ => return Err(wrong("Unexpected reply to a negotiated option")),
        }
        if !self.inbox.is_empty() {
            // Anybody on the way could have put it there, to have it taken for what was said inside.
            return Err(wrong("Server has sent something behind its answer to STARTTLS"));
        }
        let TlsWanted {
            credentials,
            hostname,
        } = tls.clone();
        let begin = move || credentials.connect(hostname.as_deref());
        let begun = self.socket.ring().blocking(begin).await;
        let session = begun.map_err(|error| wrong(error.to_string()))?;
        let agreed = self.socket.start_tls(session).await;
        agreed.map_err(|error| wrong(error.to_string()))
    }

    /// Whether the server takes an option without data.
    async fn agree(&mut self, wanted: u32) -> Result<bool> {
        self.ask(wanted, &[]).await?;
        let answer = self.answer(wanted).await?;
        match answer.kind {
            reply::ACK => Ok(true),
            kind if is_refusal(kind) => Ok(false),
            _ => Err(wrong("Unexpected reply to a negotiated option")),
        }
    }

    /// The number of the context of which block status will be asked, if the server has it.
    async fn set_context(&mut self, options: &NbdOptions) -> Result<Option<u32>> {
        let mut data = sized(&options.export);
        data.extend(1_u32.to_be_bytes());
        data.extend(sized(&options.context));
        let option = option::SET_META_CONTEXT;
        self.ask(option, &data).await?;
        let mut found = None;
        for _ in 0..MAX_ANSWERS {
            let answer = self.answer(option).await?;
            match answer.kind {
                reply::ACK => {
                    if found.is_none() && options.is_own_context {
                        let text = format!("requested x-dirty-bitmap {} not found", options.context);
                        return Err(wrong(text));
                    }
                    return Ok(found);
                }
                reply::META_CONTEXT => {
                    let mut cursor = Cursor(&answer.bytes);
                    let number = cursor.u32();
                    if cursor.0 != options.context.as_bytes() || found.is_some() {
                        return Err(wrong("Server has sent a context that was not asked for"));
                    }
                    found = number;
                }
                kind if is_refusal(kind) => return Ok(None),
                _ => return Err(wrong("Unexpected reply to a list of contexts")),
            }
        }
        Err(wrong("Server does not end its list of contexts"))
    }

    /// Asks for the export; answers nothing where the server knows no such question.
    async fn go(&mut self, options: &NbdOptions) -> Result<Option<Agreed>> {
        let option = option::GO;
        let mut data = sized(&options.export);
        data.extend(1_u16.to_be_bytes());
        data.extend(info::BLOCK_SIZE.to_be_bytes());
        self.ask(option, &data).await?;
        let mut agreed = Agreed::plain(0, 0);
        let mut is_described = false;
        for _ in 0..MAX_ANSWERS {
            let answer = self.answer(option).await?;
            match answer.kind {
                reply::ACK if is_described => return Ok(Some(agreed)),
                reply::ACK => return Err(wrong("broken server omitted information about the export")),
                reply::INFO => {
                    let learnt = agreed.learn(&answer.bytes);
                    is_described |=
                        learnt.ok_or_else(|| wrong("Server has sent information of a wrong length"))?;
                }
                reply::ERR_UNSUP => return Ok(None),
                kind if is_refusal(kind) => return Err(refusal(option, &answer)),
                _ => return Err(wrong("Unexpected reply to the request for an export")),
            }
        }
        Err(wrong("Server does not end its description of the export"))
    }

    /// The older way to choose an export, which ends the negotiation whatever the answer.
    async fn export_name(&mut self, options: &NbdOptions, taken: HandshakeFlags) -> Result<Agreed> {
        self.ask(option::EXPORT_NAME, options.export.as_bytes()).await?;
        let padding = match taken.contains(HandshakeFlags::NO_ZEROES) {
            true => 0,
            false => PADDING,
        };
        let bytes = self.bytes("export length", 8 + 2 + padding).await?;
        let mut cursor = Cursor(&bytes);
        let (size, flags) = (cursor.u64().unwrap_or(0), cursor.u16().unwrap_or(0));
        checked(Agreed::plain(size, flags))
    }

    async fn ask(&mut self, wanted: u32, data: &[u8]) -> Result<()> {
        let mut bytes = MAGIC_OPTION.to_be_bytes().to_vec();
        bytes.extend(wanted.to_be_bytes());
        bytes.extend((data.len() as u32).to_be_bytes());
        bytes.extend(data);
        self.send(&bytes).await
    }

    async fn answer(&mut self, wanted: u32) -> Result<HandshakeAnswer> {
        let head = self.bytes("option reply", ANSWER_HEADER).await?;
        let mut cursor = Cursor(&head);
        if cursor.u64() != Some(MAGIC_OPTION_REPLY) {
            return Err(wrong("Unexpected option reply magic"));
        }
        if cursor.u32() != Some(wanted) {
            return Err(wrong("Unexpected option type"));
        }
        let (kind, len) = (cursor.u32().unwrap_or(0), cursor.u32().unwrap_or(u32::MAX));
        if len > MAX_ANSWER {
            return Err(wrong(format!("Server has sent an option reply of {len} bytes")));
        }
        let bytes = self.bytes("option reply", len as usize).await?;
        Ok(HandshakeAnswer { kind, bytes })
    }

    async fn send(&mut self, bytes: &[u8]) -> Result<()> {
        let (sent, _) = self.socket.send(bytes.to_vec().into()).await;
        sent.map(drop)
            .map_err(|error| broken("Failed to send option request header", &error))
    }

    async fn bytes(&mut self, what: &str, len: usize) -> Result<Vec<u8>> {
        let taken = self.inbox.take(&self.socket, len).await;
        taken
            .map(<[u8]>::to_vec)
            .map_err(|error| broken(&format!("Failed to read {what}"), &error))
    }

    async fn u64(&mut self, what: &str) -> Result<u64> {
        let bytes = self.bytes(what, 8).await?;
        Ok(Cursor(&bytes).u64().unwrap_or(0))
    }
}

impl Agreed {
    const fn plain(size: u64, flags: u16) -> Self {
        Self {
            size,
            flags: used(flags),
            mode: Mode::Simple,
            context: None,
            min_block: 1,
            preferred_block: 4096,
            max_data: MAX_PAYLOAD,
        }
    }

    /// Takes a piece of information; answers whether that describes the export, and nothing where its length is wrong.
    fn learn(&mut self, bytes: &[u8]) -> Option<bool> {
        let mut cursor = Cursor(bytes);
        let kind = cursor.u16()?;
        match kind {
            info::EXPORT => {
                self.size = cursor.u64()?;
                self.flags = used(cursor.u16()?);
            }
            info::BLOCK_SIZE => {
                (self.min_block, self.preferred_block) = (cursor.u32()?, cursor.u32()?);
                self.max_data = cursor.u32()?.min(MAX_PAYLOAD);
            }
            // Names and descriptions are of no use here.
            _ => return Some(false),
        }
        cursor.0.is_empty().then_some(kind == info::EXPORT)
    }
}

/// What a server says that it can do, as far as this client makes use of it: the rest may differ when it comes back.
const fn used(flags: u16) -> TransmissionFlags {
    TransmissionFlags::from_bits_truncate(flags).intersection(
        TransmissionFlags::READ_ONLY
            .union(TransmissionFlags::SEND_FLUSH)
            .union(TransmissionFlags::SEND_FUA)
            .union(TransmissionFlags::SEND_TRIM)
            .union(TransmissionFlags::SEND_WRITE_ZEROES)
            .union(TransmissionFlags::SEND_FAST_ZERO),
    )
}

/// Whether an answer refuses an option.
const fn is_refusal(kind: u32) -> bool {
    kind & reply::ERROR != 0
}

/// A text with its length before it.
fn sized(text: &str) -> Vec<u8> {
    let mut bytes = (text.len() as u32).to_be_bytes().to_vec();
    bytes.extend(text.as_bytes());
    bytes
}

/// Refuses what no server may say.
fn checked(agreed: Agreed) -> Result<Agreed> {
    if i64::try_from(agreed.size).is_err() {
        return Err(wrong("The export is too long"));
    }
    let is_power = |size: u32| size.is_power_of_two();
    if !is_power(agreed.min_block) || agreed.min_block > 64 << 10 {
        return Err(wrong(format!(
            "server minimum block size {} is not a power of two of at most 64 KiB",
            agreed.min_block
        )));
    }
    if !is_power(agreed.preferred_block) || agreed.preferred_block < agreed.min_block {
        return Err(wrong(format!(
            "server preferred block size {} is not valid",
            agreed.preferred_block
        )));
    }
    if agreed.max_data < agreed.min_block {
        return Err(wrong(format!(
            "server maximum block size {} is not valid",
            agreed.max_data
        )));
    }
    Ok(agreed)
}

fn refusal(wanted: u32, answer: &HandshakeAnswer) -> Error {
    let (text, hint) = reply::refusal(answer.kind, wanted, &answer.bytes);
    let error = Error::new(ErrorKind::InvalidArgument, text);
    match hint {
        None => error,
        Some(hint) => error.with_hint(hint),
    }
}
