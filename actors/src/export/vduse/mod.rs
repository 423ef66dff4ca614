//! The export of kind vduse-blk: a virtio block device of the host's own kernel, or of whatever the kernel passes it to.
//!
//! ```text
//!   control thread                                    iothread of the node
//!   export     makes the device, and removes it
//!   driver     the kernel's messages --------------> queues (see the module `virtio`)
//!   memory     what the driver's addresses stand for
//!   journal    the file of requests in flight
//! ```
//! The device belongs to the kernel, and lives on when the daemon dies. Its driver waits then until the device is served
//! again under the same name; what was in flight is noted in a file, so that each request is answered once. What breaks the
//! rules stops a queue until the driver resets the device.
//!
//! All that is asked of the kernel goes through the trait [`Kernel`](kernel::Kernel).

mod driver;
pub(super) mod export;
mod journal;
mod kernel;
mod memory;
mod message;
#[cfg(test)]
mod tests;
