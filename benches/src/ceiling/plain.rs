//! The responder on plain blocking reads and writes.

use std::io::{Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};

use super::answer::Requests;
use super::negotiate;
use crate::Outcome;

/// Bytes of one read.
const RECEIVE: usize = 1 << 20;

/// Serves each connection on a thread of its own.
pub(super) fn serve(listener: &UnixListener) -> Outcome<()> {
    for stream in listener.incoming() {
        let stream = stream?;
        std::thread::Builder::new()
            .name("plain".to_owned())
            .spawn(move || {
                if let Err(error) = answer(stream) {
                    eprintln!("a connection ended: {error}");
                }
            })?;
    }
    Ok(())
}

fn answer(mut stream: UnixStream) -> Outcome<()> {
    let mut requests = Requests::new(negotiate(&mut stream)?);
    let mut input = vec![0; RECEIVE];
    let mut filled = 0;
    let mut output = Vec::new();
    while !requests.ended {
        let count = stream.read(&mut input[filled..])?;
        if count == 0 {
            return Ok(());
        }
        filled += count;
        let used = requests.take(&input[..filled], |reply| {
            output.extend_from_slice(reply.header());
            output.resize(output.len() + reply.data, 0);
        })?;
        input.copy_within(used..filled, 0);
        filled -= used;
        stream.write_all(&output)?;
        output.clear();
    }
    Ok(())
}
