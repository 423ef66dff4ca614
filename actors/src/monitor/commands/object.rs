//! User objects: made and removed.

use super::{Reply, done, text};
use crate::daemon::{Daemon, UserObject};
use crate::monitor::chardev::{NO_IDENTIFIER, is_identifier};
use messages::global_state::GraphRequest;
use messages::qapi::{Object, QmpError};

pub(super) async fn add(daemon: Daemon, arguments: Object) -> Reply {
    if !is_identifier(text(&arguments, "id")) {
        return Err(QmpError::generic(NO_IDENTIFIER));
    }
    let object = UserObject::from_options(arguments)?;
    daemon.objects(|objects| objects.may_add(&object))?;
    if let UserObject::Iothread(iothread) = &object {
        daemon.graph(GraphRequest::AddIothread(iothread.clone())).await?;
    }
    if let UserObject::Chaos(chaos) = &object {
        daemon.set_chaos(Some(chaos.chaos.clone())).await?;
    }
    daemon.objects(|objects| objects.put(object));
    Ok(done())
}

pub(super) async fn delete(daemon: Daemon, arguments: Object) -> Reply {
    let id = text(&arguments, "id");
    let object = daemon.objects(|objects| objects.find(id).cloned());
    let object = object.ok_or_else(|| QmpError::generic(format!("object '{id}' not found")))?;
    if let UserObject::Iothread(_) = object {
        daemon
            .graph(GraphRequest::DelIothread { id: id.to_owned() })
            .await?;
    }
    if let UserObject::Chaos(_) = object {
        daemon.set_chaos(None).await?;
    }
    daemon.objects(|objects| objects.remove(id));
    Ok(done())
}
