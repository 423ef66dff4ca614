//! The exports there are: their ids, their holds on nodes, where they run, and their removal. It lives on the control
//! thread.

use std::rc::{Rc, Weak};
use std::time::Duration;

use futures_util::future::{LocalBoxFuture, join_all};
use millpond_engine::node::Client;
use millpond_messages::graph::{
    AttachRootInactive, FindRoot, NodeFacts, RootRequest, RootUser, ServeOn, SetActive,
};
use millpond_messages::qapi::{
    BlockExportInfo, BlockExportIothreads, BlockExportKind, BlockExportOptions, BlockExportRemoveMode,
    BlockExportType, NbdServerOptions, QmpEvent, SocketAddress, is_identifier,
};
use millpond_messages::saved::{SavedExport, SavedNbdServer};
use millpond_messages::{Error, ErrorKind, IoThreadId, OpenFlags, Result};

use super::kind::{Export, Hold, Prepared, permissions};
use super::nbd::server::NbdServer;
use super::placement::Placement;
use super::saved::{Descriptors, options};
use super::watched::Watched;
use super::{fuse, nbd, vduse, vhost};
use crate::graph::GraphHandle;
use crate::monitor::EventBus;
use crate::tls::TlsRegistry;

/// How long the removal of an export may take before the log names what it waits for; and then, how long an iothread has to
/// say so.
const PATIENCE: Duration = Duration::from_secs(1);

/// All exports. Clones are the same registry.
#[derive(Clone)]
pub struct ExportRegistry(Rc<Inner>);

struct Inner {
    graph: GraphHandle,
    events: EventBus,
    nbd: NbdServer,
    mountpoints: fuse::Mountpoints,
    /// It changes when an export is gone.
    state: Watched<State>,
}

#[derive(Default)]
struct State {
    /// In the order in which they were added.
    exports: Vec<Entry>,
    /// Ids of exports that are being made.
    reserved: Vec<String>,
    last_key: u64,
}

/// Names an export, also among those that once had the same id.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Key(u64);

struct Entry {
    key: Key,
    id: String,
    export: Box<dyn Export>,
    client: Client,
    options: BlockExportOptions,
    /// Where its user wants it to be served.
    iothreads: Vec<IoThreadId>,
    /// The node that it was last seen to show.
    node_name: String,
    /// It is being removed.
    shutting_down: bool,
}

impl State {
    fn export(&mut self, key: Key) -> Option<&mut Entry> {
        self.exports.iter_mut().find(|entry| entry.key == key)
    }
}

impl Entry {
    /// The export written down; the future asks where its clients stand.
    fn save(&self, descriptors: &Descriptors) -> Result<impl Future<Output = SavedExport> + use<>> {
        let (id, node_name) = (self.id.clone(), self.node_name.clone());
        let (root, shutting_down) = (self.client.root(), self.shutting_down);
        let (options, iothreads) = (options(&self.options)?, self.iothreads.clone());
        let kind = self.export.save(descriptors);
        Ok(async move {
            SavedExport {
                id,
                node_name,
                options,
                root,
                iothreads,
                shutting_down,
                kind: kind.await,
            }
        })
    }
}

/// Keeps an id from being taken while its export is made.
struct ReservedId<'a> {
    registry: &'a ExportRegistry,
    id: &'a str,
}

impl Drop for ReservedId<'_> {
    fn drop(&mut self) {
        let state = &self.registry.0.state;
        state.with(|state| state.reserved.retain(|id| id != self.id));
    }
}

fn error(kind: ErrorKind, text: impl Into<String>) -> Error {
    Error::new(kind, text.into())
}

impl ExportRegistry {
    /// An empty registry, on the current actix arbiter, whose server finds credentials in `tls`.
    pub(crate) fn new(graph: GraphHandle, events: EventBus, tls: TlsRegistry) -> Self {
        Self(Rc::new(Inner {
            graph,
            events,
            nbd: NbdServer::new(tls),
            mountpoints: fuse::Mountpoints::default(),
            state: Watched::default(),
        }))
    }

    /// Starts the NBD server.
    ///
    /// # Errors
    /// It runs already, or cannot listen there.
    pub async fn start_server(&self, options: &NbdServerOptions) -> Result<()> {
        self.0.nbd.start(options).await
    }

    /// Stops the NBD server: ends its clients and removes its exports. Ends when both are gone.
    ///
    /// # Errors
    /// It does not run.
    pub async fn stop_server(&self) -> Result<()> {
        self.0.nbd.stop()?;
        self.remove_all(|export| export.kind() == BlockExportType::Nbd)
            .await;
        self.0.nbd.left_by_all().await;
        Ok(())
    }

    /// Where the NBD server listens, if it runs.
    #[must_use]
    pub fn server_addresses(&self) -> Option<Vec<SocketAddress>> {
        self.0.nbd.addresses()
    }

    /// Waits until a client of the NBD server that had chosen an export has left as the last one that was connected.
    pub async fn left_by_served(&self) {
        self.0.nbd.left_by_served().await;
    }

    /// Lets clients that connect wait, or no more. They wait while a command line is carried out: who connects to a
    /// server as soon as it listens must find the exports that come behind it.
    pub fn hold_clients(&self, hold: bool) {
        self.0.nbd.hold_clients(hold);
    }

    /// Adds an export.
    ///
    /// # Errors
    /// QEMU's texts: ids and names that are malformed or taken, a node that is not there or cannot be used so.
    pub async fn add(&self, options: &BlockExportOptions) -> Result<()> {
        let id = &options.id;
        if !is_identifier(id) {
            return Err(error(ErrorKind::InvalidArgument, "Invalid block export id"));
        }
        self.check_id(id)?;
        let node = self.exported_node(options).await?;
        let placement = Placement::find(&self.0.graph, options, &node).await?;
        // Somebody else may have been quicker while this one waited.
        self.check_id(id)?;
        self.0.state.with(|state| state.reserved.push(id.clone()));
        let reserved = ReservedId { registry: self, id };
        let prepared = self.prepare(options)?;
        let client = self.attach(options, &node, placement.home).await?;
        let added = self.start(options, &*prepared, &client, placement).await;
        drop((prepared, reserved));
        if added.is_err() {
            self.detach(&client).await;
        }
        added
    }

    /// The rows of the kinds: what checks the options of each.
    fn prepare(&self, options: &BlockExportOptions) -> Result<Box<dyn Prepared>> {
        match &options.kind {
            BlockExportKind::Nbd(nbd) => {
                let name = nbd.name.as_deref().unwrap_or(&options.node_name);
                nbd::export::prepare(&self.0.nbd, &self.0.graph, name, nbd)
            }
            BlockExportKind::VhostUserBlk(vhost) => vhost::export::prepare(&options.id, vhost),
            BlockExportKind::VduseBlk(vduse) => vduse::export::prepare(vduse),
            BlockExportKind::Fuse(fuse) => fuse::export::prepare(&self.0.mountpoints, &self.0.graph, fuse),
        }
    }

    fn check_id(&self, id: &str) -> Result<()> {
        let taken = self.0.state.with(|state| {
            let mut ids = state.exports.iter().map(|entry| &entry.id);
            ids.any(|taken| taken == id) || state.reserved.iter().any(|reserved| reserved == id)
        });
        if taken {
            let text = format!("Block export id '{id}' is already in use");
            return Err(error(ErrorKind::Exists, text));
        }
        Ok(())
    }

    /// The node that is to be exported, if it can be used so.
    async fn exported_node(&self, options: &BlockExportOptions) -> Result<NodeFacts> {
        let name = &options.node_name;
        let found = self.0.graph.node(name).await;
        let node = found.map_err(|error| match error.kind() {
            // QEMU looks it up as one of the things that can be a device too, and says so.
            ErrorKind::NotFound => {
                let text = format!("Cannot find device='' nor node-name='{name}'");
                Error::caused_by(ErrorKind::NotFound, text, error)
            }
            _ => error,
        })?;
        if options.writable.unwrap_or(false) && node.read_only {
            let text = "Cannot export read-only node as writable";
            return Err(error(ErrorKind::ReadOnly, text));
        }
        Ok(node)
    }

    /// Takes hold of the node for an export.
    async fn attach(
        &self,
        options: &BlockExportOptions,
        node: &NodeFacts,
        iothread: Option<IoThreadId>,
    ) -> Result<Client> {
        let (permissions, shared) = permissions(options);
        let allows_inactive = options.allow_inactive.unwrap_or(false);
        if !allows_inactive && node.flags.contains(OpenFlags::INACTIVE) {
            let activate = SetActive {
                node_name: Some(options.node_name.clone()),
                active: true,
            };
            self.0.graph.ask(activate).await?;
        }
        let request = RootRequest {
            node: options.node_name.clone(),
            user: RootUser::Export(options.id.clone()),
            permissions,
            shared,
            iothread,
            iothread_required: options.fixed_iothread.unwrap_or(false),
            writethrough: options.writethrough.unwrap_or(false),
        };
        match allows_inactive {
            true => self.0.graph.ask(AttachRootInactive(request)).await,
            false => self.0.graph.attach(request).await,
        }
    }

    async fn start(
        &self,
        options: &BlockExportOptions,
        prepared: &dyn Prepared,
        client: &Client,
        placement: Placement,
    ) -> Result<()> {
        if let Some(BlockExportIothreads::Multi(iothreads)) = options.iothread.clone() {
            let root = client.root();
            self.0.graph.ask(ServeOn { root, iothreads }).await?;
        }
        let node = Some(self.0.graph.ask(FindRoot(client.root())).await?);
        let hold = Hold {
            client: client.clone(),
            node,
            options,
        };
        let export = prepared.start(&hold).await?;
        let node_name = hold.node.map(|node| node.name).unwrap_or_default();
        tracing::info!(
            export = options.id,
            node = node_name,
            name = export.name(),
            writable = options.writable.unwrap_or(false),
            "an export was added"
        );
        let over = export.over();
        let key = self.0.state.with(|state| {
            state.last_key += 1;
            let key = Key(state.last_key);
            state.exports.push(Entry {
                key,
                id: options.id.clone(),
                export,
                client: client.clone(),
                options: options.clone(),
                iothreads: placement.named,
                node_name,
                shutting_down: false,
            });
            key
        });
        if let Some(over) = over {
            actix_rt::spawn(remove_when(over, Rc::downgrade(&self.0), key));
        }
        Ok(())
    }

    async fn detach(&self, client: &Client) {
        if let Err(error) = self.0.graph.detach(client.root()).await {
            tracing::warn!(%error, "an export could not let go of its node");
        }
    }

    /// Removes an export that has no clients, or begins to remove it: then it is gone when its clients are.
    ///
    /// # Errors
    /// There is none, or it is in use and `mode` is safe.
    pub async fn delete(&self, id: &str, mode: BlockExportRemoveMode) -> Result<()> {
        let (key, used) = self.0.state.with(|state| {
            let found = state.exports.iter().find(|entry| entry.id == id);
            let entry =
                found.ok_or_else(|| error(ErrorKind::NotFound, format!("Export '{id}' is not found")))?;
            if entry.shutting_down {
                let text = format!("Export '{id}' is already shutting down");
                return Err(error(ErrorKind::InUse, text));
            }
            let used = entry.export.is_used();
            if used && mode == BlockExportRemoveMode::Safe {
                return Err(error(ErrorKind::InUse, format!("export '{id}' still in use")));
            }
            Ok((entry.key, used))
        })?;
        self.begin_removal(key);
        if !used {
            // Whoever removes it next may want to remove its node.
            let gone = |state: &State| state.exports.iter().all(|entry| entry.key != key);
            self.0.state.until(gone).await;
        }
        Ok(())
    }

    /// Removes all exports of which `which` is true; ends when they are gone.
    async fn remove_all(&self, which: impl Fn(&dyn Export) -> bool) {
        let keys: Vec<_> = self.0.state.with(|state| {
            let exports = state.exports.iter();
            exports
                .filter(|entry| which(&*entry.export))
                .map(|entry| entry.key)
                .collect()
        });
        keys.into_iter().for_each(|key| self.begin_removal(key));
        let gone = |state: &State| !state.exports.iter().any(|entry| which(&*entry.export));
        self.0.state.until(gone).await;
    }

    /// Shuts an export down, unless that was done. It lets go of its node when its clients are gone.
    fn begin_removal(&self, key: Key) {
        let unused = self.0.state.with(|state| match state.export(key) {
            Some(entry) if !entry.shutting_down => {
                entry.shutting_down = true;
                Some((entry.export.shut_down(), entry.client.clone()))
            }
            _ => None,
        });
        let Some((unused, client)) = unused else { return };
        actix_rt::spawn(warn_of_removal(Rc::downgrade(&self.0), key));
        let registry = self.clone();
        actix_rt::spawn(async move {
            unused.await;
            registry.detach(&client).await;
            let removed = registry.0.state.with(|state| {
                let index = state.exports.iter().position(|entry| entry.key == key)?;
                Some(state.exports.remove(index))
            });
            if let Some(Entry { id, .. }) = removed {
                tracing::info!(export = id, "an export was removed");
                registry.0.events.emit(QmpEvent::BlockExportDeleted { id });
            }
            registry.0.state.has_changed();
        });
    }

    /// The exports, the last added first.
    pub async fn list(&self) -> Vec<BlockExportInfo> {
        let exports: Vec<_> = self.0.state.with(|state| {
            let exports = state.exports.iter().rev();
            exports.map(|entry| (entry.key, entry.client.root())).collect()
        });
        let mut infos = Vec::with_capacity(exports.len());
        for (key, root) in exports {
            let shown = self.0.graph.ask(FindRoot(root)).await;
            // What is not listed has gone for good: nothing of its name is in the way of what comes next.
            infos.extend(self.0.state.with(|state| {
                let entry = state.export(key)?;
                if let Ok(facts) = shown {
                    entry.node_name = facts.name;
                }
                Some(BlockExportInfo {
                    id: entry.id.clone(),
                    kind: entry.export.kind(),
                    node_name: entry.node_name.clone(),
                    shutting_down: entry.shutting_down,
                })
            }));
        }
        infos
    }

    /// The NBD server written down, if it listens.
    ///
    /// # Errors
    /// Its options cannot be.
    pub(crate) fn save_server(&self, descriptors: &Descriptors) -> Result<Option<SavedNbdServer>> {
        self.0.nbd.save(descriptors)
    }

    /// All exports written down, the first added first. Their nodes are still.
    ///
    /// # Errors
    /// The options of one cannot be.
    pub(crate) async fn save(&self, descriptors: &Descriptors) -> Result<Vec<SavedExport>> {
        // Their nodes may have been replaced since they were last looked at.
        self.list().await;
        let saved: Vec<_> = self.0.state.with(|state| {
            let exports = state.exports.iter();
            exports
                .map(|entry| entry.save(descriptors))
                .collect::<Result<_>>()
        })?;
        Ok(join_all(saved).await)
    }

    /// Removes all exports and stops the server; ends when both are gone.
    pub async fn close_all(&self) {
        // Nothing to stop is as good.
        let _ = self.0.nbd.stop();
        self.remove_all(|_| true).await;
        self.0.nbd.left_by_all().await;
    }
}

/// Removes an export that has come to its end by itself.
async fn remove_when(over: LocalBoxFuture<'static, ()>, registry: Weak<Inner>, key: Key) {
    over.await;
    if let Some(registry) = registry.upgrade() {
        ExportRegistry(registry).begin_removal(key);
    }
}

/// Has the log name what an export that is being removed waits for, if that takes long.
async fn warn_of_removal(registry: Weak<Inner>, key: Key) {
    tokio::time::sleep(PATIENCE).await;
    let Some(registry) = registry.upgrade() else {
        return;
    };
    let export = registry.state.with(|state| {
        let entry = state.export(key)?;
        Some((entry.id.clone(), entry.client.clone()))
    });
    let Some((id, client)) = export else { return };
    let waiting_for = match tokio::time::timeout(PATIENCE, client.in_flight()).await {
        Ok(Some(node)) => node.to_string(),
        Ok(None) => return,
        Err(_elapsed) => "an iothread that does not answer".to_owned(),
    };
    tracing::warn!(export = id, waiting_for, "the removal of an export takes long");
}
