//! TLS: credentials, and who may connect.

use crate::qapi::row::qapi;

qapi! {
    /// The properties of credentials for TLS that says of nobody who it is.
    open struct TlsCredsAnonProperties {
        verify_peer: Option<bool>,
        dir: Option<String>,
        endpoint: Option<QCryptoTLSCredsEndpoint>,
        priority: Option<String>,
    }

    /// The properties of credentials by keys that both sides have.
    open struct TlsCredsPskProperties {
        verify_peer: Option<bool>,
        dir: Option<String>,
        endpoint: Option<QCryptoTLSCredsEndpoint>,
        priority: Option<String>,
        username: Option<String>,
    }

    /// The properties of credentials by certificates.
    open struct TlsCredsX509Properties {
        verify_peer: Option<bool>,
        dir: Option<String>,
        endpoint: Option<QCryptoTLSCredsEndpoint>,
        priority: Option<String>,
        sanity_check: Option<bool>,
        passwordid: Option<String>,
    }

    /// The side of a connection that credentials are for.
    #[derive(Default)]
    enum QCryptoTLSCredsEndpoint {
        /// The side that connects.
        #[default]
        Client = "client",
        /// The side that listens.
        Server = "server",
    }

    /// The properties of rules that say who may connect.
    open struct AuthZListProperties {
        policy: Option<QAuthZListPolicy>,
        rules: Option<Vec<QAuthZListRule>>,
    }

    /// The properties of rules in a file.
    open struct AuthZListFileProperties {
        filename: String,
        refresh: Option<bool>,
    }

    /// The properties of an authorisation by PAM.
    open struct AuthZPAMProperties {
        service: String,
    }

    /// The properties of an authorisation of one.
    open struct AuthZSimpleProperties {
        identity: String,
    }

    /// A rule that says of some whether they may connect.
    struct QAuthZListRule {
        /// Whom the rule is about.
        whom as "match": String,
        /// Whether they may.
        policy: QAuthZListPolicy,
        /// How `match` tells them; exactly if nothing is said.
        format: Option<QAuthZListFormat>,
    }

    /// Whether somebody may connect.
    #[derive(Default)]
    enum QAuthZListPolicy {
        /// They may not.
        #[default]
        Deny = "deny",
        /// They may.
        Allow = "allow",
    }

    /// How a rule tells whom it is about.
    #[derive(Default)]
    enum QAuthZListFormat {
        /// By the whole name.
        #[default]
        Exact = "exact",
        /// By a pattern, in which `*` stands for any text and `?` for any character.
        Glob = "glob",
    }
}
