//! A responder with no graph behind it: it takes requests apart and answers each at once.
//!
//! What it reaches under a load bounds what any server can reach with this client on this machine. It runs on Millpond's
//! own ring, one thread for all connections, or, to see what the ring costs, on plain blocking reads and writes with a
//! thread for each connection. What it answers to reads is whatever its memory holds: nothing is stored.

mod answer;
mod plain;
mod ring;

use std::fs;
use std::io::{Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};

use clap::{Args, ValueEnum};

use crate::Outcome;

/// The length of the export in bytes.
const SIZE: u64 = 1 << 30;

/// Transmission flags: flags are there; flush, trim, zeroes and several connections are offered.
const FLAGS: u16 = 1 | 1 << 2 | 1 << 5 | 1 << 6 | 1 << 8;

/// The longest data of an option that is taken, in bytes.
const MOST_OPTION: u32 = 1 << 16;

/// The options of `millpond-bench ceiling`.
#[derive(Debug, Args)]
#[command(after_help = EXAMPLE)]
pub struct CeilingArguments {
    /// The unix socket to listen on
    socket: PathBuf,
    /// What carries the bytes
    #[arg(long, value_enum, default_value_t = Engine::Ring)]
    engine: Engine,
}

const EXAMPLE: &str = "\
Example:
    millpond-bench ceiling /tmp/ceiling.sock &
    millpond-bench load 'nbd+unix:///?socket=/tmp/ceiling.sock' --depth 128 --pid $!";

/// What carries a responder's bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Engine {
    /// Millpond's own ring, as an iothread has it: one system call a turn
    Ring,
    /// Plain blocking reads and writes, a thread for each connection
    Plain,
}

/// Serves connections until the process ends.
///
/// # Errors
/// The socket cannot be listened on, or there is no ring.
pub fn main(arguments: &CeilingArguments) -> Outcome<()> {
    let listener = bind(&arguments.socket)?;
    println!("nbd+unix:///?socket={}", arguments.socket.display());
    serve(listener, arguments.engine)
}

/// Serves connections on threads of this process until the process ends.
///
/// # Errors
/// The socket cannot be listened on.
pub fn spawn(socket: &Path, engine: Engine) -> Outcome<()> {
    let listener = bind(socket)?;
    std::thread::Builder::new()
        .name("ceiling".to_owned())
        .spawn(move || {
            if let Err(error) = serve(listener, engine) {
                eprintln!("the responder ended: {error}");
            }
        })?;
    Ok(())
}

fn serve(listener: UnixListener, engine: Engine) -> Outcome<()> {
    match engine {
        Engine::Ring => ring::serve(listener),
        Engine::Plain => plain::serve(&listener),
    }
}

/// Listens on a socket, in place of one that an earlier run has left.
fn bind(path: &Path) -> Outcome<UnixListener> {
    if path.exists() {
        fs::remove_file(path)?;
    }
    Ok(UnixListener::bind(path).map_err(|error| format!("{}: {error}", path.display()))?)
}

/// Takes a connection to transmission; whether replies are structured.
fn negotiate(stream: &mut UnixStream) -> Outcome<bool> {
    stream.write_all(b"NBDMAGICIHAVEOPT\0\x03")?;
    stream.read_exact(&mut [0; 4])?;
    let mut structured = false;
    loop {
        let mut header = [0; 16];
        stream.read_exact(&mut header)?;
        let length = u32::from_be_bytes([header[12], header[13], header[14], header[15]]);
        if length > MOST_OPTION {
            return Err(format!("an option of {length} bytes").into());
        }
        let mut data = vec![0; length as usize];
        stream.read_exact(&mut data)?;
        let option = [header[8], header[9], header[10], header[11]];
        let reply = |kind: u32, data: &[u8]| -> Vec<u8> {
            let magic = 0x0003_e889_0455_65a9_u64.to_be_bytes();
            let length = (data.len() as u32).to_be_bytes();
            [&magic[..], &option, &kind.to_be_bytes(), &length, data].concat()
        };
        match u32::from_be_bytes(option) {
            OPT_GO => {
                let info = [&[0, 0][..], &SIZE.to_be_bytes(), &FLAGS.to_be_bytes()].concat();
                stream.write_all(&[reply(REP_INFO, &info), reply(REP_ACK, &[])].concat())?;
                return Ok(structured);
            }
            OPT_STRUCTURED_REPLY => {
                structured = true;
                stream.write_all(&reply(REP_ACK, &[]))?;
            }
            _ => stream.write_all(&reply(REP_ERR_UNSUP, &[]))?,
        }
    }
}

const OPT_GO: u32 = 7;
const OPT_STRUCTURED_REPLY: u32 = 8;
const REP_ACK: u32 = 1;
const REP_INFO: u32 = 3;
const REP_ERR_UNSUP: u32 = 1 << 31 | 1;
