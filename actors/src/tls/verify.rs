//! What is wrong with a certificate, in QEMU's words, and what is let pass.

use std::sync::{Arc, OnceLock};

use openssl::ssl::{SslRef, SslVerifyMode};
use openssl::x509::{X509StoreContextRef, X509VerifyResult};
use openssl_sys::{
    X509_V_ERR_CA_KEY_TOO_SMALL, X509_V_ERR_CA_MD_TOO_WEAK, X509_V_ERR_CERT_REVOKED,
    X509_V_ERR_DEPTH_ZERO_SELF_SIGNED_CERT, X509_V_ERR_EE_KEY_TOO_SMALL, X509_V_ERR_HOSTNAME_MISMATCH,
    X509_V_ERR_INVALID_PURPOSE, X509_V_ERR_IP_ADDRESS_MISMATCH, X509_V_ERR_SELF_SIGNED_CERT_IN_CHAIN,
    X509_V_ERR_UNABLE_TO_GET_CRL, X509_V_ERR_UNABLE_TO_GET_ISSUER_CERT,
    X509_V_ERR_UNABLE_TO_GET_ISSUER_CERT_LOCALLY, X509_V_ERR_UNABLE_TO_VERIFY_LEAF_SIGNATURE,
};

/// Why a peer's certificate was not taken, once that is known.
pub(super) type Refusal = Arc<OnceLock<String>>;

/// Has a session ask its peer for a certificate, and notes why one is not taken.
///
/// A peer without any is refused by who looks for the certificate afterwards.
///
/// `hostname` is the name that the peer has to prove, if it has to prove one.
pub(super) fn ask_for_certificate(ssl: &mut SslRef, hostname: Option<String>) -> Refusal {
    let refusal = Refusal::default();
    let note = Arc::clone(&refusal);
    ssl.set_verify_callback(SslVerifyMode::PEER, move |is_good, context| {
        is_good || passes(context) || {
            let wrong = match (&hostname, context.error().as_raw()) {
                (Some(hostname), X509_V_ERR_HOSTNAME_MISMATCH | X509_V_ERR_IP_ADDRESS_MISMATCH) => {
                    format!("Certificate does not match the hostname {hostname}")
                }
                _ => text(context.error()),
            };
            // The first thing that is wrong is what is told.
            let _ = note.set(wrong);
            false
        }
    });
    refusal
}

/// What OpenSSL minds and GnuTLS does not, so that who is let in by QEMU is let in here: an authority without a list of
/// what it has revoked, and a peer's certificate that was made for another purpose.
pub(super) fn passes(context: &X509StoreContextRef) -> bool {
    match context.error().as_raw() {
        X509_V_ERR_UNABLE_TO_GET_CRL => true,
        X509_V_ERR_INVALID_PURPOSE => context.error_depth() == 0,
        _ => false,
    }
}

/// What is wrong, in QEMU's words where it has some.
pub(super) fn text(error: X509VerifyResult) -> String {
    match error.as_raw() {
        X509_V_ERR_UNABLE_TO_GET_ISSUER_CERT
        | X509_V_ERR_UNABLE_TO_GET_ISSUER_CERT_LOCALLY
        | X509_V_ERR_UNABLE_TO_VERIFY_LEAF_SIGNATURE
        | X509_V_ERR_DEPTH_ZERO_SELF_SIGNED_CERT
        | X509_V_ERR_SELF_SIGNED_CERT_IN_CHAIN => "The certificate hasn't got a known issuer".to_owned(),
        X509_V_ERR_CERT_REVOKED => "The certificate has been revoked".to_owned(),
        X509_V_ERR_CA_MD_TOO_WEAK | X509_V_ERR_EE_KEY_TOO_SMALL | X509_V_ERR_CA_KEY_TOO_SMALL => {
            "The certificate uses an insecure algorithm".to_owned()
        }
        _ => format!("The certificate is not trusted: {}", error.error_string()),
    }
}
