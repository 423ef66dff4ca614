//! What a tool prints on standard output, held back as C's library holds it: whoever reads it together with standard error
//! finds both in the order in which QEMU's tool would have written them.

use std::cell::RefCell;
use std::io::{self, IsTerminal, Write};

/// Bytes that are held back for a reader that is no terminal.
const HELD: usize = 4096;

thread_local! {
    /// The standard output of a tool that runs one command, which its control thread writes.
    static OUTPUT: RefCell<HeldOutput> = RefCell::new(HeldOutput::new());
}

/// Prints text of a tool that runs one command. A tool waits for whoever reads it; one that nobody reads any more goes on, as
/// QEMU's do.
pub fn print(text: &str) {
    OUTPUT.with_borrow_mut(|output| output.lines(text));
}

/// Writes what of such text is held back still.
pub fn flush_output() {
    OUTPUT.with_borrow_mut(HeldOutput::flush);
}

/// Standard output, written a block at a time; a line at a time to a terminal.
pub struct HeldOutput {
    held: Vec<u8>,
    is_terminal: bool,
}

impl HeldOutput {
    /// Standard output with nothing held back.
    pub fn new() -> Self {
        Self {
            held: Vec::new(),
            is_terminal: io::stdout().is_terminal(),
        }
    }

    /// Prints a line, with its end.
    pub fn line(&mut self, line: &str) {
        self.text(line);
        self.lines("\n");
    }

    /// Prints text that ends a line.
    pub fn lines(&mut self, text: &str) {
        self.text(text);
        if self.is_terminal {
            self.flush();
        }
    }

    /// Prints a part of a line.
    pub fn text(&mut self, text: &str) {
        self.held.extend_from_slice(text.as_bytes());
        if self.held.len() > HELD {
            let whole = self.held.len() - self.held.len() % HELD;
            let rest = self.held.split_off(whole);
            self.flush();
            self.held = rest;
        }
    }

    /// Writes what is held back. Where nobody reads, there is nobody to be told.
    pub fn flush(&mut self) {
        let mut stdout = io::stdout().lock();
        let _ = stdout.write_all(&self.held).and_then(|()| stdout.flush());
        self.held.clear();
    }
}

impl Drop for HeldOutput {
    fn drop(&mut self) {
        self.flush();
    }
}
