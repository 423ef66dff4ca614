//! Devices of the host: a loop device where the machine lets us have one, and a character device everywhere.
#![allow(clippy::unwrap_used, reason = "a panic is how a test fails")]

mod host;

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use host::{Node, is_zero, pattern, run};
use millpond_drivers::api::Ability;
use millpond_drivers::protocol::file::{probe_blocksizes, probe_geometry};
use millpond_messages::io::Preallocation;
use millpond_messages::{IoError, OpenFlags, Permissions, RequestFlags, Result, ScsiCommand, ScsiData};
use millpond_ring::Ring;
use serde_json::json;

const NONE: RequestFlags = RequestFlags::empty();
const RW: OpenFlags = OpenFlags::RDWR;
const LEN: usize = 4 << 20;

on_each_engine! {
    a_block_device_is_read_and_written
    a_block_device_is_zeroed_and_discarded
    a_block_device_keeps_its_length
    a_read_only_device_has_no_writers
    a_character_device_is_served
}

/// A loop device on a file of its own, until dropped.
struct Loop {
    device: PathBuf,
    file: PathBuf,
    _dir: tempfile::TempDir,
}

fn losetup(arguments: &[&str]) -> std::result::Result<String, String> {
    let output = Command::new("losetup").args(arguments).output();
    let output = output.expect("cannot run losetup: install util-linux");
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).trim().to_owned();
    if output.status.success() {
        Ok(text(&output.stdout))
    } else {
        Err(text(&output.stderr))
    }
}

fn blockdev(what: &str, device: &Path) {
    let status = Command::new("blockdev").arg(what).arg(device).status();
    assert!(status.expect("cannot run blockdev: install util-linux").success());
}

impl Loop {
    /// None where this process may not have one: then that is what has to be so.
    fn new() -> Option<Self> {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("disk");
        fs::write(&file, pattern(LEN, 1)).unwrap();
        match losetup(&["--find", "--show", "--sector-size", "512", file.to_str().unwrap()]) {
            Ok(device) => Some(Self {
                device: device.into(),
                file,
                _dir: dir,
            }),
            Err(text) => {
                let control = File::options().read(true).write(true).open("/dev/loop-control");
                assert!(
                    control.is_err(),
                    "losetup fails although loop devices may be had: {text}"
                );
                eprintln!("no loop device may be had here ({text}): only its absence was tested");
                None
            }
        }
    }
}

impl Drop for Loop {
    fn drop(&mut self) {
        // It outlives the detaching, and the next user of the device would wonder.
        blockdev("--setrw", &self.device);
        losetup(&["--detach", self.device.to_str().unwrap()]).unwrap();
    }
}

fn open(ring: &Ring, path: &Path, flags: OpenFlags) -> Result<Node> {
    Node::open(ring, "host_device", json!({"filename": path}), flags, None)
}

fn a_block_device_is_read_and_written(ring: &Ring) {
    let Some(disk) = Loop::new() else { return };
    let plain = Node::file(ring, &disk.device, RW).err().unwrap().to_string();
    assert_eq!(
        plain,
        format!(
            "'file' driver requires '{}' to be a regular file",
            disk.device.display()
        )
    );
    for flags in [RW, RW | OpenFlags::NOCACHE] {
        let node = open(ring, &disk.device, flags).unwrap();
        assert_eq!(node.length(), LEN as u64);
        let limits = node.driver.abilities().limits;
        let direct = flags.contains(OpenFlags::NOCACHE);
        assert_eq!(
            (limits.request_alignment, limits.discard_alignment),
            (if direct { 512 } else { 1 }, 512)
        );
        let data = pattern(8192, 77);
        node.write(4096, &data, RequestFlags::FUA);
        assert!(node.read(4096, 8192) == data);
        assert_eq!(node.read(0, 4096), pattern(LEN, 1)[..4096]);
        run(ring, node.driver.flush()).unwrap();
        assert!(!is_zero(node.status(0, LEN as u64)));
        assert_eq!(
            json!(node.driver.image().specific_info()),
            json!({"type": "file", "data": {}})
        );
        assert!(!node.driver.abilities().has_zero_init);
        let sizes = run(ring, node.driver.device().block_sizes()).unwrap();
        assert_eq!(sizes.logical, 512);
        assert_eq!(
            run(ring, node.driver.device().geometry()),
            Err(IoError::NotSupported)
        );
        node.close();
    }
    let device = File::open(&disk.device).unwrap();
    let sizes = probe_blocksizes(&device).unwrap();
    assert_eq!(sizes.logical, 512);
    assert!(sizes.physical >= 512);
    assert_eq!(probe_geometry(&device), Err(IoError::NotSupported));
    assert_eq!(
        probe_blocksizes(File::open(&disk.file).unwrap()),
        Err(IoError::NotSupported)
    );
}

fn a_block_device_is_zeroed_and_discarded(ring: &Ring) {
    let Some(disk) = Loop::new() else { return };
    let space = || std::os::unix::fs::MetadataExt::blocks(&fs::metadata(&disk.file).unwrap()) * 512;
    let node = open(ring, &disk.device, RW | OpenFlags::UNMAP).unwrap();
    assert_eq!(node.driver.abilities().discard, Ability::Native);
    let mut expected = pattern(LEN, 1);
    node.zero(512, 1 << 20, NONE).unwrap();
    expected[512..][..1 << 20].fill(0);
    assert!(node.read(0, LEN) == expected);
    // The kernel may write the zeroes itself, which is no fast way.
    assert_eq!(
        node.zero(0, 512, RequestFlags::NO_FALLBACK),
        Err(IoError::NotSupported)
    );
    assert_eq!(
        node.zero(1, 511, NONE),
        Err(IoError::NotSupported),
        "no whole block"
    );

    let before = space();
    node.zero(
        1 << 20,
        1 << 20,
        RequestFlags::MAY_UNMAP | RequestFlags::NO_FALLBACK,
    )
    .unwrap();
    expected[1 << 20..2 << 20].fill(0);
    run(ring, node.driver.discard(host::range(2 << 20, 1 << 20))).unwrap();
    expected[2 << 20..3 << 20].fill(0);
    assert!(space() <= before - (2 << 20));
    assert!(node.read(0, LEN) == expected);
    node.close();
}

fn a_block_device_keeps_its_length(ring: &Ring) {
    let Some(disk) = Loop::new() else { return };
    let node = open(ring, &disk.device, RW).unwrap();
    let resize = |size, exact, preallocation| {
        let resized = run(ring, node.driver.truncate(size, exact, preallocation, NONE));
        resized.err().map(|error| error.to_string()).unwrap_or_default()
    };
    let len = LEN as u64;
    assert_eq!(resize(len, true, Preallocation::Off), "");
    assert_eq!(resize(512, false, Preallocation::Off), "");
    assert_eq!(
        resize(512, true, Preallocation::Off),
        "Cannot resize device files"
    );
    assert_eq!(
        resize(2 * len, false, Preallocation::Off),
        "Cannot grow device files"
    );
    assert_eq!(
        resize(len, true, Preallocation::Full),
        "Preallocation mode 'full' unsupported for this non-regular file"
    );
    assert_eq!(node.length(), len);
    node.close();
}

fn a_read_only_device_has_no_writers(ring: &Ring) {
    let Some(disk) = Loop::new() else { return };
    blockdev("--setro", &disk.device);
    let refusal = "The device is not writable: Permission denied";
    assert_eq!(open(ring, &disk.device, RW).err().unwrap().to_string(), refusal);
    let auto = open(ring, &disk.device, RW | OpenFlags::AUTO_RDONLY).unwrap();
    let refused = auto.permit(Permissions::WRITE, Permissions::all()).unwrap_err();
    assert_eq!(refused.to_string(), refusal);
    assert_eq!(auto.read(0, 512), pattern(LEN, 1)[..512]);
    auto.close();
}

fn a_character_device_is_served(ring: &Ring) {
    let node = open(ring, Path::new("/dev/zero"), RW).unwrap();
    assert_eq!(node.length(), 0);
    assert_eq!(node.read(0, 512), [0; 512]);
    node.write(0, &[1; 512], NONE);
    assert_eq!(node.zero(0, 512, NONE), Err(IoError::NotSupported));
    assert_eq!(node.driver.abilities().discard, Ability::None);
    assert_eq!(
        run(ring, node.driver.device().block_sizes()),
        Err(IoError::NotSupported)
    );
    assert_eq!(
        run(ring, node.driver.device().geometry()),
        Err(IoError::NotSupported)
    );
    let device = node.driver.device();
    assert!(!device.is_scsi_generic());
    let command = ScsiCommand {
        block: vec![0; 6],
        data: ScsiData::In(36),
        timeout: Duration::from_secs(1),
    };
    let too_long = ScsiCommand {
        block: vec![0; 256],
        ..command.clone()
    };
    let sent = |command| run(ring, device.send_scsi(command));
    assert_eq!(
        sent(command),
        Err(IoError::Os(libc::ENOTTY)),
        "the kernel was asked"
    );
    assert_eq!(sent(too_long), Err(IoError::Invalid));
    assert!(open(ring, Path::new("/dev/null"), RW | OpenFlags::AUTO_RDONLY).is_ok());
}
