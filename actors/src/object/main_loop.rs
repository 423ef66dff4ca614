//! The object `main-loop`: the tuning of the main loop.

use std::rc::Rc;

use futures_util::FutureExt;
use futures_util::future::ready;
use millpond_messages::qapi::{Object, QmpError};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::event_loop;
use super::kind::{Effect, Kind, Site, UserObject};

pub(super) const KIND: Kind = Kind {
    name: "main-loop",
    parent: event_loop::PARENT,
    properties: &[
        ("thread-pool-min", "int"),
        ("aio-max-batch", "int"),
        ("thread-pool-max", "int"),
    ],
    help: None,
    is_single: true,
    make: |options| checked(event_loop::from_options(options)?),
};

/// The tuning of the main loop.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
struct MainLoop {
    /// The object's id, which its user chose.
    id: String,
    /// The most requests in one batch; 0 chooses.
    #[serde(default)]
    aio_max_batch: i64,
    /// Threads of the pool kept when idle.
    #[serde(default)]
    thread_pool_min: i64,
    /// The most threads of the pool.
    #[serde(default = "default_pool_max")]
    thread_pool_max: i64,
}

fn default_pool_max() -> i64 {
    64
}

fn checked(main_loop: MainLoop) -> Result<Rc<dyn UserObject>, QmpError> {
    event_loop::check_pool(main_loop.thread_pool_min, main_loop.thread_pool_max)?;
    Ok(Rc::new(main_loop))
}

impl UserObject for MainLoop {
    fn kind(&self) -> &'static str {
        KIND.name
    }

    fn id(&self) -> &str {
        &self.id
    }

    fn get(&self, property: &str) -> Option<Value> {
        event_loop::members(self).shift_remove(property)
    }

    fn with(&self, property: &str, value: &Value) -> Result<Rc<dyn UserObject>, QmpError> {
        checked(event_loop::with(self, property, value)?)
    }

    fn options(&self) -> Object {
        let mut options = event_loop::members(self);
        options.shift_remove("id");
        options
    }

    fn begin<'a>(&'a self, _: &'a Site) -> Effect<'a> {
        ready(Ok(())).boxed_local()
    }

    fn change<'a>(&'a self, _: &'a Site) -> Effect<'a> {
        ready(Ok(())).boxed_local()
    }

    fn end<'a>(&'a self, _: &'a Site) -> Effect<'a> {
        // The main loop runs as long as the daemon does.
        let text = format!("object '{}' is in use, can not be deleted", self.id);
        ready(Err(QmpError::generic(text))).boxed_local()
    }
}
