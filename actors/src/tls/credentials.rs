//! Credentials: what users give for TLS, checked when it is given, and read again when its files have changed.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use arc_swap::ArcSwap;
use millpond_drivers::secret::Secrets;
use millpond_drivers::tls::{ClientCredentials, TlsError, TlsSession};
use millpond_messages::Result;
use millpond_messages::qapi::schema::QCryptoTLSCredsEndpoint;
use openssl::error::ErrorStack;
use openssl::ssl::{SslContext, SslContextBuilder, SslMethod, SslMode, SslOptions, SslSessionCacheMode};

use super::files::{Stamp, optional};
use super::priority::{Priority, Proof};
use super::psk;
use super::session::OpensslSession;
use super::x509::{self, X509Files, X509Options, default_group, failed, invalid, read_group};

/// How the two sides know each other.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum CredentialsKind {
    /// They do not know each other.
    Anonymous,
    /// By a key that both have.
    Key {
        /// The user whose key a client takes.
        username: Option<String>,
    },
    /// By certificates that authorities vouch for.
    Certificate {
        /// One's own certificates are checked.
        sanity_check: bool,
        /// The secret by which the key is encrypted.
        password: Option<String>,
    },
}

/// What a user gives.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct CredentialsOptions {
    pub(crate) kind: CredentialsKind,
    /// The folder with the files.
    pub(crate) dir: Option<String>,
    pub(crate) endpoint: QCryptoTLSCredsEndpoint,
    /// A server asks for certificates, and refuses clients without.
    pub(crate) verify_peer: bool,
    pub(crate) priority: Option<String>,
}

/// Credentials that have been found good.
pub(crate) struct Credentials {
    options: CredentialsOptions,
    secrets: Secrets,
    /// What new sessions are made of.
    read: ArcSwap<Read>,
}

impl std::fmt::Debug for Credentials {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Credentials")
            .field("options", &self.options)
            .finish_non_exhaustive()
    }
}

/// The files as they were when sessions were last told of them.
struct Read {
    stamps: Vec<Stamp>,
    context: SslContext,
}

impl Credentials {
    /// Reads the files. They may take long to answer, so not on a thread that others wait for.
    ///
    /// # Errors
    /// QEMU's texts: something is missing, or is not what it should be.
    pub(crate) fn load(options: CredentialsOptions, secrets: &Secrets) -> Result<Self> {
        let read = options.read(secrets)?;
        Ok(Self {
            options,
            secrets: secrets.clone(),
            read: ArcSwap::from_pointee(read),
        })
    }

    /// Checks which side of a connection they are for.
    ///
    /// # Errors
    /// QEMU's text: they are for the other.
    pub(super) fn check_endpoint(&self, expected: QCryptoTLSCredsEndpoint) -> Result<()> {
        if self.options.endpoint == expected {
            return Ok(());
        }
        let word = expected.as_str();
        Err(invalid(format!("Expected TLS credentials for a {word} endpoint")))
    }

    /// Whether one side is to know who the other is.
    pub(super) fn asks_for_certificate(&self) -> bool {
        matches!(self.options.kind, CredentialsKind::Certificate { .. }) && self.options.verify_peer
    }

    /// What one side makes a new session of: of the files as they are now. While they are of no use (somebody may be
    /// replacing them), sessions are made of what they were. Not for a thread that others wait for.
    ///
    /// # Errors
    /// They are for the other side.
    pub(super) fn for_session(&self, endpoint: QCryptoTLSCredsEndpoint) -> Result<SslContext> {
        self.check_endpoint(endpoint)?;
        let known = self.read.load_full();
        if self.options.stamps() == known.stamps {
            return Ok(known.context.clone());
        }
        match self.options.read(&self.secrets) {
            Ok(read) => {
                tracing::info!(dir = self.options.dir, "TLS credentials were read again");
                let context = read.context.clone();
                self.read.store(Arc::new(read));
                Ok(context)
            }
            Err(error) => {
                tracing::warn!(%error, "TLS credentials have changed and cannot be used; those of before are");
                Ok(known.context.clone())
            }
        }
    }
}

impl ClientCredentials for Credentials {
    fn check(&self) -> Result<()> {
        self.check_endpoint(QCryptoTLSCredsEndpoint::Client)
    }

    fn connect(&self, hostname: Option<&str>) -> std::result::Result<Box<dyn TlsSession>, TlsError> {
        let session = OpensslSession::connect(self, hostname)?;
        Ok(Box::new(session))
    }
}

impl CredentialsOptions {
    fn proof(&self) -> Proof {
        match self.kind {
            CredentialsKind::Anonymous => Proof::Nothing,
            CredentialsKind::Key { .. } => Proof::Key,
            CredentialsKind::Certificate { .. } => Proof::Certificate,
        }
    }

    fn dir(&self) -> Result<PathBuf> {
        let dir = self.dir.as_ref().map(PathBuf::from);
        dir.ok_or_else(|| invalid("Missing 'dir' property value"))
    }

    /// The state of each file that the credentials are made of.
    fn stamps(&self) -> Vec<Stamp> {
        let Some(dir) = &self.dir else { return Vec::new() };
        let names: &[&str] = match self.kind {
            CredentialsKind::Anonymous => &[x509::GROUP],
            CredentialsKind::Key { .. } => &[psk::KEYS, x509::GROUP],
            CredentialsKind::Certificate { .. } => &x509::names(self.endpoint),
        };
        names
            .iter()
            .map(|name| Stamp::of(&Path::new(dir).join(name)))
            .collect()
    }

    fn read_certificates(&self, secrets: &Secrets) -> Result<Option<X509Files>> {
        let CredentialsKind::Certificate {
            sanity_check,
            password,
        } = &self.kind
        else {
            return Ok(None);
        };
        let options = X509Options {
            dir: &self.dir()?,
            endpoint: self.endpoint,
            sanity_check: *sanity_check,
            password: password.as_deref(),
        };
        X509Files::read(&options, secrets).map(Some)
    }

    fn read(&self, secrets: &Secrets) -> Result<Read> {
        // Before the files are read: what changes meanwhile is read again.
        let stamps = self.stamps();
        let is_server = self.endpoint == QCryptoTLSCredsEndpoint::Server;
        let mut context = match self.read_certificates(secrets)? {
            Some(files) => {
                let mut context = self.begin()?;
                files.configure(&mut context, self.verify_peer, is_server)?;
                context
            }
            None if is_server => self.without_certificate()?,
            None => self.client_without_certificate()?,
        };
        context.set_session_cache_mode(SslSessionCacheMode::OFF);
        Ok(Read {
            stamps,
            context: context.build(),
        })
    }

    /// What all sessions of one side begin with.
    fn begin(&self) -> Result<SslContextBuilder> {
        let priority = Priority::parse(self.priority.as_deref(), self.proof())?;
        let method = match self.endpoint {
            QCryptoTLSCredsEndpoint::Server => SslMethod::tls_server(),
            QCryptoTLSCredsEndpoint::Client => SslMethod::tls_client(),
        };
        builder(method, &priority).map_err(failed)
    }

    fn client_without_certificate(&self) -> Result<SslContextBuilder> {
        let key = match &self.kind {
            CredentialsKind::Key { username } => {
                let user = username.as_deref().unwrap_or("qemu");
                Some((user.to_owned(), psk::key_of(&self.dir()?, user)?))
            }
            CredentialsKind::Anonymous | CredentialsKind::Certificate { .. } => None,
        };
        let mut context = self.begin()?;
        if let Some((user, key)) = key {
            context.set_psk_client_callback(move |_, _, user_room, key_room| {
                // The name ends with a byte of zero. What has no room is not given, and then the server refuses.
                let name = user_room
                    .get_mut(..user.len() + 1)
                    .and_then(<[u8]>::split_last_mut);
                let (Some((end, name)), Some(room)) = (name, key_room.get_mut(..key.len())) else {
                    return Ok(0);
                };
                name.copy_from_slice(user.as_bytes());
                *end = 0;
                room.copy_from_slice(&key);
                Ok(key.len())
            });
        }
        Ok(context)
    }

    fn without_certificate(&self) -> Result<SslContextBuilder> {
        let keys = match &self.kind {
            CredentialsKind::Key { username: Some(_) } => {
                return Err(invalid("username should not be set when endpoint=server"));
            }
            CredentialsKind::Key { username: None } => Some(psk::read(&self.dir()?)?),
            CredentialsKind::Anonymous | CredentialsKind::Certificate { .. } => None,
        };
        let group = match &self.dir {
            Some(dir) => optional(Path::new(dir), x509::GROUP)?,
            None => None,
        };
        let group = match group {
            Some(file) => read_group(&file)?,
            None => default_group().map_err(failed)?,
        };
        let mut context = self.begin()?;
        context.set_tmp_dh(&group).map_err(failed)?;
        if let Some(keys) = keys {
            context.set_psk_server_callback(move |_, user, room| {
                let key = user.and_then(|user| keys.of(user)).unwrap_or_default();
                // A key of no bytes is none: the client is refused.
                let Some(room) = room.get_mut(..key.len()) else {
                    return Ok(0);
                };
                room.copy_from_slice(key);
                Ok(key.len())
            });
        }
        Ok(context)
    }
}

/// What all sessions have in common: nothing below TLS 1.2, nothing agreed on twice, and nothing resumed, for
/// who comes again is to be looked at again.
fn builder(method: SslMethod, priority: &Priority) -> std::result::Result<SslContextBuilder, ErrorStack> {
    let mut context = SslContextBuilder::new(method)?;
    context.set_min_proto_version(Some(priority.lowest))?;
    context.set_max_proto_version(Some(priority.highest))?;
    context.set_options(
        SslOptions::NO_RENEGOTIATION
            | SslOptions::NO_TICKET
            | SslOptions::NO_COMPRESSION
            | SslOptions::CIPHER_SERVER_PREFERENCE,
    );
    context.set_num_tickets(0)?;
    context.set_mode(SslMode::RELEASE_BUFFERS);
    context.set_cipher_list(if priority.ciphers.is_empty() {
        "DEFAULT"
    } else {
        &priority.ciphers
    })?;
    if !priority.suites.is_empty() {
        context.set_ciphersuites(&priority.suites)?;
    }
    context.set_groups_list(&priority.groups)?;
    Ok(context)
}
