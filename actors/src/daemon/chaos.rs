//! The user object that holds delay rules.

use millpond_messages::qapi::{Object, QmpError};
use serde::Deserialize;
use serde_json::{Value, json};

use super::Daemon;
use millpond_engine::delay::{Chaos, DelayRules, RuleOptions};

/// Properties in the order in which they are listed.
pub(super) const CHAOS_PROPERTIES: &[&str] = &[
    "seed",
    "rules",
    "delayed",
    "held",
    "longest-ns",
    "cut-connections",
];

/// Delay rules that a user made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ChaosObject {
    /// The object's id, which its user chose.
    pub id: String,
    rules: Vec<RuleOptions>,
    /// What is in force, with its counters.
    pub chaos: Chaos,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
struct Given {
    id: String,
    seed: Option<u64>,
    #[serde(default)]
    rules: Vec<RuleOptions>,
}

fn refused(error: impl ToString) -> QmpError {
    QmpError::generic(error.to_string())
}

impl ChaosObject {
    /// Makes one from the checked arguments of `object-add`.
    ///
    /// # Errors
    /// A rule makes no sense.
    pub(super) fn from_options(options: Object) -> Result<Self, QmpError> {
        let given: Given = serde_json::from_value(Value::Object(options)).map_err(refused)?;
        Self::new(given.id, given.seed, given.rules)
    }

    fn new(id: String, seed: Option<u64>, rules: Vec<RuleOptions>) -> Result<Self, QmpError> {
        let delays = DelayRules::from_options(seed, &rules).map_err(refused)?;
        let chaos = Chaos::new(delays);
        Ok(Self { id, rules, chaos })
    }

    /// A property's value; `None` if it has no such.
    pub(super) fn get(&self, property: &str) -> Option<Value> {
        let statistics = self.chaos.statistics();
        Some(match property {
            "seed" => self.chaos.rules().seed.into(),
            "rules" => json!(self.rules),
            "delayed" => statistics.delayed.into(),
            "held" => statistics.held.into(),
            "longest-ns" => statistics.longest_ns.into(),
            "cut-connections" => statistics.cut.into(),
            _ => return None,
        })
    }

    /// The object with another seed or other rules. Its counters begin anew.
    ///
    /// # Errors
    /// The property cannot be changed, or not to this.
    pub(super) fn with(&self, property: &str, value: &Value) -> Result<Self, QmpError> {
        let wrong = |expected: &str| {
            QmpError::generic(format!(
                "Invalid parameter type for '{property}', expected: {expected}"
            ))
        };
        let seed = self.chaos.rules().seed;
        match property {
            "seed" => {
                let seed = value.as_u64().ok_or_else(|| wrong("integer"))?;
                Self::new(self.id.clone(), Some(seed), self.rules.clone())
            }
            "rules" if !value.is_array() => Err(wrong("array")),
            "rules" => {
                let rules = serde_json::from_value(value.clone())
                    .map_err(|error| QmpError::generic(format!("rules: {error}")))?;
                Self::new(self.id.clone(), Some(seed), rules)
            }
            _ => Err(QmpError::generic(format!(
                "Property 'chaos.{property}' is not writable"
            ))),
        }
    }
}

impl Daemon {
    /// The flight record.
    ///
    /// # Errors
    /// The graph has ended.
    pub async fn flight_record(&self, reason: &str) -> Result<Vec<u8>, QmpError> {
        let record = self.parts.graph.flight_record(reason).await;
        record.map_err(refused)
    }

    /// Puts delay rules in force, or none, and waits until they are.
    pub async fn set_chaos(&self, chaos: Option<Chaos>) {
        self.parts.graph.set_chaos(chaos).await;
    }
}
