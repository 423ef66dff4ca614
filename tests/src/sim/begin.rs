//! How jobs of a run begin: which of them, on what, and with what aim.

use std::io;
use std::rc::Rc;

use serde_json::{Value, json};

use super::jobber::{Ended, Goal, ID, Jobber, Next};
use super::site::Images;
use super::stage::Moment;
use super::target::{FIRST_SUCCESSOR, MOST_SUCCESSORS, Successor, TARGET, add_target};

/// How the disk is copied to a target.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Copying {
    /// As it was at the start.
    Backup,
    /// As it is at the end.
    Mirror,
}

impl Jobber {
    pub(super) async fn one_job(&mut self) -> io::Result<()> {
        let places = self.edits.images.borrow().chain.len();
        match self.random.u32(0..12) {
            0 | 1 if places > 1 => self.stream().await,
            2..5 if places > 2 => self.commit().await,
            5 | 6 if places > 1 => self.commit_active().await,
            7 => self.copy_out(Copying::Backup).await,
            8 => self.copy_out(Copying::Mirror).await,
            _ if self.successors < MOST_SUCCESSORS => self.mirror_and_pivot().await,
            _ => self.copy_out(Copying::Mirror).await,
        }
    }

    /// Options of any job.
    fn options(&mut self) -> Value {
        let speed = [0, 0, 1 << 20, 16 << 20][self.random.usize(0..4)];
        json!({"job-id": ID, "speed": speed, "auto-finalize": false, "auto-dismiss": false})
    }

    fn on_error(&mut self) -> &'static str {
        ["report", "stop", "enospc", "ignore"][self.random.usize(0..4)]
    }

    async fn stream(&mut self) -> io::Result<()> {
        let edits = Rc::clone(&self.edits);
        let turn = edits.turn.lock().await;
        let images = edits.images.borrow().clone();
        let last = images.chain.len() - 1;
        // Nothing, or an image of the chain, is below in the end.
        let base = self.random.usize(0..=last);
        let mut job = self.options();
        job["device"] = json!(images.top());
        job["on-error"] = json!(self.on_error());
        if let Some(base) = base.checked_sub(1) {
            job["base-node"] = json!(format!("n{}", images.chain[base]));
            job["backing-file"] = json!(images.backing_name(base));
        }
        let since = self.stage.moment();
        if self.start("block-stream", job).await? {
            drop(turn);
            let goal = Goal::Chain(Next::without(&images, base..last));
            self.see_through(since, goal).await?;
        }
        Ok(())
    }

    async fn commit(&mut self) -> io::Result<()> {
        let edits = Rc::clone(&self.edits);
        let turn = edits.turn.lock().await;
        let images = edits.images.borrow().clone();
        let top = self.random.usize(1..images.chain.len() - 1);
        let base = self.random.usize(0..top);
        let mut job = self.commit_options(&images, [top, base]);
        job["backing-file"] = json!(images.backing_name(base));
        let since = self.stage.moment();
        if self.start("block-commit", job).await? {
            drop(turn);
            let goal = Goal::Chain(Next::without(&images, base + 1..top + 1));
            self.see_through(since, goal).await?;
        }
        Ok(())
    }

    /// Merges the last image down, which goes on being written.
    async fn commit_active(&mut self) -> io::Result<()> {
        let edits = Rc::clone(&self.edits);
        let turn = edits.turn.lock().await;
        let images = edits.images.borrow().clone();
        let top = images.chain.len() - 1;
        let base = self.random.usize(0..top);
        let job = self.commit_options(&images, [top, base]);
        let since = self.stage.moment();
        if self.start("block-commit", job).await? {
            drop(turn);
            let goal = Goal::Pivot(Next::without(&images, base + 1..top + 1));
            self.see_through(since, goal).await?;
        }
        Ok(())
    }

    fn commit_options(&mut self, images: &Images, [top, base]: [usize; 2]) -> Value {
        let mut job = self.options();
        job["device"] = json!(images.root(self.stage.swarm()));
        job["top-node"] = json!(format!("n{}", images.chain[top]));
        job["base-node"] = json!(format!("n{}", images.chain[base]));
        job["on-error"] = json!(self.on_error());
        job
    }

    fn copy_options(&mut self, target: &str) -> Value {
        let mut job = self.options();
        job["target"] = json!(target);
        job["sync"] = json!("full");
        job["on-source-error"] = json!(self.on_error());
        job["on-target-error"] = json!(self.on_error());
        job
    }

    fn mirror_options(&mut self, images: &Images, target: &str) -> Value {
        let mut job = self.copy_options(target);
        // Only what nobody stands on is mirrored.
        job["device"] = json!(images.root(self.stage.swarm()));
        job["copy-mode"] = json!(["background", "write-blocking"][self.random.usize(0..2)]);
        job["granularity"] = json!([0, 512, 4096][self.random.usize(0..3)]);
        job
    }

    /// Mirrors the disk, or its last image alone, to an image that takes its place.
    async fn mirror_and_pivot(&mut self) -> io::Result<()> {
        let edits = Rc::clone(&self.edits);
        let turn = edits.turn.lock().await;
        let images = edits.images.borrow().clone();
        let last = images.chain.len() - 1;
        let below = last.checked_sub(1).filter(|_| self.random.bool());
        let successor = Successor {
            index: FIRST_SUCCESSOR + self.successors,
            is_qcow2: below.is_some() || self.random.bool(),
            below,
        };
        self.successors += 1;
        let since = self.stage.moment();
        let stage = Rc::clone(&self.stage);
        stage.set_unmade(&format!("img{}", successor.index));
        if let Err(text) = successor.add(&stage, &mut self.monitor, &images).await? {
            self.target_unmade(since, &text);
            return Ok(());
        }
        stage.set_made();
        if !successor.is_qcow2 {
            edits.images.borrow_mut().raws.push(successor.index);
        }
        let mut job = self.mirror_options(&images, &successor.node());
        let swarm = stage.swarm();
        let has_filter = images.root(swarm) != images.top();
        // What stands above the last image stays there, or is left behind.
        let replaces = has_filter && (below.is_some() || self.random.bool());
        if below.is_some() {
            job["sync"] = json!("top");
        }
        if replaces {
            job["replaces"] = json!(images.top());
        }
        let mut next = Next::without(&images, below.map_or(0, |below| below + 1)..last + 1);
        next.successor = Some(successor.index);
        next.is_bare |= has_filter && !replaces;
        next.replaces = images.chain.last().copied().filter(|_| replaces);
        self.has_target(&format!("img{}", successor.index));
        let started = self.start("blockdev-mirror", job).await?;
        drop(turn);
        if started {
            self.see_through(since, Goal::Pivot(next)).await?;
        }
        self.has_no_target();
        if !stage.is_ending() && !edits.images.borrow().chain.contains(&successor.index) {
            self.delete(&successor.nodes(&stage)).await?;
        }
        Ok(())
    }

    async fn copy_out(&mut self, copying: Copying) -> io::Result<()> {
        let edits = Rc::clone(&self.edits);
        let turn = edits.turn.lock().await;
        let images = edits.images.borrow().clone();
        self.targets += 1;
        let since = self.stage.moment();
        let file = format!("target{}", self.targets);
        let is_qcow2 = self.random.bool();
        let (stage, monitor) = (Rc::clone(&self.stage), &mut self.monitor);
        stage.set_unmade(&file);
        if let Err(text) = add_target(&stage, monitor, &images, &file, is_qcow2).await? {
            self.target_unmade(since, &text);
            return Ok(());
        }
        stage.set_made();
        let (command, job) = match copying {
            Copying::Backup => {
                let mut job = self.copy_options(TARGET);
                job["device"] = json!(images.top());
                ("blockdev-backup", job)
            }
            Copying::Mirror => ("blockdev-mirror", self.mirror_options(&images, TARGET)),
        };
        self.ended_at = None;
        self.has_target(&file);
        let look = self.look();
        if self.start(command, job).await? {
            let begun_at = self.kept(look);
            drop(turn);
            let goal = match copying {
                Copying::Backup => Goal::Same,
                Copying::Mirror => Goal::Copy,
            };
            let ended = self.see_through(since, goal).await?;
            self.has_no_target();
            let kept = match copying {
                Copying::Backup => Some(begun_at),
                Copying::Mirror => self.ended_at.take(),
            };
            if let (Ended::Well, Some(kept)) = (ended, kept) {
                self.compare(since, kept).await;
            }
        }
        self.has_no_target();
        if stage.is_ending() {
            return Ok(());
        }
        self.delete(&[TARGET.to_owned(), format!("{TARGET}-file")]).await
    }

    /// A job is about to copy to this file, which is slow at times.
    fn has_target(&mut self, file: &str) {
        let is_slow = self.random.u32(0..5) == 0;
        self.stage.set_slow(is_slow.then_some(file));
        self.target = Some(file.to_owned());
    }

    fn has_no_target(&mut self) {
        self.stage.set_slow(None);
        self.target = None;
    }

    /// What is left of a target that could not be made is in the way of the next.
    fn target_unmade(&self, since: Moment, text: &str) {
        if !self.stage.may_fail(since, false) {
            self.stage.violated(format!("a target cannot be made: {text}"));
        }
        self.edits.jobs_ended.set(true);
    }

    /// Deletes nodes that nobody uses.
    pub(super) async fn delete(&mut self, nodes: &[String]) -> io::Result<()> {
        for node in nodes {
            let deleted = self.monitor.run("blockdev-del", json!({"node-name": node}));
            if let Err(text) = deleted.await?
                && !self.stage.is_ending()
            {
                self.stage.violated(format!("{node} cannot be deleted: {text}"));
            }
        }
        Ok(())
    }
}
