//! The object `iothread`: a thread that runs nodes.

use std::rc::Rc;

use futures_util::FutureExt;
use millpond_messages::graph::{AddIothread, DelIothread, IothreadOptions, Request, TuneIothread};
use millpond_messages::qapi::{Object, QmpError};
use serde_json::Value;

use super::event_loop;
use super::kind::{Effect, Kind, Site, UserObject};

/// Not one of QEMU's: the processors that the thread may run on.
const CPU_AFFINITY: &str = "x-millpond-cpu-affinity";

pub(super) const KIND: Kind = Kind {
    name: "iothread",
    parent: event_loop::PARENT,
    properties: &[
        ("thread-pool-min", "int"),
        ("aio-max-batch", "int"),
        ("thread-pool-max", "int"),
        ("poll-max-ns", "int"),
        ("poll-grow", "int"),
        ("poll-shrink", "int"),
        (CPU_AFFINITY, "list"),
    ],
    help: None,
    is_single: false,
    make: |options| checked(event_loop::from_options(options)?),
};

/// An iothread, by its options.
#[derive(Debug)]
struct Iothread(IothreadOptions);

fn checked(options: IothreadOptions) -> Result<Rc<dyn UserObject>, QmpError> {
    event_loop::check_pool(options.thread_pool_min, options.thread_pool_max)?;
    Ok(Rc::new(Iothread(options)))
}

impl UserObject for Iothread {
    fn kind(&self) -> &'static str {
        KIND.name
    }

    fn id(&self) -> &str {
        &self.0.id
    }

    fn get(&self, property: &str) -> Option<Value> {
        // Left out when it is empty.
        let missing = (property == CPU_AFFINITY).then(|| Value::Array(Vec::new()));
        event_loop::members(&self.0).shift_remove(property).or(missing)
    }

    fn with(&self, property: &str, value: &Value) -> Result<Rc<dyn UserObject>, QmpError> {
        if property == CPU_AFFINITY {
            let text =
                format!("Property 'iothread.{property}' cannot be changed: a thread keeps its processors");
            return Err(QmpError::generic(text));
        }
        checked(event_loop::with(&self.0, property, value)?)
    }

    fn options(&self) -> Object {
        let mut options = event_loop::members(&self.0);
        options.shift_remove("id");
        options
    }

    fn begin<'a>(&'a self, site: &'a Site) -> Effect<'a> {
        mutate(site, AddIothread(self.0.clone()))
    }

    fn change<'a>(&'a self, site: &'a Site) -> Effect<'a> {
        mutate(site, TuneIothread(self.0.clone()))
    }

    fn end<'a>(&'a self, site: &'a Site) -> Effect<'a> {
        let id = self.0.id.clone();
        mutate(site, DelIothread { id })
    }
}

fn mutate<R: Request + 'static>(site: &Site, request: R) -> Effect<'_> {
    async move {
        site.graph.ask(request).await?;
        Ok(())
    }
    .boxed_local()
}
