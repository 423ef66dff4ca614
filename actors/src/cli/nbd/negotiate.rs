//! A client's part of the NBD handshake, as far as it asks what there is and chooses nothing.

use millpond_drivers::tls::{TlsError, TlsSession};
use millpond_messages::nbd::{
    Cursor, HandshakeFlags, MAGIC_OLD, MAGIC_OPTION, MAGIC_OPTION_REPLY, MAGIC_SERVER, PADDING,
    TransmissionFlags, info, option, reply,
};
use std::io::{self, Read, Write};

use super::secure::InsideTls;

/// The most bytes of one reply: texts of two of the protocol's strings, and some numbers.
const LONGEST_REPLY: u32 = 3 * 4096;
/// The most exports that are asked about.
const MOST_EXPORTS: usize = 10_000;
/// The most contexts of one export.
const MOST_CONTEXTS: usize = 10_000;

/// What a server says of an export.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Listed {
    /// The name of the export.
    pub name: String,
    /// A text for people.
    pub description: Option<String>,
    /// The length in bytes.
    pub size: u64,
    /// What it can do.
    pub flags: TransmissionFlags,
    /// The least, preferred and largest request.
    pub blocks: Option<[u32; 3]>,
    /// Requests may have lengths of 64 bits.
    pub is_extended: bool,
    /// The metadata contexts that may be chosen.
    pub contexts: Vec<String>,
}

/// Why a server's exports are not known.
#[derive(Debug, thiserror::Error)]
pub enum ListError {
    /// The connection ends or fails.
    #[error("Failed to read {what}: {why}")]
    Read {
        /// What was to come.
        what: &'static str,
        /// What has come instead.
        why: String,
    },
    /// It could not be asked.
    #[error("Failed to send option request: {0}")]
    Send(io::Error),
    /// It is no server of this protocol.
    #[error("Bad initial magic received: 0x{0:x}")]
    NoServer(u64),
    /// Neither kind of server begins so.
    #[error("Bad server magic received: 0x{0:x}")]
    UnknownKind(u64),
    /// It answers only to a choice.
    #[error("Server does not support export lists")]
    NoLists,
    /// What it answers is no answer.
    #[error("Unexpected reply to option {0}")]
    Unexpected(u32),
    /// It refuses an option: says which and why, and what to do about it.
    #[error("{text}")]
    Refused {
        /// The text that is told.
        text: String,
        /// What stands below that.
        hint: Option<String>,
    },
    /// It knows no options, of which TLS is one.
    #[error("Server does not support STARTTLS")]
    NoTls,
    /// The two sides do not agree on TLS.
    #[error(transparent)]
    Tls(#[from] TlsError),
}

/// An answer to an option.
struct Reply {
    kind: u32,
    payload: Vec<u8>,
}

/// Asks a server what its exports are, inside the session that `tls` begins if there is one.
///
/// # Errors
/// It does not say.
pub fn exports<S: Read + Write>(
    mut stream: S,
    tls: Option<impl FnOnce() -> Result<Box<dyn TlsSession>, TlsError>>,
) -> Result<Vec<Listed>, ListError> {
    let stream = &mut stream;
    let magic = u64::from_be_bytes(take(stream, "initial magic")?);
    if magic != MAGIC_SERVER {
        return Err(ListError::NoServer(magic));
    }
    match u64::from_be_bytes(take(stream, "server magic")?) {
        MAGIC_OPTION => {}
        MAGIC_OLD if tls.is_some() => return Err(ListError::NoTls),
        MAGIC_OLD => return old(stream).map(|export| vec![export]),
        other => return Err(ListError::UnknownKind(other)),
    }
    let flags = u32::from(u16::from_be_bytes(take(stream, "server flags")?));
    let flags = HandshakeFlags::from_bits_truncate(flags);
    stream
        .write_all(&flags.bits().to_be_bytes())
        .map_err(ListError::Send)?;
    let is_fixed = flags.contains(HandshakeFlags::FIXED_NEWSTYLE);
    let Some(begin) = tls else {
        return if is_fixed {
            described(stream)
        } else {
            Err(ListError::NoLists)
        };
    };
    if !is_fixed {
        return Err(ListError::NoTls);
    }
    ask(stream, option::STARTTLS, &[])?;
    let answer = answer(stream, option::STARTTLS)?;
    if answer.kind != reply::ACK {
        return Err(refused(option::STARTTLS, &answer));
    }
    described(&mut InsideTls::begin(stream, begin()?)?)
}

/// What the exports are, once options may be sent.
fn described<S: Read + Write>(stream: &mut S) -> Result<Vec<Listed>, ListError> {
    let is_extended = switches_on(stream, option::EXTENDED_HEADERS)?;
    let is_structured = is_extended || switches_on(stream, option::STRUCTURED_REPLY)?;
    let mut listed = Vec::new();
    for name in names(stream)? {
        let mut export = describe(stream, name)?;
        export.is_extended = is_extended;
        if is_structured {
            export.contexts = contexts(stream, &export.name)?;
        }
        listed.push(export);
    }
    // A goodbye that is not heard changes nothing.
    let _ = ask(stream, option::ABORT, &[]);
    Ok(listed)
}

/// The only export of a server that negotiates nothing.
fn old(stream: &mut impl Read) -> Result<Listed, ListError> {
    let size = u64::from_be_bytes(take(stream, "export length")?);
    // Transmission flags are in the lower half.
    let flags = u32::from_be_bytes(take(stream, "export flags")?) & 0xffff;
    take::<PADDING>(stream, "reserved block")?;
    Ok(Listed {
        size,
        flags: TransmissionFlags::from_bits_retain(u16::try_from(flags).unwrap_or(0)),
        ..Listed::default()
    })
}

/// Whether the server takes an option that has no payload.
fn switches_on<S: Read + Write>(stream: &mut S, wanted: u32) -> Result<bool, ListError> {
    ask(stream, wanted, &[])?;
    match answer(stream, wanted)?.kind {
        reply::ACK => Ok(true),
        kind if is_error(kind) => Ok(false),
        _ => Err(ListError::Unexpected(wanted)),
    }
}

/// The names of the exports.
fn names<S: Read + Write>(stream: &mut S) -> Result<Vec<String>, ListError> {
    ask(stream, option::LIST, &[])?;
    let mut names = Vec::new();
    loop {
        let answer = answer(stream, option::LIST)?;
        match answer.kind {
            reply::ACK => return Ok(names),
            reply::SERVER if names.len() < MOST_EXPORTS => {
                let mut cursor = Cursor(&answer.payload);
                let name = cursor.u32().and_then(|len| cursor.bytes(len as usize));
                names.push(text(name.ok_or(ListError::Unexpected(option::LIST))?));
            }
            reply::ERR_UNSUP => return Err(ListError::NoLists),
            kind if is_error(kind) => return Err(refused(option::LIST, &answer)),
            _ => return Err(ListError::Unexpected(option::LIST)),
        }
    }
}

/// What the server says of an export. One that says nothing of it has none of that.
fn describe<S: Read + Write>(stream: &mut S, name: String) -> Result<Listed, ListError> {
    let wanted = [info::NAME, info::DESCRIPTION, info::BLOCK_SIZE];
    let mut payload = sized(&name);
    payload.extend((wanted.len() as u16).to_be_bytes());
    payload.extend(wanted.iter().flat_map(|kind| kind.to_be_bytes()));
    ask(stream, option::INFO, &payload)?;
    let mut export = Listed {
        name,
        ..Listed::default()
    };
    loop {
        let answer = answer(stream, option::INFO)?;
        match answer.kind {
            reply::INFO => learn(&mut export, &answer.payload).ok_or(ListError::Unexpected(option::INFO))?,
            reply::ACK => return Ok(export),
            kind if is_error(kind) => return Ok(export),
            _ => return Err(ListError::Unexpected(option::INFO)),
        }
    }
}

/// Takes a piece of information; nothing where it is malformed.
fn learn(export: &mut Listed, payload: &[u8]) -> Option<()> {
    let mut cursor = Cursor(payload);
    match cursor.u16()? {
        info::EXPORT => {
            export.size = cursor.u64()?;
            export.flags = TransmissionFlags::from_bits_retain(cursor.u16()?);
        }
        info::DESCRIPTION => export.description = Some(text(cursor.0)),
        info::BLOCK_SIZE => export.blocks = Some([cursor.u32()?, cursor.u32()?, cursor.u32()?]),
        _ => {}
    }
    Some(())
}

/// The metadata contexts of an export.
fn contexts<S: Read + Write>(stream: &mut S, name: &str) -> Result<Vec<String>, ListError> {
    let mut payload = sized(name);
    payload.extend(0_u32.to_be_bytes());
    ask(stream, option::LIST_META_CONTEXT, &payload)?;
    let mut contexts = Vec::new();
    loop {
        let answer = answer(stream, option::LIST_META_CONTEXT)?;
        match answer.kind {
            reply::META_CONTEXT if contexts.len() < MOST_CONTEXTS => {
                // Behind the number that a choice would give it.
                let name = answer.payload.get(4..);
                contexts.push(text(
                    name.ok_or(ListError::Unexpected(option::LIST_META_CONTEXT))?,
                ));
            }
            reply::ACK => return Ok(contexts),
            kind if is_error(kind) => return Ok(contexts),
            _ => return Err(ListError::Unexpected(option::LIST_META_CONTEXT)),
        }
    }
}

fn is_error(kind: u32) -> bool {
    kind & reply::ERROR != 0
}

/// A text with its length before it.
fn sized(text: &str) -> Vec<u8> {
    let mut bytes = u32::try_from(text.len())
        .unwrap_or(u32::MAX)
        .to_be_bytes()
        .to_vec();
    bytes.extend(text.as_bytes());
    bytes
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// What is told of a refusal.
fn refused(option: u32, answer: &Reply) -> ListError {
    let (text, hint) = reply::refusal(answer.kind, option, &answer.payload);
    ListError::Refused { text, hint }
}

/// Sends an option to the server.
fn ask(stream: &mut impl Write, wanted: u32, payload: &[u8]) -> Result<(), ListError> {
    let mut bytes = MAGIC_OPTION.to_be_bytes().to_vec();
    bytes.extend(wanted.to_be_bytes());
    bytes.extend(u32::try_from(payload.len()).unwrap_or(u32::MAX).to_be_bytes());
    bytes.extend(payload);
    stream.write_all(&bytes).map_err(ListError::Send)
}

/// The next answer to an option.
fn answer(stream: &mut impl Read, wanted: u32) -> Result<Reply, ListError> {
    let magic = u64::from_be_bytes(take(stream, "option reply")?);
    let about = u32::from_be_bytes(take(stream, "option reply")?);
    let kind = u32::from_be_bytes(take(stream, "option reply")?);
    let len = u32::from_be_bytes(take(stream, "option reply")?);
    if magic != MAGIC_OPTION_REPLY || about != wanted || len > LONGEST_REPLY {
        return Err(ListError::Unexpected(wanted));
    }
    let mut payload = vec![0; len as usize];
    stream
        .read_exact(&mut payload)
        .map_err(|error| unread("option reply", &error))?;
    Ok(Reply { kind, payload })
}

fn take<const N: usize>(stream: &mut impl Read, what: &'static str) -> Result<[u8; N], ListError> {
    let mut bytes = [0; N];
    stream
        .read_exact(&mut bytes)
        .map_err(|error| unread(what, &error))?;
    Ok(bytes)
}

fn unread(what: &'static str, error: &io::Error) -> ListError {
    let why = match error.kind() {
        // That of TLS says more.
        io::ErrorKind::UnexpectedEof if error.get_ref().is_none_or(|inner| !inner.is::<TlsError>()) => {
            "Unexpected end-of-file before all data were read".to_owned()
        }
        _ => error.to_string(),
    };
    ListError::Read { what, why }
}
