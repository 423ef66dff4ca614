//! The files that exports cover: a file has one export at the most, however it is spelled.

use std::cell::RefCell;
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
    /// Its own path, and the device that was mounted there: not known before.
    mounted: RefCell<Option<(PathBuf, u64)>>,
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
            mounted: RefCell::default(),
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

    /// Checks that no export is at this path, or shows this device.
    ///
    /// # Errors
    /// QEMU's text: there is one.
    pub(super) fn check(&self, path: &Path, device: u64) -> Result<()> {
        let is_there = |covered: &Rc<Covered>| {
            let mounted = covered.mounted.borrow();
            mounted
                .as_ref()
                .is_some_and(|(at, shown)| at == path || *shown == device)
        };
        match self.all.0.borrow().iter().any(is_there) {
            true => Err(taken(self.given())),
            false => Ok(()),
        }
    }

    /// Notes what was mounted.
    pub(super) fn set_mounted(&self, path: &Path, device: u64) {
        self.covered.mounted.replace(Some((path.to_owned(), device)));
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
        first.set_mounted(Path::new("/run/disk"), 40);
        let second = all.reserve("./disk").unwrap();
        assert!(second.check(Path::new("/run/disk"), 7).is_err());
        assert!(
            second.check(Path::new("/elsewhere/disk"), 40).is_err(),
            "a bind mount"
        );
        assert!(second.check(Path::new("/run/other"), 7).is_ok());
        drop(first);
        assert!(second.check(Path::new("/run/disk"), 40).is_ok());
        assert!(all.reserve("disk").is_ok());
    }
}
