//! Binary records. What is read must be written as the same record again, and never longer than it came.

use messages::io::OperationKind;
use messages::record::{MessageEvent, MessageRecord, read_frame, write_frame};
use messages::{IoThreadId, NodeId};

pub(super) fn run(bytes: &[u8]) {
    let mut rest = bytes;
    while let Ok((record, used)) = read_frame::<MessageRecord>(rest) {
        let mut written = Vec::new();
        write_frame(&record, &mut written).expect("a record that was read can be written");
        assert!(written.len() <= used, "it grew from {used} to {}", written.len());
        let (again, _) = read_frame::<MessageRecord>(&written).expect("what was written can be read");
        assert_eq!(again, record);
        rest = rest
            .get(used..)
            .expect("a frame does not take more than there is");
    }
    // Types of which bytes alone say how much memory they want.
    let _ = read_frame::<Vec<u64>>(bytes);
    let _ = read_frame::<Vec<String>>(bytes);
}

pub(super) fn seeds() -> Vec<Vec<u8>> {
    let event = |event| MessageRecord {
        at_ns: 1 << 40,
        iothread: IoThreadId(3),
        node: NodeId(300),
        event,
    };
    let mut log = Vec::new();
    for event in [
        event(MessageEvent::Admitted(OperationKind::Read)),
        event(MessageEvent::Parked(OperationKind::Write)),
        event(MessageEvent::Quiesce(1)),
        event(MessageEvent::Resume(u64::MAX)),
    ] {
        write_frame(&event, &mut log).expect("a record can be written");
    }
    let mut texts = Vec::new();
    write_frame(&vec!["one".to_owned(), "two".to_owned()], &mut texts).expect("texts can be written");
    vec![
        log,
        texts,
        vec![9, 0, 0, 0, 253, 255, 255, 255, 255, 255, 255, 255, 255],
    ]
}
