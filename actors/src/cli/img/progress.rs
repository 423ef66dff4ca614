//! How far a command is, in percent, on the line of standard output that QEMU's tools keep for it.

use crate::cli::tool::{flush_output, print};
use crate::log::tell;
use futures_util::FutureExt;
use std::cell::{Cell, RefCell};
use tokio::signal::unix::{Signal, SignalKind, signal};

/// Steps smaller than this are not shown, in percent.
const STEP: f32 = 1.0;
const WHOLE: f32 = 100.0;

/// The line that tells how far a command is. It ends with the command, whatever came of that.
pub struct ShownProgress {
    is_shown: bool,
    /// By which it is asked for where it is not shown.
    asked: RefCell<Option<Signal>>,
    now: Cell<f32>,
    shown: Cell<f32>,
}

impl ShownProgress {
    /// Shows that nothing is done yet, if anything is to be shown at all. Where nothing is, SIGUSR1 asks for a line of
    /// standard error from now on.
    pub fn new(is_shown: bool) -> Self {
        let asked = match is_shown {
            true => None,
            // A system that gives none of its signals has nobody ask.
            false => signal(SignalKind::user_defined1()).ok(),
        };
        let progress = Self {
            is_shown,
            asked: RefCell::new(asked),
            now: Cell::new(0.0),
            shown: Cell::new(0.0),
        };
        progress.set(0.0);
        progress
    }

    /// So many percent are done.
    pub fn set(&self, percent: f32) {
        let percent = percent.clamp(0.0, WHOLE);
        self.now.set(percent);
        let is_asked = |asked: &mut Signal| asked.recv().now_or_never().is_some();
        if self.asked.borrow_mut().as_mut().is_some_and(is_asked) {
            tell(&format!("    ({percent:.2}/100%)"));
        }
        let far = (percent - self.shown.get()).abs() > STEP;
        if self.is_shown && (far || percent <= 0.0 || percent >= WHOLE) {
            self.shown.set(percent);
            print(&format!("    ({percent:.2}/100%)\r"));
            flush_output();
        }
    }

    /// So many percent more are done.
    pub fn add(&self, percent: f32) {
        self.set(self.now.get() + percent);
    }

    /// `done` of `all` are done.
    pub fn of(&self, done: u64, all: u64) {
        // QEMU divides by nothing where nothing is to be done, and shows nothing of that.
        if all > 0 {
            self.set((f64::from(WHOLE) * done as f64 / all as f64) as f32);
        }
    }

    /// Shows that all is done.
    pub fn complete(&self) {
        self.set(WHOLE);
    }
}

impl Drop for ShownProgress {
    fn drop(&mut self) {
        if self.is_shown {
            print("\n");
        }
    }
}
