//! Options that every node takes whatever its driver, how children inherit them, and the rules of node names.

use millpond_drivers::api::DriverKind;
use millpond_engine::node::{DetectZeroes, NodeSettings};
use millpond_messages::global_state::Options;
use millpond_messages::{DiscardMode, Error, ErrorKind, OpenFlags, Result, Role, parse_discard_flags};
use serde_json::Value;

/// The longest node name, in bytes.
pub const NODE_NAME_MAX: usize = 31;

/// The options common to all nodes, as they hold for one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Common {
    /// `read-only`.
    pub read_only: bool,
    /// `auto-read-only`.
    pub auto_read_only: bool,
    /// `cache.direct`.
    pub direct: bool,
    /// `cache.no-flush`.
    pub no_flush: bool,
    /// `force-share`.
    pub force_share: bool,
    /// `discard`.
    pub discard: DiscardMode,
    /// `detect-zeroes`.
    pub detect_zeroes: DetectZeroes,
    /// `active=off`.
    pub inactive: bool,
    /// `copy-on-read`, which QMP does not offer for nodes: an embedder's and a drive's option.
    pub copy_on_read: bool,
    /// Flags that no option stands for.
    pub extra: OpenFlags,
}

/// Whether a driver is a format: neither a protocol nor a filter.
pub fn is_format(kind: &dyn DriverKind) -> bool {
    !kind.is_protocol() && !kind.is_filter()
}

impl Common {
    /// What flags stand for.
    pub fn of_flags(flags: OpenFlags) -> Self {
        let top = OpenFlags::ALLOW_RDWR | OpenFlags::NO_BACKING | OpenFlags::INACTIVE;
        Self {
            read_only: flags.is_read_only(),
            auto_read_only: flags.contains(OpenFlags::AUTO_RDONLY),
            direct: flags.contains(OpenFlags::NOCACHE),
            no_flush: flags.contains(OpenFlags::NO_FLUSH),
            discard: if flags.contains(OpenFlags::UNMAP) {
                DiscardMode::Unmap
            } else {
                DiscardMode::Ignore
            },
            inactive: flags.contains(OpenFlags::INACTIVE),
            copy_on_read: flags.contains(OpenFlags::COPY_ON_READ),
            extra: flags & (OpenFlags::LASTING | top),
            ..Self::default()
        }
    }

    /// The open flags that these options mean for a node of this driver.
    pub fn flags(self, kind: &dyn DriverKind) -> OpenFlags {
        let mut flags = self.extra & !OpenFlags::INACTIVE;
        flags.set(OpenFlags::RDWR, !self.read_only);
        flags.set(OpenFlags::AUTO_RDONLY, self.auto_read_only);
        flags.set(OpenFlags::NOCACHE, self.direct);
        flags.set(OpenFlags::NO_FLUSH, self.no_flush);
        flags.set(OpenFlags::UNMAP, self.discard == DiscardMode::Unmap);
        flags.set(OpenFlags::INACTIVE, self.inactive);
        flags.set(OpenFlags::COPY_ON_READ, self.copy_on_read);
        flags.set(OpenFlags::PROTOCOL, kind.is_protocol());
        flags
    }

    /// What the node cell is told.
    pub fn settings(self, probed: bool) -> NodeSettings {
        NodeSettings {
            detect_zeroes: self.detect_zeroes,
            probed,
        }
    }

    /// What a child of this role starts from when its own options do not say.
    pub fn inherited(self, parent: &dyn DriverKind, role: Role) -> Self {
        self.inherited_from(is_format(parent), role)
    }

    /// The same, below a format that is not known yet.
    pub fn inherited_from_format(self, role: Role) -> Self {
        self.inherited_from(true, role)
    }

    fn inherited_from(self, is_format: bool, role: Role) -> Self {
        let is_cow = role.contains(Role::COW);
        let mut extra = self.extra & !OpenFlags::NO_BACKING;
        if role.contains(Role::METADATA) {
            extra.remove(OpenFlags::NO_IO);
        }
        if is_cow {
            extra.remove(OpenFlags::TEMPORARY);
        }
        Self {
            read_only: is_cow || self.read_only,
            auto_read_only: !is_cow && self.auto_read_only,
            direct: self.direct,
            no_flush: self.no_flush,
            force_share: self.force_share,
            // A format sends flushes and discards with care, so what is below it need not hold them back again.
            discard: if is_format && !is_cow {
                DiscardMode::Unmap
            } else {
                self.discard
            },
            detect_zeroes: DetectZeroes::Off,
            inactive: self.inactive,
            copy_on_read: false,
            extra,
        }
    }
}

/// The common options that were given for a node, as opposed to inherited.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Given {
    read_only: Option<bool>,
    auto_read_only: Option<bool>,
    direct: Option<bool>,
    no_flush: Option<bool>,
    force_share: Option<bool>,
    discard: Option<DiscardMode>,
    detect_zeroes: Option<DetectZeroes>,
    active: Option<bool>,
    copy_on_read: Option<bool>,
}

impl Given {
    /// `active`, if it was given.
    pub fn active(self) -> Option<bool> {
        self.active
    }

    /// `force-share`, if it was given.
    pub fn force_share(self) -> Option<bool> {
        self.force_share
    }

    /// The same with this `force-share`.
    #[must_use]
    pub fn with_force_share(self, force_share: Option<bool>) -> Self {
        Self { force_share, ..self }
    }

    /// The same, with what was given before where nothing is now.
    #[must_use]
    pub fn or(self, old: Self) -> Self {
        Self {
            read_only: self.read_only.or(old.read_only),
            auto_read_only: self.auto_read_only.or(old.auto_read_only),
            direct: self.direct.or(old.direct),
            no_flush: self.no_flush.or(old.no_flush),
            force_share: self.force_share.or(old.force_share),
            discard: self.discard.or(old.discard),
            detect_zeroes: self.detect_zeroes.or(old.detect_zeroes),
            active: self.active.or(old.active),
            copy_on_read: self.copy_on_read.or(old.copy_on_read),
        }
    }

    /// The same with this `read-only`.
    #[must_use]
    pub fn with_read_only(self, read_only: bool) -> Self {
        Self {
            read_only: Some(read_only),
            ..self
        }
    }

    /// The options that hold: what is not given comes from `base`.
    ///
    /// # Errors
    /// They contradict each other.
    pub fn over(self, base: Common) -> Result<Common> {
        let mut common = Common {
            read_only: self.read_only.unwrap_or(base.read_only),
            auto_read_only: self.auto_read_only.unwrap_or(base.auto_read_only),
            direct: self.direct.unwrap_or(base.direct),
            no_flush: self.no_flush.unwrap_or(base.no_flush),
            force_share: self.force_share.unwrap_or(base.force_share),
            discard: self.discard.unwrap_or(base.discard),
            detect_zeroes: self.detect_zeroes.unwrap_or(base.detect_zeroes),
            inactive: self.active.map_or(base.inactive, |active| !active),
            copy_on_read: self.copy_on_read.unwrap_or(base.copy_on_read),
            extra: base.extra,
        };
        if !common.read_only {
            // What was writable once may be made so again.
            common.extra |= OpenFlags::ALLOW_RDWR;
        }
        check(common)?;
        Ok(common)
    }
}

/// A node's options, taken apart.
#[derive(Debug, Clone)]
pub struct Parsed {
    /// `driver`, if given.
    pub driver: Option<String>,
    /// `node-name`, if given.
    pub node_name: Option<String>,
    /// The common ones.
    pub given: Given,
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
    let given = Given {
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

/// Rules between the common options.
fn check(common: Common) -> Result<()> {
    if common.detect_zeroes == DetectZeroes::Unmap && common.discard != DiscardMode::Unmap {
        return Err(Error::new(
            ErrorKind::InvalidArgument,
            "setting detect-zeroes to unmap is not allowed without setting discard operation to unmap",
        ));
    }
    if common.force_share && !common.read_only {
        return Err(Error::new(
            ErrorKind::InvalidArgument,
            "force-share=on can only be used with read-only images",
        ));
    }
    Ok(())
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
            direct = take_bool(&mut cache, "direct")?.or(direct);
            no_flush = take_bool(&mut cache, "no-flush")?.or(no_flush);
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
pub fn crumple(options: Options) -> Result<Options> {
    let mut result = Options::new();
    for (key, value) in options {
        let value = match value {
            Value::Object(nested) => Value::Object(crumple(nested)?),
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
            *nested = crumple(std::mem::take(nested))?;
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
        let nested = crumple(object(serde_json::json!({
            "driver": "qcow2", "file.driver": "file", "file.filename": "x", "file.cache.direct": true
        })));
        assert_eq!(
            Value::Object(nested.unwrap()),
            serde_json::json!({"driver": "qcow2",
                "file": {"driver": "file", "filename": "x", "cache": {"direct": true}}})
        );
        assert!(crumple(object(serde_json::json!({"file": "a", "file.driver": "file"}))).is_err());
        let listed = crumple(object(serde_json::json!({
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
