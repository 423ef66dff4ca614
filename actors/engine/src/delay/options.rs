//! Delay rules as users write them.

use std::str::FromStr;

use serde::{Deserialize, Serialize};

use super::rules::{Actor, DelayRules, KINDS, Rule};

/// A rule as `--object chaos` and QMP have it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case", default)]
pub struct RuleOptions {
    /// The kind of actor that sends; any if left out.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sender: Option<String>,
    /// The kind of actor that receives; any if left out.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub receiver: Option<String>,
    /// A kind of message, or a group of kinds.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub kind: Option<String>,
    /// The node that it concerns, or the export.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub node: Option<String>,
    /// Where it is held.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub iothread: Option<String>,
    /// A delay of each message.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub delay: Option<String>,
    /// A window in which all of a pair are held.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub burst: Option<String>,
    /// A window in which all of an iothread are held.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub stall: Option<String>,
    /// A delay of what an NBD client sends and is sent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub slow_client: Option<String>,
    /// When an NBD client's connection is cut.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub dying_client: Option<String>,
}

/// What is wrong with a rule.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RuleError {
    /// A value is not one of those there are, or not of the form that it must have.
    #[error("rules.{rule}.{option}: {why}")]
    Value {
        /// The place of the rule in the list, from 0.
        rule: usize,
        /// The option of the rule that is wrong.
        option: &'static str,
        /// What is wrong with it.
        why: String,
    },
    /// The rule would do nothing.
    #[error("rules.{rule} does nothing: expected delay, burst, stall, slow-client or dying-client")]
    Nothing {
        /// The place of the rule in the list, from 0.
        rule: usize,
    },
}

impl DelayRules {
    /// The rules that are written so.
    ///
    /// # Errors
    /// A rule makes no sense.
    pub fn from_options(seed: Option<u64>, rules: &[RuleOptions]) -> Result<Self, RuleError> {
        let rules = rules
            .iter()
            .enumerate()
            .map(|(number, options)| options.rule(number));
        Ok(Self::new(seed, rules.collect::<Result<_, _>>()?))
    }
}

impl RuleOptions {
    fn rule(&self, number: usize) -> Result<Rule, RuleError> {
        let wrong = |option| {
            move |why| RuleError::Value {
                rule: number,
                option,
                why,
            }
        };
        let actor = |option, text: &Option<String>| {
            text.as_deref()
                .map(|name| actor(name).map_err(wrong(option)))
                .transpose()
        };
        let rule = Rule {
            sender: actor("sender", &self.sender)?,
            receiver: actor("receiver", &self.receiver)?,
            kind: self
                .kind
                .as_deref()
                .map(kind)
                .transpose()
                .map_err(wrong("kind"))?,
            node: self.node.clone(),
            iothread: self.iothread.clone(),
            delay: parsed(&self.delay).map_err(wrong("delay"))?.unwrap_or_default(),
            burst: parsed(&self.burst).map_err(wrong("burst"))?,
            stall: parsed(&self.stall).map_err(wrong("stall"))?,
            slow_client: parsed(&self.slow_client)
                .map_err(wrong("slow-client"))?
                .unwrap_or_default(),
            dying_client: parsed(&self.dying_client).map_err(wrong("dying-client"))?,
        };
        let effects = [
            &self.delay,
            &self.burst,
            &self.stall,
            &self.slow_client,
            &self.dying_client,
        ];
        match effects.iter().any(|effect| effect.is_some()) {
            true => Ok(rule),
            false => Err(RuleError::Nothing { rule: number }),
        }
    }
}

fn parsed<T: FromStr<Err = String>>(text: &Option<String>) -> Result<Option<T>, String> {
    text.as_deref().map(str::parse).transpose()
}

fn actor(name: &str) -> Result<Actor, String> {
    let found = Actor::ALL.iter().find(|(known, _)| *known == name);
    found.map(|(_, actor)| *actor).ok_or_else(|| {
        let names: Vec<&str> = Actor::ALL.iter().map(|(name, _)| *name).collect();
        format!("'{name}' is no actor: expected one of {}", names.join(", "))
    })
}

fn kind(name: &str) -> Result<&'static str, String> {
    let names = || KINDS.iter().flat_map(|kind| [kind.group, kind.name]);
    names().find(|known| *known == name).ok_or_else(|| {
        let mut known: Vec<&str> = Vec::new();
        names().for_each(|name| {
            if !known.contains(&name) {
                known.push(name);
            }
        });
        format!(
            "'{name}' is no kind of message: expected one of {}",
            known.join(", ")
        )
    })
}

#[cfg(test)]
mod tests {
    use super::super::{Delay, DelayRules};
    use super::*;

    fn refused(rule: RuleOptions) -> String {
        let fine = RuleOptions {
            delay: Some("none".to_owned()),
            ..RuleOptions::default()
        };
        DelayRules::from_options(None, &[fine, rule])
            .unwrap_err()
            .to_string()
    }

    #[test]
    fn an_error_names_the_rule_the_option_and_what_was_wrong() {
        let rule = |change: fn(&mut RuleOptions)| {
            let mut rule = RuleOptions {
                delay: Some("fixed:1ms".to_owned()),
                ..RuleOptions::default()
            };
            change(&mut rule);
            refused(rule)
        };
        assert_eq!(
            rule(|rule| rule.sender = Some("nobody".to_owned())),
            "rules.1.sender: 'nobody' is no actor: expected one of user, graph, client, node, connection, session"
        );
        assert!(rule(|rule| rule.kind = Some("letter".to_owned())).starts_with(
            "rules.1.kind: 'letter' is no kind of message: expected one of request, read, write,"
        ));
        assert!(rule(|rule| rule.delay = Some("5".to_owned())).starts_with("rules.1.delay: '5' is no delay"));
        assert!(
            rule(|rule| rule.stall = Some("1s".to_owned())).starts_with("rules.1.stall: '1s' does not say")
        );
        assert!(
            rule(|rule| rule.dying_client = Some("soon".to_owned()))
                .starts_with("rules.1.dying-client: 'soon'")
        );
        assert_eq!(
            rule(|rule| rule.delay = None),
            "rules.1 does nothing: expected delay, burst, stall, slow-client or dying-client"
        );
    }

    #[test]
    fn a_seed_is_given_or_comes_by_chance() {
        assert_eq!(
            DelayRules::from_options(Some(42), &[]).map(|rules| rules.seed),
            Ok(42)
        );
        let chance: Vec<u64> = (0..8).map(|_| DelayRules::new(None, Vec::new()).seed).collect();
        assert!(chance.windows(2).any(|pair| pair[0] != pair[1]));
    }

    #[test]
    fn the_longest_hold_is_what_all_rules_come_to() {
        let options: Vec<RuleOptions> = serde_json::from_value(serde_json::json!([
            {"delay": "exponential:1ms", "burst": "20ms/1s", "stall": "30ms/1s"}, {"delay": "fixed:2ms"},
        ]))
        .unwrap();
        let rules = DelayRules::from_options(None, &options).unwrap();
        assert_eq!(
            rules.list[0].delay,
            Delay::Exponential(std::time::Duration::from_millis(1))
        );
        assert_eq!(rules.longest().as_millis(), 42);
    }
}
