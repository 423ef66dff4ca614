//! What users have made for TLS, by its ids: found without a lock by whoever begins a session.

use millpond_drivers::by_id::ById;

use super::authz::Authorizer;
use super::credentials::Credentials;

/// All that users have made for TLS. Clones are the same.
#[derive(Debug, Clone, Default)]
pub(crate) struct TlsRegistry {
    /// Credentials, for either side of a connection.
    pub(crate) credentials: ById<Credentials>,
    /// Those that say who may connect.
    pub(crate) authorizers: ById<Authorizer>,
}
