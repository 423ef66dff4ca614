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
    Abilities, Answer, At, Child, ChildKind, Driver, DriverKind, Extent, OpenRequest, Opened, Parcel,
    Placement, Purpose, ReopenRequest, Target, Ticket, Transfer,
};
use millpond_messages::global_state::{DrainScope, RootRequest, RootUser};
use millpond_messages::io::Preallocation;
use millpond_messages::{ChildSlot, IoError, IoResult, Permissions, RequestFlags, Role};
use millpond_ring::Ring;
use millpond_ring::buffer::{Buffer, Buffers};

/// A filter that stores every byte inverted.
struct InvertKind;

struct Invert(Child);

const CHILDREN: &[ChildKind] = &[ChildKind {
    name: "file",
    role: Role::DATA.union(Role::PRIMARY),
    required: true,
}];

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
            let file = request.children.into_iter().next();
            let file = file.ok_or_else(|| millpond_messages::Error::io("no file", IoError::NoMedium))?;
            Ok(Opened {
                driver: Rc::new(Invert(file)),
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
    fn abilities(&self) -> Abilities {
        Abilities::default()
    }

    fn locate(&self, purpose: Purpose, offset: u64, len: u64) -> Answer<'_, IoResult<Extent>> {
        let at = match purpose {
            Purpose::Read => At::Special,
            Purpose::Status { .. } => At::Child {
                slot: ChildSlot::FILE,
                offset,
            },
        };
        Answer::ready(Ok(Extent::new(len, at)))
    }

    fn read(
        self: Rc<Self>,
        offset: u64,
        buffers: Buffers,
        _flags: RequestFlags,
    ) -> Answer<'static, Transfer> {
        Answer::wait(async move {
            let (result, mut buffers) = self.0.read(offset, buffers).await;
            invert(&mut buffers);
            (result, buffers)
        })
    }

    fn place(&self, _offset: u64, len: u64, _flags: RequestFlags) -> Answer<'_, IoResult<Placement>> {
        Answer::ready(Ok(Placement {
            len,
            target: Target::Own,
            head: 0,
            tail: 0,
            ticket: None,
        }))
    }

    fn settle(&self, _ticket: Ticket, _written: IoResult<()>) -> Answer<'_, IoResult<()>> {
        Answer::ready(Err(IoError::Invalid))
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
            (self.0.write(offset, inverted, flags).await.0, buffers)
        })
    }

    fn write_zeroes(&self, _offset: u64, _len: u64, _flags: RequestFlags) -> Answer<'_, IoResult<()>> {
        Answer::ready(Err(IoError::NotSupported))
    }

    fn discard(&self, _offset: u64, _len: u64) -> Answer<'_, IoResult<()>> {
        Answer::ready(Err(IoError::NotSupported))
    }

    fn flush(&self) -> Answer<'_, IoResult<()>> {
        Answer::ready(Ok(()))
    }

    fn truncate(
        &self,
        size: u64,
        exact: bool,
        preallocation: Preallocation,
        flags: RequestFlags,
    ) -> Answer<'_, millpond_messages::Result<()>> {
        Answer::wait(async move {
            let truncated = self.0.truncate(size, exact, preallocation, flags).await;
            truncated.map_err(|error| millpond_messages::Error::io("Could not resize", error))
        })
    }

    fn length(&self) -> Answer<'_, IoResult<u64>> {
        Answer::wait(self.0.length())
    }

    fn allocated_size(&self) -> Answer<'_, IoResult<u64>> {
        Answer::ready(Err(IoError::NotSupported))
    }

    fn reopen_prepare(&self, _request: ReopenRequest) -> Answer<'_, millpond_messages::Result<()>> {
        Answer::ready(Ok(()))
    }

    fn exchange_prepare(&self, _slots: &[ChildSlot]) -> Answer<'_, millpond_messages::Result<()>> {
        // Nothing of what the child holds is kept here.
        Answer::ready(Ok(()))
    }

    fn depart(&self) -> Box<dyn Parcel> {
        Box::new(Packed)
    }

    fn close(&self) -> Answer<'_, millpond_messages::Result<()>> {
        Answer::ready(Ok(()))
    }
}

/// The filter has no state to take along to another iothread.
struct Packed;

impl Parcel for Packed {
    fn arrive(self: Box<Self>, mut children: Vec<Child>, _ring: Ring) -> Rc<dyn Driver> {
        Rc::new(Invert(children.swap_remove(0)))
    }
}

fn options(json: serde_json::Value) -> Result<millpond_messages::global_state::Options, Box<dyn Error>> {
    json.as_object()
        .cloned()
        .ok_or_else(|| "options are an object".into())
}

async fn attach(layer: &BlockLayer, node: &str) -> Result<Client, Box<dyn Error>> {
    let request = RootRequest {
        node: node.to_owned(),
        user: RootUser::Embedder("example".to_owned()),
        permissions: Permissions::CONSISTENT_READ | Permissions::WRITE,
        shared: Permissions::all(),
        iothread: None,
        iothread_required: false,
        writethrough: false,
    };
    Ok(layer.graph().attach(request).await?)
}

async fn run(path: &str) -> Result<(), Box<dyn Error>> {
    let mut config = BlockLayerConfig::default();
    config.registry.register(Arc::new(InvertKind))?;
    let layer = BlockLayer::start(config).await?;
    let node = serde_json::json!({
        "driver": "invert", "node-name": "disk", "file": {"driver": "file", "filename": path},
    });
    layer.graph().blockdev_add(options(node)?).await?;
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
