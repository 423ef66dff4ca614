//! Sections of a run's graph that are still, and what may not happen to disks meanwhile: beside edits of the graph too,
//! whose own requests are told from those of users where they can be.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;

/// No run has more images than a cover has bits.
fn bit(image: usize) -> u64 {
    1 << image.min(63)
}

/// The disks below a section's nodes that nobody else uses.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cover {
    /// Of the served chain, these images: a bit each.
    pub images: u64,
    /// The disk beside it.
    pub side: bool,
}

impl Cover {
    /// Everything, also what comes to be.
    pub const ALL: Self = Self {
        images: u64::MAX,
        side: true,
    };

    /// These images.
    pub fn of(images: impl IntoIterator<Item = usize>, side: bool) -> Self {
        let images = images.into_iter().fold(0, |all, image| all | bit(image));
        Self { images, side }
    }

    fn has(&self, disk: &str) -> bool {
        match disk.strip_prefix("img").map(str::parse) {
            Some(Ok(index)) => self.images & bit(index) != 0,
            _ if disk == super::side::IMAGE => self.side,
            // Those that vote are the first image together.
            _ if disk.starts_with('q') => self.images & 1 != 0,
            // What is backed up to.
            _ => *self == Self::ALL,
        }
    }
}

struct Section {
    user: &'static str,
    cover: Cover,
}

/// Sections in force, and edits that are under way.
#[derive(Default)]
pub struct Sections {
    sections: RefCell<BTreeMap<usize, Section>>,
    next: Cell<usize>,
    /// Sections that somebody holds or is about to let go.
    held: Cell<u32>,
    edits: Cell<u32>,
    /// Edits that copy what users wrote.
    copies: Cell<u32>,
}

impl Sections {
    pub(super) fn begin(&self, user: &'static str, cover: Cover) -> usize {
        let section = self.next.get();
        self.next.set(section + 1);
        self.sections
            .borrow_mut()
            .insert(section, Section { user, cover });
        section
    }

    /// A section ends; what is parked may go on as soon as it is given back.
    pub fn end(&self, section: usize) {
        self.sections.borrow_mut().remove(&section);
    }

    pub(super) fn covers(&self, section: usize, disk: &str) -> bool {
        let sections = self.sections.borrow();
        sections
            .get(&section)
            .is_some_and(|section| section.cover.has(disk))
    }

    /// The image `overlay` was put on top of another: sections that reach there have it too.
    pub fn grow(&self, below: usize, overlay: usize) {
        for section in self.sections.borrow_mut().values_mut() {
            if section.cover.images & bit(below) != 0 {
                section.cover.images |= bit(overlay);
            }
        }
    }

    /// The chain is about to lose images: what sections of its parts cover is not known any more.
    pub fn unsettle(&self) {
        for section in self.sections.borrow_mut().values_mut() {
            if section.cover != Cover::ALL {
                section.cover.images = 0;
            }
        }
    }

    /// Whose section forbids a request to a disk that begins now. Edits make requests of their own, but none that store
    /// what users gave, unless they copy.
    pub(super) fn forbid(&self, disk: &str, is_payload: bool) -> Option<&'static str> {
        let by_edit = self.edits.get() > 0 && (!is_payload || self.copies.get() > 0);
        if by_edit {
            return None;
        }
        let sections = self.sections.borrow();
        let hit = sections.values().find(|section| section.cover.has(disk));
        hit.map(|section| section.user)
    }

    /// Whether no edit is under way.
    pub fn is_quiet(&self) -> bool {
        self.edits.get() == 0
    }

    /// How many edits are under way.
    pub fn edits(&self) -> u32 {
        self.edits.get()
    }

    /// Whether requests may be parked.
    pub fn are_held(&self) -> bool {
        self.held.get() > 0
    }

    /// Counts one who holds a section, until the guard is dropped.
    pub fn hold(&self) -> Counted<'_> {
        Counted::new(&self.held)
    }

    /// Counts an edit of the graph, until the guard is dropped.
    pub fn edit(&self) -> Counted<'_> {
        Counted::new(&self.edits)
    }

    /// The daemon closes from now on: what does that writes tables back and flushes, in a section of its own, whatever
    /// sections others hold.
    pub fn close(&self) {
        self.edits.set(self.edits.get() + 1);
    }

    /// Counts an edit that copies data, until the guard is dropped.
    pub fn copy(&self) -> Counted<'_> {
        Counted::new(&self.copies)
    }
}

/// One that is counted.
#[must_use = "it is counted until this is dropped"]
pub struct Counted<'a>(&'a Cell<u32>);

impl<'a> Counted<'a> {
    fn new(count: &'a Cell<u32>) -> Self {
        count.set(count.get() + 1);
        Self(count)
    }
}

impl Drop for Counted<'_> {
    fn drop(&mut self) {
        self.0.set(self.0.get() - 1);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_section_forbids_what_it_covers_and_edits_make_their_own_requests() {
        let sections = Sections::default();
        let top = sections.begin("drainer", Cover::of([1], false));
        assert_eq!(sections.forbid("img0", true), None);
        assert_eq!(sections.forbid("img1", false), Some("drainer"));
        assert_eq!(sections.forbid("img2", false), None);
        sections.grow(1, 2);
        assert_eq!(sections.forbid("img2", false), Some("drainer"));
        {
            let _edit = sections.edit();
            assert_eq!(sections.forbid("img1", false), None, "an edit writes its tables");
            assert_eq!(
                sections.forbid("img1", true),
                Some("drainer"),
                "but no user's data"
            );
            let _copy = sections.copy();
            assert_eq!(sections.forbid("img1", true), None);
        }
        sections.end(top);
        assert_eq!(sections.forbid("img1", false), None);
        let part = sections.begin("drainer", Cover::of([1], false));
        let all = sections.begin("drainer", Cover::ALL);
        sections.unsettle();
        assert!(!sections.covers(part, "img1") && sections.covers(all, "target1"));
        assert!(sections.forbid(super::super::side::IMAGE, false).is_some() && sections.covers(all, "q2"));
    }
}
