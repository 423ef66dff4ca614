//! Character devices by their ids, and the monitors on them.

use std::cell::RefCell;
use std::rc::Rc;
use std::time::Duration;

use millpond_messages::qapi::QmpError;
use millpond_messages::qapi::schema::{
    ChardevBackend, ChardevInfo, ChardevReturn, DataFormat, MonitorMode, MonitorOptions,
    QCryptoTLSCredsEndpoint,
};
use tokio::task::JoinHandle;

use super::Daemon;
use crate::monitor::chardev::{
    Backend, ChardevOptions, Lease, Mux, Opened, Ring, Shelf, Socket, asked, bytes_of, text_of,
};
use crate::monitor::{Dispatch, Monitor};

/// How long what was written to a device may take to get into its log when the daemon ends.
const FAREWELL: Duration = Duration::from_secs(1);

/// The character devices there are, in the order in which they were made.
#[derive(Default)]
pub(super) struct Chardevs {
    devices: Vec<Slot>,
    /// Those that are being made: their ids are taken.
    coming: Vec<ChardevOptions>,
}

/// A character device, and what is known of it whoever uses it.
struct Slot {
    options: ChardevOptions,
    device: Device,
    /// What it is connected to, as it is shown.
    name: Rc<RefCell<String>>,
    ring: Option<Ring>,
    /// The task that writes the log.
    log: Option<JoinHandle<()>>,
}

/// Who has the device.
enum Device {
    /// One user at a time.
    Plain(Shelf),
    /// Several users, each with a side of its own.
    Shared(Mux),
}

impl Slot {
    fn is_busy(&self) -> bool {
        match &self.device {
            Device::Plain(shelf) => shelf.is_empty(),
            Device::Shared(mux) => mux.users() > 0,
        }
    }

    /// Gives up the device, and what is below it.
    async fn close(self) {
        if let Device::Shared(mux) = self.device {
            mux.close().await;
        }
    }
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

impl Chardevs {
    fn find(&self, id: &str) -> Option<&Slot> {
        self.devices.iter().find(|slot| slot.options.id == id)
    }

    /// The options of all devices, of those too that are being made.
    fn all(&self) -> impl Iterator<Item = &ChardevOptions> {
        let devices = self.devices.iter().map(|slot| &slot.options);
        devices.chain(&self.coming)
    }

    /// Whether a monitor is on a device, or on one that shares it.
    fn is_open(&self, slot: &Slot) -> bool {
        let shares =
            |other: &&Slot| matches!(&other.options.backend, Backend::Mux(base) if *base == slot.options.id);
        let above: Vec<&Slot> = self.devices.iter().filter(shares).collect();
        let users = match &slot.device {
            Device::Plain(shelf) => usize::from(shelf.is_empty()),
            Device::Shared(mux) => mux.users(),
        };
        users > above.len() || above.iter().any(|above| self.is_open(above))
    }

    /// The device below a shared one, which is in use from now on.
    fn base(&self, id: &str) -> Result<Lease, QmpError> {
        let Some(slot) = self.find(id) else {
            return Err(QmpError::generic(format!("mux: base chardev {id} not found")));
        };
        let taken = match &slot.device {
            Device::Plain(shelf) => shelf.take(),
            Device::Shared(mux) => mux.side().map(Lease::from),
        };
        taken.ok_or_else(|| in_use(id))
    }
}

fn in_use(id: &str) -> QmpError {
    QmpError::generic(format!("chardev '{id}' is already in use"))
}

impl Daemon {
    /// Makes a character device; `waiting` is told where if it waits for its first client.
    ///
    /// # Errors
    /// QEMU's text for what went wrong.
    pub async fn add_chardev(
        &self,
        mut options: ChardevOptions,
        waiting: impl FnOnce(String),
    ) -> Result<Option<String>, QmpError> {
        if !options.is_shared {
            return self.make_chardev(options, waiting).await;
        }
        let base = format!("{}-base", options.id);
        let shared = ChardevOptions::new(options.id, Backend::Mux(base.clone()));
        options.id = base;
        self.make_chardev(options, waiting).await?;
        self.make_chardev(shared, |_| {}).await
    }

    /// Makes a character device; answers the name of the pseudoterminal that it is.
    async fn make_chardev(
        &self,
        options: ChardevOptions,
        waiting: impl FnOnce(String),
    ) -> Result<Option<String>, QmpError> {
        {
            let mut chardevs = self.parts.chardevs.borrow_mut();
            if options.backend == Backend::Stdio
                && chardevs.all().any(|other| other.backend == Backend::Stdio)
            {
                return Err(QmpError::generic(
                    "cannot use stdio by multiple character devices",
                ));
            }
            if let Some(other) = chardevs.all().find(|other| other.id == options.id) {
                return Err(duplicate(&options, other));
            }
            chardevs.coming.push(options.clone());
        }
        let made = self.open_chardev(&options, waiting).await;
        let mut chardevs = self.parts.chardevs.borrow_mut();
        chardevs.coming.retain(|coming| coming.id != options.id);
        let (slot, pty) = made?;
        chardevs.devices.push(slot);
        Ok(pty)
    }

    /// Refuses a device that was to be inside TLS, after what QEMU refuses too.
    fn refuse_tls(&self, id: &str, endpoint: QCryptoTLSCredsEndpoint) -> Result<(), QmpError> {
        self.objects(|objects| objects.may_be_tls_credentials(id))?;
        self.site().tls.credentials_for(id, endpoint)?;
        Err(QmpError::generic("TLS is not supported for character devices"))
    }

    async fn open_chardev(
        &self,
        options: &ChardevOptions,
        waiting: impl FnOnce(String),
    ) -> Result<(Slot, Option<String>), QmpError> {
        if let Backend::Socket(Socket {
            tls_creds: Some(id),
            server,
            ..
        }) = &options.backend
        {
            let endpoint = if *server {
                QCryptoTLSCredsEndpoint::Server
            } else {
                QCryptoTLSCredsEndpoint::Client
            };
            self.refuse_tls(id, endpoint)?;
        }
        let opened = Opened::open(options, waiting).await.map_err(QmpError::generic)?;
        let device = match &options.backend {
            Backend::Mux(base) => {
                let base = self.parts.chardevs.borrow().base(base)?;
                let quit = self.parts.quit.clone();
                Device::Shared(Mux::new(&options.id, base, move || {
                    quit.send_replace(true);
                }))
            }
            _ => Device::Plain(Shelf::of(opened.device)),
        };
        let slot = Slot {
            options: options.clone(),
            device,
            name: opened.name,
            ring: opened.ring,
            log: opened.log,
        };
        Ok((slot, opened.pty))
    }

    /// Carries out the command `chardev-add`.
    pub(crate) async fn chardev_add(
        &self,
        id: String,
        backend: ChardevBackend,
    ) -> Result<ChardevReturn, QmpError> {
        if self.parts.chardevs.borrow().all().any(|other| other.id == id) {
            return Err(QmpError::generic(format!(
                "Chardev with id '{id}' already exists"
            )));
        }
        let failed = |error: QmpError| QmpError::generic(format!("Failed to add chardev '{id}': {error}"));
        let options = asked(id.clone(), backend).map_err(|text| failed(QmpError::generic(text)))?;
        let pty = self.add_chardev(options, |_| {}).await.map_err(failed)?;
        Ok(ChardevReturn { pty })
    }

    /// Carries out `chardev-change`. As in QEMU the old device is given up first, so that the new one can have its address.
    pub(crate) async fn chardev_change(
        &self,
        id: String,
        backend: ChardevBackend,
    ) -> Result<ChardevReturn, QmpError> {
        {
            let chardevs = self.parts.chardevs.borrow();
            let refusal = match chardevs.find(&id) {
                None => Some(format!("Chardev '{id}' does not exist")),
                Some(slot) if matches!(slot.device, Device::Shared(_)) => {
                    Some("For mux or hub device hotswap is not supported yet".to_owned())
                }
                Some(slot) if slot.is_busy() => {
                    Some("Chardev user does not support chardev hotswap".to_owned())
                }
                Some(_) => None,
            };
            if let Some(text) = refusal {
                return Err(QmpError::generic(text));
            }
        }
        self.drop_chardev(&id).await;
        self.chardev_add(id, backend).await
    }

    async fn drop_chardev(&self, id: &str) {
        let slot = {
            let devices = &mut self.parts.chardevs.borrow_mut().devices;
            let place = devices.iter().position(|slot| slot.options.id == id);
            place.map(|place| devices.remove(place))
        };
        if let Some(slot) = slot {
            slot.close().await;
        }
    }

    /// Carries out the command `chardev-remove`.
    pub(crate) async fn chardev_remove(&self, id: &str) -> Result<(), QmpError> {
        let busy = self.look_at_chardev(id, Slot::is_busy)?;
        if busy {
            return Err(QmpError::generic(format!("Chardev '{id}' is busy")));
        }
        self.drop_chardev(id).await;
        Ok(())
    }

    /// Carries out `chardev-send-break`: no user of a device here does anything about it.
    pub(crate) fn chardev_break(&self, id: &str) -> Result<(), QmpError> {
        self.look_at_chardev(id, |_| ())
    }

    fn look_at_chardev<T>(&self, id: &str, look: impl FnOnce(&Slot) -> T) -> Result<T, QmpError> {
        let chardevs = self.parts.chardevs.borrow();
        let found = chardevs.find(id).map(look);
        found.ok_or_else(|| QmpError::generic(format!("Chardev '{id}' not found")))
    }

    fn ring<T>(&self, id: &str, of: impl FnOnce(&Ring) -> T) -> Result<T, QmpError> {
        let chardevs = self.parts.chardevs.borrow();
        let Some(slot) = chardevs.find(id) else {
            return Err(QmpError::generic(format!("Device '{id}' not found")));
        };
        let Some(ring) = &slot.ring else {
            return Err(QmpError::generic(format!("{id} is not a ringbuf device")));
        };
        Ok(of(ring))
    }

    /// Carries out `ringbuf-write`, which as in QEMU is not logged.
    pub(crate) fn ringbuf_write(&self, id: &str, data: &str, format: DataFormat) -> Result<(), QmpError> {
        self.ring(id, |ring| {
            let bytes = bytes_of(data, format).map_err(QmpError::generic)?;
            ring.write(&bytes);
            Ok(())
        })?
    }

    /// Carries out the command `ringbuf-read`.
    pub(crate) fn ringbuf_read(&self, id: &str, size: i64, format: DataFormat) -> Result<String, QmpError> {
        self.ring(id, |ring| match usize::try_from(size) {
            Ok(size) if size > 0 => Ok(text_of(&ring.read(size), format)),
            _ => Err(QmpError::generic("size must be greater than zero")),
        })?
    }

    /// A monitor whose commands `dispatch` carries out.
    ///
    /// # Errors
    /// QEMU's text for what went wrong.
    pub(super) fn make_monitor(
        &self,
        options: &MonitorOptions,
        dispatch: Rc<dyn Dispatch>,
    ) -> Result<Monitor, QmpError> {
        let label = options.chardev.as_str();
        let chardevs = self.parts.chardevs.borrow();
        let Some(slot) = chardevs.find(label) else {
            return Err(QmpError::generic(format!("chardev \"{label}\" not found")));
        };
        if options.mode == Some(MonitorMode::Readline) {
            return Err(QmpError::generic("Only QMP is supported"));
        }
        let lease = match &slot.device {
            Device::Plain(shelf) => shelf.take().ok_or_else(|| in_use(label))?,
            Device::Shared(mux) => mux.side().map(Lease::from).ok_or_else(|| {
                let most = Mux::MOST;
                let text = format!("too many uses of multiplexed chardev '{label}' (maximum is {most})");
                QmpError::generic(text)
            })?,
        };
        Ok(Monitor::new(
            lease,
            dispatch,
            self.events().clone(),
            options.pretty,
        ))
    }

    /// The reply of `query-chardev`.
    pub(crate) fn describe_chardevs(&self) -> Vec<ChardevInfo> {
        let chardevs = self.parts.chardevs.borrow();
        let describe = |slot: &Slot| ChardevInfo {
            label: slot.options.id.clone(),
            filename: slot.name.borrow().clone(),
            frontend_open: chardevs.is_open(slot),
        };
        chardevs.devices.iter().map(describe).collect()
    }

    /// Ends all monitors, after they have sent what they owe, and then the devices.
    pub(super) async fn finish_monitors(&self) {
        self.end_monitors().await;
        let mut devices = std::mem::take(&mut self.parts.chardevs.borrow_mut().devices);
        let logs: Vec<JoinHandle<()>> = devices.iter_mut().filter_map(|slot| slot.log.take()).collect();
        futures_util::future::join_all(devices.into_iter().map(Slot::close)).await;
        for log in logs {
            // A disk that does not answer holds up nobody.
            let _ = tokio::time::timeout(FAREWELL, log).await;
        }
    }
}
