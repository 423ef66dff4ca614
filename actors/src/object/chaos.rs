//! The object `chaos`: delay rules.

use std::rc::Rc;

use futures_util::FutureExt;
use millpond_engine::delay::{Chaos, DelayRules, RuleOptions};
use millpond_messages::qapi::{Object, QmpError};
use serde::Deserialize;
use serde_json::{Value, json};

use super::kind::{Effect, Kind, Site, UserObject, wrong_type};

pub(super) const KIND: Kind = Kind {
    name: "chaos",
    parent: "object",
    properties: &[
        ("seed", "int"),
        ("rules", "list"),
        ("delayed", "int"),
        ("held", "int"),
        ("longest-ns", "int"),
        ("cut-connections", "int"),
    ],
    help: Some(HELP),
    is_single: true,
    make: |options| {
        let given: Given = serde_json::from_value(Value::Object(options)).map_err(refused)?;
        Ok(Rc::new(ChaosObject::new(given.id, given.seed, given.rules)?))
    },
};

const HELP: &str = "\
chaos options:
  seed=<int>             the seed of all random decisions; if it is not given,
                         one is chosen at random and logged
  rules.N.OPTION=<str>   an option of rule N, counted from 0. If several rules
                         match a message, their delays add up.

Which messages a rule matches (an option that is left out matches any):
  sender=<str>           user, graph, client, node, connection or session
  receiver=<str>         the same
  kind=<str>             request (or read, write, write-zeroes, discard, flush,
                         truncate, block-status, query), reply, order (or open,
                         close, quiesce, resume, connect, attach-root,
                         move-root, detach-root, depart, other-order), event
                         (or ended, quiesced, noticed), job, command, answer,
                         nbd (or nbd-request, nbd-reply)
  node=<str>             the node's name, or the export's for NBD connections
  iothread=<str>         the iothread that holds the message; main for the main
                         iothread

What happens to them (a TIME is a whole number followed by ns, us, ms or s):
  delay=<str>            delay each message: none, fixed:TIME, uniform:TIME:TIME,
                         or exponential:TIME (the mean; at most ten times that)
  burst=<str>            LENGTH/INTERVAL, such as 20ms/1s: now and then, hold all
                         messages between one sender and one receiver, then
                         deliver them together
  stall=<str>            LENGTH/INTERVAL: now and then, hold all messages of an
                         iothread
  slow-client=<str>      delay what an NBD client sends and receives
  dying-client=<str>     after:NUMBER or probability:P: cut an NBD client's
                         connection after NUMBER requests, or at each request
                         with probability P

Messages between one sender and one receiver stay in order. Counters, to be read
with qom-get:
  delayed, held, longest-ns, cut-connections
Removing the object delivers everything it holds at once, in order.
";

/// Delay rules that a user made.
#[derive(Debug)]
struct ChaosObject {
    /// The object's id, which its user chose.
    id: String,
    rules: Vec<RuleOptions>,
    /// What is in force, with its counters.
    chaos: Chaos,
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
    fn new(id: String, seed: Option<u64>, rules: Vec<RuleOptions>) -> Result<Self, QmpError> {
        let delays = DelayRules::from_options(seed, &rules).map_err(refused)?;
        let chaos = Chaos::new(delays);
        Ok(Self { id, rules, chaos })
    }
}

impl UserObject for ChaosObject {
    fn kind(&self) -> &'static str {
        KIND.name
    }

    fn id(&self) -> &str {
        &self.id
    }

    fn get(&self, property: &str) -> Option<Value> {
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
    fn with(&self, property: &str, value: &Value) -> Result<Rc<dyn UserObject>, QmpError> {
        let (mut seed, mut rules) = (self.chaos.rules().seed, self.rules.clone());
        match property {
            "seed" => seed = value.as_u64().ok_or_else(|| wrong_type(property, "integer"))?,
            "rules" if !value.is_array() => return Err(wrong_type(property, "array")),
            "rules" => {
                let wrong = |error| QmpError::generic(format!("rules: {error}"));
                rules = serde_json::from_value(value.clone()).map_err(wrong)?;
            }
            _ => {
                let text = format!("Property 'chaos.{property}' is not writable");
                return Err(QmpError::generic(text));
            }
        }
        Ok(Rc::new(Self::new(self.id.clone(), Some(seed), rules)?))
    }

    fn options(&self) -> Object {
        let seed = ("seed".to_owned(), self.chaos.rules().seed.into());
        [seed, ("rules".to_owned(), json!(self.rules))]
            .into_iter()
            .collect()
    }

    fn begin<'a>(&'a self, site: &'a Site) -> Effect<'a> {
        put(site, Some(self.chaos.clone()))
    }

    fn change<'a>(&'a self, site: &'a Site) -> Effect<'a> {
        self.begin(site)
    }

    fn end<'a>(&'a self, site: &'a Site) -> Effect<'a> {
        put(site, None)
    }
}

/// Puts delay rules in force, or none, and waits until they are.
fn put(site: &Site, chaos: Option<Chaos>) -> Effect<'_> {
    async move {
        site.graph.set_chaos(chaos).await;
        Ok(())
    }
    .boxed_local()
}
