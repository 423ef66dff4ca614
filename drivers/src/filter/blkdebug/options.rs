//! The options of `blkdebug`, as QAPI's `BlockdevOptionsBlkdebug` has them, and the limits and rules that follow from them.

use millpond_messages::error::errno::EIO;
use millpond_messages::graph::Options;
use millpond_messages::{DebugEvent, Error, ErrorKind, IoError, Limits, Permissions, Result, SECTOR_SIZE};

use super::rules::{Action, Inject, IoType, Rule};
use crate::api::{Size, parse_options, parse_size};

#[derive(Debug, serde::Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
struct Parsed {
    config: Option<String>,
    align: Option<Size>,
    max_transfer: Option<Size>,
    opt_write_zero: Option<Size>,
    max_write_zero: Option<Size>,
    opt_discard: Option<Size>,
    max_discard: Option<Size>,
    #[serde(default)]
    inject_error: Vec<InjectError>,
    #[serde(default)]
    set_state: Vec<SetState>,
    #[serde(default)]
    take_child_perms: Vec<String>,
    #[serde(default)]
    unshare_child_perms: Vec<String>,
}

#[derive(Debug, serde::Deserialize)]
#[serde(deny_unknown_fields)]
struct InjectError {
    event: DebugEvent,
    #[serde(default)]
    state: i64,
    iotype: Option<IoType>,
    errno: Option<i64>,
    sector: Option<i64>,
    #[serde(default)]
    once: bool,
    #[serde(default)]
    immediately: bool,
}

#[derive(Debug, serde::Deserialize)]
#[serde(deny_unknown_fields)]
struct SetState {
    event: DebugEvent,
    #[serde(default)]
    state: i64,
    new_state: i64,
}

/// The options that a node was opened with.
#[derive(Debug, Clone)]
pub(super) struct Config {
    pub options: Options,
    /// The file with more rules.
    pub file: Option<String>,
    pub overrides: Overrides,
}

/// Limits that stand in for the child's; 0 where they do not.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Overrides {
    align: u64,
    max_transfer: u64,
    opt_write_zero: u64,
    max_write_zero: u64,
    opt_discard: u64,
    max_discard: u64,
}

/// The error of a rule: EIO unless said; 0 is none.
pub(super) fn error(errno: Option<i64>) -> Option<IoError> {
    let errno = errno.unwrap_or(i64::from(EIO));
    let errno = i32::try_from(errno).ok().filter(|errno| *errno > 0);
    errno.map(IoError::from_errno)
}

/// The first byte of a rule's sector. -1 is none; what lies beyond every node never comes up.
pub(super) fn offset(sector: Option<i64>) -> Option<u64> {
    let sector = sector.filter(|sector| *sector != -1)?;
    let sector = u64::try_from(sector).unwrap_or(u64::MAX);
    Some(sector.saturating_mul(SECTOR_SIZE))
}

impl Config {
    /// Reads options; also answers the rules that they give. `child_alignment` is what the child asks of requests.
    ///
    /// # Errors
    /// One is wrong, in QEMU's words.
    pub fn new(options: Options, child_alignment: u32) -> Result<(Self, Vec<Rule>)> {
        let parsed: Parsed = parse_options(options.clone())?;
        permissions(&parsed.take_child_perms)?;
        permissions(&parsed.unshare_child_perms)?;
        let overrides = Overrides {
            align: size("align", parsed.align.as_ref())?,
            max_transfer: size("max-transfer", parsed.max_transfer.as_ref())?,
            opt_write_zero: size("opt-write-zero", parsed.opt_write_zero.as_ref())?,
            max_write_zero: size("max-write-zero", parsed.max_write_zero.as_ref())?,
            opt_discard: size("opt-discard", parsed.opt_discard.as_ref())?,
            max_discard: size("max-discard", parsed.max_discard.as_ref())?,
        };
        overrides.check(u64::from(child_alignment))?;
        let errors = parsed.inject_error.into_iter().map(|given| Rule {
            event: given.event,
            state: given.state,
            action: Action::Inject(Inject {
                iotype: given.iotype,
                error: error(given.errno),
                offset: offset(given.sector),
                once: given.once,
                immediately: given.immediately,
            }),
        });
        let states = parsed.set_state.into_iter().map(|given| Rule {
            event: given.event,
            state: given.state,
            action: Action::SetState(given.new_state),
        });
        let rules = errors.chain(states).collect();
        let file = parsed.config;
        Ok((
            Self {
                options,
                file,
                overrides,
            },
            rules,
        ))
    }
}

impl Overrides {
    /// Checks that requests can meet all of them.
    fn check(self, child_alignment: u64) -> Result<()> {
        let align = self.align.max(child_alignment).max(1);
        let below = |value: u64| value < u64::from(i32::MAX.unsigned_abs());
        let fits = |value: u64, unit: u64| value == 0 || (below(value) && value.is_multiple_of(unit));
        let checks = [
            (
                "align",
                self.align,
                self.align == 0 || (below(self.align) && self.align.is_power_of_two()),
            ),
            ("max-transfer", self.max_transfer, fits(self.max_transfer, align)),
            (
                "opt-write-zero",
                self.opt_write_zero,
                fits(self.opt_write_zero, align),
            ),
            (
                "max-write-zero",
                self.max_write_zero,
                fits(self.max_write_zero, self.opt_write_zero.max(align)),
            ),
            ("opt-discard", self.opt_discard, fits(self.opt_discard, align)),
            (
                "max-discard",
                self.max_discard,
                fits(self.max_discard, self.opt_discard.max(align)),
            ),
        ];
        match checks.into_iter().find(|(_, _, holds)| !holds) {
            None => Ok(()),
            Some((name, value, _)) => Err(Error::new(
                ErrorKind::InvalidArgument,
                format!("Cannot meet constraints with {name} {value}"),
            )),
        }
    }

    /// The limits of the node itself.
    pub fn limits(self) -> Limits {
        // The checks keep all but the longest zero write and discard within 31 bits.
        let narrow = |value: u64| u32::try_from(value).unwrap_or(u32::MAX);
        Limits {
            request_alignment: narrow(self.align.max(1)),
            max_transfer: narrow(self.max_transfer),
            write_zeroes_alignment: narrow(self.opt_write_zero),
            max_write_zeroes: self.max_write_zero,
            discard_alignment: narrow(self.opt_discard),
            max_discard: self.max_discard,
            ..Limits::default()
        }
    }

    /// Zero writes that are shorter are not passed on.
    pub fn least_zero_write(self) -> u64 {
        self.align.max(self.opt_write_zero).max(1)
    }

    /// Discards that are shorter are not passed on.
    pub fn least_discard(self) -> u64 {
        self.opt_discard
    }
}

fn size(name: &str, value: Option<&Size>) -> Result<u64> {
    parse_size(name, value).map(Option::unwrap_or_default)
}

fn permissions(names: &[String]) -> Result<Permissions> {
    names.iter().try_fold(Permissions::empty(), |set, name| {
        let permission = Permissions::from_qapi_name(name).ok_or_else(|| {
            let text = format!("Invalid parameter '{name}'");
            Error::new(ErrorKind::InvalidArgument, text)
        })?;
        Ok(set | permission)
    })
}

/// What the node takes on its child and does not share there, besides what it does for its parents.
pub(super) fn extra_permissions(options: &Options) -> (Permissions, Permissions) {
    let set = |name: &str| {
        let names = options.get(name).and_then(serde_json::Value::as_array);
        let names = names.into_iter().flatten().filter_map(serde_json::Value::as_str);
        names.filter_map(Permissions::from_qapi_name).collect()
    };
    (set("take-child-perms"), set("unshare-child-perms"))
}

/// The options that `blkdebug:config:image` stands for; the image's own name is left to be looked into.
///
/// # Errors
/// There is no second colon.
pub(super) fn parse_filename(filename: &str) -> Result<Options> {
    let mut options = Options::new();
    let Some(rest) = filename.strip_prefix("blkdebug:") else {
        options.insert("image".to_owned(), serde_json::json!({ "filename": filename }));
        return Ok(options);
    };
    let Some((config, image)) = rest.split_once(':') else {
        return Err(Error::new(
            ErrorKind::InvalidArgument,
            "blkdebug requires both config file and image path",
        ));
    };
    if !config.is_empty() {
        options.insert("config".to_owned(), config.into());
    }
    options.insert("image".to_owned(), serde_json::json!({ "filename": image }));
    Ok(options)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn refusal(json: serde_json::Value) -> String {
        let serde_json::Value::Object(options) = json else {
            panic!("options are an object")
        };
        let config = Config::new(options, 512);
        config.err().map_or_else(String::new, |error| error.to_string())
    }

    #[test]
    fn limits_that_no_request_can_meet_are_refused_in_qemus_words() {
        let refused = [
            ("align", json!({"align": 3}), 3_u64),
            ("align", json!({"align": 1_u64 << 31}), 1 << 31),
            ("max-transfer", json!({"max-transfer": 513}), 513),
            ("max-transfer", json!({"align": 4096, "max-transfer": 512}), 512),
            ("opt-write-zero", json!({"opt-write-zero": 100}), 100),
            (
                "max-write-zero",
                json!({"opt-write-zero": 1024, "max-write-zero": 1536}),
                1536,
            ),
            ("opt-discard", json!({"opt-discard": i32::MAX}), 0x7fff_ffff),
            (
                "max-discard",
                json!({"opt-discard": 1024, "max-discard": 1536}),
                1536,
            ),
        ];
        for (name, options, value) in refused {
            assert_eq!(
                refusal(options),
                format!("Cannot meet constraints with {name} {value}")
            );
        }
        assert_eq!(
            refusal(json!({"max-transfer": -1})),
            "Value '-1' is out of range for parameter 'max-transfer'"
        );
        assert_eq!(
            refusal(json!({"align": 4096, "max-transfer": 8192, "opt-discard": 4096})),
            ""
        );
    }

    #[test]
    fn a_filename_names_a_configuration_and_an_image() {
        let parsed = |name| serde_json::Value::Object(parse_filename(name).unwrap());
        assert_eq!(
            parsed("blkdebug::/x/a.img"),
            json!({"image": {"filename": "/x/a.img"}})
        );
        assert_eq!(
            parsed("blkdebug:c.conf:blkdebug::a"),
            json!({"config": "c.conf", "image": {"filename": "blkdebug::a"}})
        );
        assert_eq!(
            parse_filename("blkdebug:a.img").unwrap_err().to_string(),
            "blkdebug requires both config file and image path"
        );
    }

    #[test]
    fn rules_come_from_the_options() {
        let json = json!({
            "inject-error": [{"event": "l2_load", "errno": 28, "sector": 2, "iotype": "write-zeroes"}],
            "set-state": [{"event": "none", "state": 1, "new_state": 4}],
        });
        let serde_json::Value::Object(options) = json else {
            panic!("options are an object")
        };
        let (_, rules) = Config::new(options, 1).unwrap();
        let error = Inject {
            iotype: Some(IoType::WriteZeroes),
            error: Some(IoError::NoSpace),
            offset: Some(1024),
            once: false,
            immediately: false,
        };
        assert_eq!(rules[0].action, Action::Inject(error));
        assert_eq!(
            rules[1],
            Rule {
                event: DebugEvent::None,
                state: 1,
                action: Action::SetState(4)
            }
        );
    }
}
