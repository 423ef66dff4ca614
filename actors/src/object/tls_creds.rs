//! The objects `tls-creds-x509`, `tls-creds-psk` and `tls-creds-anon`: credentials for TLS, checked when they are made.

use std::rc::Rc;

use futures_util::FutureExt;
use futures_util::future::ready;
use millpond_messages::qapi::{Object, QmpError};
use serde_json::Value;

use super::kind::{Effect, Kind, Site, UserObject, aside};
use super::secret::{not_writable, take};
use crate::tls::{Credentials, CredentialsKind, CredentialsOptions};

const DIR: &str = "dir";
const ENDPOINT: &str = "endpoint";
const PASSWORD: &str = "passwordid";
const PRIORITY: &str = "priority";
const SANITY_CHECK: &str = "sanity-check";
const USERNAME: &str = "username";
const VERIFY_PEER: &str = "verify-peer";

/// What QEMU calls the type of all credentials.
pub(super) const PARENT: &str = "tls-creds";

/// The property that says which side of a connection they are for.
const ENDPOINT_ROW: (&str, &str) = (ENDPOINT, "QCryptoTLSCredsEndpoint");

pub(super) const X509: Kind = Kind {
    name: "tls-creds-x509",
    parent: PARENT,
    properties: &[
        ENDPOINT_ROW,
        (DIR, "string"),
        (VERIFY_PEER, "bool"),
        (PRIORITY, "string"),
        (SANITY_CHECK, "bool"),
        (PASSWORD, "string"),
    ],
    help: None,
    is_single: false,
    make: |options| {
        Ok(make(options, X509.name, |options| CredentialsKind::Certificate {
            sanity_check: flag(options, SANITY_CHECK),
            password: take(options, PASSWORD),
        }))
    },
};

pub(super) const PSK: Kind = Kind {
    name: "tls-creds-psk",
    parent: PARENT,
    properties: &[
        ENDPOINT_ROW,
        (DIR, "string"),
        (VERIFY_PEER, "bool"),
        (PRIORITY, "string"),
        (USERNAME, "string"),
    ],
    help: None,
    is_single: false,
    make: |options| {
        Ok(make(options, PSK.name, |options| CredentialsKind::Key {
            username: take(options, USERNAME),
        }))
    },
};

pub(super) const ANON: Kind = Kind {
    name: "tls-creds-anon",
    parent: PARENT,
    properties: &[
        ENDPOINT_ROW,
        (DIR, "string"),
        (VERIFY_PEER, "bool"),
        (PRIORITY, "string"),
    ],
    help: None,
    is_single: false,
    make: |options| Ok(make(options, ANON.name, |_| CredentialsKind::Anonymous)),
};

/// Credentials, as an object of the daemon.
#[derive(Debug)]
struct CredentialsObject {
    kind: &'static str,
    id: String,
    credentials: CredentialsOptions,
}

/// A flag among the options, which is on if nothing is said.
fn flag(options: &mut Object, name: &str) -> bool {
    options
        .shift_remove(name)
        .and_then(|flag| flag.as_bool())
        .unwrap_or(true)
}

/// Makes one from the checked arguments of `object-add`.
fn make(
    mut options: Object,
    kind: &'static str,
    of_kind: impl FnOnce(&mut Object) -> CredentialsKind,
) -> Rc<dyn UserObject> {
    let endpoint = options
        .shift_remove(ENDPOINT)
        .and_then(|endpoint| serde_json::from_value(endpoint).ok());
    let options = &mut options;
    Rc::new(CredentialsObject {
        kind,
        id: take(options, "id").unwrap_or_default(),
        credentials: CredentialsOptions {
            kind: of_kind(options),
            dir: take(options, DIR),
            endpoint: endpoint.unwrap_or_default(),
            verify_peer: flag(options, VERIFY_PEER),
            priority: take(options, PRIORITY),
        },
    })
}

impl CredentialsObject {
    /// A property's value, if one was given or there is always one.
    fn given(&self, property: &str) -> Option<Value> {
        let CredentialsOptions {
            kind,
            dir,
            endpoint,
            verify_peer,
            priority,
        } = &self.credentials;
        let text = |text: &Option<String>| text.clone().map(Value::from);
        match (property, kind) {
            (DIR, _) => text(dir),
            (ENDPOINT, _) => Some(endpoint.as_str().into()),
            (VERIFY_PEER, _) => Some((*verify_peer).into()),
            (PRIORITY, _) => text(priority),
            (USERNAME, CredentialsKind::Key { username }) => text(username),
            (SANITY_CHECK, CredentialsKind::Certificate { sanity_check, .. }) => Some((*sanity_check).into()),
            (PASSWORD, CredentialsKind::Certificate { password, .. }) => text(password),
            _ => None,
        }
    }
}

impl UserObject for CredentialsObject {
    fn kind(&self) -> &'static str {
        self.kind
    }

    fn id(&self) -> &str {
        &self.id
    }

    fn get(&self, property: &str) -> Option<Value> {
        Some(self.given(property).unwrap_or_else(|| "".into()))
    }

    /// QEMU takes new values, and goes on with what it has read by the old ones.
    fn with(&self, property: &str, _: &Value) -> Result<Rc<dyn UserObject>, QmpError> {
        Err(not_writable(self.kind, property))
    }

    fn options(&self) -> Object {
        let names = [
            DIR,
            ENDPOINT,
            VERIFY_PEER,
            PRIORITY,
            USERNAME,
            SANITY_CHECK,
            PASSWORD,
        ];
        let given = names
            .iter()
            .filter_map(|name| Some(((*name).to_owned(), self.given(name)?)));
        given.collect()
    }

    /// Reads the files on a thread that nobody waits for.
    fn begin<'a>(&'a self, site: &'a Site) -> Effect<'a> {
        let (options, secrets) = (self.credentials.clone(), site.secrets.clone());
        async move {
            let loaded = aside(move || Credentials::load(options, &secrets)).await?;
            site.tls.put(&self.id, loaded);
            Ok(())
        }
        .boxed_local()
    }

    fn change<'a>(&'a self, _: &'a Site) -> Effect<'a> {
        ready(Ok(())).boxed_local()
    }

    /// Forgets them. A server that was started with them goes on with them.
    fn end<'a>(&'a self, site: &'a Site) -> Effect<'a> {
        site.tls.remove(&self.id);
        ready(Ok(())).boxed_local()
    }
}
