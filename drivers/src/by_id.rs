//! Things that users make and name: secrets, throttle groups, and what else is found by its id.

use std::collections::BTreeMap;
use std::sync::Arc;

use arc_swap::ArcSwap;

/// Things by their ids, found without a lock from any thread. Clones are the same collection.
#[derive(Debug)]
pub struct ById<T: ?Sized>(Arc<ArcSwap<BTreeMap<String, Arc<T>>>>);

impl<T: ?Sized> Clone for ById<T> {
    fn clone(&self) -> Self {
        Self(Arc::clone(&self.0))
    }
}

impl<T: ?Sized> Default for ById<T> {
    fn default() -> Self {
        Self(Arc::default())
    }
}

impl<T: ?Sized> ById<T> {
    /// All things, as they are now.
    #[must_use]
    pub fn all(&self) -> Arc<BTreeMap<String, Arc<T>>> {
        self.0.load_full()
    }

    /// The thing of an id.
    #[must_use]
    pub fn find(&self, id: &str) -> Option<Arc<T>> {
        self.0.load().get(id).cloned()
    }

    /// Makes a thing known under an id, in the place of what had it.
    pub fn put(&self, id: &str, thing: T)
    where
        T: Sized,
    {
        self.put_shared(id, Arc::new(thing));
    }

    /// The same for a thing that others have too.
    pub fn put_shared(&self, id: &str, thing: Arc<T>) {
        self.change(|things| {
            things.insert(id.to_owned(), Arc::clone(&thing));
        });
    }

    /// Forgets a thing. Whoever has found it keeps it.
    pub fn remove(&self, id: &str) {
        self.change(|things| {
            things.remove(id);
        });
    }

    /// Changes what there is, in one step; answers what there was before. `change` is done again if somebody else was faster.
    pub(crate) fn change(
        &self,
        change: impl Fn(&mut BTreeMap<String, Arc<T>>),
    ) -> Arc<BTreeMap<String, Arc<T>>> {
        self.0.rcu(|things| {
            let mut things = BTreeMap::clone(things);
            change(&mut things);
            things
        })
    }
}
