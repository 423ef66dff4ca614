//! A user of a workload's disk.

use std::sync::{Arc, Mutex, PoisonError};

use millpond::node::HomeClient;
use millpond_messages::error::errno::EIO;
use millpond_messages::{IoError, IoResult, RequestFlags};
use millpond_ring::buffer::{Buffer, Buffers};

use super::history::{Asked, History, payload};
use super::site::Failure;
use super::workload::Mix;

/// One of the users that make requests side by side, each one after the other.
pub struct Lane {
    pub(super) history: Arc<History>,
    pub(super) failures: Arc<Mutex<Vec<Failure>>>,
    pub(super) rng: fastrand::Rng,
    pub(super) mix: Mix,
    pub(super) limit: u64,
    pub(super) longest: u64,
    pub(super) cluster: u64,
    pub(super) count: u32,
}

impl Lane {
    /// Makes its requests.
    pub async fn run(mut self, client: HomeClient) {
        for _ in 0..self.count {
            let offset = self.rng.u64(0..self.limit);
            let len = self.rng.u64(1..=self.longest.min(self.limit - offset));
            // Half of the requests keep to sectors, as a guest's do.
            let (offset, len) = if self.rng.bool() && len >= 1024 {
                (offset / 512 * 512, len / 512 * 512)
            } else {
                (offset, len)
            };
            self.request(&client, offset, len).await;
        }
    }

    async fn request(&mut self, client: &HomeClient, offset: u64, len: u64) {
        let Mix {
            write,
            zero,
            discard,
            compressed,
            read,
            flush,
        } = self.mix;
        let mut pick = self
            .rng
            .u32(0..write + zero + discard + compressed + read + flush);
        let mut is = |weight: u32| {
            let hit = pick < weight;
            pick = pick.wrapping_sub(weight);
            hit
        };
        if is(write) {
            let durable = self.rng.u8(0..8) == 0;
            let flags = if durable {
                RequestFlags::FUA
            } else {
                RequestFlags::empty()
            };
            self.write(client, offset, len, flags).await;
        } else if is(zero) {
            let number = self.history.begin(Asked::Zero(offset, len), false);
            let flags = if self.rng.bool() {
                RequestFlags::MAY_UNMAP
            } else {
                RequestFlags::empty()
            };
            let result = client.write_zeroes(offset, len, flags).await;
            self.end(number, result);
        } else if is(discard) {
            let number = self.history.begin(Asked::Discard(offset, len), false);
            let result = client.discard(offset, len).await;
            self.end(number, result);
        } else if is(compressed) {
            let first = offset / self.cluster * self.cluster;
            self.write(client, first, self.cluster, RequestFlags::WRITE_COMPRESSED)
                .await;
        } else if is(read) {
            self.read(client, offset, len).await;
        } else {
            let number = self.history.begin(Asked::Flush, false);
            let result = client.flush().await;
            self.end(number, result);
        }
    }

    async fn write(&mut self, client: &HomeClient, offset: u64, len: u64, flags: RequestFlags) {
        let durable = flags.contains(RequestFlags::FUA);
        let number = self.history.begin(Asked::Write(offset, len), durable);
        let data = Buffers::from(Buffer::from_slice(&payload(number, offset, len)));
        let (result, _) = client.write(offset, data, flags).await;
        // What is stored as it is cannot be replaced by compressed data.
        let refused = flags.contains(RequestFlags::WRITE_COMPRESSED) && result == Err(IoError::Os(EIO));
        if refused {
            self.history.end(number, false);
        } else {
            self.end(number, result);
        }
    }

    async fn read(&mut self, client: &HomeClient, offset: u64, len: u64) {
        let began = self.history.now();
        let (result, found) = client.read(offset, Buffers::zeroed(len as usize)).await;
        match result {
            Ok(()) => {
                if let Err(text) = self.history.check_read(began, offset, &found.to_vec()) {
                    self.fail("WRONG DATA".into(), text);
                }
            }
            Err(error) => self.fail(format!("read of {len} at {offset}"), error.to_string()),
        }
    }

    fn end(&self, number: usize, result: IoResult<()>) {
        self.history.end(number, result.is_ok());
        if let Err(error) = result {
            let asked = self.history.requests()[number].asked;
            self.fail(format!("request {number}: {asked:?}"), error.to_string());
        }
    }

    fn fail(&self, what: String, error: String) {
        let mut failures = self.failures.lock().unwrap_or_else(PoisonError::into_inner);
        failures.push(Failure { what, error });
    }
}
