//! The tree of objects, as far as users' own objects are in it.

use crate::daemon::Daemon;
use crate::object::{self, KINDS, UserObject};
use millpond_messages::qapi::schema::{
    ObjectPropertiesValues, ObjectPropertyInfo, ObjectPropertyValue, ObjectTypeInfo, QomGet, QomList,
    QomListGet, QomListProperties, QomListTypes, QomSet,
};
use millpond_messages::qapi::{ErrorClass, QmpError};
use serde_json::Value;
use std::rc::Rc;

/// A type: its name, whether it is abstract, and what it is derived from.
type Row = (&'static str, bool, Option<&'static str>);

/// Types that are not those of users' objects: those that are listed before, and those after.
const BEFORE: &[Row] = &[("container", false, Some("object"))];
const AFTER: &[Row] = &[
    (LOOP, true, Some("object")),
    ("authz", true, Some("object")),
    ("tls-creds", true, Some("object")),
    ("user-creatable", true, Some("interface")),
    ("object", true, None),
    ("interface", true, None),
];

/// The abstract type that users' loops are derived from, which counts as one of those that they can make.
const LOOP: &str = "event-loop-base";

/// Every type that users are told of.
fn types() -> impl Iterator<Item = Row> {
    let kinds = KINDS.iter().map(|kind| (kind.name, false, Some(kind.parent)));
    BEFORE.iter().copied().chain(kinds).chain(AFTER.iter().copied())
}

/// A place in the tree.
enum Place {
    Root,
    Container(&'static str),
    Object(Rc<dyn UserObject>),
}

const CONTAINERS: &[&str] = &["backend", "objects", "chardevs"];

fn find(daemon: &Daemon, path: &str) -> Result<Place, QmpError> {
    let absolute = path.starts_with('/');
    let parts: Vec<&str> = path.split('/').filter(|part| !part.is_empty()).collect();
    let container = |name: &str| CONTAINERS.iter().find(|known| **known == name).copied();
    let object = |id: &str| {
        daemon
            .objects(|objects| objects.find(id).cloned())
            .map(Place::Object)
    };
    let found = match parts.as_slice() {
        [] if absolute => Some(Place::Root),
        [] => return Err(QmpError::generic("Path '' is ambiguous")),
        [name] if absolute => container(name).map(Place::Container),
        [name] => object(name).or_else(|| container(name).map(Place::Container)),
        ["objects", id] => object(id),
        _ => None,
    };
    found.ok_or_else(|| no_device(path))
}

fn property(name: &str, kind: impl Into<String>) -> ObjectPropertyInfo {
    ObjectPropertyInfo {
        name: name.into(),
        kind: kind.into(),
        description: None,
        default_value: None,
    }
}

fn listing(properties: impl IntoIterator<Item = ObjectPropertyInfo>) -> Vec<ObjectPropertyInfo> {
    std::iter::once(property("type", "string"))
        .chain(properties)
        .collect()
}

fn of_type(kind: &str) -> Vec<ObjectPropertyInfo> {
    let properties = object::find_kind(kind)
        .into_iter()
        .flat_map(|kind| kind.properties);
    listing(properties.map(|(name, of)| property(name, *of)))
}

pub(super) async fn list(daemon: Daemon, arguments: QomList) -> Result<Vec<ObjectPropertyInfo>, QmpError> {
    Ok(match find(&daemon, &arguments.path)? {
        Place::Root => listing(CONTAINERS.iter().map(|name| property(name, "child<container>"))),
        Place::Container("objects") => daemon.objects(|objects| {
            let all = objects.all().iter();
            listing(all.map(|object| property(object.id(), format!("child<{}>", object.kind()))))
        }),
        Place::Container(_) => listing([]),
        Place::Object(object) => of_type(object.kind()),
    })
}

/// The object of that id, if `place` holds it as a child.
fn is_child(daemon: &Daemon, place: &Place, name: &str) -> bool {
    match place {
        Place::Root => CONTAINERS.contains(&name),
        Place::Container("objects") => daemon.objects(|objects| objects.find(name).is_some()),
        Place::Container(_) | Place::Object(_) => false,
    }
}

fn not_found(kind: &str, name: &str) -> QmpError {
    QmpError::generic(format!("Property '{kind}.{name}' not found"))
}

/// Where a property is. Unlike a listing's, an empty path is one that nothing has.
fn find_owner(daemon: &Daemon, path: &str) -> Result<Place, QmpError> {
    if path.is_empty() {
        return Err(no_device(path));
    }
    find(daemon, path)
}

fn no_device(path: &str) -> QmpError {
    QmpError::new(ErrorClass::DeviceNotFound, format!("Device '{path}' not found"))
}

pub(super) async fn get(daemon: Daemon, arguments: QomGet) -> Result<Value, QmpError> {
    let QomGet { path, property } = arguments;
    let name = property.as_str();
    match find_owner(&daemon, &path)? {
        Place::Object(object) => {
            object::get(&*object, name).ok_or_else(|| match object::has(&*object, name) {
                true => QmpError::generic(format!("Property '{}.{name}' is not readable", object.kind())),
                false => not_found(object.kind(), name),
            })
        }
        Place::Root | Place::Container(_) if name == "type" => Ok("container".into()),
        place if is_child(&daemon, &place, name) => {
            Ok(format!("{}/{name}", path.trim_end_matches('/')).into())
        }
        _ => Err(not_found("container", name)),
    }
}

/// All properties of each object, as they are listed, with the values that one could get.
pub(super) async fn list_get(
    daemon: Daemon,
    arguments: QomListGet,
) -> Result<Vec<ObjectPropertiesValues>, QmpError> {
    let mut objects = Vec::new();
    for path in arguments.paths {
        let listed = list(daemon.clone(), QomList { path: path.clone() }).await?;
        let mut properties = Vec::new();
        for ObjectPropertyInfo { name, kind, .. } in listed {
            let (path, property) = (path.clone(), name.clone());
            let value = get(daemon.clone(), QomGet { path, property }).await.ok();
            properties.push(ObjectPropertyValue { name, kind, value });
        }
        objects.push(ObjectPropertiesValues { properties });
    }
    Ok(objects)
}

pub(super) async fn set(daemon: Daemon, arguments: QomSet) -> Result<(), QmpError> {
    let QomSet {
        path,
        property,
        value,
    } = arguments;
    let place = find_owner(&daemon, &path)?;
    let Place::Object(object) = place else {
        return Err(if property == "type" || is_child(&daemon, &place, &property) {
            QmpError::generic(format!("Property 'container.{property}' is not writable"))
        } else {
            not_found("container", &property)
        });
    };
    let changed = object::with(&*object, &property, &value)?;
    changed.change(daemon.site()).await?;
    if daemon.objects(|objects| objects.replace(&changed)) {
        return Ok(());
    }
    // It was removed while the change waited, and must not be in force again.
    changed.end(daemon.site()).await?;
    Err(no_device(&path))
}

pub(super) async fn list_types(_: Daemon, arguments: QomListTypes) -> Result<Vec<ObjectTypeInfo>, QmpError> {
    let implements = arguments.implements.as_deref().unwrap_or("object");
    let with_abstract = arguments.is_abstract == Some(true);
    let types =
        types().filter(|(name, is_abstract, _)| (with_abstract || !is_abstract) && derives(name, implements));
    Ok(types
        .map(|(name, is_abstract, parent)| ObjectTypeInfo {
            name: name.into(),
            is_abstract: is_abstract.then_some(true),
            parent: parent.map(Into::into),
        })
        .collect())
}

/// Whether `name` is `ancestor` or comes from it.
fn derives(name: &str, ancestor: &str) -> bool {
    let is_creatable = || name == LOOP || object::find_kind(name).is_some();
    if name == ancestor || (ancestor == "user-creatable" && is_creatable()) {
        return true;
    }
    // Interfaces are listed among all types though they derive from no object.
    let parent = types()
        .find(|(known, ..)| *known == name)
        .and_then(|(.., parent)| parent);
    match parent {
        Some(parent) => derives(parent, ancestor),
        None => ancestor == "object",
    }
}

pub(super) async fn list_properties(
    _: Daemon,
    arguments: QomListProperties,
) -> Result<Vec<ObjectPropertyInfo>, QmpError> {
    let kind = arguments.typename;
    if !types().any(|(known, ..)| known == kind) {
        let error = format!("Class '{kind}' not found");
        return Err(QmpError::new(ErrorClass::DeviceNotFound, error));
    }
    Ok(of_type(&kind))
}
