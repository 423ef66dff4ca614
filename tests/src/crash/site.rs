//! A block layer on recorded disks, and the run of a workload in it.

use std::cell::Cell;
use std::sync::{Arc, Mutex, PoisonError};

use futures_channel::oneshot;
use futures_util::FutureExt;
use futures_util::future::{join, join_all};
use millpond::embed::{BlockLayer, BlockLayerConfig};
use millpond::graph::GraphHandle;
use millpond::iothread::Local;
use millpond::node::Client;
use millpond_drivers::secret::{SecretOptions, SecretSource};
use millpond_messages::graph::{
    Amend, Commit, DrainScope, MakeImage, Options, RecordBackingFile, ReopenKeeping, Resize, RootRequest,
    RootUser, SetRootPermissions,
};
use millpond_messages::qapi::schema::QCryptoSecretFormat;
use millpond_messages::{Error, Permissions, RequestFlags, Result};
use millpond_ring::buffer::{Buffer, Buffers};
use serde_json::{Value, json};

use super::disk::{Clock, Disk, Fault};
use super::examine::Promised;
use super::history::{Asked, History, payload};
use super::jobs::JobSite;
use super::keys::{FIRST, KEYS, is_wrong_password};
use super::lane::Lane;
use super::link::{BITMAP_LOG, Format, Link, chain_options};
use super::recorder::{Disks, RecorderKind};
use super::workload::{Step, Workload};

/// A running block layer whose nodes find [`Disk`]s by name.
pub struct Site {
    layer: BlockLayer,
    /// The disks.
    pub disks: Arc<Disks>,
    /// Its jobs.
    pub jobs: JobSite,
    names: Cell<u64>,
}

/// Options from JSON.
pub fn options(json: Value) -> Options {
    match json {
        Value::Object(options) => options,
        other => panic!("{other} is no object"),
    }
}

impl Site {
    /// Starts one.
    pub async fn start() -> Self {
        let mut config = BlockLayerConfig::default();
        let disks = Arc::<Disks>::default();
        let kind = RecorderKind(Arc::clone(&disks));
        config
            .registry
            .register(Arc::new(kind))
            .expect("no other driver is called that");
        let secrets = config.registry.secrets();
        for id in KEYS {
            let secret = SecretOptions {
                source: SecretSource::Data(id.as_bytes().to_vec().into()),
                format: QCryptoSecretFormat::Raw,
                wrapped_by: None,
            };
            secrets.add(id, secret.load(secrets).expect("it is plain text"));
        }
        Self {
            layer: BlockLayer::start(config).await.expect("the block layer starts"),
            disks,
            jobs: JobSite::start().await,
            names: Cell::new(0),
        }
    }

    /// The graph.
    pub fn graph(&self) -> &GraphHandle {
        self.layer.graph()
    }

    /// A name that nothing has yet.
    pub fn name(&self, what: &str) -> String {
        let n = self.names.get() + 1;
        self.names.set(n);
        format!("{what}{n}")
    }

    /// Puts a disk where nodes find it; answers its name.
    pub fn put(&self, what: &str, disk: &Arc<Disk>) -> String {
        let name = self.name(what);
        self.disks.insert(&name, disk);
        name
    }

    /// Takes hold of a node.
    pub async fn attach(&self, node: &str) -> Result<Client> {
        let request = RootRequest::new(
            node,
            RootUser::Embedder("crash".into()),
            Permissions::CONSISTENT_READ | Permissions::WRITE,
        );
        self.graph().attach(request).await
    }

    /// Makes an image on the disks of `link`.
    pub async fn create(&self, link: &Link, create: &Value, size: u64) -> Result<()> {
        let mut request = create.clone();
        request["size"] = json!(size);
        request["driver"] = match link.format {
            Format::Luks => json!("luks"),
            Format::Qcow2 | Format::Raw => json!("qcow2"),
        };
        let data = link.data.as_ref().map(|(name, _)| ("data-file", name));
        let mut nodes = Vec::new();
        for (child, disk) in [("file", &link.name)].into_iter().chain(data) {
            let node = self.name("made");
            let file = json!({"driver": "recorder", "node-name": node, "disk": disk});
            self.graph().add_node(options(file)).await?;
            request[child] = json!(node);
            nodes.push(node);
        }
        let created = self.graph().ask(MakeImage(options(request))).await;
        for node in nodes {
            self.graph().delete_node(node).await?;
        }
        created
    }

    /// Makes all of a disk zeroes that reads as anything at first.
    async fn zero_all(&self, link: &Link, size: u64) -> Result<()> {
        let node = self.name("new");
        let mut image = chain_options(std::slice::from_ref(link), Some(FIRST));
        image["node-name"] = json!(node);
        self.graph().add_node(options(image)).await?;
        let client = self.attach(&node).await?;
        let zeroes = Buffers::zeroed(size as usize);
        let (written, _) = client.write(0, zeroes, RequestFlags::FUA).await;
        self.graph().detach(client.root()).await?;
        self.graph().delete_node(node).await?;
        written.map_err(|error| Error::io("zeroes cannot be written", error))
    }

    /// Ends it.
    pub async fn end(self) {
        self.jobs.end();
        self.layer.shut_down().await.expect("everything is closed");
    }
}

/// The disks of the image for some time.
#[derive(Debug, Clone)]
pub struct Stretch {
    /// From when on.
    pub since: u64,
    /// The chain, the lowest first.
    pub links: Vec<Link>,
    /// The chain that may be in use instead: a job puts it there meanwhile.
    pub instead: Option<Vec<Link>>,
    /// Disks that a job copies to, which are not in use.
    pub besides: Vec<Link>,
}

impl Stretch {
    /// These disks, and no others.
    pub fn of(since: u64, links: Vec<Link>) -> Self {
        Self {
            since,
            links,
            instead: None,
            besides: Vec::new(),
        }
    }
}

/// Makes the image of a workload.
async fn make_image(site: &Site, workload: &Workload, clock: &Arc<Clock>, rng: &mut fastrand::Rng) -> Link {
    let mut make = |what: &str| {
        let disk = Disk::new(Vec::new(), clock, workload.alignment, rng.u64(..), 3);
        (site.put(what, &disk), disk)
    };
    let (name, disk) = make("image");
    let mut image = Link::new(name, disk, workload.format);
    image.data = workload.has_data_file.then(|| make("data"));
    image.data.iter().for_each(|(_, disk)| disk.forget_to_zeroes());
    let made = site.create(&image, &workload.create, workload.size).await;
    made.expect("the image can be made");
    if workload.format == Format::Luks {
        let zeroed = site.zero_all(&image, workload.size).await;
        zeroed.expect("a new volume can be written to");
    }
    image
}

/// Which disks fail.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Side {
    /// The image's, and those that come to be while it is used.
    All,
    /// The image's alone.
    First,
    /// Those alone that come to be: the first overlay's, and the first that a job copies to.
    Later,
}

/// Something that failed, and was asked for by a user.
#[derive(Debug, Clone)]
pub struct Failure {
    /// What it was.
    pub what: String,
    /// The error.
    pub error: String,
}

/// A workload that is being run, and what it leaves behind.
pub struct Run<'a> {
    pub(super) site: &'a Site,
    pub(super) workload: &'a Workload,
    pub(super) rng: fastrand::Rng,
    pub(super) clock: Arc<Clock>,
    /// What the user asked for.
    pub history: Arc<History>,
    /// The disks, in order of time.
    pub chains: Vec<Stretch>,
    failures: Arc<Mutex<Vec<Failure>>>,
    pub(super) size: u64,
    pub(super) node: String,
    /// Nodes of images below it that were the last one once, the lowest first.
    pub(super) lower: Vec<String>,
    client: Option<Client>,
    fault: Option<Fault>,
    /// There was one at some time.
    had_fault: bool,
    /// The disks that it may be in force on: the image's, the one with its data, the first overlay's, and the first that a
    /// job copies to.
    faulty: Vec<Arc<Disk>>,
    side: Side,
    /// What jobs do about errors.
    pub on_error: &'static str,
    /// The step that is being done failed.
    failed: Cell<bool>,
}

impl<'a> Run<'a> {
    /// Makes the images.
    pub async fn prepare(site: &'a Site, workload: &'a Workload, seed: u64) -> Self {
        let mut rng = fastrand::Rng::with_seed(seed);
        let clock = Arc::<Clock>::default();
        let mut links = Vec::new();
        let mut initial = Vec::new();
        if let Some(len) = workload.backing {
            initial = vec![0; len as usize];
            rng.fill(&mut initial);
            let disk = Disk::new(initial.clone(), &clock, workload.alignment, rng.u64(..), 3);
            links.push(Link::new(site.put("base", &disk), disk, Format::Raw));
        }
        let image = make_image(site, workload, &clock, &mut rng).await;
        let mut faulty = vec![Arc::clone(&image.disk)];
        faulty.extend(image.data.iter().map(|(_, disk)| Arc::clone(disk)));
        links.push(image);
        for link in &links {
            link.disk.record();
            link.data.iter().for_each(|(_, disk)| disk.record());
        }
        let history = History::new(&clock, initial, workload.size);
        if workload.is_encrypted() {
            history.keys.begin();
        }
        Self {
            site,
            workload,
            rng,
            history,
            clock,
            chains: vec![Stretch::of(0, links)],
            failures: Arc::default(),
            size: workload.size,
            node: String::new(),
            lower: Vec::new(),
            client: None,
            fault: None,
            had_fault: false,
            faulty,
            side: Side::All,
            on_error: "report",
            failed: Cell::new(false),
        }
    }

    /// What the users of the disk were promised.
    pub fn promised(&self) -> Promised<'_> {
        Promised {
            history: &self.history,
            workload: self.workload,
        }
    }

    /// The chain of disks now.
    pub fn links(&self) -> &[Link] {
        self.chains.last().map_or(&[], |stretch| &stretch.links)
    }

    /// Fails requests of these disks from now on, or stops that. How many failed till then.
    pub fn set_fault(&mut self, side: Side, fault: Option<Fault>) -> u64 {
        let hits = self.faulty.iter().map(|disk| disk.hits()).sum();
        (self.side, self.fault) = (side, fault);
        self.had_fault |= fault.is_some();
        if self.had_fault {
            self.history.kept.allow_giving_up();
        }
        for (at, disk) in self.faulty.iter().enumerate() {
            disk.set_fault(fault.filter(|_| side != Side::Later || at > 0));
        }
        hits
    }

    /// A disk comes to be. The first fails as the image's does: another try is made on storage that works.
    pub(super) fn may_fail(&mut self, disk: &Arc<Disk>, most: usize) {
        if self.faulty.len() <= most {
            disk.set_fault(self.fault.filter(|_| self.side != Side::First));
            self.faulty.push(Arc::clone(disk));
        }
    }

    /// What is done now fails nobody: nobody would be told.
    pub(super) fn suspend_fault(&self, suspended: bool) {
        self.faulty.iter().for_each(|disk| disk.suspend_fault(suspended));
    }

    /// What failed so far.
    pub fn failures(&self) -> Vec<Failure> {
        self.failures
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }

    /// Takes note of something that failed.
    pub(super) fn fail(&self, what: impl Into<String>, error: String) {
        self.failed.set(true);
        self.tell(what, error);
    }

    /// Takes note of what a user was told.
    pub(super) fn tell(&self, what: impl Into<String>, error: String) {
        let what = what.into();
        let mut failures = self.failures.lock().unwrap_or_else(PoisonError::into_inner);
        failures.push(Failure { what, error });
    }

    pub(super) fn note<T>(&self, what: impl Into<String>, result: Result<T>) -> Option<T> {
        match result {
            Ok(value) => Some(value),
            Err(error) => {
                self.fail(what, error.to_string());
                None
            }
        }
    }

    /// Opens the image, and tries once more if that fails.
    pub async fn open(&mut self) -> bool {
        let mut keys = self.history.keys.usable(u64::MAX);
        for _ in 0..2 {
            let node = self.site.name("disk");
            self.history.kept.return_to(self.history.now());
            let added = self.add_disk(&node, &mut keys).await;
            if self.note("open", added).is_some() {
                self.node = node;
                self.lower.clear();
                let attached = self.site.attach(&self.node).await;
                self.client = self.note("attach", attached);
                return self.client.is_some();
            }
        }
        false
    }

    /// Adds a node of the image by one of `keys`, and leaves those out from then on that do not open it.
    async fn add_disk(&self, node: &str, keys: &mut Vec<Option<&'static str>>) -> Result<()> {
        loop {
            let mut image = chain_options(self.links(), keys.first().copied().flatten());
            image["node-name"] = json!(node);
            if self.workload.bitmap_log {
                image[BITMAP_LOG] = json!(true);
            }
            let added = self.site.graph().add_node(options(image)).await;
            match &added {
                Err(error) if keys.len() > 1 && is_wrong_password(&error.to_string()) => keys.remove(0),
                _ => return added,
            };
        }
    }

    /// Lets go of the image, which stays open.
    pub(super) async fn let_go(&mut self) {
        let Some(client) = self.client.take() else { return };
        let detached = self.site.graph().detach(client.root()).await;
        self.note("detach", detached);
    }

    /// Takes hold of the image again; one that cannot be written to any more is closed.
    pub(super) async fn take_hold(&mut self) {
        match self.site.attach(&self.node).await {
            Ok(client) => self.client = Some(client),
            Err(_) => {
                let closed = self.site.graph().delete_node(self.node.clone()).await;
                self.note("close", closed);
            }
        }
    }

    /// The image was left to others, as it is now. Where something has failed that may have been in vain.
    pub(super) fn left_to_others(&self) {
        if !self.had_fault {
            self.history.kept.leave(self.history.now());
        }
    }

    /// Lets go of the image and closes it.
    pub async fn close(&mut self) {
        if self.client.is_none() {
            return;
        }
        self.let_go().await;
        let closed = self.site.graph().delete_node(self.node.clone()).await;
        self.left_to_others();
        if self.fault.is_some() {
            // As in QEMU, a close that cannot write everything back closes all the same.
            self.history.lose();
        }
        self.note("close", closed);
    }

    /// Does all steps.
    pub async fn steps(&mut self) {
        for step in self.workload.steps.clone() {
            if self.client.is_none() && !self.open().await {
                return;
            }
            self.step(&step).await;
        }
    }

    /// The user of the image.
    pub fn client(&self) -> Option<&Client> {
        self.client.as_ref()
    }

    /// The graph lives on: it answers, a drained section ends, and what is written is read back.
    pub async fn is_alive(&mut self) -> std::result::Result<(), String> {
        let text = |error: millpond_messages::Error| error.to_string();
        let graph = self.site.graph();
        graph.facts().await.map_err(text)?;
        let section = graph.drain(DrainScope::All, "crash").await.map_err(text)?;
        drop(section);
        let Some(client) = self.client.clone() else {
            return Ok(());
        };
        let history = &self.history;
        for offset in [0, self.size - 4096] {
            let number = history.begin(Asked::Write(offset, 4096), false);
            let data = Buffers::from(Buffer::from_slice(&payload(number, offset, 4096)));
            let (written, _) = client.write(offset, data, RequestFlags::empty()).await;
            history.end(number, written.is_ok());
            written.map_err(|error| format!("a write after all: {error}"))?;
        }
        let number = history.begin(Asked::Flush, false);
        let flushed = client.flush().await;
        history.end(number, flushed.is_ok());
        flushed.map_err(|error| format!("a flush after all: {error}"))?;
        let began = history.now();
        let (read, found) = client.read(0, Buffers::zeroed(self.size as usize)).await;
        read.map_err(|error| format!("a read after all: {error}"))?;
        history.check_read(began, 0, &found.to_vec())
    }

    async fn step(&mut self, step: &Step) {
        let Some(client) = self.client.clone() else { return };
        let limit = match step {
            Step::Resize(new) => self.size.min(*new),
            Step::Amend(value) => value["size"].as_u64().map_or(self.size, |new| self.size.min(new)),
            _ => self.size,
        };
        if let Step::CloseAndOpen = step {
            self.requests(&client, limit).await;
            self.close().await;
            self.open().await;
            return;
        }
        let mut requests = self.requests(&client, limit).boxed_local();
        if let Step::Keep(keep) = step
            && keep.is_alone()
        {
            requests.await;
            requests = std::future::ready(()).boxed_local();
        }
        let changed = async {
            // What fails once does not fail twice. After a resize that failed the disk is used as it is.
            let stays = matches!(step, Step::Resize(_));
            for tries in 0..3 {
                self.failed.set(false);
                match step {
                    Step::Keys(change) => self.change_keys(*change, tries > 0).await,
                    _ => self.change(step).await,
                }
                if !self.failed.get() || stays {
                    break;
                }
            }
        };
        join(requests, changed).await;
    }

    /// Requests at random, several at a time, all on the image's own thread: the same for the same seed.
    fn requests(&mut self, client: &Client, limit: u64) -> impl Future<Output = ()> + use<> {
        let (tell, told) = oneshot::channel::<()>();
        let depth = self.workload.depth;
        let lanes: Vec<Lane> = (0..depth)
            .map(|n| Lane {
                history: Arc::clone(&self.history),
                failures: Arc::clone(&self.failures),
                rng: self.rng.fork(),
                mix: self.workload.mix,
                limit,
                longest: self.workload.longest,
                cluster: self.workload.create["cluster-size"].as_u64().unwrap_or(65536),
                count: (self.workload.requests + n) / depth,
            })
            .collect();
        let at_home = client.clone();
        let sent = client.run_at_home(move || {
            let lanes: Vec<_> = lanes.into_iter().map(|lane| lane.run(at_home.here())).collect();
            let local = Local::current().expect("run at home");
            local.spawn(async move {
                join_all(lanes).await;
                drop(tell);
            });
        });
        assert!(sent, "the image's iothread runs");
        // The lanes end by dropping the other end, without a word.
        async move { told.await.unwrap_or(()) }
    }

    async fn change(&mut self, step: &Step) {
        let graph = self.site.graph().clone();
        let node = self.node.clone();
        match step {
            Step::Requests | Step::CloseAndOpen | Step::Keys(_) => {}
            Step::Resize(new) => {
                self.resize(
                    *new,
                    graph.ask(Resize {
                        node_name: node.to_owned(),
                        size: *new,
                    }),
                )
                .await
            }
            Step::Amend(value) if value["size"].is_u64() => {
                let new = value["size"].as_u64().unwrap_or(0);
                self.resize(
                    new,
                    graph.ask(Amend {
                        force: false,
                        node_name: node.to_owned(),
                        options: options(value.clone()),
                    }),
                )
                .await;
            }
            Step::Amend(value) => {
                let amended = graph
                    .ask(Amend {
                        force: false,
                        node_name: node.to_owned(),
                        options: options(value.clone()),
                    })
                    .await;
                self.note("amend", amended);
            }
            Step::Snapshot => self.snapshot().await,
            Step::Job(work) => self.job(*work).await,
            Step::Commit => {
                let reply = graph.ask(Commit { node_name: node }).await;
                self.note("commit", reply.map(drop));
            }
            Step::ChangeBackingFile(name) => {
                let request = RecordBackingFile {
                    device: node.clone(),
                    image_node_name: node,
                    backing_file: (*name).to_owned(),
                };
                let reply = graph.ask(request).await;
                self.note("change-backing-file", reply.map(drop));
            }
            Step::Reopen(value) => {
                let mut changed = value.clone();
                changed["node-name"] = json!(node);
                let reopened = graph.ask(ReopenKeeping(vec![options(changed)])).await;
                self.note("reopen", reopened);
            }
            Step::Drain => {
                let section = graph.drain(DrainScope::Node(node), "crash").await;
                self.note("drain", section.map(drop));
            }
            Step::Permissions => self.permissions().await,
            Step::Keep(keep) => self.keep(*keep).await,
        }
    }

    async fn permissions(&mut self) {
        let Some(root) = self.client.as_ref().map(Client::root) else {
            return;
        };
        let graph = self.site.graph().clone();
        let wanted = Permissions::CONSISTENT_READ | Permissions::WRITE | Permissions::RESIZE;
        let more = graph
            .ask(SetRootPermissions {
                root,
                permissions: wanted,
                shared: Permissions::all(),
            })
            .await;
        self.note("permissions", more);
        let wanted = Permissions::CONSISTENT_READ | Permissions::WRITE;
        let less = graph
            .ask(SetRootPermissions {
                root,
                permissions: wanted,
                shared: Permissions::all(),
            })
            .await;
        self.note("permissions", less);
    }

    async fn resize(&mut self, new: u64, change: impl Future<Output = Result<()>>) {
        let number = self.history.begin(Asked::Resize(self.size, new), true);
        let resized = change.await;
        self.history.end(number, resized.is_ok());
        if self.note("resize", resized).is_some() {
            self.size = new;
        } else if let Some(client) = &self.client
            && let Ok(length) = client.length().await
        {
            // Which of both a failure has left is what the disk says.
            self.size = length;
        }
    }

    async fn snapshot(&mut self) {
        let seed = self.rng.u64(..);
        let disk = Disk::new(Vec::new(), &self.clock, self.workload.alignment, seed, 3);
        let link = Link::new(self.site.put("overlay", &disk), Arc::clone(&disk), Format::Qcow2);
        disk.record();
        let created = self.site.create(&link, &self.workload.create, self.size).await;
        if self.note("create", created).is_none() {
            return;
        }
        self.may_fail(&disk, 1);
        let node = self.site.name("disk");
        let mut overlay = chain_options(std::slice::from_ref(&link), None);
        overlay["node-name"] = json!(node);
        let added = self.site.graph().add_node(options(overlay)).await;
        if self.note("open", added).is_none() {
            return;
        }
        // The overlay shows the same as the image below it until something is written to it.
        let mut links = self.links().to_vec();
        links.push(link);
        let since = self.clock.tick();
        let put = self.site.graph().snapshot(self.node.clone(), node.clone()).await;
        if self.note("snapshot", put).is_some() {
            self.chains.push(Stretch::of(since, links));
            let below = std::mem::replace(&mut self.node, node);
            self.lower.push(below);
        } else {
            let deleted = self.site.graph().delete_node(node).await;
            self.note("delete", deleted);
        }
    }
}
