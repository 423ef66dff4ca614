//! The file that gets all output of a device besides.
//!
//! It is written by a task of its own: a disk that is slow holds up whoever writes to the device, once a bounded number of
//! bytes wait, and nobody else.

use std::fs::OpenOptions;
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use futures_util::future::BoxFuture;
use tokio::io::{AsyncWrite, AsyncWriteExt};
use tokio::sync::mpsc::error::SendError;
use tokio::sync::mpsc::{OwnedPermit, Receiver, Sender, channel};
use tokio::task::JoinHandle;

use super::backend::LogFile;
use super::file;

/// The most bytes that are written at once, and logged in one piece.
const PIECE: usize = 64 << 10;
/// How many pieces may wait for the disk.
const WAITING: usize = 16;

/// Where output is logged. The file is complete once this and what it has made are gone, and its task has ended.
pub struct Log(Sender<Vec<u8>>);

impl Log {
    /// Opens the file. The task ends when all is written.
    ///
    /// # Errors
    /// QEMU's text.
    pub async fn open(log: &LogFile) -> Result<(Self, JoinHandle<()>), String> {
        let mut how = OpenOptions::new();
        how.write(true).create(true).mode(0o666);
        let how = if log.append {
            how.append(true)
        } else {
            how.truncate(true)
        };
        let opened = file::open(how.clone(), &log.path).await;
        let file = opened.map_err(|text| text.replacen("Could not open", "Could not create", 1))?;
        let (sender, pieces) = channel(WAITING);
        let task = actix_rt::spawn(write(tokio::fs::File::from_std(file), pieces, log.path.clone()));
        Ok((Self(sender), task))
    }

    /// A writer whose output is logged.
    pub fn log(&self, writer: Box<dyn AsyncWrite + Unpin>) -> Box<dyn AsyncWrite + Unpin> {
        Box::new(Logged {
            writer,
            log: self.0.clone(),
            room: None,
        })
    }
}

async fn write(mut file: tokio::fs::File, mut pieces: Receiver<Vec<u8>>, path: String) {
    while let Some(piece) = pieces.recv().await {
        let written = async {
            file.write_all(&piece).await?;
            file.flush().await
        };
        if let Err(error) = written.await {
            tracing::warn!(path, %error, "a character device is logged no more");
            return;
        }
    }
}

type Room = BoxFuture<'static, Result<OwnedPermit<Vec<u8>>, SendError<()>>>;

/// A writer whose output is logged.
struct Logged {
    writer: Box<dyn AsyncWrite + Unpin>,
    log: Sender<Vec<u8>>,
    /// The wait for room in the log.
    room: Option<Room>,
}

impl AsyncWrite for Logged {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let this = &mut *self;
        let log = &this.log;
        let room = this
            .room
            .get_or_insert_with(|| Box::pin(log.clone().reserve_owned()));
        let permit = ready!(room.as_mut().poll(context));
        let bytes = bytes.get(..PIECE).unwrap_or(bytes);
        let written = match Pin::new(&mut this.writer).poll_write(context, bytes) {
            Poll::Ready(written) => {
                this.room = None;
                written
            }
            Poll::Pending => {
                // The permit is for when the writer has room.
                this.room = Some(Box::pin(std::future::ready(permit)));
                return Poll::Pending;
            }
        };
        if let (Ok(permit), Ok(count)) = (permit, &written) {
            permit.send(bytes.get(..*count).unwrap_or_default().to_vec());
        }
        Poll::Ready(written)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.writer).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.writer).poll_shutdown(context)
    }
}
