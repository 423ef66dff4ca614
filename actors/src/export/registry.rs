//! The exports there are, and the NBD server that most of them are on. It lives on the control thread.

use std::cell::RefCell;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use millpond_messages::graph::{GraphReply, GraphRequest, Query, RootRequest, RootUser};
use millpond_messages::qapi::{
    BlockDirtyBitmapOrStr, BlockExportInfo, BlockExportKind, BlockExportOptions, BlockExportRemoveMode,
    BlockExportType, Event, NbdExportOptions, NbdServerOptions, SocketAddress, is_identifier,
};
use millpond_messages::{Error, ErrorKind, IoThreadId, OpenFlags, Permissions, Result, SECTOR_SIZE};
use millpond_ring::Fd;
use tokio::sync::{Notify, mpsc, watch};

use super::nbd::listen::{ConnectionId, Connections, Ending, Exporter, Server};
use super::nbd::offer::{Catalogue, Offer};
use super::nbd::report;
use super::nbd::wire::MAX_STRING;
use crate::graph::GraphHandle;
use crate::monitor::EventBus;
use millpond_engine::node::Client;

/// How long the removal of an export may take before the log names what it waits for; and then, how long an iothread has to
/// say so.
const PATIENCE: Duration = Duration::from_secs(1);

/// All exports. Clones are the same registry.
#[derive(Clone)]
pub struct ExportRegistry(Rc<Inner>);

struct Inner {
    graph: GraphHandle,
    events: EventBus,
    state: RefCell<State>,
    /// Where connections tell that they have ended.
    ended: mpsc::UnboundedSender<(ConnectionId, Ending)>,
    /// Told when an export or a connection is gone.
    changed: Notify,
    /// Whether clients that connect wait.
    held: watch::Sender<bool>,
}

#[derive(Default)]
struct State {
    /// In the order in which they were added.
    exports: Vec<Export>,
    /// Ids and names of exports that are being made.
    reserved: Vec<(String, String)>,
    server: ServerState,
    connections: Connections<Key>,
    last_key: u64,
}

#[derive(Default)]
enum ServerState {
    #[default]
    Stopped,
    /// Its address is being looked up.
    Starting,
    Running(Server),
}

/// Names an export, also among those that once had the same id.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Key(u64);

struct Export {
    key: Key,
    id: String,
    offer: Arc<Offer>,
    client: Client,
    /// The node that it was last seen to show.
    node_name: String,
    /// It is being removed: new clients do not find it.
    shutting_down: bool,
}

impl State {
    fn export(&mut self, key: Key) -> Option<&mut Export> {
        self.exports.iter_mut().find(|export| export.key == key)
    }

    fn server(&self) -> Result<&Server> {
        match &self.server {
            ServerState::Running(server) => Ok(server),
            ServerState::Stopped | ServerState::Starting => Err(not_running()),
        }
    }
}

fn not_running() -> Error {
    Error::new(ErrorKind::NotFound, "NBD server not running")
}

fn not_found(id: &str) -> Error {
    Error::new(ErrorKind::NotFound, format!("Export '{id}' is not found"))
}

fn invalid(text: impl Into<String>) -> Error {
    Error::new(ErrorKind::InvalidArgument, text.into())
}

/// Keeps an id and a name from being taken while their export is made.
struct Reservation<'a> {
    registry: &'a ExportRegistry,
    id: &'a str,
}

impl Drop for Reservation<'_> {
    fn drop(&mut self) {
        let mut state = self.registry.0.state.borrow_mut();
        state.reserved.retain(|(id, _)| id != self.id);
    }
}

impl ExportRegistry {
    /// An empty registry, on the current actix arbiter.
    #[must_use]
    pub fn new(graph: GraphHandle, events: EventBus) -> Self {
        let (ended, mut endings) = mpsc::unbounded_channel();
        let (changed, held) = (Notify::new(), watch::channel(false).0);
        let registry = Self(Rc::new(Inner {
            graph,
            events,
            state: RefCell::default(),
            ended,
            changed,
            held,
        }));
        let weak = Rc::downgrade(&registry.0);
        actix_rt::spawn(async move {
            while let Some((id, ending)) = endings.recv().await {
                let Some(inner) = weak.upgrade() else { return };
                Self(inner).disconnected(id, &ending);
            }
        });
        registry
    }

    /// Starts the NBD server.
    ///
    /// # Errors
    /// It runs already, or cannot listen there.
    pub async fn start_server(&self, options: &NbdServerOptions) -> Result<()> {
        {
            let mut state = self.0.state.borrow_mut();
            if !matches!(state.server, ServerState::Stopped) {
                return Err(Error::new(ErrorKind::Exists, "NBD server already running"));
            }
            state.server = ServerState::Starting;
        }
        let (ended, held) = (self.0.ended.clone(), self.0.held.subscribe());
        let server = Server::start(options, self.clone(), ended, held).await;
        let mut state = self.0.state.borrow_mut();
        let (next, result) = match server {
            Ok(server) => (ServerState::Running(server), Ok(())),
            Err(error) => (ServerState::Stopped, Err(error)),
        };
        state.server = next;
        result
    }

    /// Stops the NBD server: ends its clients and removes its exports. Ends when both are gone.
    ///
    /// # Errors
    /// It does not run.
    pub async fn stop_server(&self) -> Result<()> {
        let keys: Vec<_> = {
            let mut state = self.0.state.borrow_mut();
            state.server()?;
            state.server = ServerState::Stopped;
            state.connections.shut_down(None);
            state.exports.iter().map(|export| export.key).collect()
        };
        keys.into_iter().for_each(|key| self.begin_removal(key));
        self.wait(|state| state.exports.is_empty() && state.connections.is_empty())
            .await;
        Ok(())
    }

    /// Waits until `condition` holds.
    async fn wait(&self, condition: impl Fn(&State) -> bool) {
        loop {
            let changed = self.0.changed.notified();
            if condition(&self.0.state.borrow()) {
                return;
            }
            changed.await;
        }
    }

    /// Adds an export.
    ///
    /// # Errors
    /// QEMU's texts: ids and names that are malformed or taken, a node that is not there or cannot be used so.
    pub async fn add(&self, options: &BlockExportOptions) -> Result<()> {
        let BlockExportOptions { id, node_name, .. } = options;
        let BlockExportKind::Nbd(nbd) = &options.kind;
        let name = nbd.name.as_deref().unwrap_or(node_name);
        if !is_identifier(id) {
            return Err(invalid("Invalid block export id"));
        }
        self.check_id(id)?;
        let writable = options.writable.unwrap_or(false);
        let facts = self
            .0
            .graph
            .node(node_name)
            .await
            .map_err(|error| match error.kind() {
                // QEMU looks it up as one of the things that can be a device too, and says so.
                ErrorKind::NotFound => {
                    let text = format!("Cannot find device='' nor node-name='{node_name}'");
                    Error::caused_by(ErrorKind::NotFound, text, error)
                }
                _ => error,
            })?;
        if writable && facts.read_only {
            return Err(Error::new(
                ErrorKind::ReadOnly,
                "Cannot export read-only node as writable",
            ));
        }
        let fixed = options.fixed_iothread.unwrap_or(false);
        let iothread = match &options.iothread {
            Some(name) => Some(self.iothread(name).await?),
            // What is fixed stays where it is.
            None => fixed.then_some(facts.iothread),
        };
        let reservation = self.reserve(id, name, nbd)?;
        let mut permissions = Permissions::CONSISTENT_READ;
        permissions.set(Permissions::WRITE, writable);
        let allows_inactive = options.allow_inactive.unwrap_or(false);
        if !allows_inactive && facts.flags.contains(OpenFlags::INACTIVE) {
            self.0.graph.set_active(Some(node_name.clone()), true).await?;
        }
        let request = RootRequest {
            node: node_name.clone(),
            user: RootUser::Export(id.clone()),
            permissions,
            // The length that clients were told holds as long as the export.
            shared: Permissions::all() - Permissions::RESIZE,
            iothread,
            iothread_required: fixed,
            writethrough: options.writethrough.unwrap_or(false),
        };
        let client = if allows_inactive {
            self.0.graph.attach_inactive(request).await?
        } else {
            self.0.graph.attach(request).await?
        };
        let added = self.insert(options, nbd, name, &client).await;
        drop(reservation);
        if added.is_ok() {
            tracing::info!(
                export = id,
                node = node_name,
                name,
                writable,
                "an export was added"
            );
        }
        if added.is_err() {
            self.detach(&client).await;
        }
        added
    }

    async fn insert(
        &self,
        options: &BlockExportOptions,
        nbd: &NbdExportOptions,
        name: &str,
        client: &Client,
    ) -> Result<()> {
        let size = client
            .length()
            .await
            .map_err(|error| Error::io("Failed to determine the NBD export's length", error))?;
        let query = GraphRequest::Query(Query::Root(client.root()));
        let (limits, node_name) = match self.0.graph.ask(query).await? {
            GraphReply::Node(facts) => (facts.limits, facts.name),
            _ => (millpond_messages::Limits::default(), String::new()),
        };
        let mut state = self.0.state.borrow_mut();
        let multi_conn = state.server()?.multi_conn();
        let offer = Offer {
            name: name.to_owned(),
            description: nbd.description.clone(),
            size: size - size % SECTOR_SIZE,
            flags: Offer::base_flags(options.writable.unwrap_or(false), multi_conn),
            request_alignment: limits.request_alignment.max(1),
            max_transfer: limits.max_transfer,
            allocation_depth: nbd.allocation_depth.unwrap_or(false),
        };
        state.last_key += 1;
        let key = Key(state.last_key);
        state.exports.push(Export {
            key,
            id: options.id.clone(),
            offer: Arc::new(offer),
            client: client.clone(),
            node_name,
            shutting_down: false,
        });
        Ok(())
    }

    fn check_id(&self, id: &str) -> Result<()> {
        let state = self.0.state.borrow();
        let taken = state.exports.iter().any(|export| export.id == id);
        if taken || state.reserved.iter().any(|(reserved, _)| reserved == id) {
            return Err(Error::new(
                ErrorKind::Exists,
                format!("Block export id '{id}' is already in use"),
            ));
        }
        Ok(())
    }

    /// The checks that an NBD export's own options go through; what it is called is kept for it.
    fn reserve<'a>(&'a self, id: &'a str, name: &str, nbd: &NbdExportOptions) -> Result<Reservation<'a>> {
        // Somebody else may have been quicker while this one waited.
        self.check_id(id)?;
        let mut state = self.0.state.borrow_mut();
        state.server()?;
        if name.len() > MAX_STRING {
            return Err(invalid(format!("export name '{name}' too long")));
        }
        if let Some(text) = nbd.description.as_deref().filter(|text| text.len() > MAX_STRING) {
            return Err(invalid(format!("description '{text}' too long")));
        }
        let taken = state
            .exports
            .iter()
            .any(|export| !export.shutting_down && export.offer.name == name);
        if taken || state.reserved.iter().any(|(_, reserved)| reserved == name) {
            let text = format!("NBD server already has export named '{name}'");
            return Err(Error::new(ErrorKind::Exists, text));
        }
        // Nodes have no bitmaps yet, so none can be found.
        match nbd.bitmaps.as_deref().and_then(<[_]>::first) {
            Some(BlockDirtyBitmapOrStr::Local(name)) => {
                return Err(Error::new(
                    ErrorKind::NotFound,
                    format!("Bitmap '{name}' is not found"),
                ));
            }
            Some(BlockDirtyBitmapOrStr::External(bitmap)) => {
                let text = format!("Dirty bitmap '{}' not found", bitmap.name);
                return Err(Error::new(ErrorKind::NotFound, text));
            }
            None => {}
        }
        state.reserved.push((id.to_owned(), name.to_owned()));
        Ok(Reservation { registry: self, id })
    }

    async fn iothread(&self, name: &str) -> Result<IoThreadId> {
        let reply = self.0.graph.ask(GraphRequest::Query(Query::Iothreads)).await?;
        let found = match reply {
            GraphReply::Iothreads(all) => all
                .into_iter()
                .find(|(options, ..)| options.id == name)
                .map(|(.., id)| id),
            _ => None,
        };
        found.ok_or_else(|| Error::new(ErrorKind::NotFound, format!("iothread \"{name}\" not found")))
    }

    /// Has the log name what an export that is being removed waits for, if that takes long.
    fn watch_removal(&self, key: Key) {
        let registry = Rc::downgrade(&self.0);
        actix_rt::spawn(async move {
            tokio::time::sleep(PATIENCE).await;
            let Some(registry) = registry.upgrade().map(Self) else {
                return;
            };
            let export = registry.0.state.borrow_mut().export(key).map(|export| {
                let Export { id, client, .. } = export;
                (id.clone(), client.clone())
            });
            let Some((id, client)) = export else { return };
            let waiting_for = match tokio::time::timeout(PATIENCE, client.in_flight()).await {
                Ok(Some(node)) => node.to_string(),
                Ok(None) => return,
                Err(_elapsed) => "an iothread that does not answer".to_owned(),
            };
            tracing::warn!(export = id, waiting_for, "the removal of an export takes long");
        });
    }

    /// Removes an export that has no clients, or begins to remove it: then it is gone when its clients are.
    ///
    /// # Errors
    /// There is none, or it is in use and `mode` is safe.
    pub async fn delete(&self, id: &str, mode: BlockExportRemoveMode) -> Result<()> {
        let (key, used) = {
            let state = self.0.state.borrow();
            let export = state.exports.iter().find(|export| export.id == id);
            let export = export.ok_or_else(|| not_found(id))?;
            if export.shutting_down {
                let text = format!("Export '{id}' is already shutting down");
                return Err(Error::new(ErrorKind::InUse, text));
            }
            let used = state.connections.uses(export.key);
            if used && mode == BlockExportRemoveMode::Safe {
                return Err(Error::new(
                    ErrorKind::InUse,
                    format!("export '{id}' still in use"),
                ));
            }
            (export.key, used)
        };
        self.begin_removal(key);
        if !used {
            // Whoever removes it next may want to remove its node.
            self.wait(|state| state.exports.iter().all(|export| export.key != key))
                .await;
        }
        Ok(())
    }

    fn begin_removal(&self, key: Key) {
        {
            let mut state = self.0.state.borrow_mut();
            match state.export(key) {
                Some(export) if !export.shutting_down => export.shutting_down = true,
                _ => return,
            }
            state.connections.shut_down(Some(key));
        }
        self.watch_removal(key);
        self.finish_removal(key);
    }

    /// Lets go of the node of an export that is being removed, if its clients are gone.
    fn finish_removal(&self, key: Key) {
        let client = {
            let mut state = self.0.state.borrow_mut();
            let unused = !state.connections.uses(key);
            match state.export(key) {
                Some(export) if export.shutting_down && unused => export.client.clone(),
                _ => return,
            }
        };
        let registry = self.clone();
        actix_rt::spawn(async move {
            registry.detach(&client).await;
            let removed = {
                let mut state = registry.0.state.borrow_mut();
                let index = state.exports.iter().position(|export| export.key == key);
                index.map(|index| state.exports.remove(index))
            };
            if let Some(Export { id, .. }) = removed {
                tracing::info!(export = id, "an export was removed");
                registry.0.events.emit(Event::BlockExportDeleted { id });
            }
            registry.0.changed.notify_waiters();
        });
    }

    async fn detach(&self, client: &Client) {
        if let Err(error) = self.0.graph.detach(client.root()).await {
            tracing::warn!(%error, "an export could not let go of its node");
        }
    }

    fn disconnected(&self, id: ConnectionId, ending: &Ending) {
        let connected = self.0.state.borrow_mut().connections.remove(id);
        if let Some(connected) = connected {
            let name = connected.export.and_then(|key| self.export_name(key));
            report::disconnected(id, &connected, name.as_deref().unwrap_or_default(), ending);
            if let Some(key) = connected.export {
                self.finish_removal(key);
            }
        }
        self.0.changed.notify_waiters();
    }

    fn export_name(&self, key: Key) -> Option<String> {
        let mut state = self.0.state.borrow_mut();
        state.export(key).map(|export| export.offer.name.clone())
    }

    /// The exports, the last added first.
    pub async fn list(&self) -> Vec<BlockExportInfo> {
        let exports: Vec<_> = {
            let state = self.0.state.borrow();
            let exports = state.exports.iter().rev();
            exports.map(|export| (export.key, export.client.root())).collect()
        };
        let mut infos = Vec::with_capacity(exports.len());
        for (key, root) in exports {
            let reply = self.0.graph.ask(GraphRequest::Query(Query::Root(root))).await;
            let mut state = self.0.state.borrow_mut();
            // What is not listed has gone for good: nothing of its name is in the way of what comes next.
            let Some(export) = state.export(key) else {
                continue;
            };
            if let Ok(GraphReply::Node(facts)) = reply {
                export.node_name = facts.name;
            }
            infos.push(BlockExportInfo {
                id: export.id.clone(),
                kind: BlockExportType::Nbd,
                node_name: export.node_name.clone(),
                shutting_down: export.shutting_down,
            });
        }
        infos
    }

    /// Where the NBD server listens, if it runs.
    #[must_use]
    pub fn server_addresses(&self) -> Option<Vec<SocketAddress>> {
        let state = self.0.state.borrow();
        state.server().ok().map(|server| server.addresses().to_vec())
    }

    /// Lets clients that connect wait, or no more. They wait while a command line is carried out: who connects to a
    /// server as soon as it listens must find the exports that come behind it.
    pub fn hold_clients(&self, hold: bool) {
        self.0.held.send_replace(hold);
    }

    /// Removes all exports and stops the server; ends when both are gone.
    pub async fn close_all(&self) {
        // Nothing to stop is as good.
        let _ = self.stop_server().await;
        self.wait(|state| state.exports.is_empty() && state.connections.is_empty())
            .await;
    }
}

impl Catalogue for ExportRegistry {
    fn find(&self, name: &[u8]) -> Option<Arc<Offer>> {
        let state = self.0.state.borrow();
        let mut exports = state.exports.iter().filter(|export| !export.shutting_down);
        exports
            .find(|export| export.offer.name.as_bytes() == name)
            .map(|export| Arc::clone(&export.offer))
    }

    fn offers(&self) -> Vec<Arc<Offer>> {
        let state = self.0.state.borrow();
        let exports = state.exports.iter().filter(|export| !export.shutting_down);
        exports.map(|export| Arc::clone(&export.offer)).collect()
    }
}

impl Exporter for ExportRegistry {
    fn connected(&self, id: ConnectionId, socket: Fd) {
        self.0.state.borrow_mut().connections.insert(id, socket);
    }

    fn chose(&self, id: ConnectionId, offer: &Arc<Offer>) -> Option<Client> {
        let mut state = self.0.state.borrow_mut();
        let chosen = |export: &&Export| !export.shutting_down && Arc::ptr_eq(&export.offer, offer);
        let (key, client) = state
            .exports
            .iter()
            .find(chosen)
            .map(|export| (export.key, export.client.clone()))?;
        state.connections.assign(id, key);
        Some(client)
    }
}
