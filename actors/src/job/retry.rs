//! A job that was stopped because its target is full goes on by itself when there is room, where a user asks for that.
//!
//! Whether there is room is found out by trying: after a second, then after twice as long each time, up to what the user says.
//! A job that got on since it was last stopped is tried after a second again.

use std::time::Duration;

use actix::{AsyncContext, Context, SpawnHandle};
use millpond_messages::qapi::{BlockDeviceIoStatus, QmpError};
use millpond_messages::saved::SavedRetry;

use super::entry::Key;
use super::registry::Registry;

/// How long a job waits at first.
const FIRST: Duration = Duration::from_secs(1);
/// The most seconds that it may be told to wait: an hour.
const MOST: u64 = 3600;

/// How a job that was stopped for want of room is tried again.
#[derive(Debug)]
pub(super) struct Retry {
    /// It waits no longer than this.
    most: Duration,
    next: Duration,
    /// How much was done when it was last stopped.
    done: i64,
    timer: Option<SpawnHandle>,
}

impl Retry {
    /// As a user asks for it: with at most so many seconds between two tries, or not at all with 0.
    ///
    /// # Errors
    /// No job is to wait that long.
    pub fn asked(seconds: u64) -> Result<Option<Self>, QmpError> {
        if seconds > MOST {
            let text = format!("Parameter 'seconds' expects a value of at most {MOST}");
            return Err(QmpError::generic(text));
        }
        let most = Duration::from_secs(seconds);
        Ok((seconds > 0).then(|| Self {
            most,
            next: FIRST.min(most),
            done: 0,
            timer: None,
        }))
    }

    /// It, written down. A try that is waited for comes after a second again.
    pub fn saved(&self) -> SavedRetry {
        let Self {
            most,
            next,
            done,
            timer: _,
        } = self;
        SavedRetry {
            most: most.as_secs(),
            next: next.as_secs(),
            done: *done,
        }
    }

    /// How long a job waits that is stopped now, having done so much.
    fn wait(&mut self, done: i64) -> Duration {
        if done > self.done {
            self.next = FIRST;
        }
        self.done = done;
        let wait = self.next;
        self.next = (wait * 2).min(self.most);
        wait
    }
}

impl Registry {
    /// Has a job try again, or not any more, when it is stopped for want of room; one that is stopped so now as well.
    pub(super) fn set_retry(&mut self, key: Key, retry: Option<Retry>, context: &mut Context<Self>) {
        let Some(entry) = self.entry(key) else { return };
        let before = std::mem::replace(&mut entry.retry, retry);
        let is_full = entry.io_status == BlockDeviceIoStatus::Nospace;
        if let Some(timer) = before.and_then(|retry| retry.timer) {
            context.cancel_future(timer);
        }
        if is_full {
            self.try_later(key, context);
        }
    }

    /// A job was stopped for want of room: it is tried again, if it is to be.
    pub(super) fn try_later(&mut self, key: Key, context: &mut Context<Self>) {
        let Some(entry) = self.entry(key) else { return };
        let (done, _) = entry.pace.progress_made();
        let Some(retry) = &mut entry.retry else { return };
        // Several requests may fail before it stands still.
        if retry.timer.is_some() {
            return;
        }
        let wait = retry.wait(done);
        retry.timer = Some(context.run_later(wait, move |registry, _| registry.try_again(key)));
    }

    fn try_again(&mut self, key: Key) {
        let Some(entry) = self.entry(key) else { return };
        let Some(retry) = &mut entry.retry else { return };
        retry.timer = None;
        // A user may have resumed it meanwhile, and paused it since.
        if entry.user_paused && entry.io_status == BlockDeviceIoStatus::Nospace {
            entry.resume();
        }
    }
}
