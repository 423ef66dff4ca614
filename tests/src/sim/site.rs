//! A daemon on the stage: its images, its nodes, its export, and what is asked of it by its monitor.

use std::io;
use std::path::{Path, PathBuf};
use std::rc::Rc;

use millpond::daemon::Daemon;
use millpond::graph::{GraphConfig, GraphHandle, ImplicitOpens};
use millpond::monitor::chardev::{self, Parsed};
use millpond::qmp::Commands;
use millpond_drivers::builtin::builtin;
use millpond_messages::graph::IothreadOptions;
use millpond_messages::qapi::MonitorOptions;
use serde_json::{Value, json};

use super::monitor::Monitor;
use super::session::Header;
use super::session::connect;
use super::side;
use super::stage::{Stage, iothreads};
use super::swarm::{Shape, Swarm};
use crate::nbd::wire::{CMD_DISC, CMD_READ};

/// The name of the export that clients use.
pub const EXPORT: &str = "disk";

/// The images of the served chain, base first: the folder, and how many of them there are.
#[derive(Debug, Clone)]
pub struct Images {
    /// Where they are.
    pub folder: PathBuf,
    /// How many there have been: an overlay is one more.
    pub count: usize,
    /// Those that are in the chain, the base first.
    pub chain: Vec<usize>,
    /// The last one may not come to be on top of the others: its snapshot has not been answered.
    pub is_undecided: bool,
    /// The chain that may be in use instead: a job is about to put it there.
    pub instead: Option<Vec<usize>>,
    /// Raw images besides the base.
    pub raws: Vec<usize>,
    /// The filters above the chain were left behind with an image that was replaced.
    pub is_bare: bool,
}

impl Images {
    pub(super) fn path(&self, name: &str) -> String {
        self.folder.join(name).to_string_lossy().into_owned()
    }

    /// The socket of the NBD server.
    #[must_use]
    pub fn server(&self) -> PathBuf {
        self.folder.join("nbd.sock")
    }

    fn monitor(&self) -> PathBuf {
        self.folder.join("qmp.sock")
    }

    /// The node of the last image.
    #[must_use]
    pub fn top(&self) -> String {
        format!("n{}", self.chain.last().unwrap_or(&0))
    }

    /// The name of the image at a place of the chain, as overlays name it.
    #[must_use]
    pub fn backing_name(&self, place: usize) -> String {
        self.path(&format!("img{}", self.chain[place]))
    }

    /// The node of the last image, or the filter above it that no other node uses.
    #[must_use]
    pub fn root(&self, swarm: &Swarm) -> String {
        let mut filters = self.filters(swarm).into_iter();
        filters.next().unwrap_or_else(|| self.top())
    }

    /// The filters above the last image, the topmost first.
    #[must_use]
    pub fn filters(&self, swarm: &Swarm) -> Vec<String> {
        let all = [("thr", swarm.throttle), ("cor", swarm.copy_on_read)].into_iter();
        let there = all.filter(|(_, there)| *there && !self.is_bare);
        there.map(|(name, _)| name.to_owned()).collect()
    }

    /// Whether an image of this number is raw.
    #[must_use]
    pub fn is_raw(&self, index: usize, swarm: &Swarm) -> bool {
        (index == 0 && swarm.shape == Shape::Raw) || self.raws.contains(&index)
    }
}

/// A daemon and the handles on it.
pub struct Site {
    /// The daemon.
    pub daemon: Daemon,
    /// Its graph.
    pub graph: GraphHandle,
    /// A monitor.
    pub monitor: Monitor,
}

impl Site {
    /// Starts a daemon without nodes.
    ///
    /// # Errors
    /// Something of it cannot be made.
    pub async fn start(stage: &Rc<Stage>, images: &Images) -> io::Result<Self> {
        let config = GraphConfig {
            registry: builtin(),
            implicit: ImplicitOpens::default(),
            iothreads: iothreads(),
            main: IothreadOptions::named("main"),
        };
        let (daemon, graph) = Daemon::start_with(config, Vec::new())?;
        let socket = images.monitor();
        add_monitor(&daemon, "qmp", &socket).await?;
        let monitor = Monitor::connect(Rc::clone(stage), &socket, "monitor").await?;
        Ok(Self {
            daemon,
            graph,
            monitor,
        })
    }

    /// Another monitor beside the first.
    ///
    /// # Errors
    /// It cannot be made.
    pub async fn another_monitor(
        &self,
        stage: &Rc<Stage>,
        images: &Images,
        (id, who): (&str, &'static str),
    ) -> io::Result<Monitor> {
        let socket = images.folder.join(format!("{id}.sock"));
        add_monitor(&self.daemon, id, &socket).await?;
        Monitor::connect(Rc::clone(stage), &socket, who).await
    }

    /// Makes the first image, or images.
    ///
    /// # Errors
    /// One of them cannot be made.
    pub async fn create_base(&mut self, stage: &Stage, images: &Images) -> io::Result<()> {
        let swarm = stage.swarm();
        for name in base_files(swarm.shape) {
            let size = if swarm.shape == Shape::Qcow2 {
                0
            } else {
                swarm.size
            };
            let path = images.path(name);
            let made = self
                .monitor
                .create(
                    "create",
                    json!({"driver": "file", "filename": path, "size": size}),
                )
                .await?;
            made.map_err(io::Error::other)?;
        }
        if swarm.side {
            self.create_side(stage, images).await?;
        }
        if swarm.shape == Shape::Qcow2 {
            let file = add_file(stage, &mut self.monitor, images, 0)
                .await?
                .map_err(io::Error::other)?;
            let made = self
                .monitor
                .create("create", qcow2_options(stage, &file, None))
                .await?;
            made.map_err(io::Error::other)?;
            for node in file_nodes(stage.swarm(), 0) {
                self.monitor
                    .must("blockdev-del", json!({"node-name": node}))
                    .await?;
            }
        }
        Ok(())
    }

    /// Makes the disk beside the served one: of a format, unless the served one is raw.
    async fn create_side(&mut self, stage: &Stage, images: &Images) -> io::Result<()> {
        let swarm = stage.swarm();
        let is_raw = swarm.shape == Shape::Raw;
        let size = if is_raw { swarm.size } else { 0 };
        let path = images.path(side::IMAGE);
        let file = json!({"driver": "file", "filename": path, "size": size});
        self.monitor
            .create("create", file)
            .await?
            .map_err(io::Error::other)?;
        if is_raw {
            return Ok(());
        }
        let file = json!({"driver": "file", "node-name": "sf", "filename": path});
        self.monitor.must("blockdev-add", file).await?;
        let made = self
            .monitor
            .create("create", qcow2_options(stage, "sf", None))
            .await?;
        made.map_err(io::Error::other)?;
        self.monitor
            .must("blockdev-del", json!({"node-name": "sf"}))
            .await
            .map(drop)
    }

    /// Opens the disk beside the served one.
    async fn open_side(&mut self, stage: &Stage, images: &Images) -> io::Result<()> {
        let swarm = stage.swarm();
        let driver = if swarm.shape == Shape::Raw { "raw" } else { "qcow2" };
        let file = json!({"driver": "file", "filename": images.path(side::IMAGE), "discard": "unmap"});
        let name = if swarm.throttle { "sq" } else { side::NODE };
        let disk = json!({"driver": driver, "node-name": name, "file": file, "discard": "unmap"});
        self.monitor.must("blockdev-add", disk).await?;
        if swarm.throttle {
            self.throttle(side::NODE, name).await?;
        }
        Ok(())
    }

    async fn throttle(&mut self, name: &str, below: &str) -> io::Result<()> {
        let filter = json!({"driver": "throttle", "node-name": name, "file": below, "throttle-group": "g0"});
        self.monitor.must("blockdev-add", filter).await.map(drop)
    }

    /// Opens all images, and exports the last.
    ///
    /// # Errors
    /// One of them cannot be opened.
    pub async fn serve(&mut self, stage: &Stage, images: &Images) -> io::Result<()> {
        let swarm = stage.swarm();
        for index in 0..swarm.iothreads {
            let arguments = json!({"qom-type": "iothread", "id": format!("io{index}")});
            self.monitor.must("object-add", arguments).await?;
        }
        for place in 0..images.chain.len() {
            let opened = self.open(stage, images, place).await?;
            opened.map_err(io::Error::other)?;
        }
        let mut node = images.top();
        if swarm.copy_on_read {
            let options = json!({"driver": "copy-on-read", "node-name": "cor", "file": node});
            self.monitor.must("blockdev-add", options).await?;
            node = "cor".to_owned();
        }
        if swarm.throttle {
            let iops = stage.random(|random| [300, 3000, 20_000][random.usize(0..3)]);
            let group = json!({"qom-type": "throttle-group", "id": "g0", "limits": {"iops-total": iops}});
            self.monitor.must("object-add", group).await?;
            self.throttle("thr", &node).await?;
            node = "thr".to_owned();
        }
        if swarm.side {
            self.open_side(stage, images).await?;
        }
        let path = images.server().to_string_lossy().into_owned();
        let address = json!({"type": "unix", "data": {"path": path}});
        let arguments = json!({"addr": address, "max-connections": 0});
        self.monitor.must("nbd-server-start", arguments).await?;
        let mut export =
            json!({"type": "nbd", "id": "e0", "name": EXPORT, "node-name": node, "writable": true});
        if swarm.iothreads > 0 {
            export["iothread"] = json!("io0");
        }
        self.monitor.must("block-export-add", export).await?;
        Ok(())
    }

    /// Opens the image at a place of the chain on top of the one before it.
    async fn open(&mut self, stage: &Stage, images: &Images, place: usize) -> io::Result<Result<(), String>> {
        let index = images.chain[place];
        let node = format!("n{index}");
        let mut options = json!({"node-name": node, "discard": "unmap"});
        if index == 0 && stage.swarm().shape == Shape::Quorum {
            options["driver"] = json!("quorum");
            options["vote-threshold"] = json!(2);
            let files = base_files(Shape::Quorum).iter();
            let children = files
                .map(|name| json!({"driver": "file", "filename": images.path(name), "discard": "unmap"}));
            options["children"] = children.collect();
        } else {
            let file = match add_file(stage, &mut self.monitor, images, index).await? {
                Ok(file) => file,
                Err(text) => return Ok(Err(text)),
            };
            options["file"] = json!(file);
            let is_raw = images.is_raw(index, stage.swarm());
            options["driver"] = json!(if is_raw { "raw" } else { "qcow2" });
            if !is_raw {
                options["backing"] = place
                    .checked_sub(1)
                    .map_or(Value::Null, |below| json!(format!("n{}", images.chain[below])));
            }
        }
        Ok(self.monitor.run("blockdev-add", options).await?.map(drop))
    }

    /// Makes an empty overlay, and opens it without its backing image.
    ///
    /// # Errors
    /// The connection is lost; inside, why it could not be made.
    pub async fn prepare_overlay(
        &mut self,
        stage: &Stage,
        images: &Images,
    ) -> io::Result<Result<(), String>> {
        let index = images.count;
        let path = images.path(&format!("img{index}"));
        let file = json!({"driver": "file", "filename": path, "size": 0});
        if let Err(text) = self.monitor.create("create", file).await? {
            return Ok(Err(text));
        }
        let file = match add_file(stage, &mut self.monitor, images, index).await? {
            Ok(file) => file,
            Err(text) => return Ok(Err(text)),
        };
        let backing = images.backing_name(images.chain.len() - 1);
        let options = qcow2_options(stage, &file, Some(backing));
        if let Err(text) = self.monitor.create("create", options).await? {
            return Ok(Err(text));
        }
        let options = json!({
            "driver": "qcow2", "node-name": format!("n{index}"), "file": file, "backing": null, "discard": "unmap"
        });
        Ok(self.monitor.run("blockdev-add", options).await?.map(drop))
    }
}

/// The nodes of an image's file, the one that its format uses first.
#[must_use]
pub fn file_nodes(swarm: &Swarm, index: usize) -> Vec<String> {
    let aligned = (swarm.align > 0).then(|| format!("a{index}"));
    aligned.into_iter().chain([format!("f{index}")]).collect()
}

/// Adds the node of an image's file, with what stands between it and its format; answers the name of the latter.
///
/// # Errors
/// The connection is lost; inside, why there is no such node.
pub async fn add_file(
    stage: &Stage,
    monitor: &mut Monitor,
    images: &Images,
    index: usize,
) -> io::Result<Result<String, String>> {
    let (file, path) = (format!("f{index}"), images.path(&format!("img{index}")));
    let options = json!({"driver": "file", "node-name": file, "filename": path, "discard": "unmap"});
    if let Err(text) = monitor.run("blockdev-add", options).await? {
        return Ok(Err(text));
    }
    let align = stage.swarm().align;
    if align == 0 {
        return Ok(Ok(file));
    }
    let node = format!("a{index}");
    let options = json!({
        "driver": "blkdebug", "node-name": node, "image": file, "align": align, "discard": "unmap"
    });
    Ok(monitor.run("blockdev-add", options).await?.map(|_| node))
}

/// Has a daemon listen for users of a new monitor.
async fn add_monitor(daemon: &Daemon, id: &str, socket: &Path) -> io::Result<()> {
    let text = format!("socket,id={id},server=on,wait=off,path={}", socket.display());
    let parsed = chardev::parse(&text, |_| {}).map_err(io::Error::other)?;
    let Parsed::Device(options) = parsed else {
        return Err(io::Error::other("no character device"));
    };
    let added = daemon.add_chardev(*options, |_| {}).await;
    added.map_err(|error| io::Error::other(error.to_string()))?;
    let added = daemon.add_monitor(&MonitorOptions::on(id), Commands::of(daemon));
    added.map_err(|error| io::Error::other(error.to_string()))?;
    daemon.open_monitors();
    Ok(())
}

fn base_files(shape: Shape) -> &'static [&'static str] {
    match shape {
        Shape::Raw | Shape::Qcow2 => &["img0"],
        Shape::Quorum => &["q0", "q1", "q2"],
    }
}

pub(super) fn qcow2_options(stage: &Stage, file: &str, backing: Option<String>) -> Value {
    let swarm = stage.swarm();
    let mut options = json!({
        "driver": "qcow2", "file": file, "size": swarm.size, "cluster-size": swarm.cluster,
        "version": if swarm.old_format { "v2" } else { "v3" },
    });
    if swarm.lazy && !swarm.old_format {
        options["lazy-refcounts"] = json!(true);
    }
    if let Some(backing) = backing {
        options["backing-file"] = json!(backing);
        options["backing-fmt"] = json!("raw");
    }
    options
}

/// Reads the whole disk as a client does.
///
/// # Errors
/// The connection is lost, or a read fails.
pub async fn read_all(images: &Images, size: u64) -> io::Result<Vec<u8>> {
    let (mut outgoing, mut incoming) = connect(&images.server(), EXPORT, false).await?;
    let mut bytes = Vec::new();
    while (bytes.len() as u64) < size {
        let offset = bytes.len() as u64;
        let len = (size - offset).min(1 << 18);
        let header = Header {
            command: CMD_READ,
            flags: 0,
            cookie: offset,
            offset,
            // At most 256 KiB.
            len: len as u32,
        };
        outgoing.send(header, &[]).await?;
        let reply = incoming.receive(|_| len as usize).await?;
        match reply.data {
            Some((_, data)) => bytes.extend(data),
            None => {
                return Err(io::Error::other(format!(
                    "a read of {len} at {offset} fails with {}",
                    reply.error
                )));
            }
        }
    }
    let header = Header {
        command: CMD_DISC,
        flags: 0,
        cookie: 0,
        offset: 0,
        len: 0,
    };
    outgoing.send(header, &[]).await?;
    Ok(bytes)
}

/// Whether a folder holds the images of a run.
#[must_use]
pub fn images_in(folder: &Path, count: usize) -> Images {
    Images {
        folder: folder.to_owned(),
        count,
        chain: (0..count).collect(),
        is_undecided: false,
        instead: None,
        raws: Vec::new(),
        is_bare: false,
    }
}

/// The images of a run that has ended: those that the last one and the ones below it name.
///
/// # Errors
/// One of them cannot be read.
pub fn images_left(folder: &Path, left: &Images) -> io::Result<Images> {
    let mut chain = Vec::new();
    let mut next = left.chain.last().copied();
    while let Some(index) = next {
        if chain.contains(&index) {
            return Err(io::Error::other("images name each other in a circle"));
        }
        chain.push(index);
        let bytes = std::fs::read(folder.join(format!("img{index}"))).unwrap_or_default();
        next = backing_of(&bytes);
    }
    chain.reverse();
    Ok(Images {
        chain,
        raws: left.raws.clone(),
        ..images_in(folder, left.count)
    })
}

/// The number of the image that a qcow2 image names as its backing image.
fn backing_of(bytes: &[u8]) -> Option<usize> {
    if !bytes.starts_with(b"QFI\xfb") {
        return None;
    }
    let offset = u64::from_be_bytes(*bytes.get(8..)?.first_chunk()?);
    let len = u32::from_be_bytes(*bytes.get(16..)?.first_chunk()?);
    let from = usize::try_from(offset).ok().filter(|from| *from > 0)?;
    let name = bytes.get(from..from + usize::try_from(len).ok()?)?;
    let (_, index) = std::str::from_utf8(name).ok()?.rsplit_once("/img")?;
    index.parse().ok()
}
