//! SCSI commands to a device of the host, by the ioctl `SG_IO`.

use std::ffi::{c_int, c_uint, c_void};
use std::io;
use std::os::fd::BorrowedFd;
use std::ptr::null_mut;

use millpond_messages::{ScsiAnswer, ScsiCommand, ScsiData};
use rustix::ioctl::{Getter, Opcode, Updater, ioctl};

/// The number of the ioctl `SG_GET_VERSION_NUM`.
const GET_VERSION: Opcode = 0x2282;
/// The number of the ioctl `SG_IO`.
const SEND: Opcode = 0x2285;
/// The oldest version of the interface that has [`SEND`].
const OLDEST: c_int = 30_000;

const TO_DEVICE: c_int = -2;
const FROM_DEVICE: c_int = -3;
const NO_DATA: c_int = -1;
/// As much sense as a device ever gives.
const SENSE: usize = 252;

/// The kernel's `struct sg_io_hdr`.
#[repr(C)]
struct Header {
    interface: c_int,
    direction: c_int,
    block_len: u8,
    sense_room: u8,
    pieces: u16,
    data_len: c_uint,
    data: *mut c_void,
    block: *const u8,
    sense: *mut u8,
    /// How long the device may take, in milliseconds.
    timeout: c_uint,
    flags: c_uint,
    pack_id: c_int,
    user: *mut c_void,
    status: u8,
    masked_status: u8,
    message_status: u8,
    sense_len: u8,
    host_status: u16,
    driver_status: u16,
    /// How many bytes of the data were not transferred.
    left: c_int,
    duration: c_uint,
    info: c_uint,
}

/// Whether a file is a device that takes SCSI commands and nothing else.
pub fn is_generic(fd: BorrowedFd<'_>) -> bool {
    // SAFETY: SG_GET_VERSION_NUM stores one int.
    let get = unsafe { Getter::<GET_VERSION, c_int>::new() };
    // SAFETY: the request is what the line above says, and a file without it fails with ENOTTY.
    unsafe { ioctl(fd, get) }.is_ok_and(|version| version >= OLDEST)
}

/// Sends a command, and waits for its answer.
///
/// # Errors
/// The device takes none, or the kernel's.
pub fn send(fd: BorrowedFd<'_>, command: ScsiCommand) -> io::Result<ScsiAnswer> {
    let too_long = |_| io::Error::from_raw_os_error(libc::EINVAL);
    let (direction, mut data) = match command.data {
        ScsiData::None => (NO_DATA, Vec::new()),
        ScsiData::Out(data) => (TO_DEVICE, data),
        ScsiData::In(len) => {
            let mut data = Vec::new();
            let len = usize::try_from(len).map_err(too_long)?;
            data.try_reserve_exact(len)?;
            data.resize(len, 0);
            (FROM_DEVICE, data)
        }
    };
    let mut sense = [0; SENSE];
    let milliseconds = command.timeout.as_millis().max(1);
    let mut header = Header {
        interface: c_int::from(b'S'),
        direction,
        block_len: u8::try_from(command.block.len()).map_err(too_long)?,
        sense_room: u8::try_from(sense.len()).map_err(too_long)?,
        pieces: 0,
        data_len: c_uint::try_from(data.len()).map_err(too_long)?,
        data: data.as_mut_ptr().cast(),
        block: command.block.as_ptr(),
        sense: sense.as_mut_ptr(),
        timeout: c_uint::try_from(milliseconds).unwrap_or(c_uint::MAX),
        flags: 0,
        pack_id: 0,
        user: null_mut(),
        status: 0,
        masked_status: 0,
        message_status: 0,
        sense_len: 0,
        host_status: 0,
        driver_status: 0,
        left: 0,
        duration: 0,
        info: 0,
    };
    // SAFETY: SG_IO reads and writes one `struct sg_io_hdr`, reads `block`, and reads or writes `data` and `sense`, each within
    // the length that the header gives. All of them outlive the call, which returns when the command has ended.
    let update = unsafe { Updater::<SEND, Header>::new(&mut header) };
    // SAFETY: the request is what the lines above say, and a file without it fails with ENOTTY.
    unsafe { ioctl(fd, update) }?;
    let (left, told) = (usize::try_from(header.left).unwrap_or(0), header.sense_len.into());
    match direction {
        FROM_DEVICE => data.truncate(data.len().saturating_sub(left)),
        _ => data.clear(),
    }
    Ok(ScsiAnswer {
        status: header.status,
        host_status: header.host_status,
        driver_status: header.driver_status,
        sense: sense.get(..told).unwrap_or(&sense).to_vec(),
        data,
    })
}
