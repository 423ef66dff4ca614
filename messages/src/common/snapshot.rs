//! Snapshots inside an image, as what is asked for and what is told of them.

/// The length of the longest id and name that are told whole: what QEMU's own structures hold of them.
const LONGEST_ID: usize = 127;
const LONGEST_NAME: usize = 255;

/// A snapshot inside an image.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct InternalSnapshot {
    /// Its id in the image, given when it is made.
    pub id: String,
    /// The name that its maker gave it, which others may have too.
    pub name: String,
    /// Bytes of machine state that are stored with it.
    pub vm_state_size: u64,
    /// When it was made, seconds since the epoch.
    pub date_sec: u32,
    /// The nanoseconds of that.
    pub date_nsec: u32,
    /// The machine's clock in nanoseconds.
    pub vm_clock_nsec: u64,
    /// The machine's instruction counter, if it was recorded.
    pub icount: Option<u64>,
    /// The length of the disk when it was made.
    pub disk_size: u64,
}

impl InternalSnapshot {
    /// The id as queries show it.
    pub fn shown_id(&self) -> &str {
        cut(&self.id, LONGEST_ID)
    }

    /// The name as queries show it.
    pub fn shown_name(&self) -> &str {
        cut(&self.name, LONGEST_NAME)
    }
}

/// The start of a text, at most `bytes` of it, whole characters.
fn cut(text: &str, bytes: usize) -> &str {
    let end = (0..=bytes.min(text.len()))
        .rev()
        .find(|end| text.is_char_boundary(*end));
    end.and_then(|end| text.get(..end)).unwrap_or_default()
}

/// Which snapshot is meant: the first that has all that is said.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct SnapshotName {
    /// The id that it has in its image.
    pub id: Option<String>,
    /// The name that its maker gave it.
    pub name: Option<String>,
}

impl SnapshotName {
    /// The first that has this name.
    pub fn named(name: impl Into<String>) -> Self {
        Self {
            id: None,
            name: Some(name.into()),
        }
    }

    /// The first that has this id.
    pub fn with_id(id: impl Into<String>) -> Self {
        Self {
            id: Some(id.into()),
            name: None,
        }
    }

    /// Whether it is this one.
    pub fn fits(&self, snapshot: &InternalSnapshot) -> bool {
        let same = |wanted: &Option<String>, has: &String| wanted.as_ref().is_none_or(|wanted| wanted == has);
        same(&self.id, &snapshot.id) && same(&self.name, &snapshot.name)
    }
}

/// What is done to an image's snapshots.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SnapshotChange {
    /// One is made, of what the disk is now. Its id and the length of the disk are filled in.
    Create(InternalSnapshot),
    /// One is forgotten, and what only it had.
    Delete(SnapshotName),
    /// The disk becomes what it was. The text is an id, or else a name.
    Apply(String),
    /// A node that is read-only shows it instead of the disk, as long as it is open.
    Show(SnapshotName),
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_fits_by_all_that_it_says() {
        let snapshot = InternalSnapshot {
            id: "1".to_owned(),
            name: "one".to_owned(),
            ..InternalSnapshot::default()
        };
        assert!(SnapshotName::with_id("1").fits(&snapshot) && SnapshotName::named("one").fits(&snapshot));
        let both = SnapshotName {
            id: Some("2".to_owned()),
            name: Some("one".to_owned()),
        };
        assert!(!both.fits(&snapshot) && SnapshotName::default().fits(&snapshot));
    }

    #[test]
    fn long_texts_are_cut_between_characters() {
        assert_eq!(cut("aé", 2), "a");
        assert_eq!((cut("aé", 3), cut("", 3)), ("aé", ""));
    }
}
