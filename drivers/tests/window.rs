//! The null devices and the raw format, on every engine.
#![allow(clippy::unwrap_used, reason = "a panic is how a test fails")]

mod host;

use std::rc::Rc;
use std::time::Duration;

use host::{Node, is_zero, pattern, range, run};
use millpond_drivers::api::{Answer, At, Purpose, ReopenRequest, Target};
use millpond_messages::io::Preallocation;
use millpond_messages::{ChildSlot, IoError, OpenFlags, RequestFlags};
use millpond_ring::Ring;
use serde_json::{Value as Json, json};

const NONE: RequestFlags = RequestFlags::empty();
const RW: OpenFlags = OpenFlags::RDWR;

on_each_engine! {
    null_answers_at_once_and_leaves_buffers_alone
    null_reads_zeroes_if_asked
    null_waits_for_its_latency
    raw_moves_everything_by_its_offset
    raw_windows_that_do_not_fit_are_refused
    raw_is_as_long_as_its_file
    raw_can_be_given_another_window
}

fn null(ring: &Ring, options: Json) -> Node {
    Node::open(ring, "null-co", options, RW, None).unwrap()
}

fn null_answers_at_once_and_leaves_buffers_alone(ring: &Ring) {
    for name in ["null-co", "null-aio"] {
        let node = Node::open(ring, name, json!({}), RW, None).unwrap();
        assert_eq!(node.length(), 1 << 30);
        assert_eq!(node.read(1 << 20, 512), [0xEE; 512]);
        let buffers = millpond_ring::buffer::Buffers::alloc(512);
        assert!(matches!(
            Rc::clone(&node.driver).read(0, buffers, NONE),
            Answer::Ready(_)
        ));
        node.write(0, &[1; 512], RequestFlags::FUA);
        node.zero(0, 512, NONE).unwrap();
        assert_eq!(
            run(ring, node.driver.discard(range(0, 512))),
            Err(IoError::NotSupported)
        );
        assert_eq!(run(ring, node.driver.allocated_size()), Ok(0));
        assert!(!is_zero(node.status(0, 512)));
        assert_eq!(node.driver.image().filename(), Some(format!("{name}://")));
        let resized = run(ring, node.driver.truncate(512, true, Preallocation::Off, NONE));
        assert_eq!(
            resized.unwrap_err().to_string(),
            "Image format driver does not support resize"
        );
    }
}

fn null_reads_zeroes_if_asked(ring: &Ring) {
    let node = null(ring, json!({"read-zeroes": true, "size": 4096}));
    assert_eq!(node.read(0, 4096), vec![0; 4096]);
    assert!(is_zero(node.status(0, 4096)));
    assert_eq!((node.length(), node.driver.image().filename()), (4096, None));
    let Json::Object(options) = json!({"read-zeroes": true}) else {
        panic!("an object")
    };
    let reopened = run(
        ring,
        node.driver.reopen_prepare(ReopenRequest { options, flags: RW }),
    );
    assert_eq!(
        reopened.unwrap_err().to_string(),
        "Option 'size' cannot be reset to its default value"
    );
}

fn null_waits_for_its_latency(ring: &Ring) {
    let latency = Duration::from_millis(20);
    let node = null(ring, json!({"latency-ns": 20_000_000}));
    let moved = node.driver.depart();
    let moved = Node {
        driver: moved.arrive(Vec::new(), ring.clone()),
        ..node.clone()
    };
    for node in [node, moved] {
        let start = ring.now();
        let all = futures_util::future::join3(
            Rc::clone(&node.driver).read(0, millpond_ring::buffer::Buffers::alloc(512), NONE),
            node.driver.write_zeroes(range(0, 512), NONE),
            node.driver.flush(),
        );
        let ((read, _), zeroed, flushed) = run(ring, all);
        assert_eq!((read, zeroed, flushed), (Ok(()), Ok(()), Ok(())));
        let taken = ring.now() - start;
        assert!(taken >= latency, "{taken:?}");
    }
}

fn file(ring: &Ring, len: u64) -> (tempfile::TempDir, Node) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("image");
    std::fs::write(&path, pattern(usize::try_from(len).unwrap(), 1)).unwrap();
    (dir, Node::file(ring, &path, RW | OpenFlags::UNMAP).unwrap())
}

fn raw(ring: &Ring, options: Json, file: &Node) -> millpond_messages::Result<Node> {
    Node::open(ring, "raw", options, RW, Some(file.clone()))
}

fn raw_moves_everything_by_its_offset(ring: &Ring) {
    let (_dir, file) = file(ring, 1 << 20);
    let raw = raw(ring, json!({"offset": 4096, "size": 8192}), &file).unwrap();
    assert_eq!(raw.length(), 8192);
    let extent = run(ring, raw.driver.locate(Purpose::Read, range(100, 512))).unwrap();
    let there = ChildSlot::FILE;
    assert_eq!(
        (extent.at, extent.len),
        (
            At::Child {
                slot: there,
                offset: 4196
            },
            512
        )
    );
    let placement = run(ring, raw.driver.place(range(100, 512), NONE)).unwrap();
    assert_eq!(
        (placement.target, placement.len),
        (
            Target::Child {
                slot: there,
                offset: 4196
            },
            512
        )
    );
    assert!(raw.driver.abilities().transparent);

    raw.zero(0, 512, NONE).unwrap();
    run(ring, raw.driver.discard(range(4096, 4096))).unwrap();
    let mut expected = pattern(1 << 20, 1);
    expected[4096..4608].fill(0);
    expected[8192..12288].fill(0);
    assert!(file.read(0, 1 << 20) == expected);
    let resized = run(ring, raw.driver.truncate(4096, true, Preallocation::Off, NONE));
    assert_eq!(
        resized.unwrap_err().to_string(),
        "Cannot resize fixed-size raw disks"
    );
    assert_eq!(raw.driver.image().filename(), None);
}

fn raw_windows_that_do_not_fit_are_refused(ring: &Ring) {
    let (_dir, file) = file(ring, 1 << 20);
    let text = |options| {
        raw(ring, options, &file)
            .err()
            .map(|error| error.to_string())
            .unwrap_or_default()
    };
    assert_eq!(
        text(json!({"offset": 2_097_152})),
        "Offset (2097152) cannot be greater than size of the containing file (1048576)"
    );
    assert_eq!(
        text(json!({"offset": 512, "size": 1_048_576})),
        "The sum of offset (512) and size (1048576) has to be smaller or equal to the  actual size of the containing \
         file (1048576)"
    );
    assert_eq!(
        text(json!({"size": 513})),
        "Specified size is not multiple of 512"
    );
    assert_eq!(
        text(json!({"size": -1})),
        "Value '-1' is out of range for parameter 'size'"
    );
    assert_eq!(text(json!({"length": 1})), "Parameter 'length' is unexpected");
}

fn raw_is_as_long_as_its_file(ring: &Ring) {
    let (_dir, file) = file(ring, 1000);
    let raw = raw(ring, json!({"offset": 512}), &file).unwrap();
    assert_eq!(raw.length(), 488);
    run(ring, raw.driver.truncate(4096, true, Preallocation::Off, NONE)).unwrap();
    assert_eq!((raw.length(), file.length()), (4096, 4608));
    let too_long = run(
        ring,
        raw.driver.truncate(u64::MAX - 1, true, Preallocation::Off, NONE),
    );
    assert_eq!(
        too_long.unwrap_err().to_string(),
        "Disk size too large for the chosen offset"
    );
    run(ring, file.driver.truncate(100, true, Preallocation::Off, NONE)).unwrap();
    assert_eq!(raw.length(), 0, "the window is past the file's end");
}

fn raw_can_be_given_another_window(ring: &Ring) {
    let (_dir, file) = file(ring, 1 << 20);
    let raw = raw(ring, json!({}), &file).unwrap();
    let prepare = |options: Json| {
        let Json::Object(options) = options else {
            panic!("an object")
        };
        run(
            ring,
            raw.driver.reopen_prepare(ReopenRequest { options, flags: RW }),
        )
    };
    prepare(json!({"offset": 512})).unwrap();
    raw.driver.reopen_abort();
    assert_eq!(raw.length(), 1 << 20);
    assert!(prepare(json!({"offset": 1_048_577})).is_err());
    prepare(json!({"offset": 512, "size": 512})).unwrap();
    raw.driver.reopen_commit();
    assert_eq!(raw.length(), 512);
}
