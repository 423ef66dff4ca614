//! The drivers there are: built in, and those that an embedder brings.

use std::collections::BTreeMap;
use std::sync::Arc;

use messages::{Error, ErrorKind, Result};

use super::{DriverKind, GuardedKind};
use crate::throttle::Groups;

/// Drivers by name. Filled before the graph starts; read by it alone afterwards.
#[derive(Clone, Default)]
pub struct Registry {
    kinds: BTreeMap<&'static str, Arc<dyn DriverKind>>,
    whitelist: Option<Whitelist>,
    throttle_groups: Groups,
}

/// Which drivers a build allows, fixed at start-up.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Whitelist {
    /// Allowed for writing and reading.
    pub read_write: Vec<String>,
    /// Allowed for reading.
    pub read_only: Vec<String>,
}

impl Registry {
    /// A registry without any driver.
    #[must_use]
    pub fn empty() -> Self {
        Self::default()
    }

    /// Adds a driver. It is put behind a guard against its panics.
    ///
    /// # Errors
    /// There is one of that name.
    pub fn register(&mut self, kind: Arc<dyn DriverKind>) -> Result<()> {
        let name = kind.name();
        if self.kinds.contains_key(name) {
            return Err(Error::new(
                ErrorKind::Exists,
                format!("Driver '{name}' is registered already"),
            ));
        }
        self.kinds.insert(name, Arc::new(GuardedKind::new(kind)));
        Ok(())
    }

    /// The groups that nodes of the built-in driver `throttle` may be in. They can be made and removed at any time.
    #[must_use]
    pub const fn throttle_groups(&self) -> &Groups {
        &self.throttle_groups
    }

    /// Allows only the drivers of a list.
    pub fn set_whitelist(&mut self, whitelist: Whitelist) {
        self.whitelist = Some(whitelist);
    }

    /// Whether a list restricts which drivers may be used.
    #[must_use]
    pub fn uses_whitelist(&self) -> bool {
        self.whitelist.is_some()
    }

    /// Whether a driver may be used, for reading only or for both.
    #[must_use]
    pub fn is_whitelisted(&self, name: &str, read_only: bool) -> bool {
        self.whitelist.as_ref().is_none_or(|list| {
            list.read_write.iter().any(|n| n == name)
                || (read_only && list.read_only.iter().any(|n| n == name))
        })
    }

    /// The driver of this name.
    #[must_use]
    pub fn find(&self, name: &str) -> Option<&Arc<dyn DriverKind>> {
        self.kinds.get(name)
    }

    /// The protocol for a filename: that of its prefix, or `file`.
    ///
    /// # Errors
    /// The prefix names no protocol.
    pub fn find_protocol(&self, filename: &str) -> Result<&Arc<dyn DriverKind>> {
        let name = match filename.split_once(':') {
            Some((prefix, _)) if messages::path::path_has_protocol(filename) => prefix,
            _ => "file",
        };
        self.find(name)
            .filter(|kind| kind.has_filenames())
            .ok_or_else(|| Error::new(ErrorKind::NotFound, format!("Unknown protocol '{name}'")))
    }

    /// The format that is surest about an image that starts with `head`; `raw` where none is.
    #[must_use]
    pub fn probe(&self, head: &[u8]) -> &str {
        let surest = self
            .kinds
            .values()
            .map(|kind| (kind.probe(head), kind.name()))
            .max_by_key(|(score, _)| *score);
        match surest {
            Some((score, name)) if score > 0 => name,
            _ => "raw",
        }
    }

    /// All names, in alphabetical order.
    pub fn names(&self) -> impl Iterator<Item = &'static str> + '_ {
        self.kinds.keys().copied()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_filename_leads_to_its_protocol() {
        let registry = crate::builtin::builtin();
        assert_eq!(registry.find_protocol("/images/disk").unwrap().name(), "file");
        assert_eq!(registry.find_protocol("./a:b").unwrap().name(), "file");
        assert_eq!(registry.find_protocol("file:disk").unwrap().name(), "file");
        assert_eq!(registry.find_protocol("null-co://").unwrap().name(), "null-co");
        let unknown = registry.find_protocol("gopher:disk").err().unwrap();
        assert_eq!(unknown.to_string(), "Unknown protocol 'gopher'");
        assert!(
            registry.find_protocol("raw:disk").is_err(),
            "a format is no protocol"
        );
    }

    #[test]
    fn a_name_is_registered_once() {
        let mut registry = crate::builtin::builtin();
        let raw = Arc::clone(registry.find("raw").unwrap());
        assert_eq!(registry.register(raw).unwrap_err().kind(), ErrorKind::Exists);
    }

    #[test]
    fn a_whitelist_allows_only_what_it_names() {
        let mut registry = crate::builtin::builtin();
        assert!(!registry.uses_whitelist() && registry.is_whitelisted("raw", false));
        registry.set_whitelist(Whitelist {
            read_write: vec!["file".to_owned()],
            read_only: vec!["raw".to_owned()],
        });
        assert!(registry.uses_whitelist());
        assert!(registry.is_whitelisted("file", false) && registry.is_whitelisted("file", true));
        assert!(registry.is_whitelisted("raw", true) && !registry.is_whitelisted("raw", false));
        assert!(!registry.is_whitelisted("null-co", true));
    }
}
