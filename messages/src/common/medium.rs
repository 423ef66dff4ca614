//! Removable media, and SCSI commands that a device of the host takes as they are.

use std::time::Duration;

/// What a device with a removable medium is told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MediumOrder {
    /// Open the tray, with the medium in it.
    Eject,
    /// Close the tray, and read the medium.
    Load,
    /// Keep the medium from being taken out by hand.
    Lock,
    /// Let it be taken out.
    Unlock,
}

/// The data that goes with a SCSI command.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ScsiData {
    /// There is no data.
    None,
    /// Sent to the device.
    Out(Vec<u8>),
    /// Taken from the device: at most so many bytes.
    In(u32),
}

/// A SCSI command for a device that understands such.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ScsiCommand {
    /// The command descriptor block: 6 to 16 bytes, longer ones where the device takes them.
    pub block: Vec<u8>,
    /// What is transferred with it.
    pub data: ScsiData,
    /// How long the device may take; less than a millisecond is one, and more than 49 days are 49 days.
    pub timeout: Duration,
}

/// What a device has answered to a SCSI command.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ScsiAnswer {
    /// The status byte: 0 is good, 2 says that there is sense.
    pub status: u8,
    /// What the host's adapter says, in the kernel's codes; 0 is good.
    pub host_status: u16,
    /// What the kernel's driver says, in its codes; 0 is good.
    pub driver_status: u16,
    /// What the device says of an error.
    pub sense: Vec<u8>,
    /// The bytes that were taken from the device.
    pub data: Vec<u8>,
}
