//! The steps of a workload that concern what an image keeps besides the disk: bitmaps and snapshots.

use millpond::node::Client;
use millpond_messages::graph::{
    BitmapChange, BitmapEdit, BitmapName, ChangeSnapshots, EditBitmap, ReopenKeeping, SetActive,
};
use millpond_messages::{InternalSnapshot, SnapshotChange, SnapshotName};
use millpond_ring::buffer::Buffers;
use serde_json::json;

use super::census::census;
use super::history::Asked;
use super::kept::Span;
use super::link::Stored;
use super::site::{Run, options};

/// What is done to what an image keeps.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Keep {
    /// A bitmap is added, to be stored, whose bits stand for so many bytes.
    AddBitmap(&'static str, u32),
    /// A bitmap is removed.
    RemoveBitmap(&'static str),
    /// A bitmap is cleared.
    ClearBitmap(&'static str),
    /// A bitmap records from now on, or not.
    Record(&'static str, bool),
    /// The second bitmap is merged into the first.
    Merge(&'static str, &'static str),
    /// The node becomes read-only and writable again.
    ReadOnly,
    /// The node becomes inactive and active again.
    HandOver,
    /// A snapshot is made.
    Make(&'static str),
    /// The disk becomes what a snapshot has.
    Apply(&'static str),
    /// A snapshot is deleted.
    Delete(&'static str),
}

impl Keep {
    /// Nothing is asked for meanwhile: there is no user of the disk, or what it reads as must be known.
    pub(super) const fn is_alone(self) -> bool {
        !matches!(
            self,
            Self::RemoveBitmap(_) | Self::Record(..) | Self::Merge(..) | Self::Make(_) | Self::Delete(_)
        )
    }
}

impl Run<'_> {
    pub(super) async fn keep(&mut self, keep: Keep) {
        if self.client().is_none() {
            // It was closed, since it could not be written to any more.
            return;
        }
        match keep {
            Keep::AddBitmap(name, granularity) => self.add_bitmap(name, granularity).await,
            Keep::RemoveBitmap(name) => self.remove_bitmap(name).await,
            Keep::ClearBitmap(name) => self.clear_bitmap(name).await,
            Keep::Record(name, on) => self.record_bitmap(name, on).await,
            Keep::Merge(name, source) => self.merge_bitmap(name, source).await,
            Keep::ReadOnly => self.read_only().await,
            Keep::HandOver => self.hand_over().await,
            Keep::Make(name) => self.make_snapshot(name).await,
            Keep::Apply(name) => self.apply_snapshot(name).await,
            Keep::Delete(name) => self.delete_snapshot(name).await,
        }
    }

    /// What was asked for at `began` and has an answer now.
    fn span(&self, began: u64, is_done: bool) -> Span {
        let now = self.history.now();
        Span {
            began,
            done: is_done.then_some(now),
        }
    }

    /// What the disk reads as.
    async fn contents(&self, client: &Client) -> Option<Vec<u8>> {
        let (read, found) = client.read(0, Buffers::zeroed(self.size as usize)).await;
        match read {
            Ok(()) => Some(found.to_vec()),
            Err(error) => {
                self.fail("a read of all", error.to_string());
                None
            }
        }
    }

    async fn edit(&self, name: &str, change: BitmapChange) -> bool {
        let bitmap = BitmapName {
            node: self.node.clone(),
            name: name.to_owned(),
        };
        let what = format!("{change:?}");
        let edited = self
            .site
            .graph()
            .ask(EditBitmap(BitmapEdit { bitmap, change }))
            .await;
        self.note(what, edited).is_some()
    }

    async fn add_bitmap(&self, name: &str, granularity: u32) {
        let Some(client) = self.client().cloned() else {
            return;
        };
        let Some(clean) = self.contents(&client).await else {
            return;
        };
        let began = self.history.now();
        let change = BitmapChange::Add {
            granularity: Some(granularity),
            persistent: true,
            disabled: false,
        };
        let added = self.edit(name, change).await;
        let made = self.span(began, added);
        let kept = &self.history.kept;
        kept.add_bitmap(name, u64::from(granularity), made, clean);
    }

    async fn remove_bitmap(&self, name: &str) {
        let began = self.history.now();
        let removed = self.edit(name, BitmapChange::Remove).await;
        self.history.kept.remove_bitmap(name, self.span(began, removed));
    }

    async fn clear_bitmap(&self, name: &str) {
        let Some(client) = self.client().cloned() else {
            return;
        };
        let Some(clean) = self.contents(&client).await else {
            return;
        };
        let began = self.history.now();
        let cleared = self.edit(name, BitmapChange::Clear).await;
        let cleared = self.span(began, cleared);
        self.history.kept.clear_bitmap(name, cleared, clean);
    }

    async fn record_bitmap(&self, name: &str, on: bool) {
        let began = self.history.now();
        let change = match on {
            true => BitmapChange::Enable,
            false => BitmapChange::Disable,
        };
        let recorded = self.edit(name, change).await;
        let span = self.span(began, recorded);
        self.history.kept.record_bitmap(name, on, span);
    }

    async fn merge_bitmap(&self, name: &str, source: &str) {
        let began = self.history.now();
        let sources = vec![BitmapName {
            node: self.node.clone(),
            name: source.to_owned(),
        }];
        let merged = self.edit(name, BitmapChange::Merge(sources)).await;
        let merged = self.span(began, merged);
        self.history.kept.merge_bitmap(name, source, merged);
    }

    async fn reopen(&self, read_only: bool) -> bool {
        let changed = json!({"node-name": self.node, "read-only": read_only});
        let reopened = self.site.graph().ask(ReopenKeeping(vec![options(changed)]));
        self.note(format!("read-only: {read_only}"), reopened.await)
            .is_some()
    }

    async fn set_active(&self, active: bool) -> bool {
        let request = SetActive {
            node_name: Some(self.node.clone()),
            active,
        };
        let set = self.site.graph().ask(request).await;
        self.note(format!("active: {active}"), set).is_some()
    }

    async fn read_only(&mut self) {
        self.let_go().await;
        if self.reopen(true).await {
            self.left_to_others();
            let kept = &self.history.kept;
            kept.return_to(self.history.now());
            let _failed = !self.reopen(false).await;
        }
        self.take_hold().await;
    }

    async fn hand_over(&mut self) {
        self.let_go().await;
        if self.set_active(false).await {
            self.left_to_others();
            let kept = &self.history.kept;
            kept.return_to(self.history.now());
            let _failed = !self.set_active(true).await;
        }
        self.take_hold().await;
    }

    async fn change_snapshots(&self, what: String, change: SnapshotChange) -> bool {
        let device = self.node.clone();
        let changed = self
            .site
            .graph()
            .ask(ChangeSnapshots {
                device,
                change,
                any_name: false,
            })
            .await;
        self.note(what, changed).is_some()
    }

    async fn make_snapshot(&self, name: &str) {
        let began = self.history.now();
        let new = InternalSnapshot {
            name: name.to_owned(),
            ..InternalSnapshot::default()
        };
        let make = SnapshotChange::Create(new);
        let made = self.change_snapshots(format!("make {name}"), make).await;
        let made = self.span(began, made);
        let contents = made.done.and_then(|_| self.contents_of(name, began));
        self.history.kept.add_snapshot(name, made, contents);
    }

    /// What a snapshot has that was asked for at `began`: what the disk was at some time since.
    fn contents_of(&self, name: &str, began: u64) -> Option<Vec<u8>> {
        let image = Stored::of(self.links().last()?);
        let found = census(&image).map(|found| found.snapshots);
        let found = found.unwrap_or_default().into_iter().find(|one| one.name == name);
        let fits = match &found {
            Some(found) => self.history.check_read(began, 0, &found.contents),
            None => Err(format!("the snapshot '{name}' is not there")),
        };
        if let Err(text) = fits {
            self.fail("WRONG DATA", text);
        }
        found.map(|found| found.contents)
    }

    async fn apply_snapshot(&mut self, name: &str) {
        let Some(client) = self.client().cloned() else {
            return;
        };
        let Some(contents) = self.history.kept.contents(name) else {
            return;
        };
        let number = self.history.begin(Asked::Flush, false);
        let flushed = client.flush().await;
        self.history.end(number, flushed.is_ok());
        if let Err(error) = flushed {
            self.fail("a flush before", error.to_string());
            return;
        }
        let Some(before) = self.contents(&client).await else {
            return;
        };
        let number = self.history.restore(contents.clone());
        let began = self.history.now();
        let apply = SnapshotChange::Apply(name.to_owned());
        let applied = self.change_snapshots(format!("apply {name}"), apply).await;
        self.history.end(number, applied);
        let span = self.span(began, applied);
        if applied {
            self.history.kept.apply(span, before, contents.clone());
            let now = self.contents(&client).await;
            if now.is_some_and(|now| now != contents) {
                self.fail("WRONG DATA", format!("the disk is not what '{name}' has"));
            }
        }
    }

    async fn delete_snapshot(&self, name: &str) {
        let began = self.history.now();
        let delete = SnapshotChange::Delete(SnapshotName::named(name));
        let deleted = self.change_snapshots(format!("delete {name}"), delete).await;
        self.history.kept.delete_snapshot(name, self.span(began, deleted));
    }
}
