//! The storage daemon put together: what a command line or a monitor can ask for, and an orderly end.

mod announcements;
mod assemble;
mod chardevs;
mod monitors;
mod saved;

pub use saved::DaemonState;

use crate::export::ExportRegistry;
use crate::image::NewImage;
use crate::job::{
    AmendJob, Amendment, Committing, CreateJob, JobOptions, Jobs, MirrorPlan, StreamPlan, TransactionPart,
    commit_plan,
};
use crate::monitor::EventBus;
use crate::object::{Objects, Site};
use chardevs::Chardevs;
use millpond_engine::node::Client;
use millpond_messages::graph::{CloseAll, Options, Request};
use millpond_messages::qapi::QmpError;
use millpond_messages::qapi::schema::{BlockCommit, BlockStream, BlockdevMirror, DriveMirror};
use monitors::Monitors;
use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::time::Duration;
use tokio::sync::watch;
use tokio::time::Instant;

/// How long everything may take to be closed, unless told otherwise. Who asks a daemon to quit waits for a minute before
/// it kills it.
const GRACE: Duration = Duration::from_secs(30);

/// A storage daemon. Clones are the same daemon; it belongs to the control thread.
#[derive(Clone)]
pub struct Daemon {
    parts: Rc<Parts>,
    /// The object that is the monitor by which a command has come, where it is one.
    through: Option<Rc<str>>,
}

struct Parts {
    site: Site,
    exports: ExportRegistry,
    events: EventBus,
    extra_drivers: Vec<String>,
    quit: watch::Sender<bool>,
    failed: Cell<bool>,
    grace: Cell<Duration>,
    objects: RefCell<Objects>,
    jobs: Jobs,
    chardevs: RefCell<Chardevs>,
    monitors: RefCell<Monitors>,
}

impl Daemon {
    /// A daemon whose objects have their effect at `site`, on a graph whose embedder brought `extra_drivers`.
    pub(crate) fn new(
        site: Site,
        exports: ExportRegistry,
        events: EventBus,
        extra_drivers: Vec<String>,
    ) -> Self {
        let jobs = Jobs::new(events.clone());
        Self {
            parts: Rc::new(Parts {
                site,
                exports,
                events,
                extra_drivers,
                quit: watch::channel(false).0,
                failed: Cell::new(false),
                grace: Cell::new(GRACE),
                objects: RefCell::default(),
                jobs,
                chardevs: RefCell::default(),
                monitors: RefCell::default(),
            }),
            through: None,
        }
    }

    /// The same daemon for those who come by the monitor that is the object `id`.
    pub(crate) fn through(&self, id: &str) -> Self {
        Self {
            parts: Rc::clone(&self.parts),
            through: Some(id.into()),
        }
    }

    /// Where events are told.
    pub fn events(&self) -> &EventBus {
        &self.parts.events
    }

    /// Asks the graph actor.
    ///
    /// # Errors
    /// What it answers, as a client sees it.
    pub async fn graph<R: Request>(&self, request: R) -> Result<R::Answer<Client>, QmpError> {
        self.parts.site.graph.ask(request).await.map_err(QmpError::from)
    }

    /// The flight record.
    ///
    /// # Errors
    /// The graph has ended.
    pub async fn flight_record(&self, reason: &str) -> Result<Vec<u8>, QmpError> {
        Ok(self.parts.site.graph.flight_record(reason).await?)
    }

    /// Makes an image; answers the line that is told of it.
    ///
    /// # Errors
    /// As [`GraphHandle::create_image`], as a client sees it.
    pub async fn create_image(&self, image: NewImage) -> Result<Option<String>, QmpError> {
        Ok(self.parts.site.graph.create_image(image).await?)
    }

    /// Where users' objects have their effect.
    pub(crate) fn site(&self) -> &Site {
        &self.parts.site
    }

    /// The jobs that users have started.
    pub fn jobs(&self) -> &Jobs {
        &self.parts.jobs
    }

    /// Starts the job `id` that makes an image. It stays when it has ended, until it is dismissed.
    ///
    /// # Errors
    /// The id is malformed or taken.
    pub async fn start_create(&self, id: &str, options: Options) -> Result<(), QmpError> {
        let graph = self.parts.site.graph.clone();
        let make = move || CreateJob { graph, options };
        self.jobs().start(id, JobOptions::MANUAL_DISMISS, make).await
    }

    /// Starts the job `id` that changes how an image is encrypted, where that is asked for.
    ///
    /// # Errors
    /// The id is malformed or taken.
    pub async fn start_amend(&self, id: &str, amendment: Amendment) -> Result<(), QmpError> {
        let make = move || AmendJob(amendment);
        self.jobs().start(id, JobOptions::MANUAL_DISMISS, make).await
    }

    /// Starts a job that merges images of a chain down.
    ///
    /// # Errors
    /// QEMU's texts.
    pub async fn start_commit(&self, asked: BlockCommit) -> Result<(), QmpError> {
        let options = JobOptions::asked(asked.speed, asked.auto_finalize, asked.auto_dismiss);
        let found = commit_plan(self.parts.site.graph.clone(), &asked).await?;
        let id = asked.job_id.unwrap_or_default();
        match found {
            Committing::Intermediate(plan) => self.jobs().start(&id, options, || plan.job()).await,
            Committing::Active(plan) => self.jobs().start(&id, options, || plan.job()).await,
        }
    }

    /// Starts a job that copies a node while it is written, until a user ends that.
    ///
    /// # Errors
    /// QEMU's texts.
    pub async fn start_mirror(&self, asked: BlockdevMirror) -> Result<(), QmpError> {
        let options = JobOptions::asked(asked.speed, asked.auto_finalize, asked.auto_dismiss);
        let plan = MirrorPlan::new(self.parts.site.graph.clone(), &asked).await?;
        let id = asked.job_id.unwrap_or_default();
        self.jobs().start(&id, options, || plan.job()).await
    }

    /// Starts such a job whose target is a file, made or opened for it.
    ///
    /// # Errors
    /// QEMU's texts.
    pub async fn start_drive_mirror(&self, asked: DriveMirror) -> Result<(), QmpError> {
        let options = JobOptions::asked(asked.speed, asked.auto_finalize, asked.auto_dismiss);
        let id = asked.job_id.clone().unwrap_or_default();
        let mut told = Vec::new();
        let planned = MirrorPlan::to_file(self.parts.site.graph.clone(), asked, &mut told).await;
        told.iter().for_each(|line| crate::log::print(line));
        let plan = planned?;
        let opened = plan.opened();
        let started = self.jobs().start(&id, options, || plan.job()).await;
        if let (Err(_), Some(opened)) = (&started, opened) {
            // A job that was made has let go of it already.
            let _ = self.parts.site.graph.detach(opened.root()).await;
        }
        started
    }

    /// Carries out several changes, all or none, and starts the jobs that are the rest of them; `grouped` jobs end alike.
    /// What is told of images that are made for them is printed.
    ///
    /// # Errors
    /// QEMU's texts.
    pub async fn transact(&self, parts: Vec<TransactionPart>, grouped: bool) -> Result<(), QmpError> {
        let outcome = self.jobs().transact(&self.parts.site.graph, parts, grouped).await;
        outcome.told.iter().for_each(|line| crate::log::print(line));
        outcome.done
    }

    /// Starts a job that copies what a node has from below up into it.
    ///
    /// # Errors
    /// QEMU's texts.
    pub async fn start_stream(&self, asked: BlockStream) -> Result<(), QmpError> {
        let options = JobOptions::asked(asked.speed, asked.auto_finalize, asked.auto_dismiss);
        let plan = StreamPlan::new(self.parts.site.graph.clone(), &asked).await?;
        let id = asked.job_id.unwrap_or_default();
        self.jobs().start(&id, options, || plan.job()).await
    }

    /// The exports and the NBD server.
    pub fn exports(&self) -> &ExportRegistry {
        &self.parts.exports
    }

    /// Drivers an embedder brought, whose options the schema does not know.
    pub fn extra_drivers(&self) -> &[String] {
        &self.parts.extra_drivers
    }

    /// The objects users made. The closure must not wait for anything.
    pub(crate) fn objects<T>(&self, look: impl FnOnce(&mut Objects) -> T) -> T {
        look(&mut self.parts.objects.borrow_mut())
    }

    /// Asks the daemon to end.
    pub fn quit(&self) {
        self.parts.quit.send_replace(true);
    }

    /// Asks the daemon to end because something went wrong, which was told already.
    pub fn fail(&self) {
        self.parts.failed.set(true);
        self.quit();
    }

    /// Whether it was asked to end because something went wrong.
    pub fn has_failed(&self) -> bool {
        self.parts.failed.get()
    }

    /// Waits until it was asked to end.
    pub async fn asked_to_quit(&self) {
        // It cannot be closed while we hold it.
        let _ = self.parts.quit.subscribe().wait_for(|quit| *quit).await;
    }

    /// Ends what the daemon does, in the order that loses nothing: exports, jobs, then nodes
    /// with all their data flushed, then the monitors, so that their clients hear of it. Storage that does not answer does
    /// not hold that up for longer than the grace period.
    ///
    /// # Errors
    /// What could not be flushed or closed, for people.
    pub async fn shut_down(&self) -> Result<(), QmpError> {
        let (begun, grace) = (Instant::now(), self.parts.grace.get());
        let users = async {
            // What a message policy holds back is let go: nobody is to wait for that.
            self.site().graph.set_chaos(None).await;
            self.exports().close_all().await;
            self.jobs().finish().await;
        };
        // The rest is for the nodes: what holds up their users is told by them.
        if tokio::time::timeout(grace / 2, users).await.is_err() {
            tracing::warn!("exports and jobs do not end: what they do is given up");
        }
        let left = grace.saturating_sub(begun.elapsed());
        let closed = self.graph(CloseAll { grace: Some(left) }).await;
        self.finish_monitors().await;
        closed
    }

    /// Changes how long everything may take to be closed.
    pub fn set_grace(&self, grace: Duration) {
        self.parts.grace.set(grace);
    }
}
