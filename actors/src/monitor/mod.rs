//! QMP monitors: who listens, what a session says, and who carries its commands out.
//!
//! Everything here runs on the control thread. A monitor waits for its own commands only: while one
//! monitor's command waits for a drain, the others go on.

mod actor;
pub mod chardev;
mod dispatch;
mod events;
mod session;
mod throttle;

pub use actor::{Finish, Monitor};
pub use dispatch::Dispatch;
pub use events::{EventBus, Events};
pub use session::{Call, Session, Turn};
pub(crate) use throttle::Throttle;
