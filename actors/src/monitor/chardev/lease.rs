//! Who has a character device: its user, or nobody.

use std::cell::RefCell;
use std::rc::Rc;

use super::connection::Connection;
use super::open::Chardev;

/// Where a device is while nobody uses it. Clones are the same place.
#[derive(Clone)]
pub struct Shelf(Rc<RefCell<Option<Chardev>>>);

/// A device in its user's hands. It goes back to its shelf when it is dropped.
pub struct Lease {
    /// There until the lease is dropped.
    device: Option<Chardev>,
    shelf: Option<Shelf>,
}

impl Shelf {
    /// The place of a device, with the device in it.
    pub fn of(device: Chardev) -> Self {
        Self(Rc::new(RefCell::new(Some(device))))
    }

    /// The device, unless somebody uses it.
    pub fn take(&self) -> Option<Lease> {
        let device = self.0.borrow_mut().take();
        device.map(|device| Lease {
            device: Some(device),
            shelf: Some(self.clone()),
        })
    }

    /// Whether somebody uses the device.
    pub fn is_empty(&self) -> bool {
        self.0.borrow().is_none()
    }
}

impl Lease {
    /// The id of the device.
    pub fn label(&self) -> &str {
        self.device.as_ref().map_or("", Chardev::label)
    }

    /// Waits for the next connection; `None` when there will be no more.
    pub async fn next(&mut self) -> Option<Connection> {
        self.device.as_mut()?.next().await
    }
}

impl From<Chardev> for Lease {
    /// A device that nobody else can ask for.
    fn from(device: Chardev) -> Self {
        Self {
            device: Some(device),
            shelf: None,
        }
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        if let Some(shelf) = &self.shelf {
            *shelf.0.borrow_mut() = self.device.take();
        }
    }
}
