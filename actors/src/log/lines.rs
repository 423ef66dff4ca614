//! Lines on their way to somewhere that may be slow, full or stuck: whoever has one to write never waits.
//!
//! ```text
//!  any thread ---- push ----> queue (bounded by bytes) ----> a thread of its own ----> a pipe, a file, a socket
//!                   |                                              ^
//!                   +------------- eventfd ------------------------+
//! ```
//!
//! What must hold: [`Lines::push`] takes no lock and makes no system call that can block; memory is bounded; what is dropped
//! is counted, and told in the log itself, at the place where the lines are missing.

use crossbeam_channel::{Receiver, Sender, bounded, unbounded};
use rustix::event::{EventfdFlags, eventfd};
use rustix::io::{read, retry_on_intr, write};
use std::io::{self, Write};
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

/// The most bytes that wait to be written, lines and what the queue needs for each. The line that crosses it still fits.
const MOST_BYTES: usize = 4 << 20;

/// What the queue needs for a line besides its text, about.
const ENTRY: usize = 64;

/// The way to one log. Clones are the same way.
#[derive(Clone, Debug)]
pub struct Lines(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    queue: Sender<Entry>,
    account: Arc<Account>,
}

/// What both sides look at.
#[derive(Debug)]
struct Account {
    /// Rung when something was put into the queue: the writing thread sleeps here and not in the channel, whose list of
    /// sleepers has a lock that senders would take.
    bell: OwnedFd,
    /// How many bytes of lines wait to be written.
    bytes: AtomicUsize,
    /// Lines dropped since the log was last told of some.
    untold: AtomicU64,
    /// How many lines were dropped since the start.
    dropped: AtomicU64,
}

#[derive(Debug)]
enum Entry {
    Line(Vec<u8>),
    /// So many lines are missing here.
    Missing(u64),
    /// Everything before it was written.
    Mark(Sender<()>),
    /// Nobody can send any more.
    End,
}

impl Account {
    fn ring(&self) {
        // It cannot fail: the count that would make it block is 2^64 - 1.
        let _ = write(&self.bell, &1_u64.to_ne_bytes());
    }

    fn drop_line(&self) {
        self.untold.fetch_add(1, Ordering::Relaxed);
        self.dropped.fetch_add(1, Ordering::Relaxed);
    }
}

impl Drop for Shared {
    fn drop(&mut self) {
        let _ = self.queue.send(Entry::End);
        self.account.ring();
    }
}

impl Lines {
    /// Starts a thread called `name` that writes each line to `sink` by one call of `write_all`. It ends with the last clone.
    ///
    /// # Errors
    /// There is no descriptor or thread left.
    pub fn start(name: &str, sink: impl Write + Send + 'static) -> io::Result<Self> {
        let (queue, entries) = unbounded();
        let account = Arc::new(Account {
            bell: eventfd(0, EventfdFlags::CLOEXEC)?,
            bytes: AtomicUsize::new(0),
            untold: AtomicU64::new(0),
            dropped: AtomicU64::new(0),
        });
        let theirs = Arc::clone(&account);
        std::thread::Builder::new()
            .name(name.to_owned())
            .spawn(move || write_all(&entries, &theirs, sink))?;
        Ok(Self(Arc::new(Shared { queue, account })))
    }

    /// Has a line written, or drops it and counts it if too much waits already. Never waits, on any thread.
    pub fn push(&self, line: Vec<u8>) {
        let account = &self.0.account;
        if account.bytes.load(Ordering::Relaxed) >= MOST_BYTES {
            return account.drop_line();
        }
        let missing = account.untold.swap(0, Ordering::Relaxed);
        if missing > 0 {
            self.send(Entry::Missing(missing));
        }
        account.bytes.fetch_add(line.len() + ENTRY, Ordering::Relaxed);
        self.send(Entry::Line(line));
        account.ring();
    }

    fn send(&self, entry: Entry) {
        // The writing thread leaves after all senders; if it has died, nothing can be told anyway.
        let _ = self.0.queue.send(entry);
    }

    /// How many lines were dropped so far, or could not be written.
    #[must_use]
    pub fn dropped(&self) -> u64 {
        self.0.account.dropped.load(Ordering::Relaxed)
    }

    /// Waits until everything pushed before has been written, but not longer than `patience`; true if it has. The one call
    /// that waits: not for a thread that serves anybody.
    pub fn finish(&self, patience: Duration) -> bool {
        let (mark, written) = bounded(1);
        self.send(Entry::Mark(mark));
        self.0.account.ring();
        written.recv_timeout(patience).is_ok()
    }
}

/// Each call is a message of its own: what writes a log by the standard traits can write into this.
impl Write for Lines {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        self.push(line.to_vec());
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// What the thread that writes does, until all senders are gone.
fn write_all(entries: &Receiver<Entry>, account: &Account, mut sink: impl Write) {
    loop {
        match entries.try_recv() {
            Ok(Entry::Line(line)) => {
                if sink.write_all(&line).and_then(|()| sink.flush()).is_err() {
                    account.drop_line();
                }
                account.bytes.fetch_sub(line.len() + ENTRY, Ordering::Relaxed);
            }
            Ok(Entry::Missing(missing)) => tell_missing(missing, account, &mut sink),
            Ok(Entry::Mark(mark)) => {
                let missing = account.untold.swap(0, Ordering::Relaxed);
                tell_missing(missing, account, &mut sink);
                // Who asked may have lost patience.
                let _ = mark.send(());
            }
            Ok(Entry::End) => return,
            Err(_nothing) => {
                let missing = account.untold.swap(0, Ordering::Relaxed);
                tell_missing(missing, account, &mut sink);
                let mut count = [0; 8];
                if retry_on_intr(|| read(&account.bell, &mut count)).is_err() {
                    return;
                }
            }
        }
    }
}

fn tell_missing(missing: u64, account: &Account, sink: &mut impl Write) {
    if missing == 0 {
        return;
    }
    let text = format!(
        "millpond: {missing} lines of this log were dropped: it was not read, or could not be written\n"
    );
    if sink
        .write_all(text.as_bytes())
        .and_then(|()| sink.flush())
        .is_err()
    {
        account.untold.fetch_add(missing, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::pipe::{PipeFlags, fcntl_setpipe_size, pipe_with};
    use std::fs::File;
    use std::io::Read;

    const PATIENCE: Duration = Duration::from_secs(20);

    #[test]
    fn lines_come_out_whole_and_in_order() {
        let (reader, writer) = pipe_with(PipeFlags::CLOEXEC).unwrap();
        let lines = Lines::start("log", File::from(writer)).unwrap();
        for i in 0..100 {
            lines.push(format!("line {i}\n").into_bytes());
        }
        assert!(lines.finish(PATIENCE));
        drop(lines);
        let mut text = String::new();
        File::from(reader).read_to_string(&mut text).unwrap();
        assert_eq!(text, (0..100).map(|i| format!("line {i}\n")).collect::<String>());
    }

    #[test]
    fn what_nobody_reads_is_dropped_counted_and_told_where_it_is_missing() {
        let (reader, writer) = pipe_with(PipeFlags::CLOEXEC).unwrap();
        fcntl_setpipe_size(&writer, 4096).unwrap();
        let lines = Lines::start("log", File::from(writer)).unwrap();
        let line = vec![b'x'; 64 << 10];
        let pushed = 2 * MOST_BYTES / line.len();
        for _ in 0..pushed {
            lines.push(line.clone());
        }
        assert!(
            !lines.finish(Duration::from_millis(1)),
            "nobody has read anything"
        );
        let dropped = usize::try_from(lines.dropped()).unwrap();
        assert!((pushed / 4..pushed).contains(&dropped), "{dropped} of {pushed}");
        let read = std::thread::spawn(move || {
            let mut text = Vec::new();
            File::from(reader).read_to_end(&mut text).unwrap();
            text
        });
        assert!(lines.finish(PATIENCE));
        lines.push(b"the end\n".to_vec());
        drop(lines);
        let text = read.join().unwrap();
        let rest = &text[(pushed - dropped) * line.len()..];
        let told = format!(
            "millpond: {dropped} lines of this log were dropped: it was not read, or could not be written\nthe end\n"
        );
        assert_eq!(String::from_utf8_lossy(rest), told);
    }

    #[test]
    fn a_sink_that_fails_loses_lines_and_nothing_else() {
        let (reader, writer) = pipe_with(PipeFlags::CLOEXEC).unwrap();
        drop(reader);
        let lines = Lines::start("log", File::from(writer)).unwrap();
        lines.push(b"lost\n".to_vec());
        assert!(lines.finish(PATIENCE));
        assert_eq!(lines.dropped(), 1);
    }
}
