//! The object `monitor-qmp`: a monitor on a character device, made and removed while the daemon runs.

use std::rc::Rc;

use futures_util::FutureExt;
use futures_util::future::ready;
use millpond_messages::qapi::schema::{MonitorCloseAction, MonitorOptions};
use millpond_messages::qapi::{Object, QmpError};
use serde_json::Value;

use super::kind::{Effect, Kind, ObjectMonitor, Site, UserObject};

const CHARDEV: &str = "chardev";
const PRETTY: &str = "pretty";
const CLOSE_ACTION: &str = "close-action";

pub(super) const KIND: Kind = Kind {
    name: "monitor-qmp",
    parent: "object",
    properties: &[
        (CHARDEV, "str"),
        (CLOSE_ACTION, "MonitorCloseAction"),
        (PRETTY, "bool"),
    ],
    help: None,
    is_single: false,
    make: |options| Ok(Rc::new(MonitorQmp::from_options(&options)?)),
};

/// A monitor, as an object of the daemon.
#[derive(Clone, Debug)]
struct MonitorQmp {
    /// The object's id, which its user chose.
    id: String,
    chardev: String,
    pretty: bool,
    close_action: MonitorCloseAction,
}

impl MonitorQmp {
    /// Makes one from the checked arguments of `object-add`.
    fn from_options(options: &Object) -> Result<Self, QmpError> {
        let text = |name: &str| options.get(name).and_then(Value::as_str).unwrap_or_default();
        let action = options.get(CLOSE_ACTION).cloned();
        let action = action.map(serde_json::from_value).transpose();
        Ok(Self {
            id: text("id").to_owned(),
            chardev: text(CHARDEV).to_owned(),
            pretty: options.get(PRETTY).and_then(Value::as_bool).unwrap_or(false),
            close_action: action
                .map_err(|error| QmpError::generic(error.to_string()))?
                .unwrap_or_default(),
        })
    }
}

impl UserObject for MonitorQmp {
    fn kind(&self) -> &'static str {
        KIND.name
    }

    fn id(&self) -> &str {
        &self.id
    }

    fn get(&self, property: &str) -> Option<Value> {
        match property {
            CHARDEV => Some(self.chardev.clone().into()),
            PRETTY => Some(self.pretty.into()),
            CLOSE_ACTION => serde_json::to_value(self.close_action).ok(),
            _ => None,
        }
    }

    /// A monitor stays as it was made: its client may be talking.
    fn with(&self, property: &str, _: &Value) -> Result<Rc<dyn UserObject>, QmpError> {
        let text = format!("Property '{}.{property}' is not writable", KIND.name);
        Err(QmpError::generic(text))
    }

    fn options(&self) -> Object {
        let names = [CHARDEV, PRETTY, CLOSE_ACTION];
        let given = names.map(|name| (name.to_owned(), self.get(name).unwrap_or_default()));
        given.into_iter().collect()
    }

    fn monitor(&self) -> Option<ObjectMonitor> {
        Some(ObjectMonitor {
            options: MonitorOptions {
                pretty: self.pretty,
                ..MonitorOptions::on(&self.chardev)
            },
            goes_with_client: self.close_action == MonitorCloseAction::Delete,
        })
    }

    fn begin<'a>(&'a self, _: &'a Site) -> Effect<'a> {
        ready(Ok(())).boxed_local()
    }

    fn change<'a>(&'a self, _: &'a Site) -> Effect<'a> {
        ready(Ok(())).boxed_local()
    }

    fn end<'a>(&'a self, _: &'a Site) -> Effect<'a> {
        ready(Ok(())).boxed_local()
    }
}
