//! A program that embeds the block layer: it uses the exported node as well, by messages from another thread, and
//! withdraws some of its requests.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::rc::Rc;
use std::time::Duration;

use fastrand::Rng;
use futures_channel::oneshot;
use futures_util::StreamExt;
use futures_util::future::{Either, select};
use futures_util::stream::FuturesUnordered;
use millpond::graph::GraphHandle;
use millpond::iothread::Local;
use millpond::node::Client;
use millpond_messages::graph::{RootRequest, RootUser};
use millpond_messages::io::{Operation, Outcome, Value};
use millpond_messages::{BlockStatus, IoError, Permissions, Range, RequestFlags, StatusFlags};
use millpond_ring::buffer::{Buffer, Buffers};
use tokio::time::sleep;

use super::editor::Edits;
use super::oracle::{Barrier, CELL, Change, Ended, Look, Oracle, SECTOR};
use super::stage::Stage;
use super::swarm::Shape;

/// Cells of a sector.
const CELLS: u64 = SECTOR / CELL;

/// The most requests that it has in flight.
pub const DEPTH: usize = 4;

/// What a request's end means.
enum Meaning {
    Read(Look),
    Change(Change),
    Status(Look),
    Flush(Barrier),
}

/// A request that is about to be made.
struct Planned {
    operation: Operation<Buffers>,
    meaning: Meaning,
    text: String,
    /// What is done after so long, if it has not ended by then.
    withdrawn: Option<(Duration, Withdrawal)>,
}

/// How a request is withdrawn.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Withdrawal {
    /// It is asked to end, which is waited for.
    Cancel,
    /// Nobody waits for it any more.
    Drop,
}

/// One who makes requests, and knows what they may come to.
pub struct Embedder {
    stage: Rc<Stage>,
    /// What is known of the disk.
    pub oracle: Rc<RefCell<Oracle>>,
    who: &'static str,
    /// What it waits for.
    waits: Rc<RefCell<BTreeMap<u64, String>>>,
    next: Cell<u64>,
}

impl Embedder {
    /// One called `who`, whom the stage asks what it waits for.
    pub fn new(stage: Rc<Stage>, oracle: Rc<RefCell<Oracle>>, who: &'static str) -> Self {
        let waits: Rc<RefCell<BTreeMap<u64, String>>> = Rc::default();
        let seen = Rc::clone(&waits);
        stage.add_witness(Box::new(move || {
            let waits: Vec<String> = seen.borrow().values().cloned().collect();
            (!waits.is_empty()).then(|| format!("the {who} waits for {}", waits.join(", ")))
        }));
        Self {
            stage,
            oracle,
            who,
            waits,
            next: Cell::new(0),
        }
    }

    /// Draws a request; none where it must not be made now.
    fn plan(&self, random: &mut Rng) -> Option<Planned> {
        let mut oracle = self.oracle.borrow_mut();
        let cells = oracle.cells();
        let count = random.u64(1..=(16 * CELLS).min(cells));
        let first = random.u64(0..=cells - count);
        let (first, count) = if self.stage.swarm().unaligned {
            (first, count)
        } else {
            let first = first / CELLS * CELLS;
            (first, count.next_multiple_of(CELLS).min(cells - first))
        };
        let (offset, len) = (first * CELL, count * CELL);
        let range = Range::new(offset, len).expect("a part of the disk");
        let flags = RequestFlags::empty();
        let withdrawn = (random.u32(0..4) == 0).then(|| {
            let how = [Withdrawal::Cancel, Withdrawal::Drop][random.usize(0..2)];
            (Duration::from_micros(random.u64(0..3000)), how)
        });
        let overlaps = self.stage.swarm().shape == Shape::Quorum && oracle.is_busy(first, count);
        let (name, operation, meaning) = match random.u32(0..12) {
            0..5 if overlaps => return None,
            0..3 => {
                let (change, bytes) = oracle.write(first, count);
                let buffers = Buffers::from(Buffer::from_slice(&bytes));
                let write = Operation::Write {
                    offset,
                    buffers,
                    flags,
                };
                ("write", write, Meaning::Change(change))
            }
            3 => {
                let flags = [RequestFlags::MAY_UNMAP, flags][random.usize(0..2)];
                let zero = Operation::WriteZeroes { range, flags };
                ("zero", zero, Meaning::Change(oracle.zero(first, count)))
            }
            4 => {
                let discard = Operation::Discard { range };
                ("discard", discard, Meaning::Change(oracle.discard(first, count)))
            }
            5 | 6 => {
                let status = Operation::BlockStatus {
                    range,
                    want_zero: true,
                    whole_chain: true,
                    base: None,
                };
                ("status", status, Meaning::Status(oracle.look(first, count)))
            }
            7 => ("flush", Operation::Flush, Meaning::Flush(oracle.barrier())),
            _ => {
                let buffers = Buffers::alloc(len as usize);
                let read = Operation::Read {
                    offset,
                    buffers,
                    flags,
                };
                ("read", read, Meaning::Read(oracle.look(first, count)))
            }
        };
        Some(Planned {
            operation,
            meaning,
            text: format!("{name} {len} at {offset}"),
            withdrawn,
        })
    }

    /// Makes a request, and holds its end against what it may be.
    async fn carry_out(&self, client: &Client, planned: Planned) {
        let Planned {
            operation,
            meaning,
            text,
            withdrawn,
        } = planned;
        let number = self.next.get();
        self.next.set(number + 1);
        self.waits.borrow_mut().insert(number, text.clone());
        let since = self.stage.moment();
        let outcome = match withdrawn {
            None => Some(client.request(operation).await),
            Some((after, how)) => request_withdrawn(client, operation, after, how).await,
        };
        self.waits.borrow_mut().remove(&number);
        let result = outcome.as_ref().map(|outcome| outcome.result.clone());
        self.stage
            .line(self.who, format_args!("{text} -> {}", told(result.clone())));
        let was_cancelled = withdrawn.is_some() && result == Some(Err(IoError::Cancelled));
        let only_reads = matches!(meaning, Meaning::Read(_) | Meaning::Status(_));
        if let Some(Err(error)) = result
            && !was_cancelled
            && !self.stage.may_fail(since, only_reads)
        {
            self.stage
                .violated(format!("the {}'s {text} failed: {error}", self.who));
        }
        if let Meaning::Change(change) = meaning {
            let how = match result {
                None => Ended::Unknown,
                Some(Ok(_)) => Ended::Well { durable: false },
                Some(Err(_)) if was_cancelled => Ended::Never,
                Some(Err(_)) => Ended::Unsure,
            };
            self.oracle.borrow_mut().ended(&change, how);
        } else if let Some(Outcome {
            result: Ok(value),
            buffers,
        }) = outcome
            && let Err(problem) = self.answered(&meaning, value, buffers)
        {
            self.stage
                .violated(format!("the {}, {text}: {problem}", self.who));
        }
    }

    /// Holds an answer against what is known of the disk.
    fn answered(&self, meaning: &Meaning, value: Value, buffers: Option<Buffers>) -> Result<(), String> {
        let mut oracle = self.oracle.borrow_mut();
        match (meaning, value) {
            (Meaning::Read(look), _) => {
                oracle.seen(look, &buffers.map_or_else(Vec::new, |read| read.to_vec()))
            }
            (Meaning::Status(look), Value::Status(BlockStatus { flags, len, .. })) => {
                let zeroes = vec![0; usize::try_from(len).unwrap_or(0)];
                if flags.contains(StatusFlags::ZERO) {
                    oracle.seen(look, &zeroes)
                } else {
                    Ok(())
                }
            }
            (Meaning::Status(_), other) => Err(format!("{other:?} is no block status")),
            (Meaning::Flush(barrier), _) => {
                oracle.flushed(barrier);
                Ok(())
            }
            (Meaning::Change(_), _) => Ok(()),
        }
    }

    /// Makes so many requests, some of them at once, unless something is found to be wrong.
    pub async fn requests(&self, client: &Client, count: u32, random: &mut Rng) {
        let mut running = FuturesUnordered::new();
        for _ in 0..count {
            if self.stage.violation().is_some() {
                break;
            }
            if let Some(planned) = self.plan(random) {
                running.push(self.carry_out(client, planned));
            }
            while running.len() >= DEPTH {
                running.next().await;
            }
        }
        while running.next().await.is_some() {}
    }
}

fn told(result: Option<Result<Value, IoError>>) -> String {
    match result {
        None => "nobody waits".to_owned(),
        Some(Ok(_)) => "done".to_owned(),
        Some(Err(error)) => error.to_string(),
    }
}

/// Makes a request on the node's own iothread, and withdraws it after a while. None where nobody was left to be answered.
async fn request_withdrawn(
    client: &Client,
    operation: Operation<Buffers>,
    after: Duration,
    how: Withdrawal,
) -> Option<Outcome<Buffers>> {
    let (reply, answer) = oneshot::channel();
    let at_home = client.clone();
    let sent = client.run_at_home(move || {
        let Some(local) = Local::current() else { return };
        let slept = local.ring().sleep(after);
        local.spawn(async move {
            let started = at_home.here().start(operation);
            let outcome = match select(started, slept).await {
                Either::Left((outcome, _)) => outcome,
                Either::Right((_, mut started)) => {
                    if how == Withdrawal::Drop {
                        return;
                    }
                    started.cancel_async();
                    started.await
                }
            };
            // Where the run is over nobody waits for it.
            drop(reply.send(outcome));
        });
    });
    if !sent {
        return Some(Outcome::plain(Err(IoError::NoMedium)));
    }
    answer.await.ok()
}

/// How an embedder asks for a node.
pub fn root_request(node: String, who: &str) -> RootRequest {
    RootRequest {
        node,
        user: RootUser::Embedder(who.to_owned()),
        permissions: Permissions::CONSISTENT_READ | Permissions::WRITE,
        shared: Permissions::all(),
        iothread: None,
        iothread_required: false,
        writethrough: false,
    }
}

/// Uses the last image until told to end, now and then without a hold on it.
pub async fn embed(
    stage: Rc<Stage>,
    graph: GraphHandle,
    oracle: Rc<RefCell<Oracle>>,
    edits: Rc<Edits>,
    mut random: Rng,
) {
    let embedder = Embedder::new(Rc::clone(&stage), oracle, "embedder");
    while edits.goes_on(&stage) {
        sleep(Duration::from_micros(random.u64(100..5000))).await;
        // Not in the middle of a change: an overlay that is about to be put on top shows nothing yet.
        let turn = edits.turn.lock().await;
        let request = root_request(edits.images.borrow().top(), "embedder");
        let request = RootRequest {
            shared: Permissions::all() - Permissions::RESIZE,
            ..request
        };
        let attached = {
            let _edit = stage.sections.edit();
            graph.attach(request).await
        };
        drop(turn);
        // It may be refused where disks fail.
        let Ok(client) = attached else { continue };
        let count = random.u32(1..20);
        embedder.requests(&client, count, &mut random).await;
        let _edit = stage.sections.edit();
        if let Err(error) = graph.detach(client.root()).await
            && !stage.is_ending()
        {
            stage.violated(format!("the embedder cannot let go: {error}"));
        }
    }
}
