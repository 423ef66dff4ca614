//! TLS: credentials and who may connect, as users make them, and sessions as machines without I/O.
//!
//! ```text
//!   object-add --> Credentials, Authorizer --> TlsRegistry (found by their ids)
//!   a client ----> Credentials::for_session (files that have changed are read again) --> OpensslSession
//!                  handshake, check of the certificate, Authorizer::allows ------------> plain bytes
//! ```
//! What reads files or calculates long is for threads that nobody waits for; the bytes of an agreed session are not.

mod authz;
mod credentials;
mod files;
mod name;
mod priority;
mod psk;
mod registry;
mod sanity;
mod session;
mod verify;
mod x509;

pub(crate) use authz::{Authorizer, AuthzRules, RulesFile};
pub(crate) use credentials::{Credentials, CredentialsKind, CredentialsOptions};
pub(crate) use registry::TlsRegistry;
pub(crate) use session::OpensslSession;
