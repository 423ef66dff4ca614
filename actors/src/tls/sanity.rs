//! Checks of one's own certificates, so that a mistake shows when credentials are made and not when a client comes.
//!
//! The texts and the order of the checks are QEMU's.

use std::time::{SystemTime, UNIX_EPOCH};

use der::asn1::ObjectIdentifier;
use der::oid::db::rfc5280::{ANY_EXTENDED_KEY_USAGE, ID_KP_CLIENT_AUTH, ID_KP_SERVER_AUTH};
use der::oid::db::rfc5912::RSA_ENCRYPTION;
use millpond_messages::qapi::schema::QCryptoTLSCredsEndpoint;
use millpond_messages::{Error, ErrorKind, Result};
use openssl::error::ErrorStack;
use openssl::stack::Stack;
use openssl::x509::store::X509Store;
use openssl::x509::verify::X509VerifyFlags;
use openssl::x509::{X509, X509StoreContext, X509StoreContextRef};
use x509_cert::Certificate;
use x509_cert::ext::pkix::{BasicConstraints, ExtendedKeyUsage, KeyUsage};

use super::verify;
use super::x509::{failed, invalid, parsed, store};

/// What a certificate is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Purpose {
    Authority,
    Of(QCryptoTLSCredsEndpoint),
}

impl Purpose {
    const fn word(self) -> &'static str {
        match self {
            Self::Authority => "CA",
            Self::Of(endpoint) => endpoint.as_str(),
        }
    }
}

/// Certificates by the file that they are in.
pub(super) struct Shown<'a> {
    pub(super) path: &'a str,
    pub(super) certificates: &'a [X509],
}

/// Checks the authorities, and the own certificate (with those that follow it) for one side of a connection.
///
/// # Errors
/// The first thing that is wrong.
pub(super) fn check(
    endpoint: QCryptoTLSCredsEndpoint,
    authorities: &Shown<'_>,
    own: Option<&Shown<'_>>,
) -> Result<()> {
    if let Some(own) = own {
        let others = std::iter::repeat(Purpose::Authority);
        let purposes = std::iter::once(Purpose::Of(endpoint)).chain(others);
        for (certificate, purpose) in own.certificates.iter().zip(purposes) {
            check_one(own.path, &parsed(certificate)?, purpose)?;
        }
    }
    for certificate in authorities.certificates {
        check_one(authorities.path, &parsed(certificate)?, Purpose::Authority)?;
    }
    own.map_or(Ok(()), |own| check_chain(authorities, own))
}

fn check_one(path: &str, certificate: &Certificate, purpose: Purpose) -> Result<()> {
    check_time(path, certificate, purpose)?;
    check_constraints(path, certificate, purpose)?;
    check_usage(path, certificate, purpose)?;
    match purpose {
        Purpose::Authority => Ok(()),
        Purpose::Of(endpoint) => check_purpose(path, certificate, endpoint),
    }
}

fn check_time(path: &str, certificate: &Certificate, purpose: Purpose) -> Result<()> {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let validity = &certificate.tbs_certificate.validity;
    let word = purpose.word();
    if validity.not_after.to_unix_duration() < now {
        return Err(invalid(format!("The {word} certificate {path} has expired")));
    }
    if validity.not_before.to_unix_duration() > now {
        return Err(invalid(format!(
            "The {word} certificate {path} is not yet active"
        )));
    }
    Ok(())
}

fn unreadable(path: &str) -> impl Fn(der::Error) -> Error {
    move |error| {
        let text = format!("Unable to read the extensions of certificate {path}");
        Error::caused_by(ErrorKind::InvalidArgument, text, error)
    }
}

fn check_constraints(path: &str, certificate: &Certificate, purpose: Purpose) -> Result<()> {
    let found = certificate.tbs_certificate.get::<BasicConstraints>();
    let is_authority = found
        .map_err(unreadable(path))?
        .map(|(_, constraints)| constraints.ca);
    let text = match (is_authority, purpose) {
        (Some(true), Purpose::Of(_)) => {
            let word = purpose.word();
            format!("The certificate {path} basic constraints show a CA, but we need one for a {word}")
        }
        (Some(false), Purpose::Authority) => {
            format!("The certificate {path} basic constraints do not show a CA")
        }
        (None, Purpose::Authority) => {
            format!("The certificate {path} is missing basic constraints for a CA")
        }
        _ => return Ok(()),
    };
    Err(invalid(text))
}

/// What the key may be used for. Only what the certificate calls critical is refused.
fn check_usage(path: &str, certificate: &Certificate, purpose: Purpose) -> Result<()> {
    let found = certificate.tbs_certificate.get::<KeyUsage>();
    let Some((is_critical, usage)) = found.map_err(unreadable(path))? else {
        return Ok(());
    };
    let key = &certificate.tbs_certificate.subject_public_key_info;
    let is_rsa = key.algorithm.oid == RSA_ENCRYPTION;
    let lacking = match purpose {
        Purpose::Authority if !usage.key_cert_sign() => "certificate signing",
        Purpose::Of(_) if !usage.digital_signature() => "digital signature",
        // Only a key of this kind can encipher another.
        Purpose::Of(_) if is_rsa && !usage.key_encipherment() => "key encipherment",
        _ => return Ok(()),
    };
    let text = format!("Certificate {path} usage does not permit {lacking}");
    refuse_if(is_critical, text)
}

fn check_purpose(path: &str, certificate: &Certificate, endpoint: QCryptoTLSCredsEndpoint) -> Result<()> {
    let found = certificate.tbs_certificate.get::<ExtendedKeyUsage>();
    let Some((is_critical, purposes)) = found.map_err(unreadable(path))? else {
        return Ok(());
    };
    let wanted: ObjectIdentifier = match endpoint {
        QCryptoTLSCredsEndpoint::Server => ID_KP_SERVER_AUTH,
        QCryptoTLSCredsEndpoint::Client => ID_KP_CLIENT_AUTH,
    };
    if purposes
        .0
        .iter()
        .any(|purpose| [wanted, ANY_EXTENDED_KEY_USAGE].contains(purpose))
    {
        return Ok(());
    }
    let word = endpoint.as_str();
    let text = format!("Certificate {path} purpose does not allow use with a TLS {word}");
    refuse_if(is_critical, text)
}

/// Refuses what is critical; anything else is only said.
fn refuse_if(is_critical: bool, text: String) -> Result<()> {
    if is_critical {
        return Err(invalid(text));
    }
    tracing::warn!("{text}");
    Ok(())
}

/// Whether the authorities vouch for the own certificate.
fn check_chain(authorities: &Shown<'_>, own: &Shown<'_>) -> Result<()> {
    let Some((first, rest)) = own.certificates.split_first() else {
        return Ok(());
    };
    let (store, chain) = store_and_chain(authorities.certificates, rest).map_err(failed)?;
    let mut context = X509StoreContext::new().map_err(failed)?;
    let verified = context.init(&store, first, &chain, |context: &mut X509StoreContextRef| {
        context
            .verify_cert()
            .map(|is_good| (!is_good).then(|| context.error()))
    });
    let Some(error) = verified.map_err(failed)? else {
        return Ok(());
    };
    let text = format!(
        "Our own certificate {} failed validation against {}: {}",
        own.path,
        authorities.path,
        verify::text(error)
    );
    Err(invalid(text))
}

fn store_and_chain(
    authorities: &[X509],
    rest: &[X509],
) -> std::result::Result<(X509Store, Stack<X509>), ErrorStack> {
    let mut store = store(authorities)?;
    store.set_flags(X509VerifyFlags::PARTIAL_CHAIN)?;
    let mut chain = Stack::new()?;
    for certificate in rest {
        chain.push(certificate.clone())?;
    }
    Ok((store.build(), chain))
}
