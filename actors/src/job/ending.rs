//! How jobs end: by themselves, by a failure, or cancelled.

use actix::Context;
use millpond_messages::Result;
use millpond_messages::qapi::{JobStatus, QmpEvent};

use super::entry::{Entry, Key};
use super::pace::Cancelled;
use super::registry::{Registry, What, report};

impl Registry {
    /// What a step of a job has come to: of one that was cancelled it has failed, even if it has not.
    pub(super) fn outcome(&mut self, key: Key, result: Result<()>) -> Result<(), String> {
        let is_cancelled = self.entry(key).is_some_and(|entry| entry.pace.is_cancelled());
        match result {
            Ok(()) if is_cancelled => Err(Cancelled.to_string()),
            result => result.map_err(|error| error.context().to_owned()),
        }
    }

    /// The work has ended.
    pub(super) fn ran(&mut self, key: Key, result: Result<()>, context: &mut Context<Self>) {
        let result = self.outcome(key, result);
        if result.is_err() {
            return self.conclude(key, result, context);
        }
        self.enter(key, JobStatus::Waiting);
        self.enter(key, JobStatus::Pending);
        let Some(entry) = self.entry(key) else { return };
        if entry.options.auto_finalize {
            return self.finalize(key, context);
        }
        let (kind, id) = (entry.kind, entry.id.clone());
        let event = entry
            .is_block_job()
            .then_some(QmpEvent::BlockJobPending { kind, id });
        self.emit(event);
    }

    pub(super) fn finalize(&mut self, key: Key, context: &mut Context<Self>) {
        let Some(entry) = self.entry(key) else { return };
        if std::mem::replace(&mut entry.is_ending, true) {
            return;
        }
        match entry.job.prepare() {
            Some(prepare) => report(context, key, prepare, What::Prepared),
            None => self.conclude(key, Ok(()), context),
        }
    }

    /// The job has its result: what it left in the graph is taken away, and it is over.
    pub(super) fn conclude(&mut self, key: Key, result: Result<(), String>, context: &mut Context<Self>) {
        let Some(entry) = self.entry(key) else { return };
        let succeeded = result.is_ok();
        entry.is_ending = true;
        entry.error = result.err();
        let settle = entry.job.settle(succeeded);
        if !succeeded {
            self.enter(key, JobStatus::Aborting);
        }
        match settle {
            Some(settle) => report(context, key, settle, |()| What::Settled),
            None => self.settled(key),
        }
    }

    pub(super) fn settled(&mut self, key: Key) {
        let Some(entry) = self.entry(key) else { return };
        if let Some(refused) = entry.refused.take() {
            let starting = entry.starting.take();
            // Nobody has heard of one that was never announced.
            match entry.status {
                JobStatus::Undefined => self.jobs.retain(|entry| entry.key != key),
                _ => self.dismiss(key),
            }
            if let Some(starting) = starting {
                // Who has given up waiting need not be told.
                let _ = starting.send(Err(refused));
            }
            return self.finish_if_over();
        }
        let event = entry.is_block_job().then(|| entry.end_event());
        let auto_dismiss = entry.options.auto_dismiss;
        self.emit(event);
        self.enter(key, JobStatus::Concluded);
        if auto_dismiss {
            self.dismiss(key);
        }
        self.finish_if_over();
    }

    pub(super) fn dismiss(&mut self, key: Key) {
        self.enter(key, JobStatus::Null);
        self.jobs.retain(|entry| entry.key != key);
    }

    /// Forgets all jobs if that is waited for, and all have ended.
    pub(super) fn finish_if_over(&mut self) {
        let over = |entry: &Entry| entry.status == JobStatus::Concluded;
        if self.finishing.is_empty() || !self.jobs.iter().all(over) {
            return;
        }
        let keys: Vec<_> = self.jobs.iter().rev().map(|entry| entry.key).collect();
        keys.into_iter().for_each(|key| self.dismiss(key));
        for waiting in self.finishing.drain(..) {
            // Who has given up waiting need not be told.
            let _ = waiting.send(());
        }
    }
}
