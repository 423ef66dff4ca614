//! User objects: made and removed.

use crate::daemon::Daemon;
use crate::object::{self, ObjectMonitor, UserObject};
use crate::qmp::Commands;
use millpond_messages::qapi::schema::{ObjectDel, ObjectOptions};
use millpond_messages::qapi::{QmpError, check_identifier};

pub(crate) async fn add(daemon: Daemon, options: ObjectOptions) -> Result<(), QmpError> {
    check_identifier(options.id())?;
    let object = object::make(options.0)?;
    daemon.objects(|objects| objects.announce(&object))?;
    let begun = begin(&daemon, &*object).await;
    daemon.objects(|objects| objects.settle(object, begun.is_ok()));
    begun
}

/// Puts an object in force.
async fn begin(daemon: &Daemon, object: &dyn UserObject) -> Result<(), QmpError> {
    object.begin(daemon.site()).await?;
    match object.monitor() {
        Some(monitor) => open_monitor(daemon, object.id(), &monitor),
        None => Ok(()),
    }
}

/// Opens the monitor that an object is.
fn open_monitor(daemon: &Daemon, id: &str, monitor: &ObjectMonitor) -> Result<(), QmpError> {
    let daemon = daemon.through(id);
    let commands = Commands::of(&daemon);
    let gone = monitor.goes_with_client.then(|| {
        let (daemon, id) = (daemon.clone(), id.to_owned());
        let remove = move || {
            actix_rt::spawn(async move {
                // Its user may have removed it just now.
                let _ = delete(daemon, ObjectDel { id }).await;
            });
        };
        Box::new(remove) as Box<dyn FnOnce()>
    });
    daemon.add_object_monitor(id, &monitor.options, commands, gone)
}

pub(super) async fn delete(daemon: Daemon, ObjectDel { id }: ObjectDel) -> Result<(), QmpError> {
    let object = daemon.objects(|objects| objects.find(&id).cloned());
    let object = object.ok_or_else(|| QmpError::generic(format!("object '{id}' not found")))?;
    object.end(daemon.site()).await?;
    daemon.end_object_monitor(&id).await;
    daemon.objects(|objects| objects.remove(&id));
    Ok(())
}
