//! The places where a driver's code runs, and what makes it run there.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use futures_util::future::LocalBoxFuture;
use millpond::graph::GraphHandle;
use millpond::node::Client;
use millpond_messages::graph::{
    Amend, CancelInFlight, ChangeMedium, DebugNode, DrainScope, FindBlockSizes, FindGeometry,
    InvalidateCache, IsInserted, IsScsiGeneric, MakeEmpty, MoveNode, NamedNodes, Options, RecordBackingFile,
    Reopen, Resize, SendScsi, SetBacking, SetRootPermissions,
};
use millpond_messages::{
    Error, IoResult, MediumOrder, Permissions, RequestFlags, Result, ScsiAnswer, ScsiCommand, ScsiData,
};
use millpond_ring::buffer::{Buffer, Buffers};
use serde_json::{Value, json};

use super::driver::{Entry, Trap, When};
use super::options;

/// What a row works on: a node `f` of the driver over `f-file`, and its user.
#[derive(Clone)]
pub struct Scene {
    pub graph: GraphHandle,
    pub client: Client,
    pub trap: Arc<Trap>,
}

impl Scene {
    pub async fn read(&self) -> Result<()> {
        done(self.client.read(0, Buffers::zeroed(512)).await.0)
    }

    pub async fn write(&self) -> Result<()> {
        let buffers = Buffers::from(Buffer::from_slice(&[7; 512]));
        done(self.client.write(0, buffers, RequestFlags::empty()).await.0)
    }

    pub async fn set_permissions(&self, permissions: Permissions) -> Result<()> {
        let root = self.client.root();
        self.graph
            .ask(SetRootPermissions {
                root,
                permissions,
                shared: Permissions::all(),
            })
            .await
    }

    pub async fn change_medium(&self, order: MediumOrder) -> Result<()> {
        self.graph
            .ask(ChangeMedium {
                node_name: "f".to_owned(),
                order,
            })
            .await
    }

    pub async fn send_scsi(&self, node: &str) -> Result<ScsiAnswer> {
        self.graph
            .ask(SendScsi {
                node_name: node.to_owned(),
                command: ScsiCommand {
                    block: vec![0; 6],
                    data: ScsiData::None,
                    timeout: Duration::from_secs(1),
                },
            })
            .await
    }

    pub async fn give_backing(&self) -> Result<()> {
        self.graph
            .ask(SetBacking {
                node_name: "f".to_owned(),
                backing: Some("base".to_owned()),
            })
            .await
    }
}

pub fn done<T>(result: IoResult<T>) -> Result<()> {
    result.map(drop).map_err(|error| Error::io("a request", error))
}

/// How the call ends during which the driver panics.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Ends {
    /// With an error.
    Failing,
    /// Somehow: the driver was not needed for the answer.
    Anyhow,
    /// The node is gone.
    Gone,
}

pub struct Row {
    pub entry: Entry,
    pub when: &'static [When],
    pub options: Value,
    pub ends: Ends,
    /// A read waits in the driver, and ends when that panics.
    pub reads: bool,
    pub provoke: Box<dyn Fn(Scene) -> LocalBoxFuture<'static, Result<()>>>,
}

pub const ONCE: &[When] = &[When::AtOnce];
pub const BOTH: &[When] = &[When::AtOnce, When::Later];

pub fn row<F>(entry: Entry, when: &'static [When], ends: Ends, provoke: impl Fn(Scene) -> F + 'static) -> Row
where
    F: Future<Output = Result<()>> + 'static,
{
    Row {
        entry,
        when,
        options: json!({}),
        ends,
        reads: false,
        provoke: Box::new(move |scene| Box::pin(provoke(scene))),
    }
}

impl Row {
    pub fn with(mut self, options: Value) -> Self {
        self.options = options;
        self
    }

    pub fn reading(mut self) -> Self {
        self.reads = true;
        self
    }
}

pub fn requests() -> Vec<Row> {
    use Ends::{Anyhow, Failing};
    let places = || json!({"places": true});
    vec![
        row(Entry::Locate, BOTH, Failing, |s| async move { s.read().await }).reading(),
        row(Entry::Locate, BOTH, Failing, |s| async move {
            done(s.client.block_status(0, 512, true, false).await)
        }),
        row(Entry::Read, BOTH, Failing, |s| async move { s.read().await }).reading(),
        row(Entry::Place, BOTH, Failing, |s| async move { s.write().await }).reading(),
        row(Entry::Settle, BOTH, Failing, |s| async move { s.write().await }).with(places()),
        row(Entry::Write, BOTH, Failing, |s| async move { s.write().await }).reading(),
        row(Entry::WriteZeroes, BOTH, Failing, |s| async move {
            done(s.client.write_zeroes(0, 512, RequestFlags::empty()).await)
        })
        .reading(),
        row(Entry::Discard, BOTH, Failing, |s| async move {
            done(s.client.discard(0, 512).await)
        })
        .reading(),
        row(Entry::Flush, BOTH, Failing, |s| async move {
            s.write().await?;
            done(s.client.flush().await)
        })
        .reading(),
        row(Entry::Length, BOTH, Failing, |s| async move {
            done(s.client.length().await)
        })
        .reading(),
        row(
            Entry::DebugEvent,
            BOTH,
            Failing,
            |s| async move { s.write().await },
        )
        .with(json!({"listens": true})),
        row(Entry::Quiesce, BOTH, Anyhow, |s| async move {
            s.graph
                .drain(DrainScope::Node("f".to_owned()), "test")
                .await
                .map(drop)
        })
        .reading(),
        row(Entry::CancelInFlight, ONCE, Anyhow, |s| async move {
            s.graph
                .ask(CancelInFlight {
                    node_name: "f".to_owned(),
                    alone: false,
                })
                .await
        })
        .reading(),
    ]
}

pub fn orders() -> Vec<Row> {
    use Ends::{Anyhow, Failing, Gone};
    let stubborn =
        || json!({"file": {"driver": "fragile", "node-name": "g", "stubborn": true, "file": "f-file"}});
    vec![
        row(Entry::Truncate, BOTH, Failing, |s| async move {
            s.graph
                .ask(Resize {
                    node_name: "f".to_owned(),
                    size: 1 << 21,
                })
                .await
        }),
        row(Entry::Abilities, ONCE, Anyhow, |s| async move {
            s.give_backing().await
        }),
        row(Entry::Resume, ONCE, Anyhow, |s| async move {
            let section = s.graph.drain(DrainScope::Node("f".to_owned()), "test").await?;
            drop(section);
            // Behind the end of the section.
            s.graph.flush_all().await
        }),
        row(Entry::PermissionsPrepare, BOTH, Failing, |s| async move {
            s.set_permissions(Permissions::CONSISTENT_READ).await
        }),
        row(Entry::PermissionsCommit, ONCE, Anyhow, |s| async move {
            s.set_permissions(Permissions::CONSISTENT_READ).await
        }),
        row(Entry::PermissionsAbort, ONCE, Failing, |s| async move {
            s.trap.refuses.store(true, Ordering::SeqCst);
            let refused = s.set_permissions(Permissions::CONSISTENT_READ).await;
            s.trap.refuses.store(false, Ordering::SeqCst);
            refused
        })
        .with(stubborn()),
        row(Entry::ReopenPrepare, BOTH, Failing, |s| async move {
            let same = json!({"driver": "fragile", "node-name": "f", "file": "f-file"});
            s.graph.ask(Reopen(vec![options(same)])).await
        }),
        row(Entry::ReopenCommit, ONCE, Anyhow, |s| async move {
            let same = json!({"driver": "fragile", "node-name": "f", "file": "f-file"});
            s.graph.ask(Reopen(vec![options(same)])).await
        }),
        row(Entry::ReopenAbort, ONCE, Failing, |s| async move {
            s.trap.refuses.store(true, Ordering::SeqCst);
            let same = json!({"driver": "fragile", "node-name": "f", "file": "g"});
            let refuses = json!({"driver": "fragile", "node-name": "g", "stubborn": true, "file": "f-file"});
            let refused = s.graph.ask(Reopen(vec![options(same), options(refuses)])).await;
            s.trap.refuses.store(false, Ordering::SeqCst);
            refused
        })
        .with(stubborn()),
        row(Entry::Invalidate, BOTH, Failing, |s| async move {
            s.graph
                .ask(InvalidateCache {
                    node_name: "f".to_owned(),
                })
                .await
        }),
        row(Entry::ChildrenChanged, ONCE, Anyhow, |s| async move {
            s.give_backing().await
        }),
        row(Entry::DebugOrder, ONCE, Failing, |s| async move {
            s.graph.ask(DebugNode::breakpoint("f", "pwritev", "tag")).await
        })
        .with(json!({"listens": true})),
        row(Entry::MakeEmpty, BOTH, Failing, |s| async move {
            s.graph
                .ask(MakeEmpty {
                    node_name: "f".to_owned(),
                })
                .await
        }),
        row(Entry::Amend, BOTH, Failing, |s| async move {
            s.graph
                .ask(Amend {
                    force: false,
                    node_name: "f".to_owned(),
                    options: Options::new(),
                })
                .await
        }),
        row(Entry::ChangeBackingFile, BOTH, Failing, |s| async move {
            s.give_backing().await?;
            s.graph
                .ask(RecordBackingFile {
                    device: "f".to_owned(),
                    image_node_name: "f".to_owned(),
                    backing_file: "elsewhere".to_owned(),
                })
                .await
        }),
        row(Entry::Depart, ONCE, Anyhow, |s| async move {
            s.graph
                .ask(MoveNode {
                    node_name: "f".to_owned(),
                    iothread: Some("io".to_owned()),
                })
                .await
        }),
        row(Entry::Arrive, ONCE, Anyhow, |s| async move {
            s.graph
                .ask(MoveNode {
                    node_name: "f".to_owned(),
                    iothread: Some("io".to_owned()),
                })
                .await
        }),
        row(Entry::Close, BOTH, Gone, |s| async move { leave(&s).await }),
        row(Entry::Drop, ONCE, Gone, |s| async move { leave(&s).await }),
    ]
}

pub fn questions() -> Vec<Row> {
    use Ends::Anyhow;
    let described = |entry, when| {
        row(entry, when, Anyhow, |s| async move {
            s.graph.ask(NamedNodes { flat: false }).await.map(drop)
        })
    };
    vec![
        described(Entry::AllocatedSize, BOTH),
        described(Entry::Filename, ONCE),
        described(Entry::Info, ONCE),
        described(Entry::SpecificInfo, ONCE),
        row(Entry::BlockSizes, BOTH, Anyhow, |s| async move {
            s.graph
                .ask(FindBlockSizes {
                    node_name: "f".to_owned(),
                })
                .await
                .map(drop)
        }),
        row(Entry::Geometry, BOTH, Anyhow, |s| async move {
            s.graph
                .ask(FindGeometry {
                    node_name: "f".to_owned(),
                })
                .await
                .map(drop)
        }),
        row(Entry::IsInserted, BOTH, Anyhow, |s| async move {
            s.graph
                .ask(IsInserted {
                    node_name: "f".to_owned(),
                })
                .await
                .map(drop)
        }),
        row(Entry::IsScsiGeneric, ONCE, Anyhow, |s| async move {
            s.graph
                .ask(IsScsiGeneric {
                    node_name: "f".to_owned(),
                })
                .await
                .map(drop)
        }),
        row(Entry::ChangeMedium, BOTH, Anyhow, |s| async move {
            s.change_medium(MediumOrder::Eject).await
        }),
        row(Entry::SendScsi, BOTH, Anyhow, |s| async move {
            s.send_scsi("f").await.map(drop)
        }),
    ]
}

pub async fn leave(scene: &Scene) -> Result<()> {
    scene.graph.detach(scene.client.root()).await?;
    scene.graph.delete_node("f").await
}
