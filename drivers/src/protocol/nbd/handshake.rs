//! The negotiation with a server, up to where requests begin.

use std::io;

use millpond_messages::{Error, ErrorKind, IoError, Result};
use millpond_ring::{Fd, Ring};

use super::inbox::Inbox;
use super::options::NbdOptions;
use super::wire::{
    ANSWER_HEADER, ANSWER_MAGIC, AnswerKind, ExportFlags, Framing, HandshakeOption, MAGIC, MAX_DATA,
    OLD_MAGIC, OPTION_MAGIC, Refusal, u16_at, u32_at, u64_at,
};

/// The longest answer to an option that is read, in bytes.
const MAX_ANSWER: u32 = 16 << 10;
/// The most answers to one option.
const MAX_ANSWERS: usize = 64;

/// What was agreed on with a server.
#[derive(Debug, Clone)]
pub(super) struct Agreed {
    /// The length of the export in bytes.
    pub(super) size: u64,
    pub(super) flags: ExportFlags,
    pub(super) framing: Framing,
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
pub(super) struct Negotiation<'a> {
    pub(super) ring: &'a Ring,
    pub(super) fd: &'a Fd,
    pub(super) inbox: &'a mut Inbox,
}

/// An answer to an option.
struct HandshakeAnswer {
    kind: AnswerKind,
    bytes: Vec<u8>,
}

fn broken(context: &str, error: &io::Error) -> Error {
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

impl Negotiation<'_> {
    /// Agrees on everything for an export.
    ///
    /// # Errors
    /// The server speaks otherwise, or refuses.
    pub(super) async fn run(&mut self, options: &NbdOptions) -> Result<Agreed> {
        if self.u64("magic").await? != MAGIC {
            return Err(wrong("Bad initial magic received"));
        }
        match self.u64("server magic").await? {
            OPTION_MAGIC => self.newstyle(options).await,
            OLD_MAGIC => self.oldstyle(options).await,
            _ => Err(wrong("Bad server magic received")),
        }
    }

    /// Tells the server that no agreement comes of it.
    pub(super) async fn give_up(&mut self) {
        // It may be gone, or know no options.
        drop(self.ask(HandshakeOption::Abort, &[]).await);
    }

    async fn oldstyle(&mut self, options: &NbdOptions) -> Result<Agreed> {
        if !options.export.is_empty() {
            return Err(wrong("Server does not support non-empty export names"));
        }
        let bytes = self.bytes("export", 8 + 4 + 124).await?;
        let (size, flags) = (u64_at(&bytes, 0), u32_at(&bytes, 8));
        checked(Agreed {
            flags: ExportFlags::from_bits_truncate(flags.unwrap_or(0) as u16),
            ..Agreed::plain(size.unwrap_or(0), Framing::Simple)
        })
    }

    async fn newstyle(&mut self, options: &NbdOptions) -> Result<Agreed> {
        const FIXED: u16 = 1 << 0;
        const NO_ZEROES: u16 = 1 << 1;
        let offered = u16_at(&self.bytes("server flags", 2).await?, 0).unwrap_or(0);
        let taken = offered & (FIXED | NO_ZEROES);
        self.send(&u32::from(taken).to_be_bytes()).await?;
        if taken & FIXED == 0 {
            return self.export_name(options, taken & NO_ZEROES != 0).await;
        }
        let framing = if self.agree(HandshakeOption::ExtendedHeaders).await? {
            Framing::Extended
        } else if self.agree(HandshakeOption::StructuredReply).await? {
            Framing::Structured
        } else {
            Framing::Simple
        };
        let context = match framing {
            Framing::Simple => None,
            _ => self.set_context(options).await?,
        };
        match self.go(options).await? {
            Some(agreed) => checked(Agreed {
                framing,
                context,
                ..agreed
            }),
            None => self.export_name(options, taken & NO_ZEROES != 0).await,
        }
    }

    /// Whether the server takes an option without data.
    async fn agree(&mut self, option: HandshakeOption) -> Result<bool> {
        self.ask(option, &[]).await?;
        let answer = self.answer(option).await?;
        match answer.kind {
            AnswerKind::Ack => Ok(true),
            AnswerKind::Refused(Refusal::TlsRequired) => {
                Err(refusal(Refusal::TlsRequired, option, &answer.bytes))
            }
            AnswerKind::Refused(_) => Ok(false),
            _ => Err(wrong("Unexpected reply to a negotiated option")),
        }
    }

    /// The number of the context of which block status will be asked, if the server has it.
    async fn set_context(&mut self, options: &NbdOptions) -> Result<Option<u32>> {
        let mut data = Vec::new();
        for text in [&options.export, &options.context] {
            data.extend((text.len() as u32).to_be_bytes());
            if std::ptr::eq(text, &options.export) {
                data.extend(text.as_bytes());
                data.extend(1_u32.to_be_bytes());
            } else {
                data.extend(text.as_bytes());
            }
        }
        let option = HandshakeOption::SetMetaContext;
        self.ask(option, &data).await?;
        let mut found = None;
        for _ in 0..MAX_ANSWERS {
            let answer = self.answer(option).await?;
            match answer.kind {
                AnswerKind::Ack => {
                    if found.is_none() && options.is_own_context {
                        let text = format!("requested x-dirty-bitmap {} not found", options.context);
                        return Err(wrong(text));
                    }
                    return Ok(found);
                }
                AnswerKind::MetaContext => {
                    let name = answer.bytes.get(4..).unwrap_or_default();
                    if name != options.context.as_bytes() || found.is_some() {
                        return Err(wrong("Server has sent a context that was not asked for"));
                    }
                    found = u32_at(&answer.bytes, 0);
                }
                AnswerKind::Refused(_) => return Ok(None),
                _ => return Err(wrong("Unexpected reply to a list of contexts")),
            }
        }
        Err(wrong("Server does not end its list of contexts"))
    }

    /// Asks for the export; answers nothing where the server knows no such question.
    async fn go(&mut self, options: &NbdOptions) -> Result<Option<Agreed>> {
        const BLOCK_SIZE: u16 = 3;
        let option = HandshakeOption::Go;
        let mut data = (options.export.len() as u32).to_be_bytes().to_vec();
        data.extend(options.export.as_bytes());
        data.extend(1_u16.to_be_bytes());
        data.extend(BLOCK_SIZE.to_be_bytes());
        self.ask(option, &data).await?;
        let mut agreed = Agreed::plain(0, Framing::Simple);
        let mut is_described = false;
        for _ in 0..MAX_ANSWERS {
            let answer = self.answer(option).await?;
            let bytes = answer.bytes.as_slice();
            match answer.kind {
                AnswerKind::Ack if is_described => return Ok(Some(agreed)),
                AnswerKind::Ack => return Err(wrong("broken server omitted information about the export")),
                AnswerKind::Info => match (u16_at(bytes, 0), bytes.len()) {
                    (Some(0), 12) => {
                        agreed.size = u64_at(bytes, 2).unwrap_or(0);
                        agreed.flags = ExportFlags::from_bits_truncate(u16_at(bytes, 10).unwrap_or(0));
                        is_described = true;
                    }
                    (Some(BLOCK_SIZE), 14) => {
                        agreed.min_block = u32_at(bytes, 2).unwrap_or(0);
                        agreed.preferred_block = u32_at(bytes, 6).unwrap_or(0);
                        agreed.max_data = u32_at(bytes, 10).unwrap_or(0).min(MAX_DATA);
                    }
                    (Some(0 | BLOCK_SIZE) | None, _) => {
                        return Err(wrong("Server has sent information of a wrong length"));
                    }
                    // Names and descriptions are of no use here.
                    (Some(_), _) => {}
                },
                AnswerKind::Refused(Refusal::Unsupported) => return Ok(None),
                AnswerKind::Refused(why) => return Err(refusal(why, option, bytes)),
                _ => return Err(wrong("Unexpected reply to the request for an export")),
            }
        }
        Err(wrong("Server does not end its description of the export"))
    }

    /// The older way to choose an export, which ends the negotiation whatever the answer.
    async fn export_name(&mut self, options: &NbdOptions, no_zeroes: bool) -> Result<Agreed> {
        let option = HandshakeOption::ExportName;
        self.ask(option, options.export.as_bytes()).await?;
        let len = if no_zeroes { 10 } else { 10 + 124 };
        let bytes = self.bytes("export length", len).await?;
        let (size, flags) = (u64_at(&bytes, 0), u16_at(&bytes, 8));
        checked(Agreed {
            flags: ExportFlags::from_bits_truncate(flags.unwrap_or(0)),
            ..Agreed::plain(size.unwrap_or(0), Framing::Simple)
        })
    }

    async fn ask(&mut self, option: HandshakeOption, data: &[u8]) -> Result<()> {
        let mut bytes = OPTION_MAGIC.to_be_bytes().to_vec();
        bytes.extend((option as u32).to_be_bytes());
        bytes.extend((data.len() as u32).to_be_bytes());
        bytes.extend(data);
        self.send(&bytes).await
    }

    async fn answer(&mut self, option: HandshakeOption) -> Result<HandshakeAnswer> {
        let head = self.bytes("option reply", ANSWER_HEADER).await?;
        let len = u32_at(&head, 16).unwrap_or(u32::MAX);
        if u64_at(&head, 0) != Some(ANSWER_MAGIC) {
            return Err(wrong("Unexpected option reply magic"));
        }
        if u32_at(&head, 8) != Some(option as u32) {
            return Err(wrong("Unexpected option type"));
        }
        if len > MAX_ANSWER {
            return Err(wrong(format!("Server has sent an option reply of {len} bytes")));
        }
        Ok(HandshakeAnswer {
            kind: AnswerKind::new(u32_at(&head, 12).unwrap_or(0)),
            bytes: self.bytes("option reply", len as usize).await?,
        })
    }

    async fn send(&mut self, bytes: &[u8]) -> Result<()> {
        let (sent, _) = self.ring.send(self.fd, bytes.to_vec().into()).await;
        sent.map(drop)
            .map_err(|error| broken("Failed to send option request header", &error))
    }

    async fn bytes(&mut self, what: &str, len: usize) -> Result<Vec<u8>> {
        let taken = self.inbox.take(self.ring, len).await;
        taken
            .map(<[u8]>::to_vec)
            .map_err(|error| broken(&format!("Failed to read {what}"), &error))
    }

    async fn u64(&mut self, what: &str) -> Result<u64> {
        let bytes = self.bytes(what, 8).await?;
        Ok(u64_at(&bytes, 0).unwrap_or(0))
    }
}

impl Agreed {
    const fn plain(size: u64, framing: Framing) -> Self {
        Self {
            size,
            flags: ExportFlags::empty(),
            framing,
            context: None,
            min_block: 1,
            preferred_block: 4096,
            max_data: MAX_DATA,
        }
    }
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

fn refusal(why: Refusal, option: HandshakeOption, message: &[u8]) -> Error {
    let number = option as u32;
    let name = match option {
        HandshakeOption::ExportName => "export name",
        HandshakeOption::Abort => "abort",
        HandshakeOption::Go => "go",
        HandshakeOption::StructuredReply => "structured reply",
        HandshakeOption::SetMetaContext => "set meta context",
        HandshakeOption::ExtendedHeaders => "extended headers",
    };
    let text = match why {
        Refusal::Unsupported => format!("Unsupported option type {number} ({name})"),
        Refusal::Policy => format!("Denied by server for option {number} ({name})"),
        Refusal::Invalid => format!("Invalid parameters for option {number} ({name})"),
        Refusal::Platform => format!("Server lacks support for option {number} ({name})"),
        Refusal::TlsRequired => format!("Server requires TLS for option {number} ({name})"),
        Refusal::Unknown => "Requested export not available".to_owned(),
        Refusal::ShuttingDown => format!("Server shutting down before option {number} ({name})"),
        Refusal::BlockSizeRequired => format!("Server requires INFO_BLOCK_SIZE for option {number} ({name})"),
        Refusal::TooBig | Refusal::Other => {
            format!("Unknown error code when asking for option {number} ({name})")
        }
    };
    let error = Error::new(ErrorKind::InvalidArgument, text);
    let message = String::from_utf8_lossy(message);
    let mut hints = Vec::new();
    if why == Refusal::TlsRequired {
        hints.push("Did you forget a valid tls-creds?".to_owned());
    }
    if !message.is_empty() {
        hints.push(format!("server reported: {message}"));
    }
    match hints.is_empty() {
        true => error,
        false => error.with_hint(hints.join("\n")),
    }
}
