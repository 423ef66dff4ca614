//! The configuration file: groups in brackets, then `key = "value"` lines.

use millpond_messages::{DebugEvent, Error, ErrorKind, Result};

use super::rules::{Action, Inject, IoType, Rule};

/// The longest key and the longest value, in bytes: what is longer is cut, as QEMU cuts it.
const KEY_MAX: usize = 63;
const VALUE_MAX: usize = 1023;

/// The options of one group in the file.
#[derive(Debug, Default)]
struct Group<'a> {
    name: &'a str,
    options: Vec<(String, String)>,
}

/// The rules of a file: errors first, then changes of state, each in the order in which they stand there.
///
/// # Errors
/// In QEMU's words, what is wrong with it.
pub(super) fn parse(text: &str) -> Result<Vec<Rule>> {
    let groups = groups(text)?;
    let of = |name: &'static str| groups.iter().filter(move |group| group.name == name);
    let errors = of("inject-error").map(inject_error);
    let states = of("set-state").map(set_state);
    errors.chain(states).collect()
}

fn wrong(text: impl Into<std::borrow::Cow<'static, str>>) -> Error {
    Error::new(ErrorKind::InvalidArgument, text)
}

fn groups(text: &str) -> Result<Vec<Group<'_>>> {
    let mut groups: Vec<Group<'_>> = Vec::new();
    for line in text.lines() {
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        if let Some(name) = group_name(line) {
            if !matches!(name, "inject-error" | "set-state") {
                return Err(wrong(format!("There is no option group '{name}'")));
            }
            let options = Vec::new();
            groups.push(Group { name, options });
            continue;
        }
        let (key, value) = key_and_value(line).ok_or_else(|| wrong("parse error"))?;
        let group = groups.last_mut().ok_or_else(|| wrong("no group defined"))?;
        group.options.retain(|(other, _)| other != key);
        group.options.push((key.to_owned(), value.to_owned()));
    }
    Ok(groups)
}

/// The name in `[name]` or `[name "id"]`.
fn group_name(line: &str) -> Option<&str> {
    let name = line.strip_prefix('[')?.split(']').next()?;
    let name = name.split(' ').next()?;
    (!name.is_empty()).then_some(name)
}

/// The parts of ` key = "value"`. A value that is not quoted counts as empty, as QEMU has it.
fn key_and_value(line: &str) -> Option<(&str, &str)> {
    let line = line.trim_start();
    let end = line.find(char::is_whitespace).unwrap_or(line.len());
    let (key, rest) = line.split_at(end);
    if key.is_empty() {
        return None;
    }
    let rest = rest.trim_start().strip_prefix('=').map(str::trim_start);
    let value = rest.and_then(|rest| rest.strip_prefix('"'));
    let value = value.and_then(|rest| rest.split('"').next()).unwrap_or_default();
    Some((cut(key, KEY_MAX), cut(value, VALUE_MAX)))
}

fn cut(text: &str, most: usize) -> &str {
    let end = (0..=most.min(text.len()))
        .rev()
        .find(|end| text.is_char_boundary(*end));
    text.get(..end.unwrap_or(0)).unwrap_or(text)
}

impl Group<'_> {
    fn check(&self, known: &[&str]) -> Result<()> {
        let unknown = self
            .options
            .iter()
            .find(|(name, _)| !known.contains(&name.as_str()));
        match unknown {
            Some((name, _)) => Err(wrong(format!("Invalid parameter '{name}'"))),
            None => Ok(()),
        }
    }

    fn get(&self, name: &str) -> Option<&str> {
        self.options
            .iter()
            .find(|(known, _)| known == name)
            .map(|(_, value)| value.as_str())
    }

    fn event(&self) -> Result<DebugEvent> {
        let name = self
            .get("event")
            .ok_or_else(|| wrong("Missing event name for rule"))?;
        DebugEvent::from_name(name).ok_or_else(|| wrong(format!("invalid parameter value: {name}")))
    }

    fn number(&self, name: &str) -> Result<Option<i64>> {
        let Some(text) = self.get(name) else {
            return Ok(None);
        };
        let (negative, digits) = match text.strip_prefix('-') {
            Some(digits) => (true, digits),
            None => (false, text),
        };
        let number = match digits.strip_prefix("0x").or_else(|| digits.strip_prefix("0X")) {
            Some(digits) => u64::from_str_radix(digits, 16),
            None if digits.len() > 1 && digits.starts_with('0') => u64::from_str_radix(digits, 8),
            None => digits.parse::<u64>(),
        };
        let number = number.map_err(|_| wrong(format!("Parameter '{name}' expects a number")))?;
        let number = number.cast_signed();
        Ok(Some(if negative { number.wrapping_neg() } else { number }))
    }

    fn switch(&self, name: &str) -> Result<bool> {
        match self.get(name) {
            None | Some("off" | "no" | "false" | "n") => Ok(false),
            Some("on" | "yes" | "true" | "y") => Ok(true),
            Some(_) => Err(wrong(format!("Parameter '{name}' expects 'on' or 'off'"))),
        }
    }
}

fn inject_error(group: &Group<'_>) -> Result<Rule> {
    group.check(&[
        "event",
        "state",
        "iotype",
        "errno",
        "sector",
        "once",
        "immediately",
    ])?;
    let (errno, sector) = (group.number("errno")?, group.number("sector")?);
    let (once, immediately) = (group.switch("once")?, group.switch("immediately")?);
    let state = group.number("state")?.unwrap_or(0);
    let event = group.event()?;
    let iotype = group.get("iotype").map(io_type).transpose()?;
    Ok(Rule {
        event,
        state,
        action: Action::Inject(Inject {
            iotype,
            error: super::options::error(errno),
            offset: super::options::offset(sector),
            once,
            immediately,
        }),
    })
}

fn io_type(name: &str) -> Result<IoType> {
    serde_json::from_value(serde_json::Value::String(name.to_owned()))
        .map_err(|_| wrong(format!("invalid parameter value: {name}")))
}

fn set_state(group: &Group<'_>) -> Result<Rule> {
    group.check(&["event", "state", "new_state"])?;
    let state = group.number("state")?.unwrap_or(0);
    let new = group.number("new_state")?.unwrap_or(0);
    Ok(Rule {
        event: group.event()?,
        state,
        action: Action::SetState(new),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use millpond_messages::IoError;

    #[test]
    fn a_file_is_read() {
        let rules = parse(concat!(
            "# a comment\n\n[set-state]\nevent = \"write_aio\"\nstate = \"1\"\nnew_state = \"2\"\n",
            "[inject-error \"id\"]\n event = \"read_aio\"\n\terrno = \"0x1c\"\nsector = \"3\"\nonce = \"on\"\n",
            "iotype = \"discard\"\n"
        ));
        let error = Inject {
            iotype: Some(IoType::Discard),
            error: Some(IoError::NoSpace),
            offset: Some(1536),
            once: true,
            immediately: false,
        };
        let expected = vec![
            Rule {
                event: DebugEvent::ReadAio,
                state: 0,
                action: Action::Inject(error),
            },
            Rule {
                event: DebugEvent::WriteAio,
                state: 1,
                action: Action::SetState(2),
            },
        ];
        assert_eq!(rules.unwrap(), expected);
        assert_eq!(parse("").unwrap(), []);
    }

    #[test]
    fn what_is_wrong_is_told_as_qemu_tells_it() {
        let text = |text: &str| parse(text).unwrap_err().to_string();
        let rule = |line: &str| text(&format!("[inject-error]\nevent = \"read_aio\"\n{line}\n"));
        assert_eq!(text("[bogus]\nx = \"1\"\n"), "There is no option group 'bogus'");
        assert_eq!(text("x = \"1\"\n"), "no group defined");
        assert_eq!(text("[inject-error]\n  \n"), "parse error");
        assert_eq!(text("[inject-error]\n"), "Missing event name for rule");
        assert_eq!(
            text("[inject-error]\nevent = read_aio\n"),
            "invalid parameter value: "
        );
        assert_eq!(
            text("[set-state]\nevent = \"bogus\"\n"),
            "invalid parameter value: bogus"
        );
        assert_eq!(rule("foo = \"1\""), "Invalid parameter 'foo'");
        assert_eq!(
            rule("event=\"write_aio\""),
            "Invalid parameter 'event=\"write_aio\"'"
        );
        assert_eq!(rule("errno = \"abc\""), "Parameter 'errno' expects a number");
        assert_eq!(rule("once = \"abc\""), "Parameter 'once' expects 'on' or 'off'");
        assert_eq!(rule("iotype = \"abc\""), "invalid parameter value: abc");
    }
}
