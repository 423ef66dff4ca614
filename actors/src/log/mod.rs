//! What the program tells people, over standard error and in its log, without ever waiting for them to read it.
//!
//! A pipe that nobody reads fills up, and the next write to it blocks. So no thread of the daemon writes to standard error:
//! once [`start`] was called, each line goes through [`Lines`] to a thread that does nothing else.

mod datagram;
mod file;
pub mod limits;
mod lines;
mod output;
mod stderr;
mod target;

pub use file::{Reopen, open_file};
pub use lines::Lines;
pub use output::Output;
pub use target::{Format, LogOptions, Target};

use std::backtrace::{Backtrace, BacktraceStatus};
use std::io;
use std::panic::PanicHookInfo;
use std::sync::OnceLock;
use std::time::Duration;

/// How long the end of the process, or its going to the background, waits for the last lines to be read.
const PATIENCE: Duration = Duration::from_secs(1);

/// The way to standard error, of which a process has one.
static STANDARD_ERROR: OnceLock<Lines> = OnceLock::new();

/// The way to standard output, once something was told there; nothing where no thread was left for it.
static STANDARD_OUTPUT: OnceLock<Option<Lines>> = OnceLock::new();

/// The way to the log, where that is not standard error, and how its file is opened anew, where it is one.
static LOG: OnceLock<(Lines, Option<Reopen>)> = OnceLock::new();

/// Has everything that is told from now on, panics too, written by a thread of its own. Starts that thread: a process
/// that is to be split must have been split before. The second call answers what the first one made.
///
/// # Errors
/// There is no descriptor or thread left.
pub fn start() -> io::Result<&'static Lines> {
    if STANDARD_ERROR.get().is_none() {
        let lines = Lines::start("log", stderr::Stderr)?;
        if STANDARD_ERROR.set(lines).is_ok() {
            std::panic::set_hook(Box::new(tell_panic));
        }
    }
    STANDARD_ERROR
        .get()
        .ok_or_else(|| io::Error::other("the log was not started"))
}

/// Begins the log as `options` say: who may write to it writes to what this answers. The second call's log cannot be opened
/// anew.
///
/// # Errors
/// It cannot be opened.
pub fn open(program: &str, options: &LogOptions) -> io::Result<Output> {
    let stderr = start()?;
    let (output, reopen) = Output::open(program, options, stderr)?;
    if options.target != Target::Stderr {
        // A process has one log; a later one, of an embedder that asks again, is its own.
        let _ = LOG.set((output.lines().clone(), reopen));
    }
    Ok(output)
}

/// How the log's file is opened anew; nothing where the log is none.
#[must_use]
pub fn file() -> Option<&'static Reopen> {
    LOG.get().and_then(|(_, reopen)| reopen.as_ref())
}

/// Why a file could not be opened, as QEMU tells it.
#[must_use]
pub fn why(error: &io::Error) -> String {
    match error.raw_os_error() {
        Some(number) => millpond_messages::IoError::from_errno(number).to_string(),
        None => error.to_string(),
    }
}

/// Tells people something, on lines of its own. Never waits, once [`start`] was called.
pub fn tell(text: &str) {
    match STANDARD_ERROR.get() {
        Some(lines) => lines.push(format!("{text}\n").into_bytes()),
        None => eprintln!("{text}"),
    }
}

/// Tells on standard output what a program tells there that is asked for something: a line. Never waits.
pub fn print(line: &str) {
    let lines = STANDARD_OUTPUT.get_or_init(|| Lines::start("stdout", std::io::stdout()).ok());
    // Where there is no thread left for it, nobody hears it.
    if let Some(lines) = lines {
        lines.push(format!("{line}\n").into_bytes());
    }
}

/// Waits until what was told has been written, but for a second at most: nobody may be reading. For a thread that serves
/// nobody: at the end of the process, and before standard error is exchanged.
pub fn finish() {
    for lines in LOG
        .get()
        .map(|(lines, _)| lines)
        .into_iter()
        .chain(STANDARD_ERROR.get())
        .chain(STANDARD_OUTPUT.get().into_iter().flatten())
    {
        lines.finish(PATIENCE);
    }
}

/// Tells of a panic in the words of the standard library, whose own hook writes to standard error and would block.
fn tell_panic(panic: &PanicHookInfo<'_>) {
    let thread = std::thread::current();
    let name = thread.name().unwrap_or("<unnamed>");
    let place = panic.location().map(ToString::to_string).unwrap_or_default();
    let text = panic.payload().downcast_ref::<&str>().copied();
    let text = text.or_else(|| panic.payload().downcast_ref::<String>().map(String::as_str));
    let text = text.unwrap_or("Box<dyn Any>");
    let mut told = format!("\nthread '{name}' panicked at {place}:\n{text}");
    let trace = Backtrace::capture();
    if trace.status() == BacktraceStatus::Captured {
        told.push_str(&format!("\nstack backtrace:\n{trace}"));
    }
    tell(&told);
}
