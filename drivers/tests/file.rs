//! Regular files: data, lengths, holes, alignment, and what is refused, on every engine.
#![allow(clippy::unwrap_used, reason = "a panic is how a test fails")]

mod host;

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use host::{Node, is_zero, pattern, qemu, range, run};
use millpond_drivers::api::Ability;
use millpond_drivers::protocol::file::{CreateFile, create_file, delete_file};
use millpond_messages::io::Preallocation;
use millpond_messages::{CopySource, IoError, OpenFlags, Permissions, RequestFlags};
use millpond_ring::Ring;
use serde_json::json;

const NONE: RequestFlags = RequestFlags::empty();
const RW: OpenFlags = OpenFlags::RDWR;

on_each_engine! {
    what_is_written_is_read_and_the_rest_is_zero
    gather_lists_come_back_as_they_were
    wrong_files_are_refused_in_qemus_words
    a_pipe_does_not_hold_up_its_refusal
    zeroes_are_written_without_data
    zeroes_beyond_the_end_make_the_file_longer
    discards_give_space_back_if_they_may
    holes_are_told_as_qemu_tells_them
    files_grow_and_shrink_and_reserve_space
    direct_io_is_aligned_and_reads_the_last_block
    files_are_copied_inside_the_kernel
    aio_threads_is_served
}

struct Dir(tempfile::TempDir);

impl Dir {
    fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    /// A sparse file.
    fn sparse(&self, name: &str, len: u64) -> PathBuf {
        let path = self.path(name);
        File::create(&path).unwrap().set_len(len).unwrap();
        path
    }
}

fn what_is_written_is_read_and_the_rest_is_zero(ring: &Ring) {
    let dir = Dir::new();
    let node = Node::file(ring, &dir.sparse("image", 0), RW).unwrap();
    assert_eq!(node.length(), 0);
    let data = pattern(5000, 1);
    node.write(1000, &data, NONE);
    node.write(6000, &data[..77], RequestFlags::FUA);
    assert_eq!(node.length(), 6077);
    run(ring, node.driver.flush()).unwrap();

    let mut expected = vec![0; 1000];
    expected.extend_from_slice(&data);
    expected.extend_from_slice(&data[..77]);
    expected.resize(8192, 0);
    assert_eq!(node.read(0, 8192), expected, "past the end there are zeroes");
    assert_eq!(node.read(7000, 512), vec![0; 512]);
    assert_eq!(node.read(999, 3), expected[999..1002]);
    assert!(node.allocated() >= 6077);
    assert_eq!(node.allocated() % 512, 0);
    node.close();
}

fn gather_lists_come_back_as_they_were(ring: &Ring) {
    use millpond_ring::buffer::{Buffer, Buffers};
    let dir = Dir::new();
    let node = Node::file(ring, &dir.sparse("image", 0), RW).unwrap();
    let data = pattern(1536, 3);
    let list: Buffers = data.chunks(512).map(Buffer::from_slice).collect();
    let (result, list) = run(ring, Rc::clone(&node.driver).write(0, list, NONE));
    result.unwrap();
    assert_eq!(list.count(), 3);
    // The file ends in the middle of the list's third buffer.
    run(ring, node.driver.truncate(1100, true, Preallocation::Off, NONE)).unwrap();
    let list: Buffers = (0..3).map(|_| Buffer::from_slice(&[0xEE; 512])).collect();
    let (result, list) = run(ring, Rc::clone(&node.driver).read(0, list, NONE));
    result.unwrap();
    assert_eq!(list.count(), 3);
    let mut expected = data;
    expected[1100..].fill(0);
    assert_eq!(list.to_vec(), expected);
}

fn wrong_files_are_refused_in_qemus_words(ring: &Ring) {
    let dir = Dir::new();
    let image = dir.sparse("image", 512);
    let shown = |path: &Path| path.display().to_string();
    let open = |driver: &str, path: &Path, flags| {
        Node::open(ring, driver, json!({"filename": path}), flags, None)
            .err()
            .unwrap()
            .to_string()
    };
    let missing = dir.path("missing");
    assert_eq!(
        open("file", &missing, RW),
        format!("Could not open '{}': No such file or directory", shown(&missing))
    );
    let directory = dir.path("");
    assert_eq!(
        open("file", &directory, RW),
        format!("Could not open '{}': Is a directory", shown(&directory))
    );
    assert_eq!(
        open("file", Path::new("/dev/null"), RW),
        "'file' driver requires '/dev/null' to be a regular file"
    );
    assert_eq!(
        open("host_device", &image, RW),
        format!(
            "'host_device' driver requires '{}' to be either a character or block device",
            shown(&image)
        )
    );
    assert_eq!(
        open("file", Path::new("/proc/version"), OpenFlags::NOCACHE),
        "Could not open '/proc/version': filesystem does not support O_DIRECT"
    );
}

fn a_pipe_does_not_hold_up_its_refusal(ring: &Ring) {
    let dir = Dir::new();
    let pipe = dir.path("pipe");
    let made = Command::new("mkfifo")
        .arg(&pipe)
        .status()
        .expect("cannot run mkfifo: install coreutils");
    assert!(made.success());
    let error = Node::file(ring, &pipe, OpenFlags::empty()).err().unwrap();
    let expected = format!("'file' driver requires '{}' to be a regular file", pipe.display());
    assert_eq!(error.to_string(), expected);
}

fn zeroes_are_written_without_data(ring: &Ring) {
    const LEN: u64 = 1 << 20;
    let dir = Dir::new();
    let path = dir.path("image");
    fs::write(&path, vec![7; LEN as usize]).unwrap();
    let node = Node::file(ring, &path, RW).unwrap();
    let full = node.allocated();
    assert!(full >= LEN);
    // Not aligned to anything, and not allowed to give space up.
    node.zero(1000, 300_000, RequestFlags::MAY_UNMAP | RequestFlags::FUA)
        .unwrap();
    assert!(node.allocated() >= full, "without discard=unmap the space stays");
    let mut expected = vec![7; LEN as usize];
    expected[1000..301_000].fill(0);
    assert!(node.read(0, LEN as usize) == expected);
    assert_eq!(node.length(), LEN);

    let node = Node::file(ring, &path, RW | OpenFlags::UNMAP).unwrap();
    node.zero(0, LEN / 2, NONE).unwrap();
    assert!(node.allocated() >= full, "only MAY_UNMAP gives space up");
    node.zero(0, LEN / 2, RequestFlags::MAY_UNMAP | RequestFlags::NO_FALLBACK)
        .unwrap();
    assert!(node.allocated() <= full - LEN / 2);
    expected[..LEN as usize / 2].fill(0);
    assert!(node.read(0, LEN as usize) == expected);
}

fn zeroes_beyond_the_end_make_the_file_longer(ring: &Ring) {
    let dir = Dir::new();
    let node = Node::file(ring, &dir.sparse("image", 0), RW | OpenFlags::UNMAP).unwrap();
    node.write(0, &[7; 4096], NONE);
    node.zero(2048, 1 << 20, RequestFlags::MAY_UNMAP).unwrap();
    assert_eq!(node.length(), 2048 + (1 << 20));
    assert!(
        node.allocated() < 1 << 19,
        "what was never written takes no space"
    );
    node.zero(2 << 20, 1 << 20, NONE).unwrap();
    assert_eq!(node.length(), 3 << 20);
    let mut expected = vec![0; 3 << 20];
    expected[..2048].fill(7);
    assert!(node.read(0, 3 << 20) == expected);
}

fn discards_give_space_back_if_they_may(ring: &Ring) {
    let dir = Dir::new();
    let path = dir.path("image");
    fs::write(&path, vec![7; 1 << 20]).unwrap();
    let keeps = Node::file(ring, &path, RW).unwrap();
    assert_eq!(keeps.driver.abilities().discard, Ability::None);
    assert_eq!(
        run(ring, keeps.driver.discard(host::range(0, 1 << 20))),
        Err(IoError::NotSupported)
    );
    let full = keeps.allocated();

    let gives = Node::file(ring, &path, RW | OpenFlags::UNMAP).unwrap();
    assert_eq!(gives.driver.abilities().discard, Ability::Native);
    run(ring, gives.driver.discard(host::range(1 << 18, 1 << 18))).unwrap();
    assert!(gives.allocated() <= full - (1 << 18));
    assert_eq!(gives.length(), 1 << 20);
    assert_eq!(gives.read(1 << 18, 512), [0; 512]);
    assert_eq!(gives.read((1 << 18) - 512, 512), [7; 512]);
}

fn holes_are_told_as_qemu_tells_them(ring: &Ring) {
    const LEN: u64 = 4 << 20;
    let dir = Dir::new();
    let path = dir.sparse("image", LEN + 700);
    let node = Node::file(ring, &path, RW | OpenFlags::UNMAP).unwrap();
    for (at, len) in [(0, 100), (512 << 10, 200 << 10), (2 << 20, 1 << 20), (LEN, 700)] {
        node.write(at, &vec![7; len], NONE);
    }
    // Extents as (start, length, is zero). A walk remembers data: it must not remember it across a discard.
    let walk = || {
        let mut extents: Vec<(u64, u64, bool)> = Vec::new();
        let mut at = 0;
        while at < LEN + 700 {
            let extent = node.status(at, (LEN + 700 - at).min(300 << 10));
            match extents.last_mut() {
                Some(last) if last.2 == is_zero(extent) => last.1 += extent.len,
                _ => extents.push((at, extent.len, is_zero(extent))),
            }
            at += extent.len;
        }
        extents
    };
    let by_qemu = || {
        // It counts in whole sectors, so the last extent may begin where the file ends.
        let image = format!("driver=file,filename={}", path.display());
        let (ok, text) = qemu("qemu-img", &["map", "--output=json", "--image-opts", &image]);
        assert!(ok, "{text}");
        let extents: Vec<serde_json::Value> = serde_json::from_str(&text).unwrap();
        let number = |extent: &serde_json::Value, name: &str| extent[name].as_u64().unwrap();
        let all = extents.iter().map(|extent| {
            let (start, len) = (number(extent, "start"), number(extent, "length"));
            (start, len.min(LEN + 700 - start), extent["zero"] == true)
        });
        all.filter(|(_, len, _)| *len > 0).collect::<Vec<_>>()
    };
    run(ring, node.driver.flush()).unwrap();
    assert_eq!(walk(), by_qemu());
    assert!(walk().len() >= 6);
    run(ring, node.driver.discard(host::range(2 << 20, 512 << 10))).unwrap();
    assert_eq!(walk(), by_qemu());
    assert!(is_zero(node.status(2 << 20, 4096)));
}

fn files_grow_and_shrink_and_reserve_space(ring: &Ring) {
    use Preallocation::{Falloc, Full, Metadata, Off};
    let dir = Dir::new();
    let node = Node::file(ring, &dir.sparse("image", 0), RW).unwrap();
    let resize = |size, preallocation| {
        run(ring, node.driver.truncate(size, true, preallocation, NONE)).map_err(|error| error.to_string())
    };
    resize(1 << 20, Off).unwrap();
    // Its first block is there, for others to find out by how alignment is to be kept.
    assert_eq!((node.length(), node.allocated()), (1 << 20, 4096));
    resize(2 << 20, Falloc).unwrap();
    assert_eq!(node.length(), 2 << 20);
    assert!(node.allocated() >= 1 << 20);
    resize((3 << 20) + 777, Full).unwrap();
    assert_eq!(node.length(), (3 << 20) + 777);
    assert!(node.allocated() >= 2 << 20);
    assert!(node.read(0, 3 << 20).iter().all(|byte| *byte == 0));

    let text = "Cannot use preallocation for shrinking files";
    assert_eq!(resize(512, Falloc).unwrap_err(), text);
    let text = "Unsupported preallocation mode: metadata";
    assert_eq!(resize(4 << 20, Metadata).unwrap_err(), text);
    assert_eq!(
        resize(u64::MAX - 4, Off).unwrap_err(),
        "Could not resize file: Invalid argument",
        "a length of -5"
    );
    assert_eq!(
        resize(i64::MAX as u64, Off).unwrap_err(),
        "Could not resize file: File too large"
    );
    assert!(resize(1 << 62, Falloc).is_err());
    assert_eq!(node.length(), (3 << 20) + 777, "what fails changes nothing");
    resize(100, Off).unwrap();
    assert_eq!(node.length(), 100);
}

fn direct_io_is_aligned_and_reads_the_last_block(ring: &Ring) {
    let dir = Dir::new();
    let path = dir.path("image");
    let data = pattern(10_000, 9);
    fs::write(&path, &data).unwrap();
    let node = match Node::file(ring, &path, RW | OpenFlags::NOCACHE) {
        Ok(node) => node,
        Err(error) => {
            let expected = format!(
                "Could not open '{}': filesystem does not support O_DIRECT",
                path.display()
            );
            assert_eq!(
                error.to_string(),
                expected,
                "what the temporary directory is on has no direct I/O"
            );
            return;
        }
    };
    let limits = node.driver.abilities().limits;
    let block = limits.request_alignment as usize;
    assert!(block.is_power_of_two() && block <= 4096 && limits.opt_mem_alignment >= 4096);
    let len = 10_000_usize.next_multiple_of(block);
    let mut expected = data;
    expected.resize(len, 0);
    assert!(node.read(0, len) == expected);
    assert_eq!(node.read(len as u64, block), vec![0; block], "beyond the end");
    node.write(block as u64, &vec![3; block], RequestFlags::FUA);
    expected[block..2 * block].fill(3);
    assert!(node.read(0, len) == expected);
    run(
        ring,
        node.driver.truncate(1 << 20, true, Preallocation::Full, NONE),
    )
    .unwrap();
    assert!(node.allocated() >= 1 << 20);
}

fn files_are_copied_inside_the_kernel(ring: &Ring) {
    let dir = Dir::new();
    let (from, to) = (dir.path("from"), dir.sparse("to", 0));
    let data = pattern(100_000, 5);
    fs::write(&from, &data).unwrap();
    let from = Node::file(ring, &from, OpenFlags::empty()).unwrap();
    let to = Node::file(ring, &to, RW).unwrap();
    let mut done = 0;
    while done < 90_000 {
        let source = from
            .driver
            .device()
            .copy_source(range(10_000 + done, 90_000 - done))
            .unwrap();
        match run(
            ring,
            to.driver
                .device()
                .copy_from(source, range(500 + done, 90_000 - done)),
        ) {
            Ok(count) => done += count,
            Err(error) => {
                // Some file systems cannot; then they say so at the first byte.
                assert_eq!((error, done), (IoError::NotSupported, 0));
                return;
            }
        }
    }
    assert!(to.read(500, 90_000) == data[10_000..]);
    let beyond: CopySource = from.driver.device().copy_source(range(1 << 30, 512)).unwrap();
    assert_eq!(
        run(ring, to.driver.device().copy_from(beyond, range(0, 512))),
        Err(IoError::NotSupported)
    );
}

fn aio_threads_is_served(ring: &Ring) {
    let dir = Dir::new();
    let options = json!({"filename": dir.sparse("image", 0), "aio": "threads", "locking": "off"});
    let node = Node::open(ring, "file", options, RW, None).unwrap();
    let data = pattern(70_000, 2);
    node.write(3, &data, RequestFlags::FUA);
    assert!(node.read(3, 70_000) == data);
    node.zero(0, 70_000, NONE).unwrap();
    assert!(node.read(0, 70_000).iter().all(|byte| *byte == 0));
}

#[test]
fn with_auto_read_only_the_file_is_open_for_writing_only_while_there_is_a_writer() {
    let ring = &host::ring(millpond_ring::Engine::Threads);
    let dir = Dir::new();
    let node = Node::file(ring, &dir.sparse("image", 512), RW | OpenFlags::AUTO_RDONLY).unwrap();
    assert!(node.flags.contains(RW));
    let can_write = || {
        let source = node.driver.device().copy_source(range(0, 1)).unwrap();
        let flags = rustix::fs::fcntl_getfl(&*source.file).unwrap();
        flags.contains(rustix::fs::OFlags::RDWR)
    };
    assert!(!can_write());
    let reader = Permissions::CONSISTENT_READ;
    node.permit(reader | Permissions::WRITE, Permissions::all())
        .unwrap();
    assert!(can_write());
    node.write(0, &[1; 512], NONE);
    node.permit(reader, Permissions::all()).unwrap();
    assert!(!can_write());
    assert_eq!(node.read(0, 512), [1; 512]);
}

#[test]
fn a_file_that_refuses_writers_is_read_with_auto_read_only() {
    let ring = &host::ring(millpond_ring::Engine::Threads);
    let dir = Dir::new();
    // Nobody, not even root, may write to a program that runs.
    let program = dir.path("program");
    fs::copy("/bin/sleep", &program).unwrap();
    let mut running = Command::new(&program).arg("1000").spawn().unwrap();
    let refusal = format!("Could not open '{}': Text file busy", program.display());
    let plain = Node::file(ring, &program, RW)
        .err()
        .map(|error| error.to_string());
    let auto = Node::file(ring, &program, RW | OpenFlags::AUTO_RDONLY).unwrap();
    let head = auto.read(0, 4);
    let writer = auto
        .permit(Permissions::WRITE, Permissions::all())
        .map_err(|error| error.to_string());
    let reader = auto.permit(Permissions::CONSISTENT_READ, Permissions::all());
    running.kill().unwrap();
    running.wait().unwrap();
    assert_eq!(plain.as_ref(), Some(&refusal));
    assert_eq!(head, b"\x7fELF");
    assert_eq!(writer, Err(refusal));
    reader.unwrap();
}

/// A child process has copies of all descriptors until it runs its program: locks must not last as long.
#[test]
fn a_file_that_was_made_is_free_whatever_processes_are_being_started() {
    let dir = Dir::new();
    let wanted = CreateFile {
        filename: dir.path("new").display().to_string(),
        size: 4096,
        preallocation: Preallocation::Off,
        nocow: false,
        extent_size_hint: Some(0),
    };
    let stop = Arc::new(AtomicBool::new(false));
    let stopped = Arc::clone(&stop);
    let children = thread::spawn(move || {
        while !stopped.load(Ordering::Relaxed) {
            Command::new("true").status().expect("a process");
        }
    });
    let made = (0..4000).try_for_each(|_| create_file(&wanted));
    stop.store(true, Ordering::Relaxed);
    children.join().expect("no panic");
    made.expect("nobody else uses the file");
}

#[test]
fn files_are_made_as_asked_and_deleted() {
    let dir = Dir::new();
    let path = dir.path("new");
    let wanted = |preallocation, size, hint| CreateFile {
        filename: path.display().to_string(),
        size,
        preallocation,
        nocow: true,
        extent_size_hint: hint,
    };
    let text = |wanted: &CreateFile| create_file(wanted).unwrap_err().to_string();
    fs::write(&path, [7; 4096]).unwrap();
    create_file(&wanted(Preallocation::Off, 1 << 20, None)).unwrap();
    assert!(
        fs::read(&path).unwrap() == vec![0; 1 << 20],
        "what was there before is gone"
    );
    create_file(&wanted(Preallocation::Falloc, 1 << 20, Some(0))).unwrap();
    assert!(std::os::unix::fs::MetadataExt::blocks(&fs::metadata(&path).unwrap()) >= 2048);
    assert_eq!(
        text(&wanted(Preallocation::Metadata, 0, None)),
        "Unsupported preallocation mode: metadata"
    );
    assert_eq!(
        text(&wanted(Preallocation::Off, 0, Some(1 << 32))),
        "Extent size hint is too large"
    );
    assert_eq!(
        text(&wanted(Preallocation::Off, i64::MAX as u64, None)),
        "Could not resize file: File too large"
    );
    assert!(path.exists(), "what was there before stays on failure");
    delete_file(&path).unwrap();
    assert!(!path.exists());
    assert_eq!(
        text(&wanted(Preallocation::Off, i64::MAX as u64, None)),
        "Could not resize file: File too large"
    );
    assert!(!path.exists(), "half a file helps nobody");
    let error = delete_file(&path).unwrap_err().to_string();
    assert_eq!(
        error,
        format!(
            "{} is not a regular file: No such file or directory",
            path.display()
        )
    );
    let nowhere = CreateFile {
        filename: "/nowhere/x".to_owned(),
        ..wanted(Preallocation::Off, 0, None)
    };
    assert_eq!(
        text(&nowhere),
        "Could not create '/nowhere/x': No such file or directory"
    );
}
