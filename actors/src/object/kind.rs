//! What a kind of object is, and what its objects answer.

use std::fmt::Debug;
use std::rc::Rc;

use futures_util::future::LocalBoxFuture;
use millpond_drivers::filter::throttle::Groups;
use millpond_drivers::secret::Secrets;
use millpond_messages::qapi::schema::MonitorOptions;
use millpond_messages::qapi::{Object, QmpError};
use serde_json::Value;

use crate::graph::GraphHandle;
use crate::tls::TlsRegistry;

/// A kind of object.
pub(crate) struct Kind {
    /// What users call the type.
    pub(crate) name: &'static str,
    /// The type that it is derived from.
    pub(crate) parent: &'static str,
    /// The properties by name and type, in the order in which they are listed, besides the type itself.
    pub(crate) properties: &'static [(&'static str, &'static str)],
    /// What is printed by `--object TYPE,help`, if more than the properties.
    pub(crate) help: Option<&'static str>,
    /// There may be only one.
    pub(super) is_single: bool,
    /// Makes one from the checked arguments of `object-add`.
    pub(super) make: fn(Object) -> Result<Rc<dyn UserObject>, QmpError>,
}

/// Where objects have their effect.
#[derive(Clone)]
pub(crate) struct Site {
    pub(crate) graph: GraphHandle,
    pub(crate) throttle_groups: Groups,
    pub(crate) secrets: Secrets,
    pub(crate) tls: TlsRegistry,
}

/// What an object does to its site.
pub(crate) type Effect<'a> = LocalBoxFuture<'a, Result<(), QmpError>>;

/// An object that a user made.
pub(crate) trait UserObject: Debug {
    /// The name of its type.
    fn kind(&self) -> &'static str;

    /// Its id, which its user chose.
    fn id(&self) -> &str;

    /// The value of one of the properties of its kind.
    fn get(&self, property: &str) -> Option<Value>;

    /// The object with one of the properties of its kind changed.
    ///
    /// # Errors
    /// The property cannot be changed, or the value does not fit.
    fn with(&self, property: &str, value: &Value) -> Result<Rc<dyn UserObject>, QmpError>;

    /// The arguments of `object-add` that make it anew, besides type and id.
    fn options(&self) -> Object;

    /// The monitor that it is, if it is one: whoever carries commands out opens and ends it.
    fn monitor(&self) -> Option<ObjectMonitor> {
        None
    }

    /// Puts it in force.
    fn begin<'a>(&'a self, site: &'a Site) -> Effect<'a>;

    /// Puts it in force in the place of one that had other values of its properties.
    fn change<'a>(&'a self, site: &'a Site) -> Effect<'a>;

    /// Takes it out of force.
    fn end<'a>(&'a self, site: &'a Site) -> Effect<'a>;
}

/// A monitor that is an object.
pub(crate) struct ObjectMonitor {
    pub(crate) options: MonitorOptions,
    /// The object is removed when its client goes.
    pub(crate) goes_with_client: bool,
}

/// Does what may wait for a disk, on a thread that nobody waits for.
///
/// # Errors
/// Those of `work`.
pub(super) async fn aside<T: Send + 'static>(
    work: impl FnOnce() -> millpond_messages::Result<T> + Send + 'static,
) -> Result<T, QmpError> {
    let done = tokio::task::spawn_blocking(work).await;
    Ok(done.map_err(|error| QmpError::generic(error.to_string()))??)
}

/// The error for a property that is given a value of another type.
pub(super) fn wrong_type(property: &str, expected: &str) -> QmpError {
    let text = format!("Invalid parameter type for '{property}', expected: {expected}");
    QmpError::generic(text)
}
