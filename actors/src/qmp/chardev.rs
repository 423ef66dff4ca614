//! Character devices: made, changed, removed, shown, and those that are memory.

use crate::daemon::Daemon;
use crate::monitor::chardev::BACKENDS;
use millpond_messages::qapi::QmpError;
use millpond_messages::qapi::schema::{
    ChardevAdd, ChardevBackendInfo, ChardevChange, ChardevInfo, ChardevRemove, ChardevReturn,
    ChardevSendBreak, QueryChardev, QueryChardevBackends, RingbufRead, RingbufWrite,
};

pub(super) async fn query(daemon: Daemon, _: QueryChardev) -> Result<Vec<ChardevInfo>, QmpError> {
    Ok(daemon.describe_chardevs())
}

pub(super) async fn backends(
    _: Daemon,
    _: QueryChardevBackends,
) -> Result<Vec<ChardevBackendInfo>, QmpError> {
    let names = BACKENDS.iter();
    Ok(names
        .map(|name| ChardevBackendInfo {
            name: (*name).to_owned(),
        })
        .collect())
}

pub(super) async fn add(daemon: Daemon, asked: ChardevAdd) -> Result<ChardevReturn, QmpError> {
    daemon.chardev_add(asked.id, asked.backend).await
}

pub(super) async fn change(daemon: Daemon, asked: ChardevChange) -> Result<ChardevReturn, QmpError> {
    daemon.chardev_change(asked.id, asked.backend).await
}

pub(super) async fn remove(daemon: Daemon, asked: ChardevRemove) -> Result<(), QmpError> {
    daemon.chardev_remove(&asked.id).await
}

pub(super) async fn send_break(daemon: Daemon, asked: ChardevSendBreak) -> Result<(), QmpError> {
    daemon.chardev_break(&asked.id)
}

pub(super) async fn ringbuf_read(daemon: Daemon, asked: RingbufRead) -> Result<String, QmpError> {
    daemon.ringbuf_read(&asked.device, asked.size, asked.format)
}

pub(super) async fn ringbuf_write(daemon: Daemon, asked: RingbufWrite) -> Result<(), QmpError> {
    daemon.ringbuf_write(&asked.device, &asked.data, asked.format)
}
