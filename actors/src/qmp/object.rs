//! User objects: made and removed.

use crate::daemon::Daemon;
use crate::object;
use millpond_messages::qapi::schema::{ObjectDel, ObjectOptions};
use millpond_messages::qapi::{QmpError, check_identifier};

pub(crate) async fn add(daemon: Daemon, options: ObjectOptions) -> Result<(), QmpError> {
    check_identifier(options.id())?;
    let object = object::make(options.0)?;
    daemon.objects(|objects| objects.may_add(&*object))?;
    object.begin(daemon.site()).await?;
    daemon.objects(|objects| objects.put(object));
    Ok(())
}

pub(super) async fn delete(daemon: Daemon, ObjectDel { id }: ObjectDel) -> Result<(), QmpError> {
    let object = daemon.objects(|objects| objects.find(&id).cloned());
    let object = object.ok_or_else(|| QmpError::generic(format!("object '{id}' not found")))?;
    object.end(daemon.site()).await?;
    daemon.objects(|objects| objects.remove(&id));
    Ok(())
}
