//! Storage of a program's own, as a node: four methods, and everything that Millpond does above a node works on it. Here a
//! disk in memory is written to, zeroed in part, and read back.
//!
//! Run it with `cargo run --example simple_driver`.

use std::cell::RefCell;
use std::error::Error;
use std::ops::Range;
use std::sync::Arc;

use futures_executor::block_on;
use millpond::embed::{BlockLayer, BlockLayerConfig};
use millpond_drivers::api::{SimpleDriver, SimpleKind};
use millpond_messages::graph::{Options, RootRequest, RootUser};
use millpond_messages::{IoError, IoResult, Permissions, RequestFlags};
use millpond_ring::buffer::{Buffer, Buffers};

struct Memory(RefCell<Vec<u8>>);

fn range(offset: u64, len: usize) -> IoResult<Range<usize>> {
    let start = usize::try_from(offset).map_err(|_| IoError::OutOfRange)?;
    Ok(start..start.checked_add(len).ok_or(IoError::OutOfRange)?)
}

impl SimpleDriver for Memory {
    async fn length(&self) -> IoResult<u64> {
        Ok(self.0.borrow().len() as u64)
    }

    async fn read(&self, offset: u64, buffer: &mut [u8]) -> IoResult<()> {
        let bytes = self.0.borrow();
        let part = bytes.get(range(offset, buffer.len())?);
        buffer.copy_from_slice(part.ok_or(IoError::OutOfRange)?);
        Ok(())
    }

    async fn write(&self, offset: u64, bytes: &[u8]) -> IoResult<()> {
        let mut all = self.0.borrow_mut();
        let part = all.get_mut(range(offset, bytes.len())?);
        part.ok_or(IoError::OutOfRange)?.copy_from_slice(bytes);
        Ok(())
    }

    async fn flush(&self) -> IoResult<()> {
        Ok(())
    }
}

fn options(json: serde_json::Value) -> Result<Options, Box<dyn Error>> {
    json.as_object()
        .cloned()
        .ok_or_else(|| "options are an object".into())
}

async fn run() -> Result<(), Box<dyn Error>> {
    let memory = SimpleKind::new("memory", &[], |_options| async {
        Ok(Memory(RefCell::new(vec![0; 1 << 20])))
    });
    let mut config = BlockLayerConfig::default();
    config.registry.register(Arc::new(memory))?;
    let layer = BlockLayer::start(config).await?;
    let node = serde_json::json!({"driver": "memory", "node-name": "disk"});
    layer.graph().add_node(options(node)?).await?;
    let client = layer.graph().attach(RootRequest::new(
        "disk",
        RootUser::Embedder("example".to_owned()),
        Permissions::CONSISTENT_READ | Permissions::WRITE,
    ));
    let client = client.await?;

    let text = Buffers::from(Buffer::from_slice(b"four methods"));
    client.write(1000, text, RequestFlags::FUA).await.0?;
    client.write_zeroes(1000, 4, RequestFlags::empty()).await?;
    client
        .write(
            1000,
            Buffers::from(Buffer::from_slice(b"Four")),
            RequestFlags::empty(),
        )
        .await
        .0?;
    client.flush().await?;
    let (read, buffers) = client.read(1000, Buffers::zeroed(12)).await;
    read?;
    println!("read back: {}", String::from_utf8_lossy(&buffers.to_vec()));

    layer.graph().detach(client.root()).await?;
    layer.shut_down().await?;
    Ok(())
}

fn main() -> Result<(), Box<dyn Error>> {
    block_on(run())
}
