//! TLS for those who connect and those who are connected to: the machine that a session is, and its bytes on an iothread.
//!
//! What makes sessions, and what users say about them, is above: nothing here knows a library for it.

mod session;
mod stream;

pub use session::{ClientCredentials, ClientCredentialsById, Got, TlsError, TlsSession};
pub use stream::{RECEIVE_RECORD, TlsLuggage, TlsStream, room};
