//! A program that embeds the block layer: it uses the exported node as well, by messages from another thread.

use std::cell::RefCell;
use std::rc::Rc;
use std::time::Duration;

use drivers::buffer::{Buffer, Buffers};
use fastrand::Rng;
use messages::global_state::{RootRequest, RootUser};
use messages::{BlockStatus, Permissions, RequestFlags};
use millpond::graph::GraphHandle;
use millpond::node::Client;
use tokio::time::sleep;

use super::editor::Edits;
use super::oracle::{Ended, Oracle, SECTOR};
use super::stage::Stage;

/// Uses the last image until told to end, now and then without a hold on it.
pub async fn embed(
    stage: Rc<Stage>,
    graph: GraphHandle,
    oracle: Rc<RefCell<Oracle>>,
    edits: Rc<Edits>,
    mut random: Rng,
) {
    while edits.goes_on(&stage) {
        sleep(Duration::from_micros(random.u64(100..5000))).await;
        // Not in the middle of a change: an overlay that is about to be put on top shows nothing yet.
        let turn = edits.turn.lock().await;
        let request = RootRequest {
            node: edits.images.borrow().top(),
            user: RootUser::Embedder("embedder".to_owned()),
            permissions: Permissions::CONSISTENT_READ | Permissions::WRITE,
            shared: Permissions::all() - Permissions::RESIZE,
            iothread: None,
            iothread_required: false,
            writethrough: false,
        };
        let attached = graph.attach(request).await;
        drop(turn);
        // It may be refused where disks fail.
        let Ok(client) = attached else { continue };
        for _ in 0..random.u32(1..20) {
            request_one(&stage, &client, &oracle, &mut random).await;
        }
        if let Err(error) = graph.detach(client.root()).await
            && !stage.is_ending()
        {
            stage.violated(format!("the embedder cannot let go: {error}"));
        }
    }
}

async fn request_one(stage: &Stage, client: &Client, oracle: &RefCell<Oracle>, random: &mut Rng) {
    let sectors = oracle.borrow().sectors();
    let count = random.u64(1..=16.min(sectors));
    let first = random.u64(0..=sectors - count);
    let (offset, len) = (first * SECTOR, count * SECTOR);
    match random.u32(0..4) {
        0 => {
            let Some((change, bytes)) = ({ oracle.borrow_mut().write(first, count) }) else {
                return;
            };
            let buffers = Buffers::from(Buffer::from_slice(&bytes));
            let (written, _) = client.write(offset, buffers, RequestFlags::empty()).await;
            let how = match written {
                Ok(()) => Ended::Well { durable: false },
                Err(error) => {
                    failed(stage, "write", &error);
                    Ended::Unsure
                }
            };
            oracle.borrow_mut().ended(&change, how);
        }
        1 => {
            let look = oracle.borrow_mut().look(first, count);
            match client.block_status(offset, len, true, true).await {
                Ok(BlockStatus { flags, len, .. }) => {
                    stage.line("embedder", format_args!("status {len} at {offset}: {flags:?}"));
                    let zeroes = vec![0; usize::try_from(len).unwrap_or(0)];
                    if flags.contains(messages::StatusFlags::ZERO)
                        && let Err(text) = oracle.borrow().seen(&look, &zeroes)
                    {
                        stage.violated(format!("block status says zero, but {text}"));
                    }
                }
                Err(error) => failed(stage, "block status", &error),
            }
        }
        _ => {
            let look = oracle.borrow_mut().look(first, count);
            let (read, buffers) = client.read(offset, Buffers::alloc(len as usize)).await;
            match read {
                Ok(()) => {
                    if let Err(text) = oracle.borrow().seen(&look, &buffers.to_vec()) {
                        stage.violated(format!("the embedder: {text}"));
                    }
                }
                Err(error) => failed(stage, "read", &error),
            }
        }
    }
}

fn failed(stage: &Stage, what: &str, error: &messages::IoError) {
    stage.line("embedder", format_args!("{what}: {error}"));
    if stage.swarm().errors == 0 && !stage.is_ending() {
        stage.violated(format!("the embedder's {what} failed: {error}"));
    }
}
