//! A flight record of a panic.

use std::sync::atomic::{AtomicBool, Ordering};

use millpond_engine::flight::{write_new, written};

use crate::log::tell;

/// One file a process: a panic that comes again and again shall not fill the disk.
static WRITTEN: AtomicBool = AtomicBool::new(false);

/// Has the first panic in this process write all rings to a file in the folder for temporary files. Nobody is asked, since
/// nobody may be able to answer.
pub fn record_panics() {
    let before = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        before(panic);
        if WRITTEN.swap(true, Ordering::Relaxed) {
            return;
        }
        let text = panic.payload().downcast_ref::<&str>().copied();
        let text = text.or_else(|| panic.payload().downcast_ref::<String>().map(String::as_str));
        let place = panic.location().map(ToString::to_string).unwrap_or_default();
        let reason = format!("a panic at {place}: {}", text.unwrap_or("(no text)"));
        // The thread has lost its way already: it may wait for the disk.
        match write_new(&written(&reason, Vec::new())) {
            Ok(path) => tell(&format!(
                "the flight record of this panic is in {}",
                path.display()
            )),
            Err(error) => tell(&format!(
                "the flight record of this panic cannot be written: {error}"
            )),
        }
    }));
}
