//! The disk beside the served one: its embedder alone uses it, changes its length, and moves it between iothreads. It may
//! share a throttle group with the served disk, so that each waits for the other's turn.

use std::cell::RefCell;
use std::io;
use std::rc::Rc;
use std::time::Duration;

use fastrand::Rng;
use millpond::graph::GraphHandle;
use millpond::node::Client;
use millpond_messages::Permissions;
use millpond_messages::graph::{Resize, RootRequest, SetIothread};
use millpond_ring::buffer::Buffers;
use tokio::time::sleep;

use super::editor::Edits;
use super::embedder::{Embedder, root_request};
use super::oracle::{Oracle, SECTOR};
use super::stage::Stage;

/// Its file.
pub const IMAGE: &str = "side";

/// The node that is used.
pub const NODE: &str = "side";

/// What is known of it.
#[derive(Debug)]
pub struct Side {
    /// What it may read as.
    pub oracle: Rc<RefCell<Oracle>>,
    /// The shortest that it ever was: what is behind that may be anything once power was lost.
    shortest: u64,
    /// Its length now; none where a change of it failed.
    size: Option<u64>,
}

impl Side {
    /// A disk that is `size` bytes long.
    #[must_use]
    pub fn new(size: u64) -> Rc<RefCell<Self>> {
        Rc::new(RefCell::new(Self {
            oracle: Rc::new(RefCell::new(Oracle::new(size))),
            shortest: size,
            size: Some(size),
        }))
    }

    /// Holds what is left of it against what must be.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn check(&self, bytes: &[u8], closed: bool) -> Result<(), String> {
        if closed && self.size.is_some_and(|size| size != bytes.len() as u64) {
            return Err(format!(
                "the side disk has {} bytes, not {:?}",
                bytes.len(),
                self.size
            ));
        }
        let mut oracle = self.oracle.borrow_mut();
        if !closed {
            oracle.resize(self.shortest);
        }
        let checked = oracle.survived(bytes);
        checked.map_err(|text| format!("of the side disk {text}"))
    }
}

/// Uses the disk until told to end.
pub async fn use_side(
    stage: Rc<Stage>,
    graph: GraphHandle,
    side: Rc<RefCell<Side>>,
    edits: Rc<Edits>,
    mut random: Rng,
) {
    let oracle = Rc::clone(&side.borrow().oracle);
    let embedder = Embedder::new(Rc::clone(&stage), oracle, "side user");
    let request = RootRequest {
        shared: Permissions::all(),
        ..root_request(NODE.to_owned(), "side user")
    };
    let attached = {
        let _edit = stage.sections.edit();
        graph.attach(request).await
    };
    let Ok(client) = attached else {
        if !stage.is_ending() && !stage.has_failed() {
            stage.violated("the side disk cannot be used".to_owned());
        }
        return;
    };
    while edits.goes_on(&stage) && side.borrow().size.is_some() {
        sleep(Duration::from_micros(random.u64(100..3000))).await;
        let count = random.u32(1..30);
        embedder.requests(&client, count, &mut random).await;
        match random.u32(0..4) {
            0 => resize(&stage, &graph, &side, &edits, &mut random).await,
            1 => move_it(&stage, &graph, &edits, &mut random).await,
            _ => {}
        }
    }
    let _edit = stage.sections.edit();
    if let Err(error) = graph.detach(client.root()).await
        && !stage.is_ending()
    {
        stage.violated(format!("the side user cannot let go: {error}"));
    }
}

async fn resize(stage: &Stage, graph: &GraphHandle, side: &RefCell<Side>, edits: &Edits, random: &mut Rng) {
    let oracle = Rc::clone(&side.borrow().oracle);
    let cells = oracle.borrow().cells();
    if oracle.borrow().is_busy(0, cells) && !stage.swarm().hops.is_empty() {
        // What nobody waits for any more may be held back, and come when all else was waited for.
        return;
    }
    let _turn = edits.turn.lock().await;
    let new = random.u64(1..1024) * SECTOR;
    let since = stage.moment();
    {
        // Power may be lost while what is cut off goes.
        let mut side = side.borrow_mut();
        side.shortest = side.shortest.min(new);
    }
    stage.line("side user", format_args!("resizes to {new}"));
    let resized = {
        let _edit = stage.sections.edit();
        graph
            .ask(Resize {
                node_name: NODE.to_owned(),
                size: new,
            })
            .await
    };
    // The change has waited for all that was in flight.
    oracle.borrow_mut().settle();
    let mut side = side.borrow_mut();
    match resized {
        Ok(()) => {
            side.size = Some(new);
            oracle.borrow_mut().resize(new);
        }
        Err(error) => {
            let old = side.size.take().unwrap_or(0);
            oracle.borrow_mut().resize(new.min(old));
            if !stage.may_fail(since, false) {
                stage.violated(format!("the side disk cannot be resized to {new}: {error}"));
            }
        }
    }
}

async fn move_it(stage: &Stage, graph: &GraphHandle, edits: &Edits, random: &mut Rng) {
    let _turn = edits.turn.lock().await;
    let iothread = match random.usize(0..=stage.swarm().iothreads) {
        0 => None,
        index => Some(format!("io{}", index - 1)),
    };
    let since = stage.moment();
    stage.line("side user", format_args!("moves to {iothread:?}"));
    let _edit = stage.sections.edit();
    if let Err(error) = graph
        .ask(SetIothread {
            node_name: NODE.to_owned(),
            iothread,
            force: true,
        })
        .await
        && !stage.may_fail(since, false)
    {
        stage.violated(format!("the side disk cannot be moved: {error}"));
    }
}

/// Reads all of the disk.
///
/// # Errors
/// It cannot be read.
pub async fn read_side(graph: &GraphHandle) -> io::Result<Vec<u8>> {
    let other = |error: millpond_messages::Error| io::Error::other(error.to_string());
    let request = RootRequest {
        permissions: Permissions::CONSISTENT_READ,
        ..root_request(NODE.to_owned(), "reader")
    };
    let client = graph.attach(request).await.map_err(other)?;
    let read = whole(&client).await;
    graph.detach(client.root()).await.map_err(other)?;
    read.map_err(|error| io::Error::other(error.to_string()))
}

/// All bytes of a node.
///
/// # Errors
/// It cannot be read.
pub async fn whole(client: &Client) -> Result<Vec<u8>, millpond_messages::IoError> {
    let len = client.length().await?;
    let (read, bytes) = client.read(0, Buffers::zeroed(len as usize)).await;
    read.map(|()| bytes.to_vec())
}
