//! Character devices by their ids, and the monitors on them.

use super::Daemon;
use crate::monitor::chardev::{Backend, Chardev, ChardevOptions};
use crate::monitor::{Dispatch, Finish, Monitor};
use actix::Actor;
use millpond_messages::qapi::QmpError;
use millpond_messages::qapi::schema::{ChardevInfo, MonitorMode, MonitorOptions};
use std::rc::Rc;

/// The character devices there are, in the order in which they were made.
#[derive(Default)]
pub(super) struct Chardevs {
    devices: Vec<Slot>,
}

struct Slot {
    options: ChardevOptions,
    /// Gone to its monitor, if it has one.
    device: Option<Chardev>,
}

/// The error for a character device with the id of another.
fn duplicate(new: &ChardevOptions, old: &ChardevOptions) -> QmpError {
    if let (Backend::Socket(_), Backend::Socket(_)) = (&new.backend, &old.backend) {
        return QmpError::generic("duplicate yank instance");
    }
    let id = &new.id;
    QmpError::generic(format!(
        "attempt to add duplicate property '{id}' to object (type 'container')"
    ))
}

impl Daemon {
    /// Makes a character device; `waiting` is told where if it waits for its first client.
    ///
    /// # Errors
    /// QEMU's text for what went wrong.
    pub async fn add_chardev(
        &self,
        options: ChardevOptions,
        waiting: impl FnOnce(String),
    ) -> Result<(), QmpError> {
        {
            let chardevs = self.parts.chardevs.borrow();
            let is_stdio = |slot: &Slot| slot.options.backend == Backend::Stdio;
            if options.backend == Backend::Stdio && chardevs.devices.iter().any(is_stdio) {
                return Err(QmpError::generic(
                    "cannot use stdio by multiple character devices",
                ));
            }
            let mut devices = chardevs.devices.iter();
            if let Some(other) = devices.find(|slot| slot.options.id == options.id) {
                return Err(duplicate(&options, &other.options));
            }
        }
        let device = Chardev::open(&options, waiting)
            .await
            .map_err(QmpError::generic)?;
        self.parts.chardevs.borrow_mut().devices.push(Slot {
            options,
            device: Some(device),
        });
        Ok(())
    }

    /// Makes a monitor whose commands `dispatch` carries out, from the checked values of `--monitor`. It greets nobody before [`Daemon::open_monitors`]: a
    /// client that is greeted may count on all that the command line makes.
    ///
    /// # Errors
    /// QEMU's text for what went wrong.
    pub fn add_monitor(&self, options: &MonitorOptions, dispatch: Rc<dyn Dispatch>) -> Result<(), QmpError> {
        let label = options.chardev.as_str();
        let mut chardevs = self.parts.chardevs.borrow_mut();
        let Some(slot) = chardevs.devices.iter_mut().find(|slot| slot.options.id == label) else {
            return Err(QmpError::generic(format!("chardev \"{label}\" not found")));
        };
        if options.mode == Some(MonitorMode::Readline) {
            return Err(QmpError::generic("Only QMP is supported"));
        }
        let Some(device) = slot.device.take() else {
            return Err(QmpError::generic(format!("chardev '{label}' is already in use")));
        };
        let monitor = Monitor::new(device, dispatch, self.events().clone(), options.pretty);
        self.parts.waiting_monitors.borrow_mut().push(monitor);
        Ok(())
    }

    /// Lets the monitors made so far take clients.
    pub fn open_monitors(&self) {
        let opened = self.parts.waiting_monitors.take().into_iter().map(Actor::start);
        self.parts.monitors.borrow_mut().extend(opened);
    }

    /// The reply of `query-chardev`.
    pub(crate) fn describe_chardevs(&self) -> Vec<ChardevInfo> {
        let chardevs = self.parts.chardevs.borrow();
        let describe = |slot: &Slot| ChardevInfo {
            label: slot.options.id.clone(),
            filename: slot.options.backend.to_string(),
            frontend_open: slot.device.is_none(),
        };
        chardevs.devices.iter().map(describe).collect()
    }

    /// Ends all monitors, after they have sent what they owe.
    pub(super) async fn finish_monitors(&self) {
        let monitors = self.parts.monitors.take();
        let endings = monitors.iter().map(|monitor| monitor.send(Finish));
        // One that has already ended cannot be asked, and need not.
        futures_util::future::join_all(endings).await;
    }
}
