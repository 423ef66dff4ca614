//! What an image keeps besides the disk, as its user was told: bitmaps and snapshots. What a crash leaves must fit.

use std::sync::{Mutex, MutexGuard, PoisonError};

use super::census::Census;
use super::found::FoundBitmap;
use super::history::{Asked, Request};

/// Something that was asked for: when, and when it was done.
#[derive(Debug, Clone, Copy)]
pub struct Span {
    /// When it was asked for.
    pub began: u64,
    /// When it was done; never where it failed, since then it may have happened or not.
    pub done: Option<u64>,
}

impl Span {
    pub(super) fn may_be_done(self, point: u64) -> bool {
        self.began <= point
    }

    pub(super) fn is_done(self, point: u64) -> bool {
        self.done.is_some_and(|done| done <= point)
    }
}

/// A bitmap that the image is to store.
#[derive(Debug, Clone)]
struct KeptBitmap {
    name: String,
    granularity: u64,
    made: Span,
    gone: Vec<Span>,
    /// It records writes, as far as its user knows.
    is_recording: bool,
    /// What the disk read as whenever nothing was dirty. Unknown where the bitmap stopped recording.
    clean: Vec<(Span, Option<Vec<u8>>)>,
    /// What it read as when nothing was dirty by bitmaps that were merged, and when what came of that was cleared.
    merged: Vec<(Span, Vec<u8>, Option<u64>)>,
}

#[derive(Debug, Clone)]
struct KeptSnapshot {
    name: String,
    made: Span,
    gone: Vec<Span>,
    /// What the disk was. Unknown where making it failed.
    contents: Option<Vec<u8>>,
}

/// A disk that became what a snapshot has, with no request meanwhile.
#[derive(Debug, Clone)]
struct Applied {
    span: Span,
    before: Vec<u8>,
    after: Vec<u8>,
}

#[derive(Debug, Default)]
struct Things {
    bitmaps: Vec<KeptBitmap>,
    snapshots: Vec<KeptSnapshot>,
    applied: Vec<Applied>,
    /// When the image was left to others, its bitmaps stored, and from when on not any more.
    left: Vec<(u64, Option<u64>)>,
    /// A log may have been given up, since something failed.
    may_be_given_up: bool,
}

/// What an image is to keep.
#[derive(Debug, Default)]
pub struct Kept(Mutex<Things>);

impl Kept {
    fn things(&self) -> MutexGuard<'_, Things> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A bitmap was added to a disk that read as `clean`.
    pub fn add_bitmap(&self, name: &str, granularity: u64, made: Span, clean: Vec<u8>) {
        self.things().bitmaps.push(KeptBitmap {
            name: name.to_owned(),
            granularity,
            made,
            gone: Vec::new(),
            is_recording: true,
            clean: vec![(made, Some(clean))],
            merged: Vec::new(),
        });
    }

    fn with_bitmap(&self, name: &str, change: impl FnOnce(&mut KeptBitmap)) {
        let mut things = self.things();
        let named = things.bitmaps.iter_mut().rev().find(|bitmap| bitmap.name == name);
        if let Some(bitmap) = named {
            change(bitmap);
        }
    }

    /// A bitmap of a disk that read as `clean` was cleared.
    pub fn clear_bitmap(&self, name: &str, cleared: Span, clean: Vec<u8>) {
        self.with_bitmap(name, |bitmap| {
            let clean = Some(clean).filter(|_| bitmap.is_recording);
            bitmap.clean.push((cleared, clean));
            let merged = bitmap.merged.iter_mut();
            merged.for_each(|(_, _, until)| *until = until.or(Some(cleared.began)));
        });
    }

    /// A bitmap was to record, or not. What it says from then on is checked no more, until it is cleared while it records.
    pub fn record_bitmap(&self, name: &str, on: bool, span: Span) {
        self.with_bitmap(name, |bitmap| {
            bitmap.is_recording = on && span.done.is_some();
            bitmap.clean.push((span, None));
        });
    }

    /// A bitmap that records was merged into another that does.
    pub fn merge_bitmap(&self, name: &str, source: &str, merged: Span) {
        let mut clean = None;
        self.with_bitmap(source, |source| {
            clean = source.clean.last().and_then(|(_, clean)| clean.clone());
        });
        if let Some(clean) = clean {
            self.with_bitmap(name, |bitmap| bitmap.merged.push((merged, clean, None)));
        }
    }

    /// Something fails, so that a log may be given up.
    pub fn allow_giving_up(&self) {
        self.things().may_be_given_up = true;
    }

    /// Requires of an image with a log that its bitmaps, after it was opened and closed, miss nothing: a crash at `point` left
    /// it, and it read as `disk`.
    pub fn check_logged(&self, point: u64, found: &Census, disk: &[u8]) -> Result<(), String> {
        let things = self.things();
        for bitmap in &found.bitmaps {
            let named = |kept: &&KeptBitmap| kept.name == bitmap.name && kept.made.may_be_done(point);
            let Some(kept) = things.bitmaps.iter().rev().find(named) else {
                continue;
            };
            match bitmap.in_use {
                true if kept.made.is_done(point) && !things.may_be_given_up => {
                    return Err(format!("the bitmap '{}' is inconsistent", kept.name));
                }
                true => {}
                false => kept.misses_nothing(point, bitmap, disk)?,
            }
        }
        Ok(())
    }

    /// A bitmap was removed.
    pub fn remove_bitmap(&self, name: &str, gone: Span) {
        let mut things = self.things();
        let named = things.bitmaps.iter_mut().filter(|bitmap| bitmap.name == name);
        named.for_each(|bitmap| bitmap.gone.push(gone));
    }

    /// The image was left to others at a time that is over now, or begins.
    pub fn leave(&self, since: u64) {
        self.things().left.push((since, None));
    }

    /// The image is opened for writing.
    pub fn return_to(&self, now: u64) {
        if let Some((_, until)) = self.things().left.last_mut() {
            until.get_or_insert(now);
        }
    }

    /// A snapshot was made of a disk with these contents, or failed to be.
    pub fn add_snapshot(&self, name: &str, made: Span, contents: Option<Vec<u8>>) {
        self.things().snapshots.push(KeptSnapshot {
            name: name.to_owned(),
            made,
            gone: Vec::new(),
            contents,
        });
    }

    /// A snapshot was deleted.
    pub fn delete_snapshot(&self, name: &str, gone: Span) {
        let mut things = self.things();
        let named = things.snapshots.iter_mut().filter(|one| one.name == name);
        named.for_each(|snapshot| snapshot.gone.push(gone));
    }

    /// What a snapshot has.
    pub fn contents(&self, name: &str) -> Option<Vec<u8>> {
        let things = self.things();
        let found = things.snapshots.iter().find(|one| one.name == name);
        found.and_then(|snapshot| snapshot.contents.clone())
    }

    /// The disk became what a snapshot has.
    pub fn apply(&self, span: Span, before: Vec<u8>, after: Vec<u8>) {
        self.things().applied.push(Applied { span, before, after });
    }

    /// Requires that an image that a crash at `point` left, and that reads as `disk`, keeps what it was asked to.
    pub fn check(&self, point: u64, found: &Census, disk: &[u8], requests: &[Request]) -> Result<(), String> {
        let things = self.things();
        things.check_snapshots(point, found)?;
        things.check_applied(point, disk)?;
        let is_left =
            |(since, until): &(u64, Option<u64>)| *since <= point && until.is_none_or(|until| point < until);
        let stored = things.left.iter().any(is_left);
        for bitmap in &found.bitmaps {
            let named = |kept: &&KeptBitmap| kept.name == bitmap.name && kept.made.may_be_done(point);
            let kept = things.bitmaps.iter().rev().find(named);
            let kept = kept.ok_or_else(|| format!("nobody added the bitmap '{}'", bitmap.name))?;
            kept.check(point, bitmap, stored, disk, requests)?;
        }
        for kept in &things.bitmaps {
            let there = found.bitmaps.iter().any(|bitmap| bitmap.name == kept.name);
            let may_be_gone = kept.gone.iter().any(|gone| gone.may_be_done(point));
            if stored && !there && kept.made.is_done(point) && !may_be_gone {
                return Err(format!("the bitmap '{}' was not stored", kept.name));
            }
        }
        Ok(())
    }
}

impl Things {
    fn check_snapshots(&self, point: u64, found: &Census) -> Result<(), String> {
        for snapshot in &found.snapshots {
            let named = |kept: &&KeptSnapshot| kept.name == snapshot.name && kept.made.may_be_done(point);
            let kept = self.snapshots.iter().find(named);
            let kept = kept.ok_or_else(|| format!("nobody made the snapshot '{}'", snapshot.name))?;
            if kept.gone.iter().any(|gone| gone.is_done(point)) {
                return Err(format!("the snapshot '{}' is still there", kept.name));
            }
            if kept
                .contents
                .as_ref()
                .is_some_and(|had| *had != snapshot.contents)
            {
                return Err(format!("the snapshot '{}' is not what the disk was", kept.name));
            }
        }
        for kept in &self.snapshots {
            let there = found.snapshots.iter().any(|one| one.name == kept.name);
            let may_be_gone = kept.gone.iter().any(|gone| gone.may_be_done(point));
            if !there && kept.made.is_done(point) && !may_be_gone {
                return Err(format!("the snapshot '{}' is lost", kept.name));
            }
        }
        Ok(())
    }

    fn check_applied(&self, point: u64, disk: &[u8]) -> Result<(), String> {
        for applied in &self.applied {
            let Span { began, done } = applied.span;
            let during = began <= point && done.is_some_and(|done| point <= done);
            if during && disk != applied.before && disk != applied.after {
                return Err("the disk is neither what it was nor what the snapshot has".into());
            }
        }
        Ok(())
    }
}

impl KeptBitmap {
    fn check(
        &self,
        point: u64,
        found: &FoundBitmap,
        stored: bool,
        disk: &[u8],
        requests: &[Request],
    ) -> Result<(), String> {
        let name = &self.name;
        if self.gone.iter().any(|gone| gone.is_done(point)) {
            return Err(format!("the bitmap '{name}' is still there"));
        }
        if found.granularity != self.granularity {
            return Err(format!("the bitmap '{name}' has bits of {}", found.granularity));
        }
        match found.in_use {
            true if stored => Err(format!("the bitmap '{name}' is in use though it was stored")),
            true => Ok(()),
            false => self.check_bits(point, found, disk, requests),
        }
    }

    /// What differs from the disk when nothing was dirty, or may not have been, is dirty.
    fn misses_nothing(&self, point: u64, found: &FoundBitmap, disk: &[u8]) -> Result<(), String> {
        let last = self.clean.iter().rposition(|(span, _)| span.is_done(point));
        let possible = self.clean.iter().skip(last.unwrap_or(0));
        let misses: Vec<Option<usize>> = possible
            .filter(|(span, _)| span.may_be_done(point))
            .map(|(_, clean)| missed(found, clean.as_ref()?, disk))
            .collect();
        let merged = self
            .merged
            .iter()
            .filter(|(span, _, until)| span.is_done(point) && until.is_none_or(|until| point < until));
        let mut merged = merged.filter_map(|(_, clean, _)| missed(found, clean, disk));
        match (misses.iter().flatten().next(), merged.next()) {
            (Some(at), _) if misses.iter().all(Option::is_some) => {
                Err(format!("the bitmap '{}' misses a change at {at:#x}", self.name))
            }
            (_, Some(at)) => Err(format!(
                "the bitmap '{}' misses a change at {at:#x} that was merged into it",
                self.name
            )),
            _ => Ok(()),
        }
    }

    /// What differs from the clean disk is dirty, and nothing is that nobody wrote to.
    fn check_bits(
        &self,
        point: u64,
        found: &FoundBitmap,
        disk: &[u8],
        requests: &[Request],
    ) -> Result<(), String> {
        self.misses_nothing(point, found, disk)?;
        // What was merged may be dirty in larger pieces.
        let is_merged = self.merged.iter().any(|(span, ..)| span.may_be_done(point));
        let granularity = self.granularity as usize;
        for (index, part) in disk.chunks(granularity).enumerate() {
            let at = index * granularity;
            let is_dirty = found.bits.get(index).copied().unwrap_or(false);
            let touches = |request: &Request| {
                let (from, to) = match request.asked {
                    Asked::Write(offset, len) | Asked::Zero(offset, len) | Asked::Discard(offset, len) => {
                        (offset, offset + len)
                    }
                    Asked::Resize(old, new) => (old.min(new), old.max(new)),
                    Asked::Flush | Asked::Restore(_) => (0, 0),
                };
                let ended = request.ended.is_none_or(|ended| ended > self.made.began);
                ended && request.began <= point && from < (at + part.len()) as u64 && to > at as u64
            };
            if is_dirty && !is_merged && !requests.iter().any(touches) {
                return Err(format!(
                    "the bitmap '{}' is dirty at {at:#x}, which nobody wrote to",
                    self.name
                ));
            }
        }
        let behind = found.bits.iter().skip(disk.len().div_ceil(granularity));
        match behind.clone().any(|bit| *bit) {
            true => Err(format!(
                "the bitmap '{}' is dirty behind the disk's end",
                self.name
            )),
            false => Ok(()),
        }
    }
}

/// The first place where a disk differs from what it was, and is not dirty.
fn missed(found: &FoundBitmap, clean: &[u8], disk: &[u8]) -> Option<usize> {
    let granularity = found.granularity as usize;
    let zeroes = vec![0; granularity];
    let parts = disk.chunks(granularity).enumerate();
    let mut missed = parts.filter(|(index, part)| {
        let at = index * granularity;
        let clean = clean.get(at..at + part.len()).unwrap_or(&zeroes[..part.len()]);
        let is_dirty = found.bits.get(*index).copied().unwrap_or(false);
        !is_dirty && *part != clean
    });
    missed.next().map(|(index, _)| index * granularity)
}
