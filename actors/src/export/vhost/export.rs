//! An export of kind vhost-user-blk, as the registry sees it: it listens, and serves one front end at a time.

use std::cell::Cell;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::Duration;

use futures_channel::{mpsc, oneshot};
use futures_util::future::LocalBoxFuture;
use futures_util::{FutureExt, StreamExt};
use millpond_messages::qapi::{BlockExportType, SocketAddress, VhostUserBlkExportOptions};
use millpond_messages::saved::SavedExportKind;
use millpond_messages::{Error, ErrorKind, Result};
use millpond_ring::os::process::watched;
use rustix::io::ioctl_fionbio;
use rustix::net::{SocketFlags, accept_with};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::sync::watch;

use super::front_end::{Ended, FrontEnd};
use super::socket::{Socket, SocketEnded};
use crate::export::kind::{Export, Hold, Prepared};
use crate::export::saved::Descriptors;
use crate::export::seat::{Seat, Seats};
use crate::export::virtio::config::feature;
use crate::export::virtio::device::{Device, Shape, block_size, serial};
use crate::export::virtio::length::LengthWatch;
use crate::export::worker::place;
use crate::socket::{Listeners, OwnFile, listen};

/// How many descriptors a request has at most.
const LONGEST: u16 = 128;
/// What guests read where they ask for a serial number.
const SERIAL: &str = "vhost_user_blk";

/// An export that is being made: its options were looked at.
struct VhostPrepared {
    id: String,
    address: SocketAddress,
    block_size: u32,
    queues: u16,
}

struct VhostExport {
    id: String,
    /// Says that no more front ends are to be served.
    closing: watch::Sender<bool>,
    /// Says that the last one is gone.
    closed: watch::Receiver<bool>,
    /// Dropped, the length of the node is not followed any more.
    _length: oneshot::Sender<()>,
    file: Cell<Option<OwnFile>>,
}

/// What serves front ends, one after the other.
struct Server {
    id: String,
    device: Arc<Device>,
    seats: Seats,
    length_changed: mpsc::UnboundedReceiver<()>,
    closing: watch::Receiver<bool>,
}

fn invalid(text: impl Into<String>) -> Error {
    Error::new(ErrorKind::InvalidArgument, text.into())
}

/// Checks the options of an export that is called `id`.
///
/// # Errors
/// QEMU's texts, in its order: a kind of address, a size of blocks, a number of queues that cannot be.
pub(in crate::export) fn prepare(id: &str, options: &VhostUserBlkExportOptions) -> Result<Box<dyn Prepared>> {
    let block_size = block_size(options.logical_block_size)?;
    let queues = options.num_queues.unwrap_or(1);
    if queues == 0 {
        return Err(invalid("num-queues must be greater than 0"));
    }
    if !matches!(options.addr, SocketAddress::Unix(_) | SocketAddress::Fd(_)) {
        return Err(invalid("Only socket address types 'unix' and 'fd' are supported"));
    }
    if queues > MAX_QUEUES {
        return Err(invalid(format!(
            "num-queues must not be greater than {MAX_QUEUES}"
        )));
    }
    Ok(Box::new(VhostPrepared {
        id: id.to_owned(),
        address: options.addr.clone(),
        block_size,
        queues,
    }))
}

/// Messages that bring a descriptor have eight bits for the number of a queue.
const MAX_QUEUES: u16 = 256;

impl VhostPrepared {
    async fn begin(&self, hold: &Hold<'_>) -> Result<VhostExport> {
        let length = hold.client.length().await;
        let length = length.map_err(|error| Error::io("Failed to determine the export's length", error))?;
        let writable = hold.options.writable.unwrap_or(false);
        let shape = Shape {
            block_size: self.block_size,
            queues: self.queues,
            longest: LONGEST,
            writable,
            serial: serial(SERIAL),
            transport: feature::PROTOCOL_FEATURES | feature::CONFIG_WCE,
        };
        let device = Arc::new(Device::new(length, shape));
        let Listeners { mut sockets, file } = listen(&self.address).await?;
        let (Some(socket), true) = (sockets.pop(), sockets.is_empty()) else {
            return Err(invalid("exactly one listening socket is needed"));
        };
        let failed = |error: std::io::Error| Error::io("Failed to listen on socket", error.into());
        ioctl_fionbio(&socket, true).map_err(|errno| failed(errno.into()))?;
        let listener = watched(Arc::new(socket)).map_err(failed)?;
        let (closing, told_to_close) = watch::channel(false);
        let (ended, closed) = watch::channel(false);
        let (changed, length_changed) = mpsc::unbounded();
        let (length, wanted) = oneshot::channel();
        place(LengthWatch {
            seat: Seat::beside(hold.client.clone()),
            device: Arc::clone(&device),
            changed,
            wanted,
        });
        let server = Server {
            id: self.id.clone(),
            device,
            seats: hold.seats(),
            length_changed,
            closing: told_to_close,
        };
        actix_rt::spawn(async move {
            server.serve(listener).await;
            ended.send_replace(true);
        });
        Ok(VhostExport {
            id: self.id.clone(),
            closing,
            closed,
            _length: length,
            file: Cell::new(file),
        })
    }
}

impl Prepared for VhostPrepared {
    fn start<'a>(&'a self, hold: &'a Hold<'a>) -> LocalBoxFuture<'a, Result<Box<dyn Export>>> {
        async move {
            let export = self.begin(hold).await?;
            Ok(Box::new(export) as Box<dyn Export>)
        }
        .boxed_local()
    }
}

impl Export for VhostExport {
    fn kind(&self) -> BlockExportType {
        BlockExportType::VhostUserBlk
    }

    fn name(&self) -> &str {
        &self.id
    }

    /// A front end that is connected does not keep it, as in QEMU.
    fn is_used(&self) -> bool {
        false
    }

    fn over(&self) -> Option<LocalBoxFuture<'static, ()>> {
        None
    }

    fn save(&self, _: &Descriptors) -> LocalBoxFuture<'static, SavedExportKind> {
        // A front end connects again by itself, and its requests in flight are in memory that it keeps.
        std::future::ready(SavedExportKind::VhostUserBlk).boxed_local()
    }

    fn shut_down(&self) -> LocalBoxFuture<'static, ()> {
        if let Some(file) = self.file.take() {
            file.remove();
        }
        self.closing.send_replace(true);
        let mut closed = self.closed.clone();
        async move {
            // It is gone as well if what serves it is.
            let _ = closed.wait_for(|closed| *closed).await;
        }
        .boxed_local()
    }
}

impl Server {
    async fn serve(mut self, listener: AsyncFd<Arc<OwnedFd>>) {
        let mut closing = self.closing.clone();
        loop {
            let accepted = tokio::select! {
                biased;
                _ = closing.wait_for(|closing| *closing) => return,
                accepted = accept(&listener) => accepted,
            };
            match accepted.and_then(Socket::new) {
                Ok(socket) => self.serve_one(socket).await,
                Err(error) => {
                    tracing::warn!(export = self.id, %error, "a front end could not be accepted");
                    // Out of descriptors, most likely: trying again at once would only burn the processor.
                    tokio::time::sleep(Duration::from_millis(100)).await;
                }
            }
        }
    }

    /// Says in the log how it ended with a front end.
    fn report(&self, ended: Option<Ended>) {
        match ended {
            Some(Ended::Socket(SocketEnded::Closed)) | None => {
                tracing::info!(export = self.id, "a front end is gone");
            }
            Some(error) => tracing::warn!(export = self.id, %error, "a front end was disconnected"),
        }
    }

    /// Serves a front end to its end.
    async fn serve_one(&mut self, socket: Socket) {
        tracing::info!(export = self.id, "a front end is connected");
        // One before it may have wanted none.
        self.device.set_write_cache(true);
        let (faults, mut faulty) = mpsc::unbounded();
        let device = Arc::clone(&self.device);
        let mut front_end = FrontEnd::new(socket, device, self.seats.clone(), faults);
        let mut closing = self.closing.clone();
        let ended = loop {
            let message = {
                // What has come of a message must not be lost when something else comes first.
                let mut message = std::pin::pin!(front_end.next());
                loop {
                    tokio::select! {
                        biased;
                        _ = closing.wait_for(|closing| *closing) => break None,
                        Some((queue, why)) = faulty.next() => break Some(Err(Ended::Queue(queue, why))),
                        Some(()) = self.length_changed.next() => front_end.configuration_changed(),
                        message = &mut message => break Some(message.map_err(Ended::from)),
                    }
                }
            };
            let message = match message {
                None => break None,
                Some(Err(ended)) => break Some(ended),
                Some(Ok(message)) => message,
            };
            if let Err(ended) = front_end.obey(message).await {
                break Some(ended);
            }
        };
        front_end.stop_queues().await;
        // Its socket closes behind this: who sees the end finds the reason.
        self.report(ended);
    }
}

/// The next front end.
async fn accept(listener: &AsyncFd<Arc<OwnedFd>>) -> std::io::Result<OwnedFd> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let accept = |listener: &Arc<OwnedFd>| Ok(accept_with(listener, flags)?);
    listener.async_io(Interest::READABLE, accept).await
}
