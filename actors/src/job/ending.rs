//! How jobs end: by themselves, by a failure, or cancelled; each alone, or all of a group alike.
//!
//! ```text
//!   at work --> ran --(all of the group have)--> preparing --> prepared --(all have)--> settling --> over
//!                \____________ one has failed, or is cancelled: all are cancelled ___/
//! ```
//! A job that belongs to no group is a group of its own. Jobs of a group are prepared and settled one after the other, the
//! newest first.

use actix::Context;
use millpond_messages::Result;
use millpond_messages::qapi::{JobStatus, QmpEvent};

use super::entry::{Entry, Fate, Group, Key, Step};
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

    /// The jobs of a group that are not over, the newest first.
    fn members(&mut self, group: Group) -> impl Iterator<Item = &mut Entry> {
        let newest_first = self.jobs.iter_mut().rev();
        newest_first.filter(move |entry| entry.group == group && entry.status != JobStatus::Concluded)
    }

    fn keys(&mut self, group: Group) -> Vec<Key> {
        self.members(group).map(|entry| entry.key).collect()
    }

    /// The work has ended.
    pub(super) fn ran(&mut self, key: Key, result: Result<()>, context: &mut Context<Self>) {
        let result = self.outcome(key, result);
        let Some(entry) = self.entry(key) else { return };
        entry.step = Step::Ran;
        let (group, fate) = (entry.group, entry.fate);
        match result {
            Err(error) if fate != Fate::Aborted => self.fail(key, error, context),
            Err(error) => {
                entry.error = Some(error);
                self.enter(key, JobStatus::Aborting);
                self.settle_next(group, context);
            }
            Ok(()) => {
                self.enter(key, JobStatus::Waiting);
                self.pend(group, context);
            }
        }
    }

    /// Once no job of a group is at work any more, their results can be made final: at once where no user is to say so.
    fn pend(&mut self, group: Group, context: &mut Context<Self>) {
        if self.members(group).any(|entry| entry.step != Step::Ran) {
            return;
        }
        let mut waits_for_user = false;
        for key in self.keys(group) {
            self.enter(key, JobStatus::Pending);
            let Some(entry) = self.entry(key) else { continue };
            if entry.options.auto_finalize {
                continue;
            }
            waits_for_user = true;
            let (kind, id) = (entry.kind, entry.id.clone());
            let event = entry
                .is_block_job()
                .then_some(QmpEvent::BlockJobPending { kind, id });
            self.emit(event);
        }
        if !waits_for_user {
            self.finalize_all(group, context);
        }
    }

    pub(super) fn finalize(&mut self, key: Key, context: &mut Context<Self>) {
        if let Some(group) = self.entry(key).map(|entry| entry.group) {
            self.finalize_all(group, context);
        }
    }

    fn finalize_all(&mut self, group: Group, context: &mut Context<Self>) {
        if self.members(group).any(|entry| entry.fate != Fate::Open) {
            return;
        }
        self.members(group).for_each(|entry| entry.fate = Fate::Final);
        self.prepare_next(group, context);
    }

    /// Makes the results of a group's jobs final, as far as that can fail; then there is no way back.
    fn prepare_next(&mut self, group: Group, context: &mut Context<Self>) {
        let to_prepare = |registry: &mut Self| {
            let entry = registry.members(group).find(|entry| entry.step == Step::Ran)?;
            entry.step = Step::Preparing;
            Some((entry.key, entry.job.prepare()))
        };
        while let Some((key, prepare)) = to_prepare(self) {
            if let Some(prepare) = prepare {
                return report(context, key, prepare, What::Prepared);
            }
            if let Err(error) = self.outcome(key, Ok(())) {
                return self.fail(key, error, context);
            }
            if let Some(entry) = self.entry(key) {
                entry.step = Step::Prepared;
            }
        }
        self.settle_next(group, context);
    }

    /// What makes a result final has ended. Where it has gone well there is no way back: a wish to cancel the job that came
    /// meanwhile has come too late.
    pub(super) fn prepared(&mut self, key: Key, result: Result<()>, context: &mut Context<Self>) {
        let Some(entry) = self.entry(key) else { return };
        let group = entry.group;
        entry.step = Step::Prepared;
        match result {
            Err(error) => self.fail(key, error.context().to_owned(), context),
            Ok(()) => {
                entry.pace.cancelled_too_late();
                self.prepare_next(group, context);
            }
        }
    }

    /// A job has failed, and with it all of its group.
    fn fail(&mut self, key: Key, error: String, context: &mut Context<Self>) {
        let Some(entry) = self.entry(key) else { return };
        entry.error = Some(error);
        if entry.step == Step::Preparing {
            entry.step = Step::Ran;
        }
        self.enter(key, JobStatus::Aborting);
        self.abort(key, context);
    }

    /// Cancels all jobs of a group but the one that is the reason, and takes away what they left.
    pub(super) fn abort(&mut self, reason: Key, context: &mut Context<Self>) {
        let Some(group) = self.entry(reason).map(|entry| entry.group) else {
            return;
        };
        for entry in self.members(group) {
            entry.fate = Fate::Aborted;
            if entry.key != reason {
                entry.resume();
                entry.pace.cancel();
            }
        }
        self.settle_next(group, context);
    }

    /// A group's fate is known: what the next of its jobs left in the graph is taken away, as soon as that job stands still.
    fn settle_next(&mut self, group: Group, context: &mut Context<Self>) {
        let Some(entry) = self.members(group).next() else {
            return;
        };
        if !matches!(entry.step, Step::Ran | Step::Prepared) {
            return;
        }
        let (key, succeeded) = (entry.key, entry.fate == Fate::Final);
        entry.step = Step::Settling;
        if !succeeded {
            entry.error.get_or_insert_with(|| Cancelled.to_string());
        }
        let settle = entry.job.settle(succeeded);
        if !succeeded {
            self.enter(key, JobStatus::Aborting);
        }
        match settle {
            Some(settle) => report(context, key, settle, |()| What::Settled),
            None => self.settled(key, context),
        }
    }

    pub(super) fn settled(&mut self, key: Key, context: &mut Context<Self>) {
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
        let group = entry.group;
        let event = entry.is_block_job().then(|| entry.end_event());
        let auto_dismiss = entry.options.auto_dismiss;
        self.emit(event);
        self.enter(key, JobStatus::Concluded);
        if auto_dismiss {
            self.dismiss(key);
        }
        self.settle_next(group, context);
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
