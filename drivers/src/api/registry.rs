//! The registry of drivers: those that are built in, and those that an embedder adds.

use std::collections::BTreeMap;
use std::sync::Arc;

use millpond_messages::{Error, ErrorKind, Result, Role};

use super::{DriverKind, GuardedKind};
use crate::filter::throttle::Groups;
use crate::secret::Secrets;
use crate::tls::ClientCredentialsById;

/// Drivers by name. Filled before the graph starts; read by it alone afterwards.
#[derive(Clone, Default)]
pub struct Registry {
    kinds: BTreeMap<&'static str, Arc<dyn DriverKind>>,
    whitelist: Option<Whitelist>,
    throttle_groups: Groups,
    secrets: Secrets,
    client_credentials: ClientCredentialsById,
}

/// Which drivers a build allows, fixed at start-up.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Whitelist {
    /// Drivers that may be used for writing and reading.
    pub read_write: Vec<String>,
    /// Drivers that may be used for reading.
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
    /// There is one of that name, or it declares children with roles that exclude each other.
    pub fn register(&mut self, kind: Arc<dyn DriverKind>) -> Result<()> {
        let name = kind.name();
        if self.kinds.contains_key(name) {
            return Err(Error::new(
                ErrorKind::Exists,
                format!("Driver '{name}' is registered already"),
            ));
        }
        // Of the numbered children there may be any number, so none of them has a role that only one child can have.
        let kind = GuardedKind::new(kind);
        let numbered = kind.numbered().map(|child| child.role);
        let declared = kind.children().iter().map(|child| child.role);
        Role::check_children(declared.chain(numbered).chain(numbered)).map_err(|error| {
            let text = format!("Driver '{name}' declares children that cannot be: {error}");
            Error::new(ErrorKind::InvalidArgument, text)
        })?;
        self.kinds.insert(name, Arc::new(kind));
        Ok(())
    }

    /// The groups that nodes of the built-in driver `throttle` may be in. They can be made and removed at any time.
    #[must_use]
    pub const fn throttle_groups(&self) -> &Groups {
        &self.throttle_groups
    }

    /// The secrets that nodes may need. They can be made and removed at any time.
    #[must_use]
    pub const fn secrets(&self) -> &Secrets {
        &self.secrets
    }

    /// The credentials with which nodes may connect to servers. They can be made and removed at any time.
    #[must_use]
    pub const fn client_credentials(&self) -> &ClientCredentialsById {
        &self.client_credentials
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
            Some((prefix, _)) if millpond_messages::path::path_has_protocol(filename) => prefix,
            _ => "file",
        };
        let by_prefix = || {
            let mut kinds = self.kinds.values();
            kinds.find(|kind| kind.filename_prefixes().contains(&name))
        };
        self.find(name)
            .or_else(by_prefix)
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

    /// The names of all drivers that may be used, for reading only or for both, in alphabetical order.
    pub fn names(&self, read_only: bool) -> impl Iterator<Item = &'static str> + '_ {
        let names = self.kinds.keys().copied();
        names.filter(move |name| self.is_whitelisted(name, read_only))
    }
}

#[cfg(test)]
mod tests {
    use futures_util::future::LocalBoxFuture;

    use super::super::{ChildKind, OpenRequest, Opened};
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
        assert_eq!(registry.names(false).collect::<Vec<_>>(), ["file"]);
        assert_eq!(registry.names(true).collect::<Vec<_>>(), ["file", "raw"]);
    }

    /// A driver of which only the children matter.
    struct Parent {
        children: &'static [ChildKind],
        numbered: Option<ChildKind>,
    }

    impl DriverKind for Parent {
        fn name(&self) -> &'static str {
            "parent"
        }

        fn children(&self) -> &'static [ChildKind] {
            self.children
        }

        fn numbered(&self) -> Option<ChildKind> {
            self.numbered
        }

        fn is_protocol(&self) -> bool {
            false
        }

        fn open(&self, _: OpenRequest) -> LocalBoxFuture<'static, Result<Opened>> {
            unreachable!("it is not opened")
        }
    }

    fn child(role: Role) -> ChildKind {
        ChildKind::named("child", role)
    }

    fn registered(children: Vec<ChildKind>, numbered: Option<Role>) -> Result<()> {
        let children = children.leak();
        let numbered = numbered.map(child);
        Registry::empty().register(Arc::new(Parent { children, numbered }))
    }

    #[test]
    fn a_driver_whose_childrens_roles_exclude_each_other_is_refused() {
        const FILTER: Role = Role::FILTERED.union(Role::PRIMARY);
        registered(vec![child(Role::IMAGE), child(Role::COW)], Some(Role::DATA)).unwrap();
        registered(vec![child(FILTER), child(Role::METADATA)], None).unwrap();
        let refused = [
            registered(vec![child(Role::FILTERED.union(Role::DATA))], None),
            registered(vec![child(Role::FILTERED.union(Role::METADATA))], None),
            registered(vec![child(Role::FILTERED.union(Role::COW))], None),
            registered(vec![child(Role::COW.union(Role::DATA))], None),
            registered(vec![child(Role::COW.union(Role::METADATA))], None),
            registered(vec![child(Role::COW.union(Role::PRIMARY))], None),
            registered(vec![child(FILTER), child(Role::FILTERED)], None),
            registered(vec![child(Role::COW), child(Role::COW)], None),
            registered(vec![child(Role::IMAGE), child(Role::PRIMARY)], None),
            registered(vec![], Some(Role::PRIMARY)),
            registered(vec![], Some(Role::FILTERED)),
            registered(vec![], Some(Role::COW)),
        ];
        for refused in refused {
            let error = refused.unwrap_err();
            assert_eq!(error.kind(), ErrorKind::InvalidArgument);
            let text = error.to_string();
            assert!(
                text.starts_with("Driver 'parent' declares children that cannot be: "),
                "{text}"
            );
        }
    }
}
