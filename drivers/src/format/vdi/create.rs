//! New images, as `blockdev-create` asks for them.

use millpond_messages::io::Preallocation;
use millpond_messages::{Error, ErrorKind, RequestFlags, Result};

use super::header::{BLOCK, HEADER_LEN, MAX_SIZE, NewHeader, too_long};
use crate::api::{Child, CreateRequest, Size, parse_options, parse_size};

/// Entries of the table that are written at once.
const PART: u64 = 1 << 16;

/// The options, as QAPI's `BlockdevCreateOptionsVdi`.
#[derive(Debug, serde::Deserialize)]
#[serde(deny_unknown_fields)]
struct CreateOptions {
    size: Size,
    #[serde(default)]
    preallocation: Preallocation,
}

fn uuid() -> Result<[u8; 16]> {
    let mut bytes = [0; 16];
    getrandom::fill(&mut bytes).map_err(|error| {
        let text = format!("Cannot make a number for the image: {error}");
        Error::new(ErrorKind::Unsupported, text)
    })?;
    // A random one of RFC 9562.
    bytes[6] = bytes[6] & 0x0f | 0x40;
    bytes[8] = bytes[8] & 0x3f | 0x80;
    Ok(bytes)
}

/// Makes an image in the request's file.
pub(super) async fn create(request: CreateRequest) -> Result<()> {
    let CreateOptions { size, preallocation } = parse_options(request.options)?;
    let size = parse_size("size", Some(&size))?.unwrap_or_default();
    if size > MAX_SIZE {
        return Err(too_long(size));
    }
    let is_static = match preallocation {
        Preallocation::Off => false,
        Preallocation::Metadata => true,
        Preallocation::Falloc | Preallocation::Full => {
            let text = "Preallocation mode not supported for vdi";
            return Err(Error::new(ErrorKind::InvalidArgument, text));
        }
    };
    let Some(file) = request.file else {
        return Err(Error::new(
            ErrorKind::InvalidArgument,
            "Parameter 'file' is missing",
        ));
    };
    let uuids = [uuid()?, uuid()?];
    let header = NewHeader {
        size,
        is_static,
        uuids,
    };
    write(&file, &header).await
}

async fn write(file: &Child, header: &NewHeader) -> Result<()> {
    let failed = |what: &'static str| move |error| Error::io(what, error);
    let none = RequestFlags::empty();
    // The table first: a file is an image once its header is there.
    let entries = header.table_len() / 4;
    for first in (0..entries).step_by(PART as usize) {
        let part = header.table_part(first, PART.min(entries - first));
        file.write_slice(HEADER_LEN as u64 + first * 4, &part, none)
            .await
            .map_err(failed("Error writing bmap"))?;
    }
    if header.is_static {
        let end = header.data() + header.blocks() * BLOCK;
        file.truncate(end, false, Preallocation::Off, none)
            .await
            .map_err(failed("Failed to statically allocate file"))?;
    }
    file.write_slice(0, &header.encode(), none)
        .await
        .map_err(failed("Error writing header"))?;
    file.flush().await.map_err(failed("Error writing header"))
}
