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
    /// Those that are not in force yet.
    coming: Vec<Rc<dyn UserObject>>,
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

    /// Announces an object that is put in force next, so that nobody makes another beside it meanwhile.
    ///
    /// # Errors
    /// Its id is taken, or there may be only one of its type.
    pub(crate) fn announce(&mut self, object: &Rc<dyn UserObject>) -> Result<(), QmpError> {
        let (name, id) = (object.kind(), object.id());
        let others = || self.objects.iter().chain(&self.coming);
        let is_there = others().any(|other| other.kind() == name);
        if is_there && find_kind(name).is_some_and(|kind| kind.is_single) {
            return Err(QmpError::generic(format!("only one {name} instance allowed")));
        }
        if others().any(|other| other.id() == id) {
            let text = format!("attempt to add duplicate property '{id}' to object (type 'container')");
            return Err(QmpError::generic(text));
        }
        self.coming.push(Rc::clone(object));
        Ok(())
    }

    /// An object that was announced is in force, or will not be.
    pub(crate) fn settle(&mut self, object: Rc<dyn UserObject>, is_in_force: bool) {
        self.coming.retain(|coming| coming.id() != object.id());
        if is_in_force {
            self.objects.push(object);
        }
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

    /// Puts an object in the place of the one that had other values of its properties; whether that is there.
    pub(crate) fn replace(&mut self, object: &Rc<dyn UserObject>) -> bool {
        let is_old = |old: &&mut Rc<dyn UserObject>| (old.id(), old.kind()) == (object.id(), object.kind());
        let old = self.objects.iter_mut().find(is_old);
        old.map(|old| *old = Rc::clone(object)).is_some()
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

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn object(kind: &str, id: &str) -> Rc<dyn UserObject> {
        let mut options = Object::from_iter([("qom-type".into(), json!(kind)), ("id".into(), json!(id))]);
        if kind == "secret" {
            options.insert("data".into(), json!("x"));
        }
        make(options).unwrap()
    }

    #[test]
    fn an_id_is_taken_from_when_an_object_is_announced() {
        let mut objects = Objects::default();
        let (first, second) = (object("secret", "a"), object("tls-creds-anon", "a"));
        objects.announce(&first).unwrap();
        assert!(objects.announce(&second).is_err(), "one of this id is coming");
        assert!(objects.find("a").is_none(), "it is not there yet");
        objects.settle(first, false);
        objects.announce(&second).unwrap();
        objects.settle(second, true);
        let error = objects.announce(&object("secret", "a")).unwrap_err();
        let text = "attempt to add duplicate property 'a' to object (type 'container')";
        assert_eq!(error.to_string(), text);
        let (main_loop, other) = (object("main-loop", "m"), object("main-loop", "n"));
        objects.announce(&main_loop).unwrap();
        let error = objects.announce(&other).unwrap_err();
        assert_eq!(error.to_string(), "only one main-loop instance allowed");
    }
}
