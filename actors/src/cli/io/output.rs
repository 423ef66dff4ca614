//! What the tool prints on standard output, held back as C's library holds it: whoever reads it together with standard error
//! finds both in the order in which QEMU's tool would have written them.

use std::io::{self, IsTerminal, Write};

/// Bytes that are held back for a reader that is no terminal.
const HELD: usize = 4096;

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
        self.text("\n");
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
