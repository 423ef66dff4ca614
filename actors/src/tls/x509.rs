//! Credentials by certificates: the files of a folder, and what sessions are made of them.

use std::path::Path;

use der::Decode;
use millpond_drivers::secret::{Password, Secrets};
use millpond_messages::qapi::schema::QCryptoTLSCredsEndpoint;
use millpond_messages::{Error, ErrorKind, Result};
use openssl::dh::Dh;
use openssl::error::ErrorStack;
use openssl::pkey::{PKey, Params, Private};
use openssl::ssl::{SslContextBuilder, SslFiletype, SslVerifyMode};
use openssl::stack::Stack;
use openssl::x509::store::{X509Lookup, X509Store, X509StoreBuilder};
use openssl::x509::verify::X509VerifyFlags;
use openssl::x509::{X509, X509Crl, X509Name};
use x509_cert::Certificate;

use super::files::{CredentialFile, optional, required};
use super::name::distinguished_name;
use super::sanity::{self, Shown};

/// The file of the authorities that vouch for certificates.
const AUTHORITIES: &str = "ca-cert.pem";
/// The file of what the authorities have revoked.
const REVOKED: &str = "ca-crl.pem";
/// The file of a group for the exchange of keys.
pub(super) const GROUP: &str = "dh-params.pem";

/// The names of the files of a certificate and its key.
const fn own(endpoint: QCryptoTLSCredsEndpoint) -> (&'static str, &'static str) {
    match endpoint {
        QCryptoTLSCredsEndpoint::Server => ("server-cert.pem", "server-key.pem"),
        QCryptoTLSCredsEndpoint::Client => ("client-cert.pem", "client-key.pem"),
    }
}

/// The names of all files that the credentials of one side are made of.
pub(super) fn names(endpoint: QCryptoTLSCredsEndpoint) -> [&'static str; 5] {
    let (certificate, key) = own(endpoint);
    [AUTHORITIES, REVOKED, certificate, key, GROUP]
}

pub(super) fn invalid(text: impl Into<std::borrow::Cow<'static, str>>) -> Error {
    Error::new(ErrorKind::InvalidArgument, text)
}

/// What OpenSSL could not do of what it can always do.
pub(super) fn failed(error: ErrorStack) -> Error {
    Error::caused_by(
        ErrorKind::InvalidArgument,
        format!("OpenSSL failed: {error}"),
        error,
    )
}

/// A certificate, taken apart.
///
/// # Errors
/// It is one that only OpenSSL understands.
pub(super) fn parsed(certificate: &X509) -> Result<Certificate> {
    let bytes = certificate.to_der().map_err(failed)?;
    Certificate::from_der(&bytes).map_err(|error| {
        Error::caused_by(
            ErrorKind::InvalidArgument,
            format!("Unable to read a certificate: {error}"),
            error,
        )
    })
}

/// The name that a certificate proves; `None` if it has none.
pub(super) fn name_of(certificate: &X509) -> Option<String> {
    distinguished_name(&parsed(certificate).ok()?.tbs_certificate.subject)
}

/// Certificates that are trusted.
pub(super) fn store(authorities: &[X509]) -> std::result::Result<X509StoreBuilder, ErrorStack> {
    let mut store = X509StoreBuilder::new()?;
    for authority in authorities {
        store.add_cert(authority.clone())?;
    }
    Ok(store)
}

/// What there is in the files of credentials.
pub(super) struct X509Files {
    authorities: Vec<X509>,
    revoked: Option<CredentialFile>,
    own: Option<Own>,
    group: Option<Dh<Params>>,
}

/// A certificate with those that follow it, and its key.
struct Own {
    chain: Vec<X509>,
    key: PKey<Private>,
}

/// How the files are to be read.
pub(super) struct X509Options<'a> {
    pub(super) dir: &'a Path,
    pub(super) endpoint: QCryptoTLSCredsEndpoint,
    pub(super) sanity_check: bool,
    /// The secret by which the key is encrypted.
    pub(super) password: Option<&'a str>,
}

impl X509Files {
    /// Reads the files, and checks the certificates in them if that is wanted.
    ///
    /// # Errors
    /// QEMU's texts: a file is missing, or is not what it should be.
    pub(super) fn read(options: &X509Options<'_>, secrets: &Secrets) -> Result<Self> {
        let X509Options { dir, endpoint, .. } = *options;
        let is_server = endpoint == QCryptoTLSCredsEndpoint::Server;
        let authorities = required(dir, AUTHORITIES)?;
        let revoked = optional(dir, REVOKED)?;
        let (certificate, key) = own(endpoint);
        let (certificate, key) = if is_server {
            (Some(required(dir, certificate)?), Some(required(dir, key)?))
        } else {
            (optional(dir, certificate)?, optional(dir, key)?)
        };
        let group = if is_server { optional(dir, GROUP)? } else { None };
        let trusted = X509::stack_from_pem(&authorities.bytes).unwrap_or_default();
        let chain = match &certificate {
            Some(file) => some_certificates(file, endpoint, options.sanity_check)?,
            None => Vec::new(),
        };
        if trusted.is_empty() {
            let text = format!("Unable to import CA certificate list {}", authorities.shown());
            return Err(invalid(text));
        }
        if options.sanity_check {
            let (trusted_path, path) = (
                authorities.shown(),
                certificate.as_ref().map(CredentialFile::shown),
            );
            let shown = |path, certificates| Shown { path, certificates };
            let own = path.as_deref().map(|path| shown(path, &chain));
            sanity::check(endpoint, &shown(&trusted_path, &trusted), own.as_ref())?;
        }
        let own = match (certificate, key) {
            (Some(certificate), Some(key)) => Some(own_of(&certificate, chain, &key, options, secrets)?),
            _ => None,
        };
        if let Some(file) = &revoked {
            check_revoked(file)?;
        }
        Ok(Self {
            authorities: trusted,
            revoked,
            own,
            group: group.as_ref().map(read_group).transpose()?,
        })
    }

    /// Has the sessions of a server, or of a client, use all this.
    ///
    /// # Errors
    /// OpenSSL does not take it.
    pub(super) fn configure(
        self,
        context: &mut SslContextBuilder,
        verify_peer: bool,
        is_server: bool,
    ) -> Result<()> {
        self.configure_own(context, is_server).map_err(failed)?;
        if !verify_peer {
            context.set_verify(SslVerifyMode::NONE);
            return Ok(());
        }
        context.set_cert_store(self.trusted().map_err(failed)?);
        if is_server {
            context.set_client_ca_list(names_of(&self.authorities).map_err(failed)?);
        }
        context.set_verify(SslVerifyMode::PEER);
        Ok(())
    }

    fn configure_own(
        &self,
        context: &mut SslContextBuilder,
        is_server: bool,
    ) -> std::result::Result<(), ErrorStack> {
        if let Some(Own { chain, key }) = &self.own {
            let mut chain = chain.iter();
            if let Some(first) = chain.next() {
                context.set_certificate(first)?;
            }
            for next in chain {
                context.add_extra_chain_cert(next.clone())?;
            }
            context.set_private_key(key)?;
        }
        match &self.group {
            // It is the server's to choose.
            _ if !is_server => Ok(()),
            Some(group) => context.set_tmp_dh(group),
            None => {
                let group = default_group()?;
                context.set_tmp_dh(&group)
            }
        }
    }

    /// The authorities, with what they have revoked.
    fn trusted(&self) -> std::result::Result<X509Store, ErrorStack> {
        let mut store = store(&self.authorities)?;
        // Whoever is listed is trusted, whoever vouches for them.
        let mut flags = X509VerifyFlags::PARTIAL_CHAIN;
        if let Some(file) = &self.revoked {
            let lookup = store.add_lookup(X509Lookup::file())?;
            lookup.load_crl_file(file.shown(), SslFiletype::PEM)?;
            flags |= X509VerifyFlags::CRL_CHECK | X509VerifyFlags::CRL_CHECK_ALL;
        }
        store.set_flags(flags)?;
        Ok(store.build())
    }
}

fn names_of(authorities: &[X509]) -> std::result::Result<Stack<X509Name>, ErrorStack> {
    let mut names = Stack::new()?;
    for authority in authorities {
        names.push(authority.subject_name().to_owned()?)?;
    }
    Ok(names)
}

/// The certificates in a file. Whether they are looked at before the key changes the text of a mistake.
fn some_certificates(
    file: &CredentialFile,
    endpoint: QCryptoTLSCredsEndpoint,
    sanity_check: bool,
) -> Result<Vec<X509>> {
    let found = X509::stack_from_pem(&file.bytes).unwrap_or_default();
    if found.is_empty() && sanity_check {
        let (word, path) = (endpoint.as_str(), file.shown());
        let text = format!("Unable to import {word} certificate {path}: Base64 unexpected header error.");
        return Err(invalid(text));
    }
    Ok(found)
}

fn own_of(
    certificate: &CredentialFile,
    chain: Vec<X509>,
    key: &CredentialFile,
    options: &X509Options<'_>,
    secrets: &Secrets,
) -> Result<Own> {
    let password = options.password.map(|id| secrets.password(id)).transpose()?;
    let password = password.as_ref().map_or(&b""[..], Password::bytes);
    let refused = |why: &str| {
        let (certificate, key) = (certificate.shown(), key.shown());
        invalid(format!(
            "Cannot load certificate '{certificate}' & key '{key}': {why}"
        ))
    };
    let Some(first) = chain.first() else {
        return Err(refused("Base64 decoding error."));
    };
    // Given a password, even an empty one, OpenSSL asks nobody at the terminal.
    let Ok(private) = PKey::private_key_from_pem_passphrase(&key.bytes, password) else {
        let is_encrypted = key.bytes.windows(9).any(|part| part == b"ENCRYPTED");
        return Err(refused(if is_encrypted {
            "Decryption has failed."
        } else {
            "The requested data were not available."
        }));
    };
    if !first.public_key().map_err(failed)?.public_eq(&private) {
        return Err(refused("The certificate and the given key do not match."));
    }
    Ok(Own { chain, key: private })
}

fn check_revoked(file: &CredentialFile) -> Result<()> {
    if X509Crl::from_pem(&file.bytes).is_ok() {
        return Ok(());
    }
    let text = format!("Cannot load CRL '{}': Base64 decoding error.", file.shown());
    Err(invalid(text))
}

/// A group for the exchange of keys, from its file.
///
/// # Errors
/// QEMU's text: there is none in it.
pub(super) fn read_group(file: &CredentialFile) -> Result<Dh<Params>> {
    Dh::params_from_pem(&file.bytes).map_err(|_| {
        let path = file.shown();
        invalid(format!(
            "Unable to load DH parameters from {path}: Base64 unexpected header error."
        ))
    })
}

/// The group that is used where no file gives one: that of 2048 bits of RFC 3526.
pub(super) fn default_group() -> std::result::Result<Dh<Params>, ErrorStack> {
    let prime = openssl::bn::BigNum::get_rfc3526_prime_2048()?;
    Dh::from_pqg(prime, None, openssl::bn::BigNum::from_u32(2)?)
}
