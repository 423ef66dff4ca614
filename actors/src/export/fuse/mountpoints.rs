//! The files that exports cover: a file has one export at the most, however it is spelled.

use std::cell::{Cell, RefCell};
use std::path::{Path, PathBuf};
use std::rc::Rc;

use millpond_messages::{Error, ErrorKind, Result};

/// The files that are covered. Clones are the same list.
#[derive(Clone, Default)]
pub(in crate::export) struct Mountpoints(Rc<RefCell<Vec<Rc<Covered>>>>);

/// A file that is covered, or about to be.
struct Covered {
    /// As its user has named it.
    given: String,
    /// Its own path, once it was looked for.
    path: RefCell<Option<PathBuf>>,
    /// The device that was mounted there.
    device: Cell<Option<u64>>,
}

/// Keeps a file from being covered again, until it is dropped.
pub(super) struct Reserved {
    all: Mountpoints,
    covered: Rc<Covered>,
}

impl Mountpoints {
    /// Keeps the file that a user names so.
    ///
    /// # Errors
    /// QEMU's text: it has an export.
    pub(super) fn reserve(&self, given: &str) -> Result<Reserved> {
        if self.0.borrow().iter().any(|covered| covered.given == given) {
            return Err(taken(given));
        }
        let covered = Rc::new(Covered {
            given: given.to_owned(),
            path: RefCell::default(),
            device: Cell::default(),
        });
        self.0.borrow_mut().push(Rc::clone(&covered));
        let all = self.clone();
        Ok(Reserved { all, covered })
    }
}

impl Reserved {
    /// As its user has named it.
    pub(super) fn given(&self) -> &str {
        &self.covered.given
    }

    /// Takes this path, which leads to this device. Another that leads to the same file is refused from now on.
    ///
    /// # Errors
    /// QEMU's text: an export is there, or is about to be.
    pub(super) fn claim(&self, path: &Path, device: u64) -> Result<()> {
        let is_there = |covered: &Rc<Covered>| {
            covered.path.borrow().as_deref() == Some(path) || covered.device.get() == Some(device)
        };
        if self.all.0.borrow().iter().any(is_there) {
            return Err(taken(self.given()));
        }
        self.covered.path.replace(Some(path.to_owned()));
        Ok(())
    }

    /// Notes what was mounted.
    pub(super) fn set_mounted(&self, device: u64) {
        self.covered.device.set(Some(device));
    }
}

impl Drop for Reserved {
    fn drop(&mut self) {
        let all = &self.all.0;
        all.borrow_mut()
            .retain(|covered| !Rc::ptr_eq(covered, &self.covered));
    }
}

fn taken(given: &str) -> Error {
    let text = format!("There already is a FUSE export on '{given}'");
    Error::new(ErrorKind::Exists, text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_covered_once_by_whatever_name() {
        let all = Mountpoints::default();
        let first = all.reserve("disk").unwrap();
        assert!(all.reserve("disk").is_err());
        first.claim(Path::new("/run/disk"), 7).unwrap();
        let second = all.reserve("./disk").unwrap();
        assert!(
            second.claim(Path::new("/run/disk"), 7).is_err(),
            "it is being mounted"
        );
        first.set_mounted(40);
        assert!(second.claim(Path::new("/run/disk"), 7).is_err());
        assert!(
            second.claim(Path::new("/elsewhere/disk"), 40).is_err(),
            "a bind mount"
        );
        let third = all.reserve("other").unwrap();
        assert!(third.claim(Path::new("/run/other"), 7).is_ok());
        drop(first);
        assert!(second.claim(Path::new("/run/disk"), 40).is_ok());
        assert!(all.reserve("disk").is_ok());
    }
}
