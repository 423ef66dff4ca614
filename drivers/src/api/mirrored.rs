//! What a node mirrors of itself: what a mirror's job asks of the filter that it has put over its source.

use millpond_messages::io::{MirrorRequest, Value};
use millpond_messages::{IoError, IoResult};

use super::answer::Answer;
use super::nothing::Nothing;

/// What can be asked of a driver that mirrors its child, see [`Driver::mirrored`](super::Driver::mirrored).
pub trait Mirrored {
    /// Does what a job asks for. The ranges lie within the node.
    fn mirror(&self, request: MirrorRequest) -> Answer<'_, IoResult<Value>> {
        let _ = request;
        Answer::ready(Err(IoError::NotSupported))
    }
}

impl Mirrored for Nothing {}
