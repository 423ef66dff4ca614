//! An export of kind vduse-blk, as the registry sees it: it makes a device, and serves it until it is removed.

use std::io;
use std::path::PathBuf;
use std::sync::{Arc, Weak};

use futures_channel::{mpsc, oneshot};
use futures_util::future::LocalBoxFuture;
use futures_util::{FutureExt, StreamExt};
use millpond_messages::qapi::{BlockExportType, VduseBlkExportOptions};
use millpond_messages::saved::{SavedExportKind, SavedVduseExport};
use millpond_messages::{Error, ErrorKind, Result};
use millpond_ring::Fd;
use millpond_ring::os::vduse::{DeviceName, NewDevice, VduseControl, VduseDevice, open_device};
use tokio::sync::watch;
use zerocopy::IntoBytes;

use super::driver::{DriverSide, Parts, Refused};
use super::journal;
use super::kernel::Kernel;
use super::message::{Answer, Channel};
use crate::export::kind::{Export, Hold, Prepared};
use crate::export::saved::Descriptors;
use crate::export::seat::Seat;
use crate::export::virtio::config::{Config, Facts, feature};
use crate::export::virtio::device::{Device, SERIAL, Shape, block_size, serial};
use crate::export::virtio::in_flight::{InFlight, InFlightError};
use crate::export::virtio::length::LengthWatch;
use crate::export::virtio::vring::{Fault, Lookup, MAX_QUEUE_SIZE};
use crate::export::worker::place;

/// The number of block devices, as virtio counts kinds.
const BLOCK: u32 = 2;
/// Descriptors of a queue if nothing else is said.
const DEFAULT_QUEUE_SIZE: u16 = 256;
/// The fewest descriptors of a queue: a request has at least three.
const MIN_QUEUE_SIZE: u16 = 4;
/// The most queues of a device: the journal has 16 KiB for each.
const MAX_QUEUES: u16 = 1024;

/// An export that is being made: its options were looked at.
struct VdusePrepared {
    name: String,
    block_size: u32,
    queues: u16,
    queue_size: u16,
    serial: [u8; SERIAL],
}

struct VduseExport {
    name: String,
    journal: PathBuf,
    /// The device, as long as it is served.
    channel: Weak<std::os::fd::OwnedFd>,
    /// Says that the device is not to be served any more.
    closing: watch::Sender<bool>,
    /// Says that it is not.
    closed: watch::Receiver<bool>,
    /// Dropped, the length of the node is not followed any more.
    _length: oneshot::Sender<()>,
}

/// A device that the kernel has, and the right to remove it.
struct Made {
    control: VduseControl,
    name: DeviceName,
    journal: PathBuf,
}

/// What this process has open of a device to serve it.
struct Link {
    kernel: Arc<VduseDevice<Fd>>,
    in_flight: InFlight,
    /// There was such a device already, and there may be a driver that waits.
    existed: bool,
}

/// What serves a device.
pub(super) struct Server {
    pub(super) name: String,
    pub(super) channel: Channel,
    pub(super) driver: DriverSide,
    pub(super) faults: mpsc::UnboundedReceiver<Fault>,
    pub(super) lookups: mpsc::UnboundedReceiver<Lookup>,
    pub(super) closing: watch::Receiver<bool>,
}

/// Why a device cannot be made, or served.
#[derive(Debug, thiserror::Error)]
enum NotMade {
    #[error("no device can have this name")]
    Name,
    #[error("the kernel has no such devices, or not for this program: {0}")]
    Control(io::Error),
    #[error("the kernel does not make the device: {0}")]
    Create(io::Error),
    #[error("the device cannot be served: {0}")]
    Open(io::Error),
    #[error(transparent)]
    Journal(#[from] InFlightError),
    #[error("what its driver has set up cannot be served: {0}")]
    Resume(#[from] Refused),
    #[error("{0}")]
    System(#[from] io::Error),
}

fn invalid(text: impl Into<String>) -> Error {
    Error::new(ErrorKind::InvalidArgument, text.into())
}

/// Checks the options of an export.
///
/// # Errors
/// QEMU's texts, in its order: a number of queues, their size, a size of blocks that cannot be.
pub(in crate::export) fn prepare(options: &VduseBlkExportOptions) -> Result<Box<dyn Prepared>> {
    let queues = options.num_queues.unwrap_or(1);
    if queues == 0 {
        return Err(invalid("num-queues must be greater than 0"));
    }
    if queues > MAX_QUEUES {
        return Err(invalid(format!(
            "num-queues must not be greater than {MAX_QUEUES}"
        )));
    }
    let queue_size = options.queue_size.unwrap_or(DEFAULT_QUEUE_SIZE);
    if !queue_size.is_power_of_two() || !(MIN_QUEUE_SIZE..=MAX_QUEUE_SIZE).contains(&queue_size) {
        return Err(invalid("queue-size is invalid"));
    }
    Ok(Box::new(VdusePrepared {
        name: options.name.clone(),
        block_size: block_size(options.logical_block_size)?,
        queues,
        queue_size,
        serial: serial(options.serial.as_deref().unwrap_or_default()),
    }))
}

/// Makes a device of a name, or opens the one there is.
fn open(name: &str, facts: &Facts) -> Result<(Made, Link), NotMade> {
    let name = DeviceName::new(name).ok_or(NotMade::Name)?;
    let control = VduseControl::open().map_err(NotMade::Control)?;
    let mut config = [0; size_of::<Config>()];
    config.copy_from_slice(facts.config().as_bytes());
    let new = NewDevice {
        name: &name,
        device: BLOCK,
        features: facts.features(),
        queues: facts.queues.into(),
        config,
    };
    let existed = match control.create(&new) {
        Ok(()) => false,
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => true,
        Err(error) => return Err(NotMade::Create(error)),
    };
    let journal = journal::path(&name);
    let made = Made {
        control,
        name,
        journal,
    };
    match made.open(facts, existed) {
        Ok(link) => Ok((made, link)),
        Err(error) => {
            if !existed {
                made.remove();
            }
            Err(error)
        }
    }
}

impl Made {
    /// Opens what there is of the device.
    fn open(&self, facts: &Facts, existed: bool) -> Result<Link, NotMade> {
        let device = open_device(&self.name).map_err(NotMade::Open)?;
        let device = VduseDevice::new(Arc::new(device));
        for index in 0..facts.queues {
            let set = device.set_up_queue(index.into(), facts.longest);
            set.map_err(NotMade::Open)?;
        }
        // Only now: this process alone has the device, and with it the file.
        let in_flight = journal::open(&self.journal, facts.queues, !existed)?;
        Ok(Link {
            kernel: Arc::new(device),
            in_flight,
            existed,
        })
    }

    /// Removes the device, which is not served any more, unless it is attached: then it waits to be served again.
    fn remove(&self) {
        let device = self.name.as_str();
        match self.control.destroy(&self.name) {
            Err(error) if error.kind() == io::ErrorKind::ResourceBusy => {
                tracing::info!(device, "a device is left, since it is attached");
                return;
            }
            Err(error) => tracing::warn!(device, %error, "a device cannot be removed"),
            Ok(()) => {}
        }
        match std::fs::remove_file(&self.journal) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                tracing::warn!(device, %error, "a file of requests in flight cannot be removed");
            }
            _ => {}
        }
    }
}

impl VdusePrepared {
    async fn begin(&self, hold: &Hold<'_>) -> Result<VduseExport> {
        let length = hold.client.length().await;
        let length = length.map_err(|error| Error::io("Failed to determine the export's length", error))?;
        let shape = Shape {
            block_size: self.block_size,
            queues: self.queues,
            longest: self.queue_size,
            writable: hold.options.writable.unwrap_or(false),
            serial: self.serial,
            transport: feature::ACCESS_PLATFORM,
        };
        let device = Arc::new(Device::new(length, shape));
        let (name, facts) = (self.name.clone(), device.facts());
        let opened = tokio::task::spawn_blocking(move || open(&name, &facts)).await;
        let opened = opened.unwrap_or_else(|error| Err(NotMade::System(error.into())));
        let begun = match opened {
            Ok((made, link)) => self.serve(hold, device, made, link).await,
            Err(error) => Err(error),
        };
        begun.map_err(|error| {
            tracing::warn!(device = self.name, %error, "a VDUSE device cannot be served");
            Error::caused_by(ErrorKind::Unsupported, "failed to create vduse device", error)
        })
    }

    /// Has a device served that was opened.
    async fn serve(
        &self,
        hold: &Hold<'_>,
        device: Arc<Device>,
        made: Made,
        link: Link,
    ) -> Result<VduseExport, NotMade> {
        let (existed, channel) = (link.existed, Arc::downgrade(link.kernel.descriptor()));
        let (closing, told_to_close) = watch::channel(false);
        let (length, wanted) = oneshot::channel();
        let (changed, length_changed) = mpsc::unbounded();
        let watch = LengthWatch {
            seat: Seat::beside(hold.client.clone()),
            device: Arc::clone(&device),
            changed,
            wanted,
        };
        let server = match self.server(hold, device, link, told_to_close).await {
            Ok(server) => server,
            Err(error) => {
                if !existed {
                    made.remove();
                }
                return Err(error);
            }
        };
        place(watch);
        let (ended, closed) = watch::channel(false);
        let journal = made.journal.clone();
        actix_rt::spawn(async move {
            server.serve(length_changed).await;
            made.remove();
            ended.send_replace(true);
        });
        Ok(VduseExport {
            name: self.name.clone(),
            journal,
            channel,
            closing,
            closed,
            _length: length,
        })
    }

    /// What serves a device until it is told to close it, and goes on with what there is.
    async fn server(
        &self,
        hold: &Hold<'_>,
        device: Arc<Device>,
        link: Link,
        closing: watch::Receiver<bool>,
    ) -> Result<Server, NotMade> {
        let Link {
            kernel,
            in_flight,
            existed,
        } = link;
        let (faults, faulty) = mpsc::unbounded();
        let (lookups, wanted_memory) = mpsc::unbounded();
        let channel = Channel::new(kernel.descriptor())?;
        let mut driver = DriverSide::new(Parts {
            kernel: kernel as Arc<dyn Kernel>,
            device,
            seats: hold.seats(),
            queue_size: self.queue_size,
            in_flight: Arc::new(in_flight),
            faults,
            lookups,
        });
        if existed {
            driver.length_changed();
            driver.resume().await?;
        }
        Ok(Server {
            name: self.name.clone(),
            channel,
            driver,
            faults: faulty,
            lookups: wanted_memory,
            closing,
        })
    }
}

impl Prepared for VdusePrepared {
    fn start<'a>(&'a self, hold: &'a Hold<'a>) -> LocalBoxFuture<'a, Result<Box<dyn Export>>> {
        async move {
            let export = self.begin(hold).await?;
            Ok(Box::new(export) as Box<dyn Export>)
        }
        .boxed_local()
    }
}

impl VduseExport {
    fn until_closed(&self) -> LocalBoxFuture<'static, ()> {
        let mut closed = self.closed.clone();
        async move {
            // It is closed as well if what serves it is gone.
            let _ = closed.wait_for(|closed| *closed).await;
        }
        .boxed_local()
    }
}

impl Export for VduseExport {
    fn kind(&self) -> BlockExportType {
        BlockExportType::VduseBlk
    }

    fn name(&self) -> &str {
        &self.name
    }

    /// A driver does not keep it, as in QEMU: it waits until the device is served again.
    fn is_used(&self) -> bool {
        false
    }

    fn over(&self) -> Option<LocalBoxFuture<'static, ()>> {
        Some(self.until_closed())
    }

    fn save(&self, descriptors: &Descriptors) -> LocalBoxFuture<'static, SavedExportKind> {
        let channel = self.channel.upgrade();
        let saved = SavedVduseExport {
            name: self.name.clone(),
            descriptor: channel.map(|channel| descriptors.add(channel)),
            in_flight: self.journal.to_string_lossy().into_owned(),
        };
        std::future::ready(SavedExportKind::VduseBlk(saved)).boxed_local()
    }

    fn shut_down(&self) -> LocalBoxFuture<'static, ()> {
        self.closing.send_replace(true);
        self.until_closed()
    }
}

impl Server {
    /// Serves the device until it is to be closed, or the kernel has no more to say of it. Nothing is open for it then.
    pub(super) async fn serve(mut self, mut length_changed: mpsc::UnboundedReceiver<()>) {
        if let Err(error) = self.serve_messages(&mut length_changed).await {
            tracing::error!(device = self.name, %error, "the kernel says no more of a device");
        }
        self.driver.close().await;
    }

    async fn serve_messages(&mut self, length_changed: &mut mpsc::UnboundedReceiver<()>) -> io::Result<()> {
        loop {
            let message = tokio::select! {
                biased;
                _ = self.closing.wait_for(|closing| *closing) => return Ok(()),
                Some((queue, why)) = self.faults.next() => {
                    tracing::warn!(device = self.name, queue, why, "a queue was stopped");
                    self.driver.ended(queue);
                    continue;
                }
                Some(lookup) = self.lookups.next() => {
                    self.driver.look_up(lookup).await;
                    continue;
                }
                Some(()) = length_changed.next() => {
                    self.driver.length_changed();
                    continue;
                }
                message = self.channel.receive() => message?,
            };
            let answer = self.driver.obey(message.wanted).await.unwrap_or_else(|error| {
                tracing::warn!(device = self.name, wanted = ?message.wanted, %error, "a message of the kernel");
                Answer::Failed
            });
            if let Err(error) = self.channel.answer(&message, answer) {
                // It has waited for too long.
                tracing::warn!(device = self.name, %error, "an answer to the kernel comes too late");
            }
        }
    }
}
