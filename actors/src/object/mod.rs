//! Objects that users make, with `object-add` or `--object`. A kind of object is a file here and a row of [`KINDS`].
//!
//! ```text
//!   object-add ---- Kind::make ---> an object, checked ---- begin ---> in force, and listed in Objects
//!   qom-set ------- with ---------> the object changed ---- change --> in force, in the place of the old one
//!   object-del --------------------------------------------- end ----> gone
//! ```
//! An object is a value: what it stands for (a thread, a group, a policy) is in the [`Site`].

mod authz;
mod chaos;
mod event_loop;
mod iothread;
mod kind;
mod main_loop;
mod monitor_qmp;
mod secret;
mod secret_keyring;
mod throttle_group;
mod tls_creds;

use std::rc::Rc;

use millpond_messages::qapi::{Object, QmpError};
use millpond_messages::saved::{SavedObject, SavedOptions};
use serde_json::Value;

pub(crate) use kind::{Kind, ObjectMonitor, Site, UserObject};

/// The kinds of objects, in the order in which types are listed.
pub(crate) const KINDS: &[Kind] = &[
    authz::LIST,
    authz::LIST_FILE,
    authz::SIMPLE,
    iothread::KIND,
    main_loop::KIND,
    monitor_qmp::KIND,
    chaos::KIND,
    secret::KIND,
    secret_keyring::KIND,
    throttle_group::KIND,
    tls_creds::ANON,
    tls_creds::PSK,
    tls_creds::X509,
];

/// The kind that users call `name`.
pub(crate) fn find_kind(name: &str) -> Option<&'static Kind> {
    KINDS.iter().find(|kind| kind.name == name)
}

/// Makes an object from the checked arguments of `object-add`.
///
/// # Errors
/// A property is out of its range.
pub(crate) fn make(mut options: Object) -> Result<Rc<dyn UserObject>, QmpError> {
    let name = options.shift_remove("qom-type");
    let name = name.as_ref().and_then(Value::as_str).unwrap_or_default();
    // QEMU's schema calls one of its types otherwise than itself.
    let name = if name == "authz-listfile" {
        "authz-list-file"
    } else {
        name
    };
    let kind = find_kind(name).ok_or_else(|| QmpError::generic(format!("invalid object type: {name}")))?;
    (kind.make)(options)
}

/// A property's value; `None` if the object has no such.
pub(crate) fn get(object: &dyn UserObject, property: &str) -> Option<Value> {
    match property {
        "type" => Some(object.kind().into()),
        _ if has(object, property) => object.get(property),
        _ => None,
    }
}

/// The object with a property changed.
///
/// # Errors
/// It has no such property, or the value does not fit.
pub(crate) fn with(
    object: &dyn UserObject,
    property: &str,
    value: &Value,
) -> Result<Rc<dyn UserObject>, QmpError> {
    let kind = object.kind();
    let refused = |why: &str| Err(QmpError::generic(format!("Property '{kind}.{property}' {why}")));
    match property {
        "type" => refused("is not writable"),
        _ if has(object, property) => object.with(property, value),
        _ => refused("not found"),
    }
}

/// Whether the object's kind has a property of this name.
pub(crate) fn has(object: &dyn UserObject, property: &str) -> bool {
    let mut properties = find_kind(object.kind())
        .into_iter()
        .flat_map(|kind| kind.properties);
    properties.any(|(name, _)| *name == property)
}

/// The objects there are, in the order in which they were made.
#[derive(Debug, Default)]
pub(crate) struct Objects {
    objects: Vec<Rc<dyn UserObject>>,
}

impl Objects {
    /// The object called `id`.
    pub(crate) fn find(&self, id: &str) -> Option<&Rc<dyn UserObject>> {
        self.objects.iter().find(|object| object.id() == id)
    }

    /// All objects, in the order in which they were made.
    pub(crate) fn all(&self) -> &[Rc<dyn UserObject>] {
        &self.objects
    }

    /// Whether `object` may be added.
    ///
    /// # Errors
    /// Its id is taken, or there may be only one of its type.
    pub(crate) fn may_add(&self, object: &dyn UserObject) -> Result<(), QmpError> {
        let name = object.kind();
        let is_there = self.objects.iter().any(|other| other.kind() == name);
        if is_there && find_kind(name).is_some_and(|kind| kind.is_single) {
            return Err(QmpError::generic(format!("only one {name} instance allowed")));
        }
        if self.find(object.id()).is_some() {
            let id = object.id();
            let text = format!("attempt to add duplicate property '{id}' to object (type 'container')");
            return Err(QmpError::generic(text));
        }
        Ok(())
    }

    /// Whether an object may be meant where credentials for TLS are named by `id`. If there is none, they are missing.
    ///
    /// # Errors
    /// QEMU's text: it is something else.
    pub(crate) fn may_be_tls_credentials(&self, id: &str) -> Result<(), QmpError> {
        let kind = self.find(id).and_then(|object| find_kind(object.kind()));
        if kind.is_some_and(|kind| kind.parent != tls_creds::PARENT) {
            let text = format!("Object with id '{id}' is not TLS credentials");
            return Err(QmpError::generic(text));
        }
        Ok(())
    }

    /// Adds an object, or puts it in the place of the one with its id.
    pub(crate) fn put(&mut self, object: Rc<dyn UserObject>) {
        match self.objects.iter_mut().find(|old| old.id() == object.id()) {
            Some(old) => *old = object,
            None => self.objects.push(object),
        }
    }

    /// Forgets the object of an id, if there is one.
    pub(crate) fn remove(&mut self, id: &str) {
        self.objects.retain(|object| object.id() != id);
    }

    /// All objects, written down.
    pub(crate) fn save(&self) -> Vec<SavedObject> {
        let saved = self.objects.iter().map(|object| SavedObject {
            id: object.id().to_owned(),
            kind: object.kind().to_owned(),
            options: SavedOptions::of(&object.options()),
        });
        saved.collect()
    }
}
