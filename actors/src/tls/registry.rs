//! What users have made for TLS, by its ids: found without a lock by whoever begins a session.

use std::sync::Arc;

use millpond_drivers::by_id::ById;
use millpond_drivers::tls::ClientCredentialsById;
use millpond_messages::qapi::schema::QCryptoTLSCredsEndpoint;
use millpond_messages::{Error, ErrorKind, Result};

use super::authz::Authorizer;
use super::credentials::Credentials;

/// All that users have made for TLS. Clones are the same.
#[derive(Debug, Clone, Default)]
pub(crate) struct TlsRegistry {
    /// Credentials, for either side of a connection.
    credentials: ById<Credentials>,
    /// The same, as drivers find them that connect to servers.
    of_clients: ClientCredentialsById,
    /// Those that say who may connect.
    pub(crate) authorizers: ById<Authorizer>,
}

impl TlsRegistry {
    /// A registry whose credentials drivers find in `of_clients`.
    pub(crate) fn new(of_clients: ClientCredentialsById) -> Self {
        Self {
            of_clients,
            ..Self::default()
        }
    }

    /// Makes credentials known under an id.
    pub(crate) fn put(&self, id: &str, credentials: Credentials) {
        let credentials = Arc::new(credentials);
        self.credentials.put_shared(id, Arc::clone(&credentials));
        self.of_clients.put_shared(id, credentials);
    }

    /// Forgets credentials. Who has found them goes on with them.
    pub(crate) fn remove(&self, id: &str) {
        self.credentials.remove(id);
        self.of_clients.remove(id);
    }

    /// The credentials of an id, for one side of a connection.
    ///
    /// # Errors
    /// QEMU's texts: there are none, or they are for the other side.
    pub(crate) fn credentials_for(
        &self,
        id: &str,
        endpoint: QCryptoTLSCredsEndpoint,
    ) -> Result<Arc<Credentials>> {
        let found = self.credentials.find(id);
        let found = found
            .ok_or_else(|| Error::new(ErrorKind::NotFound, format!("No TLS credentials with id '{id}'")))?;
        found.check_endpoint(endpoint)?;
        Ok(found)
    }
}
