//! What users have made for TLS, by its ids: found without a lock by whoever begins a session.

use std::collections::BTreeMap;
use std::sync::Arc;

use arc_swap::ArcSwap;

use super::authz::Authorizer;
use super::credentials::Credentials;

/// Things by their ids. Clones are the same collection.
#[derive(Debug)]
pub(crate) struct ById<T>(Arc<ArcSwap<BTreeMap<String, Arc<T>>>>);

impl<T> Clone for ById<T> {
    fn clone(&self) -> Self {
        Self(Arc::clone(&self.0))
    }
}

impl<T> Default for ById<T> {
    fn default() -> Self {
        Self(Arc::default())
    }
}

impl<T> ById<T> {
    /// Makes a thing known under an id, in the place of what had it.
    pub(crate) fn put(&self, id: &str, thing: T) {
        let thing = Arc::new(thing);
        self.change(|things| {
            things.insert(id.to_owned(), Arc::clone(&thing));
        });
    }

    /// Forgets a thing. Whoever has found it keeps it.
    pub(crate) fn remove(&self, id: &str) {
        self.change(|things| {
            things.remove(id);
        });
    }

    /// The thing of an id.
    pub(crate) fn find(&self, id: &str) -> Option<Arc<T>> {
        self.0.load().get(id).cloned()
    }

    fn change(&self, change: impl Fn(&mut BTreeMap<String, Arc<T>>)) {
        self.0.rcu(|things| {
            let mut things = BTreeMap::clone(things);
            change(&mut things);
            things
        });
    }
}

/// All that users have made for TLS. Clones are the same.
#[derive(Debug, Clone, Default)]
pub(crate) struct TlsRegistry {
    /// Credentials, for either side of a connection.
    pub(crate) credentials: ById<Credentials>,
    /// Those that say who may connect.
    pub(crate) authorizers: ById<Authorizer>,
}
