//! Options written as `key=value,key.sub=value,list.0=value`.
//!
//! A comma in a value is written twice. The first key may be left out if the option has an implied one.
//! `help` or `?` in place of a pair asks for help. Keys whose parts are all numbers make a list.

use super::json::parse_json;
use crate::qapi::{Object, QmpError};
use serde_json::Value;

/// The longest part of a key, in bytes.
const LONGEST_PART: usize = 127;

/// How values are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Form {
    /// As JSON: every value has its type.
    Json,
    /// As `key=value` options: every value is text.
    KeyValue,
}

/// What an option's text says.
#[derive(Clone, Debug, PartialEq)]
pub struct Options {
    /// The values, nested where keys have dots.
    pub values: Object,
    /// How they are written.
    pub form: Form,
    /// Help was asked for.
    pub help: bool,
}

impl Options {
    /// Parses an option that is JSON if it begins with `{`, and `key=value` pairs otherwise.
    ///
    /// # Errors
    /// The text is not of that form.
    pub fn parse(text: &str, implied_key: Option<&str>) -> Result<Self, QmpError> {
        if !text.starts_with('{') {
            return parse_keyval(text, implied_key).map_err(QmpError::generic);
        }
        match parse_json(text)? {
            Value::Object(values) => Ok(Self {
                values,
                form: Form::Json,
                help: false,
            }),
            _ => Err(QmpError::generic("Expecting a JSON object")),
        }
    }

    /// The same for an option that has no help.
    ///
    /// # Errors
    /// As [`Options::parse`], and if help was asked for.
    pub fn parse_without_help(text: &str, implied_key: Option<&str>) -> Result<Self, QmpError> {
        let options = Self::parse(text, implied_key)?;
        match options.help {
            true => Err(QmpError::generic("Help is not available for this option")),
            false => Ok(options),
        }
    }
}

fn parse_keyval(text: &str, implied_key: Option<&str>) -> Result<Options, String> {
    let mut values = Object::new();
    let mut help = false;
    let mut rest = text;
    let mut implied_key = implied_key;
    while !rest.is_empty() {
        let end = rest.find(['=', ',']).unwrap_or(rest.len());
        let (head, tail) = rest.split_at(end);
        let implied = implied_key.take();
        if !head.is_empty() && !tail.starts_with('=') {
            if is_help(head, tail) {
                help = true;
                rest = tail.strip_prefix(',').unwrap_or(tail);
                continue;
            }
            if let Some(implied) = implied {
                put(&mut values, implied, head.into())?;
                rest = tail.strip_prefix(',').unwrap_or(tail);
                continue;
            }
        }
        rest = pair(&mut values, head, tail)?;
    }
    make_lists(&mut values, "")?;
    Ok(Options {
        values,
        form: Form::KeyValue,
        help,
    })
}

fn is_help(head: &str, tail: &str) -> bool {
    (head == "help" || head == "?") && !tail.starts_with(",,")
}

/// Puts the pair whose key is `key` and whose value follows in `tail`; gives what comes after it.
fn pair<'a>(values: &mut Object, key: &str, tail: &'a str) -> Result<&'a str, String> {
    split_key(key)?;
    let Some(tail) = tail.strip_prefix('=') else {
        return Err(format!("Expected '=' after parameter '{key}'"));
    };
    let (value, rest) = take_value(tail);
    put(values, key, value)?;
    Ok(rest)
}

/// A value up to a comma that is not doubled, and what comes after the comma.
fn take_value(text: &str) -> (String, &str) {
    let mut value = String::new();
    let mut rest = text;
    loop {
        let Some((head, tail)) = rest.split_once(',') else {
            value.push_str(rest);
            return (value, "");
        };
        value.push_str(head);
        match tail.strip_prefix(',') {
            Some(tail) => {
                value.push(',');
                rest = tail;
            }
            None => return (value, tail),
        }
    }
}

/// A pair `name=value` up to a comma that is not doubled in its value, or a word alone, which has no name; and what comes
/// after the comma.
pub fn take_pair(text: &str) -> (Option<&str>, String, &str) {
    let end = text.find(['=', ',']).unwrap_or(text.len());
    let (name, tail) = text.split_at(end);
    let (name, value) = match tail.strip_prefix('=') {
        Some(value) => (Some(name), value),
        None => (None, text),
    };
    let (value, rest) = take_value(value);
    (name, value, rest)
}

/// The parts of a key between its dots; each but the first may be a number.
fn split_key(key: &str) -> Result<Vec<&str>, String> {
    let mut parts = Vec::new();
    let mut rest = key;
    loop {
        let length = match (parts.is_empty(), digits(rest)) {
            (false, length @ 1..) => length,
            _ => name_length(rest),
        };
        let (part, tail) = rest.split_at(length);
        if length == 0 || !(tail.is_empty() || tail.starts_with('.')) {
            return Err(format!("Invalid parameter '{key}'"));
        }
        if length > LONGEST_PART {
            let fragment = if parts.is_empty() && tail.is_empty() {
                ""
            } else {
                " fragment"
            };
            return Err(format!("Parameter{fragment} '{part}' is too long"));
        }
        parts.push(part);
        match tail.strip_prefix('.') {
            Some(tail) => rest = tail,
            None => return Ok(parts),
        }
    }
}

fn digits(text: &str) -> usize {
    text.bytes().take_while(u8::is_ascii_digit).count()
}

/// The length of the schema name at the start of `text`: a letter, then letters, digits, `-` and `_`;
/// perhaps after a vendor's `__DOMAIN_`. Zero if there is none.
fn name_length(text: &str) -> usize {
    let vendor = match text.strip_prefix("__") {
        None => 0,
        Some(domain) => {
            let allowed = |byte: &u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.');
            let length = domain.bytes().take_while(allowed).count();
            if domain.as_bytes().get(length) != Some(&b'_') {
                return 0;
            }
            length + 3
        }
    };
    let name = text.as_bytes().get(vendor..).unwrap_or_default();
    if !name.first().is_some_and(u8::is_ascii_alphabetic) {
        return 0;
    }
    let allowed = |byte: &&u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_');
    vendor + name.iter().take_while(allowed).count()
}

/// Puts `value` where `key` leads; a later value for the same key wins.
fn put(values: &mut Object, key: &str, value: String) -> Result<(), String> {
    let parts = split_key(key)?;
    let Some((last, above)) = parts.split_last() else {
        return Ok(());
    };
    let mut place = values;
    for (index, part) in above.iter().enumerate() {
        let next = place.entry(*part).or_insert_with(|| Value::Object(Object::new()));
        let Value::Object(next) = next else {
            return Err(inconsistent(above.get(..=index).unwrap_or_default()));
        };
        place = next;
    }
    if place.get(*last).is_some_and(Value::is_object) {
        return Err(inconsistent(&parts));
    }
    place.insert((*last).into(), Value::String(value));
    Ok(())
}

fn inconsistent(parts: &[&str]) -> String {
    format!("Parameters '{}.*' used inconsistently", parts.join("."))
}

/// Turns objects whose keys are all numbers into lists, inner ones first. `path` ends with a dot.
fn make_lists(values: &mut Object, path: &str) -> Result<(), String> {
    let mut names = 0;
    let mut numbers = 0;
    for (key, value) in values.iter_mut() {
        if digits(key) == key.len() {
            numbers += 1;
        } else {
            names += 1;
        }
        if let Value::Object(inner) = value {
            let path = format!("{path}{key}.");
            make_lists(inner, &path)?;
            if inner.keys().all(|key| digits(key) == key.len()) {
                *value = make_list(std::mem::take(inner), &path)?;
            }
        }
    }
    if names > 0 && numbers > 0 {
        return Err(format!("Parameters '{path}*' used inconsistently"));
    }
    Ok(())
}

fn make_list(items: Object, path: &str) -> Result<Value, String> {
    let mut items: Vec<(usize, Value)> = items
        .into_iter()
        .map(|(key, value)| (key.parse().unwrap_or(usize::MAX), value))
        .collect();
    items.sort_by_key(|(index, _)| *index);
    items.dedup_by_key(|(index, _)| *index);
    for (expected, (index, _)) in items.iter().enumerate() {
        if *index != expected {
            return Err(format!("Parameter '{path}{expected}' missing"));
        }
    }
    Ok(Value::Array(items.into_iter().map(|(_, value)| value).collect()))
}
