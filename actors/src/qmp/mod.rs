//! What clients of a monitor can ask for: one row for each command, in a file for each topic.
//!
//! This stands above the daemon and everything in it. A monitor knows no command: it is handed [`Commands`].

mod control;
mod export;
mod graph;
mod job;
mod object;
mod qom;
mod transaction;

use crate::daemon::Daemon;
use crate::monitor::Dispatch;
use futures_util::future::LocalBoxFuture;
use millpond_messages::qapi::schema::COMMANDS;
use millpond_messages::qapi::{ErrorClass, Object, QmpError};
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use std::rc::Rc;

/// What a command answers.
type Reply = Result<Value, QmpError>;
type Handler = fn(Daemon, Object) -> LocalBoxFuture<'static, Reply>;

macro_rules! table {
    ($($name:literal => $handler:path,)*) => {
        &[$(($name, |daemon, arguments| Box::pin($handler(daemon, arguments)))),*]
    };
}

const TABLE: &[(&str, Handler)] = table! {
    "block-export-add" => export::add,
    "block-export-del" => export::delete,
    "block_resize" => graph::resize,
    "blockdev-add" => graph::add,
    "blockdev-create" => graph::create,
    "blockdev-del" => graph::delete,
    "blockdev-reopen" => graph::reopen,
    "blockdev-set-active" => graph::set_active,
    "blockdev-snapshot" => graph::snapshot,
    "change-backing-file" => graph::change_backing_file,
    "job-cancel" => job::cancel,
    "job-complete" => job::complete,
    "job-dismiss" => job::dismiss,
    "job-finalize" => job::finalize,
    "job-pause" => job::pause,
    "job-resume" => job::resume,
    "nbd-server-add" => export::server_add,
    "nbd-server-remove" => export::server_remove,
    "nbd-server-start" => export::server_start,
    "nbd-server-stop" => export::server_stop,
    "object-add" => object::add,
    "object-del" => object::delete,
    "qom-get" => qom::get,
    "qom-list" => qom::list,
    "qom-list-properties" => qom::list_properties,
    "qom-list-types" => qom::list_types,
    "qom-set" => qom::set,
    "query-block-exports" => export::query,
    "query-block" => control::nothing,
    "query-block-jobs" => control::nothing,
    "query-blockstats" => graph::query_statistics,
    "query-chardev" => control::chardevs,
    "query-chardev-backends" => control::chardev_backends,
    "query-commands" => control::commands,
    "query-jobs" => job::query,
    "query-named-block-nodes" => graph::query_nodes,
    "query-qmp-schema" => control::schema,
    "query-version" => control::version,
    "quit" => control::quit,
    "transaction" => transaction::run,
    "x-blockdev-amend" => graph::amend,
    "x-blockdev-change" => graph::change_children,
    "x-blockdev-set-iothread" => graph::set_iothread,
    "x-debug-query-block-graph" => graph::query_graph,
    "x-millpond-check" => graph::check,
    "x-millpond-flight-record" => control::flight_record,
    "x-millpond-latency-histogram-set" => graph::set_histograms,
    "x-millpond-log-reopen" => control::reopen_log,
    "x-millpond-move-node" => graph::move_node,
    "x-millpond-query-dot" => graph::query_dot,
    "x-millpond-query-drains" => graph::query_drains,
    "x-millpond-query-iothreads" => graph::query_iothreads,
    "x-millpond-truncate" => graph::truncate,
};

/// The commands of a daemon, as a monitor needs them.
pub struct Commands {
    daemon: Daemon,
    names: Vec<&'static str>,
}

impl Commands {
    /// The commands that `daemon` carries out.
    pub fn of(daemon: &Daemon) -> Rc<Self> {
        Rc::new(Self {
            daemon: daemon.clone(),
            names: names(),
        })
    }
}

impl Dispatch for Commands {
    fn commands(&self) -> &[&'static str] {
        &self.names
    }

    fn extra_drivers(&self) -> &[String] {
        self.daemon.extra_drivers()
    }

    fn dispatch(&self, command: &str, arguments: Object) -> LocalBoxFuture<'static, Result<Value, QmpError>> {
        let daemon = self.daemon.clone();
        let command = command.to_owned();
        Box::pin(async move { run(&daemon, &command, arguments).await })
    }
}

/// The commands there are, the one that the session carries out itself included, in the schema's order.
fn names() -> Vec<&'static str> {
    let served = |name: &str| name == "qmp_capabilities" || TABLE.iter().any(|(known, _)| *known == name);
    COMMANDS
        .iter()
        .map(|command| command.name)
        .filter(|name| served(name))
        .collect()
}

/// Carries out a command whose arguments were checked.
///
/// # Errors
/// Why it cannot be done.
pub async fn run(daemon: &Daemon, command: &str, arguments: Object) -> Reply {
    match TABLE.iter().find(|(name, _)| *name == command) {
        Some((_, handler)) => handler(daemon.clone(), arguments).await,
        None => {
            let text = format!("The command {command} has not been found");
            Err(QmpError::new(ErrorClass::CommandNotFound, text))
        }
    }
}

/// The reply of commands that have nothing to say.
fn done() -> Value {
    json!({})
}

/// The arguments as a type.
fn arguments<T: DeserializeOwned>(arguments: Object) -> Result<T, QmpError> {
    serde_json::from_value(Value::Object(arguments)).map_err(|error| QmpError::generic(error.to_string()))
}

/// An argument that is text; empty if left out.
fn text<'a>(arguments: &'a Object, name: &str) -> &'a str {
    arguments.get(name).and_then(Value::as_str).unwrap_or_default()
}

/// An argument that is a truth value; false if left out.
fn flag(arguments: &Object, name: &str) -> bool {
    arguments.get(name).and_then(Value::as_bool).unwrap_or(false)
}
