//! Binary records and flight records. What is read must be written as the same record again, and never longer than it came.

use millpond::flight::Printed;
use millpond_messages::record::{
    FLIGHT_MAGIC, FlightHeader, MessageEvent, MessageRecord, read_frame, write_frame,
};

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
    // What was read can be printed.
    if let Ok(flight) = Printed::read(bytes) {
        let _ = flight.to_string();
    }
    // Types of which bytes alone say how much memory they want.
    let _ = read_frame::<Vec<u64>>(bytes);
    let _ = read_frame::<Vec<String>>(bytes);
}

pub(super) fn seeds() -> Vec<Vec<u8>> {
    let mut log = Vec::new();
    for event in MessageEvent::ALL {
        let record = MessageRecord {
            at_ns: 1 << 40,
            event,
            kind: 3,
            node: 300,
            offset: u64::MAX,
            len: 4096,
            number: 7,
            from: 0,
        };
        write_frame(&record, &mut log).expect("a record can be written");
    }
    let mut flight = FLIGHT_MAGIC.to_vec();
    let header = FlightHeader {
        reason: "asked for".to_owned(),
        process: 1,
        at_ns: 9,
        kinds: vec!["read".to_owned()],
        threads: 0,
    };
    write_frame(&header, &mut flight).expect("a header can be written");
    let mut texts = Vec::new();
    write_frame(&vec!["one".to_owned(), "two".to_owned()], &mut texts).expect("texts can be written");
    vec![
        log,
        flight,
        texts,
        vec![9, 0, 0, 0, 253, 255, 255, 255, 255, 255, 255, 255, 255],
    ]
}
