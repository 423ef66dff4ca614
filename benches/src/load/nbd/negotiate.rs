//! The handshake: from the greeting to transmission.

use std::io::{ErrorKind, Read, Write};

use super::super::spec::{Kind, Spec};
use super::stream::Stream;
use crate::Outcome;

const OPTION_MAGIC: &[u8; 8] = b"IHAVEOPT";
const REPLY_MAGIC: [u8; 8] = 0x0003_e889_0455_65a9_u64.to_be_bytes();
/// Fixed new style, no zeroes after the last option.
const CLIENT_FLAGS: u32 = 3;
const OPT_GO: u32 = 7;
const OPT_STRUCTURED_REPLY: u32 = 8;
const REP_ACK: u32 = 1;
const REP_INFO: u32 = 3;
const INFO_EXPORT: u16 = 0;
const INFO_BLOCK_SIZE: u16 = 3;
/// The longest reply to an option that is believed, in bytes.
const MOST_REPLY: u32 = 1 << 20;

/// Transmission flags, by the kind of request that needs them.
const FLAG_READ_ONLY: u16 = 1 << 1;
const NEEDS: [(Kind, u16); 3] = [(Kind::Flush, 1 << 2), (Kind::Trim, 1 << 5), (Kind::Zero, 1 << 6)];

/// What the server says of an export.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Export {
    /// Its length in bytes.
    pub size: u64,
    flags: u16,
    /// What offsets and lengths must be multiples of, in bytes.
    block: u32,
}

impl Export {
    /// Refuses work that the export has no commands for.
    ///
    /// # Errors
    /// Says which.
    pub fn check(&self, spec: &Spec) -> Outcome<()> {
        for kind in spec.mix.items() {
            let lacking = NEEDS
                .iter()
                .any(|(needs, flag)| *needs == kind && self.flags & flag == 0);
            if lacking {
                return Err(format!("the export does not offer {kind}").into());
            }
            if kind.changes() && self.flags & FLAG_READ_ONLY != 0 {
                return Err("the export is read-only".into());
            }
        }
        if !spec.grain().is_multiple_of(u64::from(self.block)) {
            return Err(format!("the export wants requests in multiples of {} bytes", self.block).into());
        }
        Ok(())
    }
}

/// Takes a connection to transmission.
///
/// # Errors
/// The server is none, or does not offer what was asked for.
pub(super) fn negotiate(stream: &mut Stream, name: &str, structured: bool) -> Outcome<Export> {
    let mut greeting = [0; 18];
    stream.read_exact(&mut greeting)?;
    if !greeting.starts_with(b"NBDMAGICIHAVEOPT") {
        return Err("not an NBD server of the new style".into());
    }
    stream.write_all(&CLIENT_FLAGS.to_be_bytes())?;
    if structured {
        send_option(stream, OPT_STRUCTURED_REPLY, &[])?;
        if receive_reply(stream)?.0 != REP_ACK {
            return Err("the server has no structured replies".into());
        }
    }
    let mut go = u32::try_from(name.len())?.to_be_bytes().to_vec();
    go.extend(name.as_bytes());
    go.extend([0, 1]);
    go.extend(INFO_BLOCK_SIZE.to_be_bytes());
    send_option(stream, OPT_GO, &go)?;
    let mut export = None;
    let mut block = 1;
    loop {
        let (kind, data) = receive_reply(stream)?;
        match (kind, export) {
            (REP_ACK, Some((size, flags))) => return Ok(Export { size, flags, block }),
            (REP_ACK, None) => return Err("the server does not say how large the export is".into()),
            (REP_INFO, _) => match information(&data)? {
                Information::Export { size, flags } => export = Some((size, flags)),
                Information::Block(least) => block = least.max(1),
                Information::Other => {}
            },
            _ => return Err(format!("export {name:?}: {}", String::from_utf8_lossy(&data)).into()),
        }
    }
}

/// A reply's piece of information.
enum Information {
    Export {
        size: u64,
        flags: u16,
    },
    /// The least size of a block, in bytes.
    Block(u32),
    Other,
}

fn information(data: &[u8]) -> Outcome<Information> {
    let short = "a reply is too short";
    let (kind, rest) = data.split_first_chunk::<2>().ok_or(short)?;
    match u16::from_be_bytes(*kind) {
        INFO_EXPORT => {
            let (size, rest) = rest.split_first_chunk().ok_or(short)?;
            let flags = rest.first_chunk().ok_or(short)?;
            Ok(Information::Export {
                size: u64::from_be_bytes(*size),
                flags: u16::from_be_bytes(*flags),
            })
        }
        INFO_BLOCK_SIZE => {
            let least = rest.first_chunk().ok_or(short)?;
            Ok(Information::Block(u32::from_be_bytes(*least)))
        }
        _ => Ok(Information::Other),
    }
}

fn send_option(stream: &mut Stream, option: u32, data: &[u8]) -> Outcome<()> {
    let length = u32::try_from(data.len())?;
    let pieces = [
        OPTION_MAGIC,
        &option.to_be_bytes()[..],
        &length.to_be_bytes(),
        data,
    ];
    stream.write_all(&pieces.concat())?;
    Ok(())
}

fn receive_reply(stream: &mut Stream) -> Outcome<(u32, Vec<u8>)> {
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
    if length > MOST_REPLY {
        return Err(format!("a reply of {length} bytes").into());
    }
    let mut data = vec![0; length as usize];
    stream.read_exact(&mut data)?;
    Ok((kind, data))
}
