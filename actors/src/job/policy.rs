//! What is done about a request of a job that failed.

use millpond_messages::IoError;
use millpond_messages::error::errno::ENOSPC;
use millpond_messages::qapi::schema::{BlockDeviceIoStatus, BlockErrorAction, BlockdevOnError};

/// What a policy says about an error.
#[must_use]
pub const fn action(policy: BlockdevOnError, error: IoError) -> BlockErrorAction {
    match policy {
        BlockdevOnError::Enospc | BlockdevOnError::Auto if error.errno() == ENOSPC => BlockErrorAction::Stop,
        BlockdevOnError::Enospc | BlockdevOnError::Auto | BlockdevOnError::Report => BlockErrorAction::Report,
        BlockdevOnError::Stop => BlockErrorAction::Stop,
        BlockdevOnError::Ignore => BlockErrorAction::Ignore,
    }
}

/// What is shown of a job that was stopped by an error.
#[must_use]
pub const fn status(error: IoError) -> BlockDeviceIoStatus {
    match error.errno() {
        ENOSPC => BlockDeviceIoStatus::Nospace,
        _ => BlockDeviceIoStatus::Failed,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use millpond_messages::error::errno::EIO;

    #[test]
    fn a_policy_looks_at_the_error_where_it_says_so() {
        use BlockErrorAction as A;
        use BlockdevOnError as P;
        let full = [A::Report, A::Ignore, A::Stop, A::Stop, A::Stop];
        let broken = [A::Report, A::Ignore, A::Report, A::Stop, A::Report];
        let policies = [P::Report, P::Ignore, P::Enospc, P::Stop, P::Auto];
        assert_eq!(policies.map(|policy| action(policy, IoError::NoSpace)), full);
        assert_eq!(policies.map(|policy| action(policy, IoError::Os(EIO))), broken);
        assert_eq!(status(IoError::NoSpace), BlockDeviceIoStatus::Nospace);
        assert_eq!(status(IoError::Os(EIO)), BlockDeviceIoStatus::Failed);
    }
}
