//! Credentials: what users give for TLS, checked when it is given, and read again when its files have changed.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use arc_swap::ArcSwapOption;
use millpond_drivers::secret::Secrets;
use millpond_messages::qapi::schema::QCryptoTLSCredsEndpoint;
use millpond_messages::{Error, Result};
use openssl::error::ErrorStack;
use openssl::ssl::{SslContext, SslContextBuilder, SslMethod, SslMode, SslOptions, SslSessionCacheMode};

use super::files::{Stamp, optional};
use super::priority::{Priority, Proof};
use super::psk;
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
    /// What new sessions are made of; none for those who connect.
    read: ArcSwapOption<Read>,
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
        let is_server = options.endpoint == QCryptoTLSCredsEndpoint::Server;
        let read = if is_server {
            Some(Arc::new(options.read_for_server(secrets)?))
        } else {
            options.check_for_client(secrets)?;
            None
        };
        Ok(Self {
            options,
            secrets: secrets.clone(),
            read: ArcSwapOption::new(read),
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
        Err(wrong_endpoint(expected))
    }

    /// Whether a server is to know who its clients are.
    pub(super) fn asks_for_certificate(&self) -> bool {
        matches!(self.options.kind, CredentialsKind::Certificate { .. }) && self.options.verify_peer
    }

    /// What a server makes a new session of: of the files as they are now. While they are of no use (somebody may be
    /// replacing them), sessions are made of what they were. Not for a thread that others wait for.
    ///
    /// # Errors
    /// They are for those who connect.
    pub(super) fn for_session(&self) -> Result<SslContext> {
        let Some(known) = self.read.load_full() else {
            return Err(wrong_endpoint(QCryptoTLSCredsEndpoint::Server));
        };
        if self.options.stamps() == known.stamps {
            return Ok(known.context.clone());
        }
        match self.options.read_for_server(&self.secrets) {
            Ok(read) => {
                tracing::info!(dir = self.options.dir, "TLS credentials were read again");
                let context = read.context.clone();
                self.read.store(Some(Arc::new(read)));
                Ok(context)
            }
            Err(error) => {
                tracing::warn!(%error, "TLS credentials have changed and cannot be used; those of before are");
                Ok(known.context.clone())
            }
        }
    }
}

fn wrong_endpoint(expected: QCryptoTLSCredsEndpoint) -> Error {
    let word = expected.as_str();
    invalid(format!("Expected TLS credentials for a {word} endpoint"))
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

    fn check_for_client(&self, secrets: &Secrets) -> Result<()> {
        self.read_certificates(secrets)?;
        match &self.kind {
            CredentialsKind::Key { username } => {
                psk::check_user(&self.dir()?, username.as_deref().unwrap_or("qemu"))
            }
            CredentialsKind::Anonymous | CredentialsKind::Certificate { .. } => Ok(()),
        }
    }

    fn read_for_server(&self, secrets: &Secrets) -> Result<Read> {
        // Before the files are read: what changes meanwhile is read again.
        let stamps = self.stamps();
        let priority = || Priority::parse(self.priority.as_deref(), self.proof());
        let mut context = match self.read_certificates(secrets)? {
            Some(files) => {
                let mut context = builder(&priority()?).map_err(failed)?;
                files.configure(&mut context, self.verify_peer)?;
                context
            }
            None => self.without_certificate(priority)?,
        };
        context.set_session_cache_mode(SslSessionCacheMode::OFF);
        Ok(Read {
            stamps,
            context: context.build(),
        })
    }

    fn without_certificate(&self, priority: impl Fn() -> Result<Priority>) -> Result<SslContextBuilder> {
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
        let mut context = builder(&priority()?).map_err(failed)?;
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

/// What all of a server's sessions have in common: nothing below TLS 1.2, nothing agreed on twice, and nothing resumed, for
/// who comes again is to be looked at again.
fn builder(priority: &Priority) -> std::result::Result<SslContextBuilder, ErrorStack> {
    let mut context = SslContextBuilder::new(SslMethod::tls_server())?;
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
