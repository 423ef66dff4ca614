//! What happened in a run, in order: hashed always, so that two runs of a seed can be compared, and told when asked for.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::fmt::{self, Write};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::time::Duration;

/// Lines kept to be shown when a run fails.
const KEPT: usize = 200;

/// The trace of one run.
#[derive(Debug, Default)]
pub struct Trace {
    hasher: RefCell<DefaultHasher>,
    lines: Cell<u64>,
    last: RefCell<VecDeque<String>>,
    /// Every line goes to standard output.
    shown: bool,
}

impl Trace {
    /// A trace, told line by line if `shown`.
    #[must_use]
    pub fn new(shown: bool) -> Self {
        Self {
            shown,
            ..Self::default()
        }
    }

    /// Adds a line: when, who, what. Nothing in it may depend on anything but the seed.
    pub fn line(&self, at: Duration, who: &str, what: fmt::Arguments<'_>) {
        let mut last = self.last.borrow_mut();
        // The oldest line's memory is used again.
        let mut line = if last.len() == KEPT {
            last.pop_front().unwrap_or_default()
        } else {
            String::new()
        };
        line.clear();
        // A string takes all that is written.
        let _ = write!(line, "{:>12.3} ms  {who:<10} {what}", at.as_secs_f64() * 1e3);
        line.hash(&mut *self.hasher.borrow_mut());
        self.lines.set(self.lines.get() + 1);
        if self.shown {
            println!("{line}");
        }
        last.push_back(line);
    }

    /// The hash of all lines so far.
    #[must_use]
    pub fn hash(&self) -> u64 {
        self.hasher.borrow().clone().finish()
    }

    /// How many lines there were.
    #[must_use]
    pub fn lines(&self) -> u64 {
        self.lines.get()
    }

    /// The last lines.
    #[must_use]
    pub fn last(&self) -> Vec<String> {
        self.last.borrow().iter().cloned().collect()
    }
}
