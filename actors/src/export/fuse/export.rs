//! A FUSE export, as the registry sees it.

use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::sync::{Arc, Weak};
use std::time::Duration;

use futures_channel::oneshot;
use futures_util::FutureExt;
use futures_util::future::{LocalBoxFuture, select_all};
use millpond_engine::iothread::Local;
use millpond_engine::node::Client;
use millpond_messages::qapi::{
    BlockExportType, FuseExportAllowOther, FuseExportOptions, MillpondFuseIoUring,
};
use millpond_messages::saved::{SavedExportKind, SavedFuseExport};
use millpond_messages::{Error, ErrorKind, Result};
use millpond_ring::Engine;

use super::attributes::Rules;
use super::device::{Line, agree};
use super::lengths::{Lengths, Owner};
use super::mount::{self, Mounted};
use super::mountpoints::{Mountpoints, Reserved};
use super::serve::Served;
use super::standing::{Agreement, Standing};
use crate::export::kind::{Export, Hold, Prepared};
use crate::export::saved::Descriptors;
use crate::export::seat::Seat;
use crate::export::watched::Watched;
use crate::export::worker::place;
use crate::graph::GraphHandle;

/// How long an export that is removed is served on, for what is mapped of it to be written: no longer than a storage that
/// does not answer may hold it up.
const LAST_WRITES: Duration = Duration::from_secs(5);

/// A FUSE export that is being made: its file is reserved.
struct FusePrepared {
    graph: GraphHandle,
    reserved: Rc<Reserved>,
    options: FuseExportOptions,
}

/// An export that is mounted.
struct FuseExport(Rc<Inner>);

struct Inner {
    reserved: Rc<Reserved>,
    path: PathBuf,
    device: u64,
    /// Only who serves the export holds it open: once that has ended, nobody waits for an answer.
    channel: Weak<OwnedFd>,
    standing: Arc<Standing>,
    state: Watched<State>,
}

#[derive(Default)]
struct State {
    /// Has no more messages be taken when they are dropped, each on an iothread.
    stop: Vec<oneshot::Sender<()>>,
    /// It is served no more.
    ended: bool,
}

/// Checks the options of a FUSE export.
///
/// # Errors
/// QEMU's text: the file has an export.
pub(crate) fn prepare(
    mountpoints: &Mountpoints,
    graph: &GraphHandle,
    options: &FuseExportOptions,
) -> Result<Box<dyn Prepared>> {
    Ok(Box::new(FusePrepared {
        graph: graph.clone(),
        reserved: Rc::new(mountpoints.reserve(&options.mountpoint)?),
        options: options.clone(),
    }))
}

/// Runs what may wait on a thread that nobody waits for.
async fn aside<T: Send + 'static>(job: impl FnOnce() -> Result<T> + Send + 'static) -> Result<T> {
    let done = tokio::task::spawn_blocking(job).await;
    done.map_err(|error| Error::new(ErrorKind::Closed, error.to_string()))?
}

/// A file system that is mounted, and that the kernel has agreed on. Nobody answers its messages yet.
struct Begun {
    path: PathBuf,
    device: u64,
    /// Other users than that of the daemon can open it.
    allow_other: bool,
    agreement: Agreement,
    /// What each iothread serves it by: one at least.
    lines: Vec<Line>,
}

impl FusePrepared {
    /// Whether requests are to come over io_uring: where it is not said, only where the node's do.
    async fn io_uring(&self, client: &Client) -> MillpondFuseIoUring {
        match self
            .options
            .x_millpond_io_uring
            .unwrap_or(MillpondFuseIoUring::Auto)
        {
            MillpondFuseIoUring::Auto if !has_io_uring(client).await => MillpondFuseIoUring::Off,
            wanted => wanted,
        }
    }

    /// Mounts the export, to be served by so many iothreads.
    async fn mount(&self, lines: usize, io_uring: MillpondFuseIoUring) -> Result<Begun> {
        let given = self.options.mountpoint.clone();
        let file = aside(move || mount::find(&given)).await?;
        self.reserved.claim(&file.path, file.device)?;
        let given = self.options.mountpoint.clone();
        let wanted = self.options.allow_other.unwrap_or(FuseExportAllowOther::Auto);
        let begun = aside(move || {
            let path = file.path;
            mount::check(&given, &path)?;
            let (Mounted { channel, device }, allow_other) = mount_for(&path, wanted)?;
            match agree(&Arc::new(channel), lines, io_uring) {
                Ok((agreement, lines)) => Ok(Begun {
                    path,
                    device,
                    allow_other,
                    agreement,
                    lines,
                }),
                Err(error) => {
                    mount::unmount(&path, device);
                    Err(failed_to_mount(error))
                }
            }
        })
        .await?;
        self.reserved.set_mounted(begun.device);
        Ok(begun)
    }
}

/// Whether the iothread of a node works by io_uring, so that an export of it may too.
async fn has_io_uring(client: &Client) -> bool {
    let (tell, told) = oneshot::channel();
    client.run_at_home(move || {
        let engine = Local::current().map(|local| local.ring().engine());
        // Who has asked may have gone.
        let _ = tell.send(engine == Some(Engine::Uring));
    });
    told.await.unwrap_or(false)
}

fn failed_to_mount(error: std::io::Error) -> Error {
    let text = format!("Failed to mount FUSE session to export: {error}");
    Error::caused_by(ErrorKind::Unsupported, text, error)
}

/// Mounts an export for those who are to open it; answers whether all users can.
///
/// # Errors
/// It cannot be mounted.
fn mount_for(path: &Path, wanted: FuseExportAllowOther) -> Result<(Mounted, bool)> {
    let failed = failed_to_mount;
    match wanted {
        FuseExportAllowOther::Off => Ok((mount::mount(path, false).map_err(failed)?, false)),
        FuseExportAllowOther::On => Ok((mount::mount(path, true).map_err(failed)?, true)),
        FuseExportAllowOther::Auto => match mount::mount(path, true) {
            Ok(mounted) => Ok((mounted, true)),
            // The host may forbid it, and any other reason is told by the second try.
            Err(_) => Ok((mount::mount(path, false).map_err(failed)?, false)),
        },
    }
}

impl Prepared for FusePrepared {
    fn start<'a>(&'a self, hold: &'a Hold<'a>) -> LocalBoxFuture<'a, Result<Box<dyn Export>>> {
        async move {
            let seats = hold.seats();
            let lines = seats.count();
            let begun = self.mount(lines, self.io_uring(&hold.client).await).await?;
            let rules = Rules {
                writable: hold.options.writable.unwrap_or(false),
                growable: self.options.growable.unwrap_or(false),
                allow_other: begun.allow_other,
            };
            let (lengths, orders) = Lengths::new();
            let owner = Owner {
                client: hold.client.clone(),
                graph: self.graph.clone(),
            };
            actix_rt::spawn(owner.serve(orders));
            let inner = Rc::new(Inner {
                reserved: Rc::clone(&self.reserved),
                path: begun.path,
                device: begun.device,
                channel: begun
                    .lines
                    .first()
                    .map_or_else(Weak::new, |line| Arc::downgrade(&line.channel)),
                standing: Arc::new(Standing::new(rules, begun.agreement, lengths)),
                state: Watched::default(),
            });
            let lines = begun.lines.into_iter().enumerate();
            let served = lines.map(|(number, line)| self.place(hold, &inner, seats.nth(number), line));
            actix_rt::spawn(Rc::clone(&inner).watch(served.collect()));
            Ok(Box::new(FuseExport(inner)) as Box<dyn Export>)
        }
        .boxed_local()
    }
}

impl FusePrepared {
    /// Has an iothread serve its part of an export; answers what tells, or is dropped, at the end of that.
    fn place(&self, hold: &Hold<'_>, inner: &Inner, seat: Seat, line: Line) -> oneshot::Receiver<()> {
        let ((stop, stopped), (ended, served)) = (oneshot::channel(), oneshot::channel());
        inner.state.with(|state| state.stop.push(stop));
        place(Served {
            id: hold.options.id.as_str().into(),
            line,
            seat,
            standing: Arc::clone(&inner.standing),
            stays: Vec::new(),
            stop: stopped,
            ended,
        });
        served
    }
}

impl Inner {
    /// Notes when the export is served no more. Where one iothread does not serve its part any more, none does.
    async fn watch(self: Rc<Self>, served: Vec<oneshot::Receiver<()>>) {
        let mut left = served;
        while !left.is_empty() {
            // An iothread that has ended drops what it serves, and tells nothing.
            let (_told, _which, others) = select_all(left).await;
            left = others;
            self.stop();
        }
        self.state.with(|state| state.ended = true);
        self.state.has_changed();
    }

    /// Has no more messages be taken.
    fn stop(&self) {
        drop(self.state.with(|state| std::mem::take(&mut state.stop)));
    }

    /// Unmounts it while it is served, then ends that.
    async fn shut_down(self: Rc<Self>) {
        let (path, device) = (self.path.clone(), self.device);
        let mut unmount = tokio::task::spawn_blocking(move || mount::unmount(&path, device));
        let is_unmounted = tokio::time::timeout(LAST_WRITES, &mut unmount).await.is_ok();
        if !is_unmounted {
            let mountpoint = self.reserved.given();
            tracing::warn!(
                mountpoint,
                "a FUSE export is removed before all that is mapped of it was written"
            );
        }
        self.stop();
        self.state.until(|state| state.ended).await;
        if !is_unmounted {
            // Nobody answers the kernel any more, so that this ends. What it came to is in the log.
            let _ended = unmount.await;
        }
    }
}

impl Export for FuseExport {
    fn kind(&self) -> BlockExportType {
        BlockExportType::Fuse
    }

    fn name(&self) -> &str {
        self.0.reserved.given()
    }

    /// As with QEMU, who has the file open does not use it, but only who waits for an answer.
    fn is_used(&self) -> bool {
        self.0.standing.in_flight() > 0
    }

    fn over(&self) -> Option<LocalBoxFuture<'static, ()>> {
        let inner = Rc::clone(&self.0);
        let ended = async move { inner.state.until(|state| state.ended).await };
        Some(ended.boxed_local())
    }

    fn save(&self, descriptors: &Descriptors) -> LocalBoxFuture<'static, SavedExportKind> {
        let inner = &self.0;
        let of = inner.standing.ownership();
        let saved = SavedFuseExport {
            mountpoint: inner.path.to_string_lossy().into_owned(),
            descriptor: inner.channel.upgrade().map(|channel| descriptors.add(channel)),
            device: inner.device,
            allow_other: inner.standing.rules().allow_other,
            mode: of.mode,
            uid: of.uid,
            gid: of.gid,
            agreed: Some(inner.standing.agreement()),
            in_flight: inner.standing.in_flight(),
        };
        std::future::ready(SavedExportKind::Fuse(saved)).boxed_local()
    }

    fn shut_down(&self) -> LocalBoxFuture<'static, ()> {
        Rc::clone(&self.0).shut_down().boxed_local()
    }
}
