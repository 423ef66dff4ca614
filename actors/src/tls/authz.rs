//! Who may connect, by the name that a certificate proves: the one identity, rules, or rules in a file.

use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

use arc_swap::ArcSwapOption;
use millpond_messages::qapi::schema::{QAuthZListFormat, QAuthZListPolicy, QAuthZListRule};
use millpond_messages::{Error, ErrorKind, IoError, Result};
use serde::Deserialize;
use serde_json::{Map, Value};

use super::files::{MOST_BYTES, Stamp};

/// Says who may connect.
#[derive(Debug)]
pub(crate) enum Authorizer {
    /// Only the one who is called so.
    Simple(String),
    /// Whoever the rules let in.
    List(AuthzRules),
    /// Whoever the rules in a file let in.
    ListFile(RulesFile),
}

impl Authorizer {
    /// Whether the one who is called `identity` may connect. Rules in a file are read again if it has changed, so not on a
    /// thread that others wait for.
    pub(crate) fn allows(&self, identity: &str) -> bool {
        match self {
            Self::Simple(one) => one == identity,
            Self::List(rules) => rules.allow(identity),
            Self::ListFile(file) => file.allow(identity),
        }
    }
}

/// Rules of which the first that is about somebody decides, and what holds for all others.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct AuthzRules {
    #[serde(default)]
    pub(crate) policy: QAuthZListPolicy,
    #[serde(default)]
    pub(crate) rules: Vec<QAuthZListRule>,
}

impl AuthzRules {
    fn allow(&self, identity: &str) -> bool {
        let decides = self.rules.iter().find(|rule| is_about(rule, identity));
        decides.map_or(self.policy, |rule| rule.policy) == QAuthZListPolicy::Allow
    }
}

fn is_about(rule: &QAuthZListRule, identity: &str) -> bool {
    match rule.format.unwrap_or_default() {
        QAuthZListFormat::Exact => rule.whom == identity,
        QAuthZListFormat::Glob => matches_glob(&rule.whom, identity),
    }
}

/// Whether `text` is what `pattern` says, in which `*` stands for any text and `?` for any one character. It takes at most as
/// many steps as the product of both lengths.
fn matches_glob(pattern: &str, text: &str) -> bool {
    let pattern: Vec<char> = pattern.chars().collect();
    let text: Vec<char> = text.chars().collect();
    let (mut at, mut here) = (0, 0);
    // Where the last `*` was, and up to where it stands for the text so far.
    let mut star: Option<(usize, usize)> = None;
    while here < text.len() {
        match pattern.get(at) {
            Some('*') => {
                star = Some((at, here));
                at += 1;
            }
            Some(&wanted) if wanted == '?' || Some(&wanted) == text.get(here) => {
                at += 1;
                here += 1;
            }
            _ => {
                let Some((place, upto)) = star else { return false };
                star = Some((place, upto + 1));
                (at, here) = (place + 1, upto + 1);
            }
        }
    }
    pattern
        .get(at..)
        .unwrap_or_default()
        .iter()
        .all(|rest| *rest == '*')
}

/// Rules in a file, as JSON.
#[derive(Debug)]
pub(crate) struct RulesFile {
    path: PathBuf,
    /// The file is looked at again before each decision.
    refresh: bool,
    /// The rules, and the file that they were read from; none after it has become one without rules.
    read: ArcSwapOption<(Stamp, Option<AuthzRules>)>,
}

impl RulesFile {
    /// Reads the rules in the file at `path`, and again whenever it has changed if they are to be refreshed.
    ///
    /// # Errors
    /// It cannot be read, or has no rules.
    pub(crate) fn open(path: &str, refresh: bool) -> Result<Self> {
        let path = PathBuf::from(path);
        let (stamp, rules) = read(&path)?;
        Ok(Self {
            path,
            refresh,
            read: ArcSwapOption::from_pointee((stamp, Some(rules))),
        })
    }

    /// Nobody is let in by a file that cannot be read.
    fn allow(&self, identity: &str) -> bool {
        if self.refresh {
            self.look_again();
        }
        let read = self.read.load();
        let rules = read.as_ref().and_then(|read| read.1.as_ref());
        rules.is_some_and(|rules| rules.allow(identity))
    }

    fn look_again(&self) {
        let now = Stamp::of(&self.path);
        let known = self.read.load();
        if known.as_ref().is_some_and(|known| known.0 == now) {
            return;
        }
        let read = match read(&self.path) {
            Ok((stamp, rules)) => (stamp, Some(rules)),
            Err(error) => {
                tracing::warn!(%error, "nobody may connect by rules that cannot be read");
                (now, None)
            }
        };
        self.read.store(Some(std::sync::Arc::new(read)));
    }
}

fn read(path: &Path) -> Result<(Stamp, AuthzRules)> {
    let shown = path.display();
    let failed = |error: std::io::Error| {
        Error::io(
            &format!("Unable to read authorization rules from {shown}"),
            IoError::from(error),
        )
    };
    // Before it is read: what is written meanwhile is read again.
    let stamp = Stamp::of(path);
    let mut text = String::new();
    let file = File::open(path).map_err(failed)?;
    file.take(MOST_BYTES).read_to_string(&mut text).map_err(failed)?;
    let parsed: serde_json::Result<Map<String, Value>> = serde_json::from_str(&text);
    let rules = parsed.and_then(|members| serde_json::from_value(Value::Object(members)));
    let rules = rules.map_err(|error| {
        let text = format!("There are no authorization rules in {shown}: {error}");
        Error::new(ErrorKind::InvalidArgument, text)
    })?;
    Ok((stamp, rules))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rule(whom: &str, policy: QAuthZListPolicy, format: Option<QAuthZListFormat>) -> QAuthZListRule {
        QAuthZListRule {
            whom: whom.to_owned(),
            policy,
            format,
        }
    }

    #[test]
    fn patterns_match_whole_texts() {
        for (pattern, text, matches) in [
            ("", "", true),
            ("*", "", true),
            ("a*", "abc", true),
            ("*c", "abc", true),
            ("a*c*e", "abcde", true),
            ("a*c*f", "abcde", false),
            ("a?c", "abc", true),
            ("a?c", "ac", false),
            ("?", "\u{e4}", true),
            ("a", "ab", false),
            ("ab", "a", false),
            ("*a*b", "aab", true),
            ("O=t,CN=*", "O=t,CN=client", true),
            ("O=t,CN=*", "CN=client,O=t", false),
        ] {
            assert_eq!(matches_glob(pattern, text), matches, "{pattern} {text}");
        }
        let (pattern, text) = ("a*".repeat(500), "a".repeat(5000));
        assert!(!matches_glob(&format!("{pattern}b"), &text));
    }

    #[test]
    fn the_first_rule_about_somebody_decides_and_without_one_the_policy() {
        use QAuthZListPolicy::{Allow, Deny};
        let mut rules = AuthzRules {
            policy: Deny,
            rules: vec![
                rule("CN=b*", Deny, None),
                rule("CN=bob", Allow, Some(QAuthZListFormat::Exact)),
                rule("CN=b*", Deny, Some(QAuthZListFormat::Glob)),
                rule("CN=*", Allow, Some(QAuthZListFormat::Glob)),
            ],
        };
        let allowed =
            |rules: &AuthzRules| ["CN=bob", "CN=bill", "CN=carl", "O=x", "CN=b*"].map(|who| rules.allow(who));
        assert_eq!(allowed(&rules), [true, false, true, false, false]);
        rules.policy = Allow;
        assert_eq!(allowed(&rules), [true, false, true, true, false]);
    }

    #[test]
    fn rules_in_a_file_are_read_again_when_it_has_changed_and_let_nobody_in_when_it_is_none() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let path = file.path().to_str().unwrap().to_owned();
        let write = |text: &str| {
            let next = format!("{path}.next");
            std::fs::write(&next, text).unwrap();
            std::fs::rename(next, &path).unwrap();
        };
        assert!(
            RulesFile::open(&path, true).is_err(),
            "an empty file has no rules"
        );
        write(r#"{"policy": "deny", "rules": [{"match": "a", "policy": "allow"}]}"#);
        let (fixed, fresh) = (
            RulesFile::open(&path, false).unwrap(),
            RulesFile::open(&path, true).unwrap(),
        );
        let allowed = || [&fixed, &fresh].map(|file| [file.allow("a"), file.allow("b")]);
        assert_eq!(allowed(), [[true, false], [true, false]]);
        write(r#"{"policy": "allow", "rules": [{"match": "a", "policy": "deny"}]}"#);
        assert_eq!(allowed(), [[true, false], [false, true]]);
        write("junk");
        assert_eq!(allowed(), [[true, false], [false, false]]);
        std::fs::remove_file(&path).unwrap();
        assert_eq!(allowed(), [[true, false], [false, false]]);
        write(r#"{"policy": "allow"}"#);
        assert_eq!(allowed(), [[true, false], [true, true]]);
    }
}
