//! The objects `authz-simple`, `authz-list` and `authz-list-file`: who may connect, by the name that a certificate proves.

use std::rc::Rc;

use futures_util::FutureExt;
use futures_util::future::ready;
use millpond_messages::qapi::{Object, QmpError};
use serde::de::DeserializeOwned;
use serde_json::Value;

use super::kind::{Effect, Kind, Site, UserObject, aside, wrong_type};
use super::secret::take;
use crate::tls::{Authorizer, AuthzRules, RulesFile};

const FILENAME: &str = "filename";
const IDENTITY: &str = "identity";
const POLICY: &str = "policy";
const REFRESH: &str = "refresh";
const RULES: &str = "rules";

/// What QEMU calls the type of all of them.
const PARENT: &str = "authz";

pub(super) const SIMPLE: Kind = Kind {
    name: "authz-simple",
    parent: PARENT,
    properties: &[(IDENTITY, "string")],
    help: None,
    is_single: false,
    make: |mut options| {
        let id = take(&mut options, "id").unwrap_or_default();
        let identity = take(&mut options, IDENTITY).unwrap_or_default();
        Ok(Rc::new(AuthzObject {
            id,
            what: What::Simple(identity),
        }))
    },
};

pub(super) const LIST: Kind = Kind {
    name: "authz-list",
    parent: PARENT,
    properties: &[(POLICY, "QAuthZListPolicy"), (RULES, "QAuthZListRule")],
    help: None,
    is_single: false,
    make: |mut options| {
        let id = take(&mut options, "id").unwrap_or_default();
        let rules = rules_of(options)?;
        Ok(Rc::new(AuthzObject {
            id,
            what: What::List(rules),
        }))
    },
};

pub(super) const LIST_FILE: Kind = Kind {
    name: "authz-list-file",
    parent: PARENT,
    properties: &[(FILENAME, "string"), (REFRESH, "bool")],
    help: None,
    is_single: false,
    make: |mut options| {
        let refresh = options.shift_remove(REFRESH).and_then(|flag| flag.as_bool());
        let id = take(&mut options, "id").unwrap_or_default();
        let filename = take(&mut options, FILENAME).unwrap_or_default();
        let refresh = refresh.unwrap_or(true);
        Ok(Rc::new(AuthzObject {
            id,
            what: What::ListFile { filename, refresh },
        }))
    },
};

fn rules_of(options: Object) -> Result<AuthzRules, QmpError> {
    serde_json::from_value(Value::Object(options)).map_err(|error| QmpError::generic(error.to_string()))
}

/// What says who may connect, as an object of the daemon.
#[derive(Debug)]
struct AuthzObject {
    id: String,
    what: What,
}

#[derive(Debug, Clone)]
enum What {
    Simple(String),
    List(AuthzRules),
    ListFile { filename: String, refresh: bool },
}

impl AuthzObject {
    fn changed(&self, what: What) -> Rc<dyn UserObject> {
        Rc::new(Self {
            id: self.id.clone(),
            what,
        })
    }
}

/// A property's new value.
///
/// # Errors
/// It is of another type than `expected`.
fn value_of<T: DeserializeOwned>(property: &str, value: &Value, expected: &str) -> Result<T, QmpError> {
    serde_json::from_value(value.clone()).map_err(|_| match value {
        Value::String(word) if property == POLICY => {
            QmpError::generic(format!("Parameter '{POLICY}' does not accept value '{word}'"))
        }
        _ => wrong_type(property, expected),
    })
}

impl UserObject for AuthzObject {
    fn kind(&self) -> &'static str {
        match self.what {
            What::Simple(_) => SIMPLE.name,
            What::List(_) => LIST.name,
            What::ListFile { .. } => LIST_FILE.name,
        }
    }

    fn id(&self) -> &str {
        &self.id
    }

    fn get(&self, property: &str) -> Option<Value> {
        self.options().shift_remove(property)
    }

    fn with(&self, property: &str, value: &Value) -> Result<Rc<dyn UserObject>, QmpError> {
        let what = match (&self.what, property) {
            (What::Simple(_), _) => What::Simple(value_of(property, value, "string")?),
            (What::List(rules), POLICY) => What::List(AuthzRules {
                policy: value_of(property, value, "string")?,
                ..rules.clone()
            }),
            (What::List(rules), _) => What::List(AuthzRules {
                rules: value_of(property, value, "array")?,
                ..*rules
            }),
            (What::ListFile { refresh, .. }, FILENAME) => What::ListFile {
                filename: value_of(property, value, "string")?,
                refresh: *refresh,
            },
            (What::ListFile { filename, .. }, _) => What::ListFile {
                filename: filename.clone(),
                refresh: value_of(property, value, "boolean")?,
            },
        };
        Ok(self.changed(what))
    }

    fn options(&self) -> Object {
        let given = |name: &str, value: Value| (name.to_owned(), value);
        let list = match &self.what {
            What::Simple(identity) => vec![given(IDENTITY, identity.clone().into())],
            What::List(AuthzRules { policy, rules }) => {
                let rules = serde_json::to_value(rules).unwrap_or_default();
                vec![given(POLICY, policy.as_str().into()), given(RULES, rules)]
            }
            What::ListFile { filename, refresh } => {
                vec![
                    given(FILENAME, filename.clone().into()),
                    given(REFRESH, (*refresh).into()),
                ]
            }
        };
        list.into_iter().collect()
    }

    fn begin<'a>(&'a self, site: &'a Site) -> Effect<'a> {
        async move {
            let authorizer = match self.what.clone() {
                What::Simple(identity) => Authorizer::Simple(identity),
                What::List(rules) => Authorizer::List(rules),
                // A file may take long to answer.
                What::ListFile { filename, refresh } => {
                    Authorizer::ListFile(aside(move || RulesFile::open(&filename, refresh)).await?)
                }
            };
            site.tls.authorizers.put(&self.id, authorizer);
            Ok(())
        }
        .boxed_local()
    }

    fn change<'a>(&'a self, site: &'a Site) -> Effect<'a> {
        self.begin(site)
    }

    /// Forgets it. Who comes by it later is refused.
    fn end<'a>(&'a self, site: &'a Site) -> Effect<'a> {
        site.tls.authorizers.remove(&self.id);
        ready(Ok(())).boxed_local()
    }
}
