//! The kernel's side of VDUSE: devices that programs serve, and virtio drivers use as if they were hardware
//! (`linux/vduse.h`, version 0).

use std::ffi::c_void;
use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;

use rustix::ioctl::{Getter, Ioctl, IoctlOutput, NoArg, Opcode, Setter, Updater, ioctl, opcode};

/// The folder of the devices.
const FOLDER: &str = "/dev/vduse";
/// The file in it by which devices are made. No device can have its name.
const CONTROL: &str = "control";
/// Bytes of a name with the zero behind it.
const NAME: usize = 256;
/// What the numbers of all calls have in common.
const BASE: u8 = 0x81;
/// The version of the interface that is spoken here.
const VERSION: u64 = 0;

const SET_API_VERSION: Opcode = opcode::write::<u64>(BASE, 0x01);
const CREATE_DEV: Opcode = opcode::write::<NewHead>(BASE, 0x02);
const DESTROY_DEV: Opcode = opcode::write::<[u8; NAME]>(BASE, 0x03);
const IOTLB_GET_FD: Opcode = opcode::read_write::<Entry>(BASE, 0x10);
const DEV_GET_FEATURES: Opcode = opcode::read::<u64>(BASE, 0x11);
const DEV_SET_CONFIG: Opcode = opcode::write::<ConfigHead>(BASE, 0x12);
const DEV_INJECT_CONFIG_IRQ: Opcode = opcode::none(BASE, 0x13);
const VQ_SETUP: Opcode = opcode::write::<QueueShape>(BASE, 0x14);
const VQ_GET_INFO: Opcode = opcode::read_write::<RawQueue>(BASE, 0x15);
const VQ_SETUP_KICKFD: Opcode = opcode::write::<Kick>(BASE, 0x16);
const VQ_INJECT_IRQ: Opcode = opcode::write::<u32>(BASE, 0x17);

/// Memory that the device may read, as a bit of an entry.
const MAY_READ: u8 = 1;
/// Memory that the device may write, as a bit of an entry.
const MAY_WRITE: u8 = 2;
/// In [`Kick`]: no descriptor.
const NO_DESCRIPTOR: i32 = -1;

/// The kernel's `struct vduse_dev_config`, up to the configuration.
#[derive(Clone, Copy)]
#[repr(C)]
struct NewHead {
    name: [u8; NAME],
    vendor: u32,
    device: u32,
    features: u64,
    queues: u32,
    alignment: u32,
    reserved: [u32; 13],
    config_len: u32,
}

/// The kernel's `struct vduse_config_data`, up to the bytes.
#[derive(Clone, Copy)]
#[repr(C)]
struct ConfigHead {
    offset: u32,
    len: u32,
}

/// A structure that ends with bytes of a length that it tells.
#[derive(Clone, Copy)]
#[repr(C)]
struct WithBytes<H, const N: usize> {
    head: H,
    bytes: [u8; N],
}

/// The kernel's `struct vduse_iotlb_entry`.
#[derive(Clone, Copy)]
#[repr(C)]
struct Entry {
    offset: u64,
    start: u64,
    last: u64,
    access: u8,
}

/// The kernel's `struct vduse_vq_config`.
#[derive(Clone, Copy)]
#[repr(C)]
struct QueueShape {
    index: u32,
    most: u16,
    reserved: [u16; 13],
}

/// The kernel's `struct vduse_vq_info`.
#[derive(Clone, Copy, Default)]
#[repr(C)]
struct RawQueue {
    index: u32,
    size: u32,
    descriptors: u64,
    driver: u64,
    device: u64,
    /// Of a split ring only the first: how many requests were taken.
    state: [u16; 4],
    ready: u8,
}

/// The kernel's `struct vduse_vq_eventfd`.
#[derive(Clone, Copy)]
#[repr(C)]
struct Kick {
    index: u32,
    descriptor: i32,
}

/// The call that finds memory, which answers with a descriptor.
struct FindMemory(Entry);

/// The name of a device.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DeviceName(String);

/// What a device is made with.
#[derive(Debug, Clone, Copy)]
pub struct NewDevice<'a, const CONFIG: usize> {
    /// Its name, which no other has.
    pub name: &'a DeviceName,
    /// The kind of device, as virtio counts.
    pub device: u32,
    /// The features that it offers.
    pub features: u64,
    /// How many queues it has.
    pub queues: u32,
    /// What drivers read of it.
    pub config: [u8; CONFIG],
}

/// The right to make devices, and to remove them.
#[derive(Debug)]
pub struct VduseControl(OwnedFd);

/// A device that this process serves.
#[derive(Debug)]
pub struct VduseDevice<F>(F);

/// A queue as its driver has set it up.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct QueueFacts {
    /// How many descriptors it has.
    pub size: u32,
    /// Where its descriptors are.
    pub descriptors: u64,
    /// Where the available ring is.
    pub available: u64,
    /// Where the used ring is.
    pub used: u64,
    /// How many requests were taken from it before, modulo 65536.
    pub taken: u16,
    /// The driver has set it up.
    pub ready: bool,
}

/// Memory that a device may use, by the addresses that its driver gives it.
#[derive(Debug)]
pub struct DeviceMemory {
    /// The first of its addresses.
    pub start: u64,
    /// The last of its addresses.
    pub last: u64,
    /// The file that has it.
    pub file: OwnedFd,
    /// The file's byte that has the first address.
    pub offset: u64,
    /// The device may read it.
    pub is_readable: bool,
    /// The device may write it.
    pub is_writable: bool,
}

impl DeviceName {
    /// A name, if a device can have it: not empty, not too long, and a file of one folder.
    #[must_use]
    pub fn new(name: &str) -> Option<Self> {
        let is_file = !name.contains(['/', '\0']) && !["", ".", "..", CONTROL].contains(&name);
        (is_file && name.len() < NAME).then(|| Self(name.to_owned()))
    }

    /// The name as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    fn padded(&self) -> [u8; NAME] {
        let mut bytes = [0; NAME];
        for (byte, of_name) in bytes.iter_mut().zip(self.0.bytes()) {
            *byte = of_name;
        }
        bytes
    }
}

fn open(name: &str) -> io::Result<OwnedFd> {
    let flags = libc::O_CLOEXEC | libc::O_NONBLOCK;
    let mut options = OpenOptions::new();
    options.read(true).write(true).custom_flags(flags);
    let opened: io::Result<File> = options.open(format!("{FOLDER}/{name}"));
    opened.map(OwnedFd::from)
}

impl VduseControl {
    /// Asks the kernel for it.
    ///
    /// # Errors
    /// The kernel has no such devices, or does not let this process have them.
    pub fn open() -> io::Result<Self> {
        let control = open(CONTROL)?;
        // SAFETY: VDUSE_SET_API_VERSION reads one number of 64 bits.
        let version = unsafe { Setter::<SET_API_VERSION, u64>::new(VERSION) };
        // SAFETY: the request is what the line above says, and a file without it fails with ENOTTY.
        unsafe { ioctl(&control, version) }?;
        Ok(Self(control))
    }

    /// Makes a device. It lives on when this process ends.
    ///
    /// # Errors
    /// There is one of that name already, or the kernel refuses what it is to be.
    pub fn create<const CONFIG: usize>(&self, new: &NewDevice<'_, CONFIG>) -> io::Result<()> {
        let config_len = u32::try_from(CONFIG).map_err(|_| io::ErrorKind::InvalidInput)?;
        let head = NewHead {
            name: new.name.padded(),
            vendor: 0,
            device: new.device,
            features: new.features,
            queues: new.queues,
            alignment: 4096,
            reserved: [0; 13],
            config_len,
        };
        let bytes = new.config;
        type Sent<const CONFIG: usize> = WithBytes<NewHead, CONFIG>;
        // SAFETY: VDUSE_CREATE_DEV reads a `struct vduse_dev_config` and as many bytes behind it as that says.
        let create = unsafe { Setter::<CREATE_DEV, Sent<CONFIG>>::new(WithBytes { head, bytes }) };
        // SAFETY: the request is what the line above says, and a file without it fails with ENOTTY.
        Ok(unsafe { ioctl(&self.0, create) }?)
    }

    /// Removes a device.
    ///
    /// # Errors
    /// There is none, it is served, or it is attached where drivers look for devices: then the kernel is busy with it.
    pub fn destroy(&self, name: &DeviceName) -> io::Result<()> {
        // SAFETY: VDUSE_DESTROY_DEV reads a name of that length.
        let destroy = unsafe { Setter::<DESTROY_DEV, [u8; NAME]>::new(name.padded()) };
        // SAFETY: the request is what the line above says, and a file without it fails with ENOTTY.
        Ok(unsafe { ioctl(&self.0, destroy) }?)
    }
}

/// Opens a device to serve it, without waiting in reads. Only one process can at a time.
///
/// # Errors
/// There is none of that name, or another process has it open.
pub fn open_device(name: &DeviceName) -> io::Result<OwnedFd> {
    open(name.as_str())
}

impl<F: AsFd> VduseDevice<F> {
    /// The device that a descriptor is open for.
    pub const fn new(descriptor: F) -> Self {
        Self(descriptor)
    }

    /// The descriptor: messages are read from it, and answered there.
    pub const fn descriptor(&self) -> &F {
        &self.0
    }

    /// The features that its driver has chosen.
    ///
    /// # Errors
    /// The kernel's.
    pub fn features(&self) -> io::Result<u64> {
        // SAFETY: VDUSE_DEV_GET_FEATURES stores one number of 64 bits.
        let get = unsafe { Getter::<DEV_GET_FEATURES, u64>::new() };
        // SAFETY: the request is what the line above says, and a file without it fails with ENOTTY.
        Ok(unsafe { ioctl(&self.0, get) }?)
    }

    /// Changes a part of what its driver reads of it.
    ///
    /// # Errors
    /// It has no such part.
    pub fn set_config<const N: usize>(&self, offset: u32, bytes: [u8; N]) -> io::Result<()> {
        let len = u32::try_from(N).map_err(|_| io::ErrorKind::InvalidInput)?;
        let head = ConfigHead { offset, len };
        type Sent<const N: usize> = WithBytes<ConfigHead, N>;
        // SAFETY: VDUSE_DEV_SET_CONFIG reads a `struct vduse_config_data` and as many bytes behind it as that says.
        let set = unsafe { Setter::<DEV_SET_CONFIG, Sent<N>>::new(WithBytes { head, bytes }) };
        // SAFETY: the request is what the line above says, and a file without it fails with ENOTTY.
        Ok(unsafe { ioctl(&self.0, set) }?)
    }

    /// Tells its driver that what it reads of the device has changed.
    ///
    /// # Errors
    /// No driver uses it.
    pub fn config_changed(&self) -> io::Result<()> {
        // SAFETY: VDUSE_DEV_INJECT_CONFIG_IRQ takes nothing.
        let tell = unsafe { NoArg::<DEV_INJECT_CONFIG_IRQ>::new() };
        // SAFETY: the request is what the line above says, and a file without it fails with ENOTTY.
        Ok(unsafe { ioctl(&self.0, tell) }?)
    }

    /// Lets one of its queues have at most so many descriptors.
    ///
    /// # Errors
    /// It has no such queue.
    pub fn set_up_queue(&self, index: u32, most: u16) -> io::Result<()> {
        let reserved = [0; 13];
        let shape = QueueShape {
            index,
            most,
            reserved,
        };
        // SAFETY: VDUSE_VQ_SETUP reads one `struct vduse_vq_config`.
        let set = unsafe { Setter::<VQ_SETUP, QueueShape>::new(shape) };
        // SAFETY: the request is what the line above says, and a file without it fails with ENOTTY.
        Ok(unsafe { ioctl(&self.0, set) }?)
    }

    /// One of its queues as the driver has it now.
    ///
    /// # Errors
    /// It has no such queue.
    pub fn queue(&self, index: u32) -> io::Result<QueueFacts> {
        let mut queue = RawQueue {
            index,
            ..RawQueue::default()
        };
        // SAFETY: VDUSE_VQ_GET_INFO reads and writes one `struct vduse_vq_info`.
        let update = unsafe { Updater::<VQ_GET_INFO, RawQueue>::new(&mut queue) };
        // SAFETY: the request is what the line above says, and a file without it fails with ENOTTY.
        unsafe { ioctl(&self.0, update) }?;
        let [taken, ..] = queue.state;
        Ok(QueueFacts {
            size: queue.size,
            descriptors: queue.descriptors,
            available: queue.driver,
            used: queue.device,
            taken,
            ready: queue.ready != 0,
        })
    }

    /// Has the driver of a queue say by an event counter that there are requests, or by none.
    ///
    /// # Errors
    /// It has no such queue, or the descriptor is none of an event counter.
    pub fn set_kick(&self, index: u32, kick: Option<BorrowedFd<'_>>) -> io::Result<()> {
        let descriptor = kick.map_or(NO_DESCRIPTOR, |kick| kick.as_raw_fd());
        // SAFETY: VDUSE_VQ_SETUP_KICKFD reads one `struct vduse_vq_eventfd`, and takes a descriptor only if it is open.
        let set = unsafe { Setter::<VQ_SETUP_KICKFD, Kick>::new(Kick { index, descriptor }) };
        // SAFETY: the request is what the line above says, and a file without it fails with ENOTTY.
        Ok(unsafe { ioctl(&self.0, set) }?)
    }

    /// Tells the driver of a queue that there are answers.
    ///
    /// # Errors
    /// It has no such queue, or its driver is not ready for it.
    pub fn interrupt(&self, index: u32) -> io::Result<()> {
        // SAFETY: VDUSE_VQ_INJECT_IRQ reads one number of 32 bits.
        let tell = unsafe { Setter::<VQ_INJECT_IRQ, u32>::new(index) };
        // SAFETY: the request is what the line above says, and a file without it fails with ENOTTY.
        Ok(unsafe { ioctl(&self.0, tell) }?)
    }

    /// The first memory of the device that has one of these addresses; `None` if there is none.
    ///
    /// # Errors
    /// The kernel's.
    pub fn memory(&self, first: u64, last: u64) -> io::Result<Option<DeviceMemory>> {
        let find = FindMemory(Entry {
            offset: 0,
            start: first,
            last,
            access: 0,
        });
        // SAFETY: VDUSE_IOTLB_GET_FD is what `FindMemory` says, and a file without it fails with ENOTTY.
        match unsafe { ioctl(&self.0, find) } {
            Ok(found) => Ok(Some(found)),
            Err(rustix::io::Errno::INVAL) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }
}

// SAFETY: VDUSE_IOTLB_GET_FD reads and writes one `struct vduse_iotlb_entry`, and answers with a new descriptor.
unsafe impl Ioctl for FindMemory {
    type Output = DeviceMemory;
    const IS_MUTATING: bool = true;

    fn opcode(&self) -> Opcode {
        IOTLB_GET_FD
    }

    fn as_ptr(&mut self) -> *mut c_void {
        (&raw mut self.0).cast()
    }

    unsafe fn output_from_ptr(found: IoctlOutput, entry: *mut c_void) -> rustix::io::Result<DeviceMemory> {
        // SAFETY: the caller passes what `as_ptr` gave, which the kernel has written.
        let entry = unsafe { entry.cast::<Entry>().read() };
        // SAFETY: the call has succeeded, and its answer is a descriptor that nobody else has.
        let file = unsafe { OwnedFd::from_raw_fd(found) };
        Ok(DeviceMemory {
            start: entry.start,
            last: entry.last,
            file,
            offset: entry.offset,
            is_readable: entry.access & MAY_READ != 0,
            is_writable: entry.access & MAY_WRITE != 0,
        })
    }
}

const _: () = assert!(size_of::<NewHead>() == 336);
const _: () = assert!(size_of::<WithBytes<NewHead, 60>>() >= 336 + 60);
const _: () = assert!(std::mem::offset_of!(WithBytes<NewHead, 60>, bytes) == 336);
const _: () = assert!(std::mem::offset_of!(WithBytes<ConfigHead, 8>, bytes) == 8);
const _: () = assert!(size_of::<Entry>() == 32);
const _: () = assert!(size_of::<QueueShape>() == 32);
const _: () = assert!(size_of::<RawQueue>() == 48);
const _: () = assert!(std::mem::offset_of!(RawQueue, ready) == 40);

#[cfg(test)]
mod tests {
    use super::*;

    /// The numbers as a C compiler makes them of `linux/vduse.h`.
    #[test]
    fn the_numbers_of_calls_are_those_of_the_kernel() {
        let numbers = [
            (SET_API_VERSION, 0x4008_8101_u64),
            (CREATE_DEV, 0x4150_8102),
            (DESTROY_DEV, 0x4100_8103),
            (IOTLB_GET_FD, 0xc020_8110),
            (DEV_GET_FEATURES, 0x8008_8111),
            (DEV_SET_CONFIG, 0x4008_8112),
            (DEV_INJECT_CONFIG_IRQ, 0x8113),
            (VQ_SETUP, 0x4020_8114),
            (VQ_GET_INFO, 0xc030_8115),
            (VQ_SETUP_KICKFD, 0x4008_8116),
            (VQ_INJECT_IRQ, 0x4004_8117),
        ];
        for (ours, kernels) in numbers {
            assert_eq!(u64::from(ours), kernels, "0x{ours:x} is not 0x{kernels:x}");
        }
    }

    #[test]
    fn names_that_are_no_file_of_one_folder_are_refused() {
        for name in ["", ".", "..", "control", "a/b", "a\0b", &"x".repeat(256)] {
            assert_eq!(DeviceName::new(name), None, "{name}");
        }
        let longest = "x".repeat(255);
        let name = DeviceName::new(&longest).expect("it fits");
        assert_eq!(name.padded().last(), Some(&0));
        assert_eq!(name.as_str(), longest);
    }

    #[test]
    fn a_file_that_is_no_device_fails_every_call() {
        let device = VduseDevice::new(File::open("/dev/null").expect("there is one"));
        assert!(device.features().is_err());
        assert!(device.queue(0).is_err());
        assert!(device.set_up_queue(0, 4).is_err());
        assert!(device.set_kick(0, None).is_err());
        assert!(device.interrupt(0).is_err());
        assert!(device.config_changed().is_err());
        assert!(device.set_config(0, [0; 8]).is_err());
        assert!(device.memory(0, u64::MAX).is_err());
    }
}
