//! The monitors there are, those of the command line and those that are objects.

use std::rc::Rc;

use actix::{Actor, Addr};
use millpond_messages::qapi::QmpError;
use millpond_messages::qapi::schema::MonitorOptions;

use super::Daemon;
use crate::monitor::{Dispatch, Finish, Monitor};

/// The monitors there are, each with the object that it is, if it is one.
#[derive(Default)]
pub(super) struct Monitors {
    /// Those that greet nobody yet.
    waiting: Vec<(Option<String>, Monitor)>,
    open: Vec<(Option<String>, Addr<Monitor>)>,
    /// What is made from now on greets at once.
    are_open: bool,
}

impl Monitors {
    fn add(&mut self, object: Option<String>, monitor: Monitor) {
        match self.are_open {
            true => self.open.push((object, monitor.start())),
            false => self.waiting.push((object, monitor)),
        }
    }

    /// Takes the monitor that is an object out; one that has greeted nobody is gone with that.
    fn take(&mut self, object: &str) -> Option<Addr<Monitor>> {
        let is_it = |name: &Option<String>| name.as_deref() == Some(object);
        self.waiting.retain(|(name, _)| !is_it(name));
        let place = self.open.iter().position(|(name, _)| is_it(name))?;
        Some(self.open.swap_remove(place).1)
    }
}

impl Daemon {
    /// Makes a monitor whose commands `dispatch` carries out, from the checked values of `--monitor`. It greets nobody before
    /// [`Daemon::open_monitors`]: a client that is greeted may count on all that the command line makes.
    ///
    /// # Errors
    /// QEMU's text for what went wrong.
    pub fn add_monitor(&self, options: &MonitorOptions, dispatch: Rc<dyn Dispatch>) -> Result<(), QmpError> {
        let monitor = self.make_monitor(options, dispatch)?;
        self.parts.monitors.borrow_mut().add(None, monitor);
        Ok(())
    }

    /// Makes the monitor that is the object `id`; one for a single client calls `gone` when that has gone.
    ///
    /// # Errors
    /// The device is missing or in use.
    pub(crate) fn add_object_monitor(
        &self,
        id: &str,
        options: &MonitorOptions,
        dispatch: Rc<dyn Dispatch>,
        gone: Option<Box<dyn FnOnce()>>,
    ) -> Result<(), QmpError> {
        let mut monitor = self.make_monitor(options, dispatch)?;
        if let Some(gone) = gone {
            monitor = monitor.for_one_client(gone);
        }
        self.parts.monitors.borrow_mut().add(Some(id.to_owned()), monitor);
        Ok(())
    }

    /// Ends the monitor that is the object `id`, if it is one: its device is free then. One whose own client has asked for that
    /// ends once that has its answer.
    pub(crate) async fn end_object_monitor(&self, id: &str) {
        let monitor = self.parts.monitors.borrow_mut().take(id);
        let Some(monitor) = monitor else { return };
        match self.through.as_deref() == Some(id) {
            true => monitor.do_send(Finish),
            // One that has already ended cannot be asked, and need not.
            false => drop(monitor.send(Finish).await),
        }
    }

    /// Lets the monitors made so far take clients, and those to come at once.
    pub fn open_monitors(&self) {
        let mut monitors = self.parts.monitors.borrow_mut();
        monitors.are_open = true;
        for (object, monitor) in std::mem::take(&mut monitors.waiting) {
            monitors.add(object, monitor);
        }
    }

    /// Ends all monitors, after they have sent what they owe.
    pub(super) async fn end_monitors(&self) {
        let monitors = std::mem::take(&mut self.parts.monitors.borrow_mut().open);
        let endings = monitors.iter().map(|(_, monitor)| monitor.send(Finish));
        // One that has already ended cannot be asked, and need not.
        futures_util::future::join_all(endings).await;
    }
}
