//! Holding requests at debug events, as `blkdebug` does.

use futures_util::future::LocalBoxFuture;
use millpond_messages::{DebugEvent, DebugOrder, IoError, IoResult};

use super::nothing::Nothing;

/// The points at which a driver can hold requests, see [`Driver::debug`](super::Driver::debug).
pub trait DebugPoints {
    /// Handles an event that this node or a parent has raised. Only a driver that handles events is asked; where it answers
    /// a future, what the event belongs to waits for that.
    fn debug_event(&self, _event: DebugEvent) -> Option<LocalBoxFuture<'static, ()>> {
        None
    }

    /// Holds requests at events, or lets them go. Answers whether a request is held, where that was asked.
    ///
    /// # Errors
    /// Nothing here can be held, or there is no such event or tag.
    fn debug_order(&self, _order: &DebugOrder) -> IoResult<bool> {
        Err(IoError::NotSupported)
    }
}

impl DebugPoints for Nothing {}
