//! An actix program that embeds Millpond: it starts the graph actor in its own system, talks to its address, and takes a
//! snapshot of a disk while a writer of its own is at work on it.
//!
//! Run it with `cargo run --example embed_actix`.

use std::error::Error;
use std::path::Path;

use actix::Addr;
use futures_util::future::join;
use millpond::graph::{Graph, GraphConfig, GraphMessage, ImplicitOpens, system_iothreads};
use millpond::node::Client;
use millpond_messages::graph::{
    AddNode, AttachRoot, CloseAll, DetachRoot, IothreadOptions, MakeImage, Request, RootRequest, RootUser,
    Snapshot,
};
use millpond_messages::{Permissions, RequestFlags};
use millpond_ring::Engine;
use millpond_ring::buffer::{Buffer, Buffers};
use serde_json::json;

/// Bytes of each write, and of the disk.
const BLOCK: usize = 4096;
const DISK: u64 = 1 << 20;

async fn ask<R>(graph: &Addr<Graph>, request: R) -> Result<R::Answer<Client>, Box<dyn Error>>
where
    R: Request + Send + 'static,
{
    Ok(graph.send(GraphMessage(request)).await??)
}

async fn add(graph: &Addr<Graph>, node: serde_json::Value) -> Result<(), Box<dyn Error>> {
    let options = node.as_object().cloned().unwrap_or_default();
    ask(graph, AddNode(options)).await
}

/// Makes a qcow2 image and opens it as node `name`, without looking for a backing file.
async fn image(graph: &Addr<Graph>, folder: &Path, name: &str) -> Result<(), Box<dyn Error>> {
    let path = folder.join(name);
    std::fs::File::create(&path)?;
    let file = format!("{name}-file");
    add(
        graph,
        json!({"driver": "file", "node-name": file, "filename": path.to_string_lossy()}),
    )
    .await?;
    let create = json!({"driver": "qcow2", "file": file, "size": DISK});
    let create = create.as_object().cloned().unwrap_or_default();
    ask(graph, MakeImage(create)).await?;
    add(
        graph,
        json!({"driver": "qcow2", "node-name": name, "file": file, "backing": null}),
    )
    .await
}

async fn write_all(client: &Client) -> Result<(), Box<dyn Error>> {
    for block in 0..DISK / BLOCK as u64 {
        let fill = u8::try_from(block % 251)?;
        let data = Buffers::from(Buffer::from_slice(&[fill; BLOCK]));
        client
            .write(block * BLOCK as u64, data, RequestFlags::empty())
            .await
            .0?;
    }
    Ok(client.flush().await?)
}

async fn run(folder: &Path) -> Result<(), Box<dyn Error>> {
    let (graph, _handle) = Graph::start(GraphConfig {
        registry: millpond_drivers::builtin::builtin(),
        implicit: ImplicitOpens::Allow,
        iothreads: system_iothreads(Engine::Auto),
        main: IothreadOptions::named("main"),
    })?;
    image(&graph, folder, "disk").await?;
    image(&graph, folder, "overlay").await?;
    let request = RootRequest::new(
        "disk",
        RootUser::Embedder("example".to_owned()),
        Permissions::CONSISTENT_READ | Permissions::WRITE,
    );
    let client = ask(&graph, AttachRoot(request)).await?;

    let snapshot = Snapshot {
        node: "disk".to_owned(),
        overlay: "overlay".to_owned(),
    };
    let (written, taken) = join(write_all(&client), ask(&graph, snapshot)).await;
    written?;
    taken?;

    let (read, buffers) = client.read(7 * BLOCK as u64, Buffers::zeroed(BLOCK)).await;
    read?;
    println!("block 7 reads back: {}", buffers.to_vec() == [7; BLOCK]);
    ask(&graph, DetachRoot(client.root())).await?;
    ask(&graph, CloseAll { grace: None }).await?;
    println!("closed");
    Ok(())
}

fn main() -> Result<(), Box<dyn Error>> {
    let folder = std::env::temp_dir().join(format!("millpond-embed-actix-{}", std::process::id()));
    std::fs::create_dir_all(&folder)?;
    let result = actix_rt::System::new().block_on(run(&folder));
    std::fs::remove_dir_all(&folder)?;
    result
}
