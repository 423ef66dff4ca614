//! User objects: made and removed.

use crate::daemon::{Daemon, UserObject};
use millpond_messages::graph::{AddIothread, DelIothread};
use millpond_messages::qapi::schema::{ObjectDel, ObjectOptions};
use millpond_messages::qapi::{QmpError, check_identifier};

pub(crate) async fn add(daemon: Daemon, options: ObjectOptions) -> Result<(), QmpError> {
    check_identifier(options.id())?;
    let object = UserObject::from_options(options.0)?;
    daemon.objects(|objects| objects.may_add(&object))?;
    match &object {
        UserObject::Iothread(iothread) => {
            daemon.graph(AddIothread(iothread.clone())).await?;
        }
        UserObject::ThrottleGroup(group) => {
            let added = daemon.throttle_groups().add(&group.id, group.limits);
            added?;
        }
        UserObject::Chaos(chaos) => daemon.set_chaos(Some(chaos.chaos.clone())).await,
        UserObject::MainLoop(_) => {}
    }
    daemon.objects(|objects| objects.put(object));
    Ok(())
}

pub(super) async fn delete(daemon: Daemon, ObjectDel { id }: ObjectDel) -> Result<(), QmpError> {
    let id = id.as_str();
    let object = daemon.objects(|objects| objects.find(id).cloned());
    let object = object.ok_or_else(|| QmpError::generic(format!("object '{id}' not found")))?;
    match object {
        UserObject::Iothread(_) => {
            daemon.graph(DelIothread { id: id.to_owned() }).await?;
        }
        UserObject::ThrottleGroup(_) => {
            let removed = daemon.throttle_groups().remove(id);
            removed?;
        }
        UserObject::Chaos(_) => daemon.set_chaos(None).await,
        UserObject::MainLoop(_) => {
            // The main loop runs as long as the daemon does.
            let text = format!("object '{id}' is in use, can not be deleted");
            return Err(QmpError::generic(text));
        }
    }
    daemon.objects(|objects| objects.remove(id));
    Ok(())
}
