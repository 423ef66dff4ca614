//! New volumes, as `blockdev-create` asks for them.

use std::sync::Arc;

use millpond_messages::io::Preallocation;
use millpond_messages::{Error, ErrorKind, RequestFlags, Result, check_length};

use super::header_file::HeaderFile;
use crate::api::{Child, CreateRequest, parse_options};
use crate::crypto::luks::NewVolume;
use crate::secret::Secrets;

fn invalid(text: &'static str) -> Error {
    Error::new(ErrorKind::InvalidArgument, text)
}

/// Makes a volume in the request's file, or its header in a file of its own.
pub(super) async fn create(secrets: Secrets, request: CreateRequest) -> Result<()> {
    let CreateRequest {
        options,
        file,
        header,
        ring,
        ..
    } = request;
    let volume: NewVolume = parse_options(options)?;
    if file.is_none() && header.is_none() {
        return Err(invalid(
            "Either the parameter 'header' or 'file' must be specified",
        ));
    }
    if file.is_none() && volume.preallocation != Preallocation::Off {
        return Err(invalid(
            "Parameter 'preallocation' requires 'file' to be specified for formatting LUKS disk",
        ));
    }
    let password = secrets.required_password(volume.key_secret.as_deref(), "key-secret")?;
    volume.spec()?;
    let is_detached = header.is_some();
    let volume = Arc::new(volume);
    let build = {
        let volume = Arc::clone(&volume);
        move || volume.build(password.bytes(), is_detached)
    };
    let (made, key) = ring.blocking(build).await?;
    if let Some(file) = &file {
        let end = volume.size.checked_add(made.payload_offset());
        let end = end.filter(|end| check_length(*end).is_ok());
        let end = end.ok_or_else(|| invalid("The requested file size is too large"))?;
        file.resize(end, false, volume.preallocation, RequestFlags::empty())
            .await?;
    }
    let Some(target) = header.or(file) else {
        return Ok(());
    };
    grow(&target, made.end()).await?;
    HeaderFile::new(target, is_detached).store(&made, &key).await
}

/// Makes a file long enough for a header and all its places for keys.
async fn grow(file: &Child, end: u64) -> Result<()> {
    let failed = |error| Error::io("Unable to get the image's length", error);
    if file.length().await.map_err(failed)? >= end {
        return Ok(());
    }
    file.resize(end, false, Preallocation::Off, RequestFlags::empty())
        .await
}
