//! A responder with no graph behind it: it takes requests apart and answers each at once.
//!
//! What it reaches under a load bounds what any server can reach with this client on this machine. It serves one
//! connection at a time with plain reads and writes, all requests of one read being answered by one write.

use std::io::{Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};

use clap::Args;

use crate::Outcome;

const SIZE: u64 = 1 << 30;
const HEADER: usize = 28;
const CMD_READ: u16 = 0;
const CMD_WRITE: u16 = 1;
const CMD_DISC: u16 = 2;

/// The options of `millpond-bench ceiling`.
#[derive(Debug, Args)]
pub struct CeilingArguments {
    /// The unix socket to listen on
    socket: PathBuf,
}

/// Serves one connection after another.
pub fn main(arguments: &CeilingArguments) -> Outcome<()> {
    let listener = bind(&arguments.socket)?;
    println!("nbd+unix:///?socket={}", arguments.socket.display());
    for stream in listener.incoming() {
        if let Err(error) = serve(stream?) {
            eprintln!("a connection ended: {error}");
        }
    }
    Ok(())
}

/// Listens on a socket, in place of one that an earlier run has left.
fn bind(path: &Path) -> Outcome<UnixListener> {
    if path.exists() {
        std::fs::remove_file(path)?;
    }
    Ok(UnixListener::bind(path)?)
}

fn serve(mut stream: UnixStream) -> Outcome<()> {
    negotiate(&mut stream)?;
    let mut input = vec![0; 1 << 20];
    let (mut filled, mut skip) = (0, 0);
    let mut output = Vec::with_capacity(1 << 20);
    loop {
        let length = stream.read(input.get_mut(filled..).unwrap_or_default())?;
        if length == 0 {
            return Ok(());
        }
        filled += length;
        let mut rest = input.get(..filled).unwrap_or_default();
        loop {
            let passed = skip.min(rest.len());
            skip -= passed;
            rest = rest.get(passed..).unwrap_or_default();
            let Some((header, after)) = rest.split_first_chunk::<HEADER>() else {
                break;
            };
            rest = after;
            let length = u32::from_be_bytes([header[24], header[25], header[26], header[27]]) as usize;
            output.extend(0x6744_6698_u32.to_be_bytes());
            output.extend([0; 4]);
            output.extend(&header[8..16]);
            match u16::from_be_bytes([header[6], header[7]]) {
                CMD_READ => output.resize(output.len() + length.min(32 << 20), 0),
                CMD_WRITE => skip = length,
                CMD_DISC => return Ok(()),
                _ => {}
            }
        }
        let left = rest.len();
        input.copy_within(filled - left..filled, 0);
        filled = left;
        stream.write_all(&output)?;
        output.clear();
    }
}

/// Acknowledges GO with the export's size, and knows no other option.
fn negotiate(stream: &mut UnixStream) -> Outcome<()> {
    stream.write_all(b"NBDMAGICIHAVEOPT\0\x03")?;
    stream.read_exact(&mut [0; 4])?;
    loop {
        let mut header = [0; 16];
        stream.read_exact(&mut header)?;
        let length = u32::from_be_bytes([header[12], header[13], header[14], header[15]]);
        std::io::copy(
            &mut Read::by_ref(stream).take(length.into()),
            &mut std::io::sink(),
        )?;
        let option = [header[8], header[9], header[10], header[11]];
        let reply = |kind: u32, data: &[u8]| -> Vec<u8> {
            let magic = 0x0003_e889_0455_65a9_u64.to_be_bytes();
            [
                &magic[..],
                &option,
                &kind.to_be_bytes(),
                &(data.len() as u32).to_be_bytes(),
                data,
            ]
            .concat()
        };
        if u32::from_be_bytes(option) == 7 {
            let info = [&[0, 0][..], &SIZE.to_be_bytes(), &[0, 1]].concat();
            stream.write_all(&[reply(3, &info), reply(1, &[])].concat())?;
            return Ok(());
        }
        stream.write_all(&reply(1 << 31 | 1, &[]))?;
    }
}

/// Serves connections on a thread of this process until the process ends.
pub fn spawn(socket: &Path) -> Outcome<()> {
    let listener = bind(socket)?;
    std::thread::spawn(move || {
        for stream in listener.incoming().map_while(Result::ok) {
            // A client that leaves ends its connection only.
            let _ = serve(stream);
        }
    });
    Ok(())
}
