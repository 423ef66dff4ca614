//! Files, and pipes that have names.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::OpenOptionsExt;

use millpond_messages::IoError;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::unix::pipe::{Receiver, Sender};

use super::connection::{Connection, Silence};

/// Opens a file without waiting for anybody at the other end of a pipe. A slow disk holds up nothing else.
///
/// # Errors
/// QEMU's text.
pub async fn open(mut how: OpenOptions, path: &str) -> Result<File, String> {
    how.custom_flags(libc::O_NONBLOCK | libc::O_NOCTTY | libc::O_CLOEXEC);
    let asked = path.to_owned();
    let opened = tokio::task::spawn_blocking(move || how.open(asked)).await;
    let why = match opened {
        Ok(Ok(file)) => return Ok(file),
        Ok(Err(error)) => IoError::from(error).to_string(),
        Err(error) => error.to_string(),
    };
    Err(format!("Could not open '{path}': {why}"))
}

/// What is read from a file, which does not block. Plain files cannot be watched, and need not.
fn reader(file: File) -> io::Result<Box<dyn AsyncRead + Unpin>> {
    Ok(match Receiver::from_file_unchecked(file.try_clone()?) {
        Ok(watched) => Box::new(watched),
        Err(_) => Box::new(tokio::fs::File::from_std(file)),
    })
}

/// What is written to a file, which does not block.
fn writer(file: File) -> io::Result<Box<dyn AsyncWrite + Unpin>> {
    Ok(match Sender::from_file_unchecked(file.try_clone()?) {
        Ok(watched) => Box::new(watched),
        Err(_) => Box::new(tokio::fs::File::from_std(file)),
    })
}

/// The connection that files are.
///
/// # Errors
/// QEMU's text for what cannot be opened.
pub async fn files(input: Option<&str>, output: &str, append: bool) -> Result<Connection, String> {
    let mut how = OpenOptions::new();
    how.write(true).create(true).mode(0o666);
    let how = if append {
        how.append(true)
    } else {
        how.truncate(true)
    };
    let output = open(how.clone(), output).await?;
    let unusable = |error: io::Error| IoError::from(error).to_string();
    let reader = match input {
        Some(path) => {
            let mut how = OpenOptions::new();
            reader(open(how.read(true).clone(), path).await?).map_err(unusable)?
        }
        None => Box::new(Silence),
    };
    let writer = writer(output).map_err(unusable)?;
    Ok(Connection { reader, writer })
}

/// The connection that pipes are. Each is opened for both directions, so that it has no end as others come and go.
///
/// # Errors
/// QEMU's text for what cannot be opened.
pub async fn pipes(path: &str) -> Result<Connection, String> {
    let mut how = OpenOptions::new();
    how.read(true).write(true);
    let input = open(how.clone(), &format!("{path}.in")).await;
    let output = open(how.clone(), &format!("{path}.out")).await;
    let unusable = |error: io::Error| format!("Could not open '{path}': {}", IoError::from(error));
    let (input, output) = match (input, output) {
        (Ok(input), Ok(output)) => (input, output),
        _ => {
            let both = open(how, path).await?;
            (both.try_clone().map_err(unusable)?, both)
        }
    };
    Ok(Connection {
        reader: reader(input).map_err(unusable)?,
        writer: writer(output).map_err(unusable)?,
    })
}
