//! Options taken apart: those of every node, those of children, dotted keys, and the rules of node names.

use millpond_engine::node::DetectZeroes;
use millpond_messages::graph::Options;
use millpond_messages::{Error, ErrorKind, Result, parse_discard_flags};
use serde_json::Value;

use crate::value::common::GivenOptions;

/// The longest node name, in bytes.
pub const NODE_NAME_MAX: usize = 31;

/// A node's options, taken apart.
#[derive(Debug, Clone)]
pub struct Parsed {
    /// The option `driver`, if it is given.
    pub driver: Option<String>,
    /// The option `node-name`, if it is given.
    pub node_name: Option<String>,
    /// The options that all drivers have in common.
    pub given: GivenOptions,
    /// The driver's own, children included.
    pub rest: Options,
}

/// Takes a node's options apart.
///
/// # Errors
/// A common option has a wrong type or value.
pub fn parse(mut options: Options) -> Result<Parsed> {
    let driver = take_string(&mut options, "driver")?;
    let node_name = take_string(&mut options, "node-name")?;
    let (direct, no_flush) = take_cache(&mut options)?;
    let discard = take_string(&mut options, "discard")?
        .map(|mode| {
            parse_discard_flags(&mode)
                .map_err(|_| Error::new(ErrorKind::InvalidArgument, "Invalid discard option"))
        })
        .transpose()?;
    let detect_zeroes = take_string(&mut options, "detect-zeroes")?;
    let given = GivenOptions {
        read_only: take_bool(&mut options, "read-only")?,
        auto_read_only: take_bool(&mut options, "auto-read-only")?,
        direct,
        no_flush,
        force_share: take_bool(&mut options, "force-share")?,
        discard,
        detect_zeroes: detect_zeroes.map(|mode| parse_detect_zeroes(&mode)).transpose()?,
        active: take_bool(&mut options, "active")?,
        copy_on_read: take_bool(&mut options, "copy-on-read")?,
    };
    Ok(Parsed {
        driver,
        node_name,
        given,
        rest: options,
    })
}

fn parse_detect_zeroes(mode: &str) -> Result<DetectZeroes> {
    match mode {
        "off" => Ok(DetectZeroes::Off),
        "on" => Ok(DetectZeroes::On),
        "unmap" => Ok(DetectZeroes::Unmap),
        other => Err(Error::new(
            ErrorKind::InvalidArgument,
            format!("Parameter 'detect-zeroes' does not accept value '{other}'"),
        )),
    }
}

fn take_cache(options: &mut Options) -> Result<(Option<bool>, Option<bool>)> {
    let mut direct = take_bool(options, "cache.direct")?;
    let mut no_flush = take_bool(options, "cache.no-flush")?;
    match options.remove("cache") {
        None => {}
        Some(Value::Object(mut cache)) => {
            let mut take = |name: &str| {
                let whole = format!("cache.{name}");
                let value = cache.remove(name).map(|value| (whole.clone(), value));
                take_bool(&mut value.into_iter().collect(), &whole)
            };
            direct = take("direct")?.or(direct);
            no_flush = take("no-flush")?.or(no_flush);
            if let Some(name) = cache.keys().next() {
                return Err(Error::new(
                    ErrorKind::InvalidArgument,
                    format!("Parameter 'cache.{name}' is unexpected"),
                ));
            }
        }
        Some(_) => return Err(wrong_type("cache", "object")),
    }
    Ok((direct, no_flush))
}

fn take_string(options: &mut Options, name: &str) -> Result<Option<String>> {
    match options.remove(name) {
        None => Ok(None),
        Some(Value::String(text)) => Ok(Some(text)),
        Some(_) => Err(wrong_type(name, "string")),
    }
}

/// A boolean, in JSON or as the `on` and `off` of options that image headers hold.
///
/// # Errors
/// Something else is there.
pub fn take_bool(options: &mut Options, name: &str) -> Result<Option<bool>> {
    match options.remove(name) {
        None => Ok(None),
        Some(Value::Bool(value)) => Ok(Some(value)),
        Some(Value::String(text)) if matches!(text.as_str(), "on" | "yes" | "true" | "y") => Ok(Some(true)),
        Some(Value::String(text)) if matches!(text.as_str(), "off" | "no" | "false" | "n") => Ok(Some(false)),
        Some(Value::String(_)) => {
            let text = format!("Parameter '{name}' expects 'on' or 'off'");
            Err(Error::new(ErrorKind::InvalidArgument, text))
        }
        Some(_) => Err(wrong_type(name, "boolean")),
    }
}

/// The error for an option of the wrong type.
pub fn wrong_type(name: &str, expected: &str) -> Error {
    Error::new(
        ErrorKind::InvalidArgument,
        format!("Invalid parameter type for '{name}', expected: {expected}"),
    )
}

/// The error for an option that must be given.
pub fn missing(name: &str) -> Error {
    Error::new(
        ErrorKind::InvalidArgument,
        format!("Parameter '{name}' is missing"),
    )
}

/// Takes out of a node's options the list of its numbered children: a list, or an object with a number for every key,
/// which is what dotted keys give.
///
/// # Errors
/// It is neither, or a number is missing.
pub fn take_numbered(name: &str, options: &mut Options) -> Result<Option<Vec<Value>>> {
    match options.remove(name) {
        None => Ok(None),
        Some(Value::Array(values)) => Ok(Some(values)),
        Some(Value::Object(mut values)) => (0..values.len())
            .map(|number| values.remove(&number.to_string()))
            .collect::<Option<Vec<Value>>>()
            .map(Some)
            .ok_or_else(|| not_a_list(name)),
        Some(_) => Err(not_a_list(name)),
    }
}

fn not_a_list(name: &str) -> Error {
    Error::new(
        ErrorKind::InvalidArgument,
        format!("Option {name} is not a valid array"),
    )
}

/// Checks that a user may give a node this name: a letter, then letters, digits, `-`, `.` and `_`.
///
/// # Errors
/// Another character, or too many.
pub fn check_node_name(name: &str) -> Result<()> {
    let well_formed = name.starts_with(|c: char| c.is_ascii_alphabetic())
        && name
            .chars()
            .all(|c| c.is_ascii_alphanumeric() || matches!(c, '-' | '.' | '_'));
    if !well_formed {
        return Err(Error::new(
            ErrorKind::InvalidArgument,
            format!("Invalid node-name: '{name}'"),
        ));
    }
    if name.len() > NODE_NAME_MAX {
        return Err(Error::new(ErrorKind::InvalidArgument, "Node name too long"));
    }
    Ok(())
}

/// Options with dotted keys turned into nested ones: `file.filename` into `file: {filename}`. Names stored in image
/// headers use either form. Where the keys are the numbers from 0 on, they make a list.
///
/// # Errors
/// A key stands for a value and for an object.
pub fn nest_dotted_keys(options: Options) -> Result<Options> {
    let mut result = Options::new();
    for (key, value) in options {
        let value = match value {
            Value::Object(nested) => Value::Object(nest_dotted_keys(nested)?),
            other => other,
        };
        let Some((head, tail)) = key.split_once('.') else {
            if let Some(Value::Object(old)) = result.get_mut(&key)
                && let Value::Object(new) = value
            {
                old.extend(new);
            } else if result.insert(key.clone(), value).is_some() {
                return Err(mixed(&key));
            }
            continue;
        };
        let place = result
            .entry(head)
            .or_insert_with(|| Value::Object(Options::new()));
        let Value::Object(nested) = place else {
            return Err(mixed(head));
        };
        nested.insert(tail.to_owned(), value);
    }
    for value in result.values_mut() {
        let Value::Object(nested) = value else { continue };
        if nested.keys().any(|key| key.contains('.')) {
            *nested = nest_dotted_keys(std::mem::take(nested))?;
        }
        if let Some(items) = take_list(nested) {
            *value = Value::Array(items);
        }
    }
    Ok(result)
}

/// The items of an object that stands for a list: it has their numbers as its keys.
fn take_list(object: &mut Options) -> Option<Vec<Value>> {
    let numbers = (0..object.len()).map(|number| number.to_string());
    if object.is_empty() || !numbers.clone().all(|number| object.contains_key(&number)) {
        return None;
    }
    numbers.map(|number| object.remove(&number)).collect()
}

fn mixed(key: &str) -> Error {
    Error::new(
        ErrorKind::InvalidArgument,
        format!("Cannot mix scalar and non-scalar keys: '{key}'"),
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::value::common::Common;

    fn object(json: Value) -> Options {
        let Value::Object(options) = json else {
            panic!("not an object")
        };
        options
    }

    #[test]
    fn names_follow_qemus_rules_and_texts() {
        assert!(check_node_name("disk0.img-1_x").is_ok());
        for bad in ["", "1x", "a#b", "#block001", "a b", "\u{1b}[31m"] {
            assert_eq!(
                check_node_name(bad).unwrap_err().to_string(),
                format!("Invalid node-name: '{bad}'")
            );
        }
        assert!(check_node_name(&"a".repeat(31)).is_ok());
        assert_eq!(
            check_node_name(&"a".repeat(32)).unwrap_err().to_string(),
            "Node name too long"
        );
    }

    #[test]
    fn dotted_keys_nest() {
        let nested = nest_dotted_keys(object(serde_json::json!({
            "driver": "qcow2", "file.driver": "file", "file.filename": "x", "file.cache.direct": true
        })));
        assert_eq!(
            Value::Object(nested.unwrap()),
            serde_json::json!({"driver": "qcow2",
                "file": {"driver": "file", "filename": "x", "cache": {"direct": true}}})
        );
        assert!(nest_dotted_keys(object(serde_json::json!({"file": "a", "file.driver": "file"}))).is_err());
        let listed = nest_dotted_keys(object(serde_json::json!({
            "inject-error.1.event": "write_aio", "inject-error.0.event": "read_aio", "x.1": 2
        })));
        assert_eq!(
            Value::Object(listed.unwrap()),
            serde_json::json!({"inject-error": [{"event": "read_aio"}, {"event": "write_aio"}], "x": {"1": 2}})
        );
    }

    #[test]
    fn rules_between_options_hold() {
        let error = |json| {
            let common = parse(object(json)).and_then(|parsed| parsed.given.over(Common::default()));
            common.unwrap_err().to_string()
        };
        assert!(error(serde_json::json!({"detect-zeroes": "unmap"})).contains("without setting discard"));
        assert!(error(serde_json::json!({"force-share": true})).contains("read-only images"));
        assert_eq!(
            error(serde_json::json!({"read-only": 3})),
            "Invalid parameter type for 'read-only', expected: boolean"
        );
    }
}
