//! A program that embeds Millpond without knowing of actix: it brings a driver of its own, opens a node with it, and reads
//! and writes through a client while a drained section comes and goes. Its futures run on a bare `block_on`.
//!
//! Run it with `cargo run --example embed_async`.

use std::error::Error;
use std::rc::Rc;
use std::sync::Arc;

use futures_executor::block_on;
use futures_util::future::{LocalBoxFuture, join};
use millpond::embed::{BlockLayer, BlockLayerConfig};
use millpond::node::Client;
use millpond_drivers::api::{
    Abilities, Answer, At, ChildKind, Driver, DriverKind, Extent, Lifecycle, Moved, OpenRequest, Opened,
    PassThrough, Purpose, ReopenRequest, SavesState, Transfer,
};
use millpond_drivers::delegate;
use millpond_messages::graph::{DrainScope, RootRequest, RootUser};
use millpond_messages::{ChildSlot, IoError, IoResult, Permissions, Range, RequestFlags, Role};
use millpond_ring::buffer::{Buffer, Buffers};

/// A filter that stores every byte inverted.
struct InvertKind;

struct Invert {
    below: PassThrough,
}

const CHILDREN: &[ChildKind] = &[ChildKind::file(Role::DATA.union(Role::PRIMARY))];

impl DriverKind for InvertKind {
    fn name(&self) -> &'static str {
        "invert"
    }

    fn children(&self) -> &'static [ChildKind] {
        CHILDREN
    }

    fn is_protocol(&self) -> bool {
        false
    }

    fn open(&self, request: OpenRequest) -> LocalBoxFuture<'static, millpond_messages::Result<Opened>> {
        Box::pin(async move {
            Ok(Opened {
                driver: Rc::new(Invert {
                    below: PassThrough::to_only(request.children)?,
                }),
                flags: request.flags,
                backing: None,
            })
        })
    }
}

fn invert(buffers: &mut Buffers) {
    for buffer in buffers.iter_mut() {
        buffer.iter_mut().for_each(|byte| *byte = !*byte);
    }
}

impl Driver for Invert {
    delegate!(below: place_here, settle, flush, truncate, length, allocated_size);

    fn abilities(&self) -> Abilities {
        Abilities::default()
    }

    fn locate(&self, purpose: Purpose, range: Range) -> Answer<'_, IoResult<Extent>> {
        match purpose {
            Purpose::Read => Answer::ready(Ok(Extent::new(range.len(), At::Special))),
            Purpose::Status { .. } => self.below.locate(purpose, range),
        }
    }

    fn read(self: Rc<Self>, offset: u64, buffers: Buffers, flags: RequestFlags) -> Answer<'static, Transfer> {
        Answer::wait(async move {
            let (result, mut buffers) = self.below.read(offset, buffers, flags).await;
            invert(&mut buffers);
            (result, buffers)
        })
    }

    fn write(
        self: Rc<Self>,
        offset: u64,
        buffers: Buffers,
        flags: RequestFlags,
    ) -> Answer<'static, Transfer> {
        Answer::wait(async move {
            // The caller's bytes stay as they are: only a copy is inverted.
            let mut inverted = Buffers::from(Buffer::from_slice(&buffers.to_vec()));
            invert(&mut inverted);
            (self.below.write(offset, inverted, flags).await.0, buffers)
        })
    }

    fn write_zeroes(&self, _range: Range, _flags: RequestFlags) -> Answer<'_, IoResult<()>> {
        Answer::ready(Err(IoError::NotSupported))
    }

    fn discard(&self, _range: Range) -> Answer<'_, IoResult<()>> {
        Answer::ready(Err(IoError::NotSupported))
    }
}

impl Lifecycle for Invert {
    fn reopen_prepare(&self, _request: ReopenRequest) -> Answer<'_, millpond_messages::Result<()>> {
        Answer::ready(Ok(()))
    }

    fn exchange_prepare(&self, _slots: &[ChildSlot]) -> Answer<'_, millpond_messages::Result<()>> {
        // Nothing of what the child holds is kept here.
        Answer::ready(Ok(()))
    }

    fn saved_state(&self) -> Option<&dyn SavesState> {
        None
    }

    /// The filter has no state to take along to another iothread.
    fn depart(&self) -> Moved {
        Moved::new((), |(), children, _| {
            let below = PassThrough::moved(children);
            Rc::new(Invert { below })
        })
    }

    fn close(&self) -> Answer<'_, millpond_messages::Result<()>> {
        Answer::ready(Ok(()))
    }
}

fn options(json: serde_json::Value) -> Result<millpond_messages::graph::Options, Box<dyn Error>> {
    json.as_object()
        .cloned()
        .ok_or_else(|| "options are an object".into())
}

async fn attach(layer: &BlockLayer, node: &str) -> Result<Client, Box<dyn Error>> {
    let request = RootRequest::new(
        node,
        RootUser::Embedder("example".to_owned()),
        Permissions::CONSISTENT_READ | Permissions::WRITE,
    );
    Ok(layer.graph().attach(request).await?)
}

async fn run(path: &str) -> Result<(), Box<dyn Error>> {
    let mut config = BlockLayerConfig::default();
    config.registry.register(Arc::new(InvertKind))?;
    let layer = BlockLayer::start(config).await?;
    let node = serde_json::json!({
        "driver": "invert", "node-name": "disk", "file": {"driver": "file", "filename": path},
    });
    layer.graph().add_node(options(node)?).await?;
    let client = attach(&layer, "disk").await?;

    // A drained section holds the write back, and lets it go on when it ends.
    let section = layer
        .graph()
        .drain(DrainScope::Node("disk".to_owned()), "example")
        .await?;
    let write = client.write(
        512,
        Buffers::from(Buffer::from_slice(b"embedded")),
        RequestFlags::empty(),
    );
    let (((written, _), flushed), ()) = join(async { (write.await, client.flush().await) }, async {
        drop(section)
    })
    .await;
    written?;
    flushed?;

    let (read, buffers) = client.read(512, Buffers::zeroed(8)).await;
    read?;
    println!("read back: {}", String::from_utf8_lossy(&buffers.to_vec()));
    let stored = std::fs::read(path)?;
    println!("stored inverted: {}", stored.get(512) == Some(&!b'e'));

    layer.graph().detach(client.root()).await?;
    layer.shut_down().await?;
    Ok(())
}

fn main() -> Result<(), Box<dyn Error>> {
    let path = std::env::temp_dir().join(format!("millpond-embed-async-{}.raw", std::process::id()));
    std::fs::write(&path, vec![0; 1 << 20])?;
    let result = block_on(run(&path.to_string_lossy()));
    std::fs::remove_file(&path)?;
    result
}
