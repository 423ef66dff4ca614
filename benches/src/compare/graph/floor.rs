//! The floor of whatever two threads do together: a bare round trip between them.

use std::thread;
use std::time::Instant;

use rustix::event::{EventfdFlags, eventfd};
use rustix::fd::OwnedFd;
use rustix::io::{read, write};

use super::micros;
use crate::Outcome;
use crate::compare::statistics::Samples;

/// How many round trips are timed.
const TRIPS: usize = 1000;

/// How long round trips take between two threads that sleep until they are woken, in microseconds.
pub fn round_trips() -> Outcome<Samples> {
    let (there, back) = (
        eventfd(0, EventfdFlags::CLOEXEC)?,
        eventfd(0, EventfdFlags::CLOEXEC)?,
    );
    thread::scope(|scope| {
        let other = scope.spawn(|| (0..TRIPS).try_for_each(|_| wait(&there).and_then(|()| wake(&back))));
        let mut times = Vec::with_capacity(TRIPS);
        for _ in 0..TRIPS {
            let begun = Instant::now();
            wake(&there)?;
            wait(&back)?;
            times.push(micros(begun.elapsed()));
        }
        other.join().map_err(|_| "a thread panicked")??;
        Ok(Samples::new(times))
    })
}

fn wake(bell: &OwnedFd) -> rustix::io::Result<()> {
    write(bell, &1_u64.to_ne_bytes()).map(drop)
}

fn wait(bell: &OwnedFd) -> rustix::io::Result<()> {
    read(bell, &mut [0_u8; 8]).map(drop)
}
