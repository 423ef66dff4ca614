//! Running code that may panic, so that its thread goes on.

use std::panic::{AssertUnwindSafe, catch_unwind};

use millpond_drivers::api::panic_text;

/// Runs code that may panic. A panic is logged and goes no further; false says that there was one.
#[inline]
pub(crate) fn guarded(what: &str, code: impl FnOnce()) -> bool {
    // What the code left half-changed is its own: it is dropped by the unwinding, and guards are released by that.
    let ended = catch_unwind(AssertUnwindSafe(code));
    if let Err(panic) = &ended {
        log_panic(what, &**panic);
    }
    ended.is_ok()
}

#[cold]
fn log_panic(what: &str, panic: &(dyn std::any::Any + Send)) {
    tracing::error!("{what} panicked and was ended: {}", panic_text(panic));
}
