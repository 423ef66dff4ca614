//! Writing a flight record: the rings as they are, and what iothreads report to have open.

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Seek, Write};
use std::path::{Path, PathBuf};
use std::time::Instant;

use millpond_messages::handshake::PendingRequest;
use millpond_messages::record::{
    FLIGHT_MAGIC, FlightHeader, FlightThread, HeldMessage, ThreadState, write_frame,
};

use super::recorder::{RECORDS, Recorder, kind_names};

/// The most names, requests and held messages that a dump has of one thread.
const MOST_OPEN: usize = 4096;

/// How many numbers are tried for a file name that is not taken.
const ATTEMPTS: u32 = 1000;

/// A thread's whole frame must be shorter than a frame may be: names are cut to so many bytes.
const LONGEST_NAME: usize = 64;

// A record takes 58 bytes at most; all of a thread's leave room for what it has open.
const _: () = assert!(RECORDS * 58 < millpond_messages::record::FRAME_MAX / 4);

/// The nodes, requests and held messages of an iothread.
#[derive(Debug, Default)]
pub struct Open {
    /// The names of its nodes, by their numbers.
    pub nodes: Vec<(u64, String)>,
    /// Requests in flight, by the name of the node where they entered.
    pub in_flight: Vec<(String, PendingRequest)>,
    /// Messages that delay rules hold back.
    pub held: Vec<HeldMessage>,
}

/// The bytes of a flight record: all threads' rings, and what the threads that were asked have open (None: no answer).
pub fn written(reason: &str, mut open: Vec<(String, Option<Open>)>) -> Vec<u8> {
    let recorders = Recorder::all();
    let at_ns = recorders
        .first()
        .map_or(0, |first| first.since_begin(Instant::now()));
    let header = FlightHeader {
        reason: reason.to_owned(),
        process: std::process::id(),
        at_ns,
        kinds: kind_names(),
        threads: u32::try_from(recorders.len()).unwrap_or(u32::MAX),
    };
    let mut bytes = FLIGHT_MAGIC.to_vec();
    add(&mut bytes, &header);
    for recorder in recorders.iter() {
        let told = open.iter().position(|(name, _)| name == recorder.name());
        let told = told.map(|place| open.swap_remove(place).1);
        add(&mut bytes, &thread(recorder, told));
    }
    bytes
}

fn add<T: serde::Serialize>(bytes: &mut Vec<u8>, value: &T) {
    if let Err(error) = write_frame(value, bytes) {
        // The bounds above rule this out. If it happens nevertheless, the rest of the record is still of use.
        tracing::error!(%error, "a part of a flight record is left out");
    }
}

/// A thread's frame; `told` is the thread's own answer, if it was asked.
fn thread(recorder: &Recorder, told: Option<Option<Open>>) -> FlightThread {
    let (records, written) = recorder.read();
    let state = match &told {
        None => ThreadState::NotAsked,
        Some(None) => ThreadState::Silent,
        Some(Some(_)) => ThreadState::Told,
    };
    let Open {
        mut nodes,
        mut in_flight,
        mut held,
    } = told.flatten().unwrap_or_default();
    nodes.truncate(MOST_OPEN);
    in_flight.truncate(MOST_OPEN);
    held.truncate(MOST_OPEN);
    nodes.iter_mut().for_each(|(_, name)| cut(name));
    for (name, request) in &mut in_flight {
        cut(name);
        cut(&mut request.stands_at);
    }
    held.iter_mut().for_each(|held| cut(&mut held.node));
    FlightThread {
        name: recorder.name().chars().take(LONGEST_NAME).collect(),
        state,
        written,
        records,
        nodes,
        in_flight,
        held,
    }
}

fn cut(name: &mut String) {
    if name.len() > LONGEST_NAME {
        *name = name.chars().take(LONGEST_NAME / 4).collect();
    }
}

/// Writes a new file in the folder for temporary files, of a name that tells the process; never one that is there.
///
/// # Errors
/// The system's.
pub fn write_new(bytes: &[u8]) -> io::Result<PathBuf> {
    let (folder, process) = (std::env::temp_dir(), std::process::id());
    for number in 0..ATTEMPTS {
        let path = folder.join(format!("millpond-{process}-{number}.flight"));
        match create(&path) {
            Ok(mut file) => return file.write_all(bytes).map(|()| path),
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
            Err(error) => return Err(error),
        }
    }
    Err(io::Error::from(io::ErrorKind::AlreadyExists))
}

/// Writes a file of that name: a new one, or over an older record. It blocks.
///
/// # Errors
/// The system's, and something else is there.
pub fn write_to(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let mut file = match create(path) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => older(path)?,
        made => made?,
    };
    file.write_all(bytes)
}

fn create(path: &Path) -> io::Result<File> {
    OpenOptions::new().write(true).create_new(true).open(path)
}

/// The record at `path`, emptied.
fn older(path: &Path) -> io::Result<File> {
    let no_record = || io::Error::other("the file exists and is no flight record");
    // Opening a device or a pipe may do more than open it.
    if !path.metadata()?.is_file() {
        return Err(no_record());
    }
    let mut file = OpenOptions::new().read(true).write(true).open(path)?;
    let mut begins = Vec::new();
    (&file).take(FLIGHT_MAGIC.len() as u64).read_to_end(&mut begins)?;
    if !begins.is_empty() && begins != FLIGHT_MAGIC {
        return Err(no_record());
    }
    file.set_len(0)?;
    file.rewind()?;
    Ok(file)
}
