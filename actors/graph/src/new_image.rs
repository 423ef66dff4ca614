//! What a new image is to be, in `qemu-img create`'s words: which options its format has, and what is told of it.

pub mod known;

use millpond_messages::graph::Options;
use millpond_messages::path::path_has_protocol;
use millpond_messages::qapi::{SIZE_HINT, is_size_out_of_range, parse_size, parse_unsigned};
use millpond_messages::{Error, ErrorKind, OpenFlags, Result};
use serde_json::Value;

use known::{Kind, Known};

/// What a new image is to be.
#[derive(Debug, Clone, Default)]
pub struct NewImage {
    /// Its file: a path, or `protocol:rest`. What was in it is gone.
    pub filename: String,
    /// Its format: a driver that can make images.
    pub format: String,
    /// The image that it is to show where it has nothing of its own, as its header will name it.
    pub base: Option<String>,
    /// The base's format. It must be said: a format that is guessed each time can be chosen by who writes to the base.
    pub base_format: Option<String>,
    /// The format's options as `-o` takes them: `cluster_size=4k,compat=0.10`.
    pub options: String,
    /// Its length in bytes; without one, `size` among the options says it, or the base is as long.
    pub size: Option<u64>,
    /// NO_BACKING leaves the base alone: it need not be there, and then the size must be said. The others are those that the
    /// base is opened with, but for those that would have it written to.
    pub flags: OpenFlags,
    /// Whether to answer no text.
    pub quiet: bool,
}

/// What the names of options about encryption begin with.
const ENCRYPT: &str = "encrypt.";

fn invalid(text: impl Into<String>) -> Error {
    Error::new(ErrorKind::InvalidArgument, text.into())
}

/// The options of an image, by `-o`'s names, as they were given.
pub struct Given {
    format: String,
    known: Vec<Known>,
    /// Names that are not known are passed on as they are.
    open: bool,
    values: Vec<(String, String)>,
}

impl Given {
    /// Those of an image, checked.
    ///
    /// # Errors
    /// One of them is not for the format or the protocol of its file, or its value is none.
    pub fn new(image: &NewImage) -> Result<Self> {
        let (protocol, _) = protocol_of(&image.filename);
        let known = known::joined(known::of_format(&image.format), known::of_protocol(protocol));
        let mut given = Self::of(&image.format, known, &image.options)?;
        if let Some(size) = image.size {
            if given.get("size").is_some() {
                return Err(invalid("The image size must be specified only once"));
            }
            given.set("size", size.to_string())?;
        }
        let backing = [
            ("backing_file", &image.base, "Backing file"),
            ("backing_fmt", &image.base_format, "Backing file format"),
        ];
        for (name, value, what) in backing {
            let Some(value) = value else { continue };
            if !given.takes(name) {
                let text = format!("{what} not supported for file format '{}'", image.format);
                return Err(invalid(text));
            }
            given.set(name, value.clone())?;
        }
        Ok(given)
    }

    /// Those that only a format has, checked.
    ///
    /// # Errors
    /// One of them is not for the format, or its value is none.
    pub fn of_format(format: &str, options: &str) -> Result<Self> {
        Self::of(format, known::of_format(format).to_vec(), options)
    }

    /// Those that an image is to be amended by, checked.
    ///
    /// # Errors
    /// One of them is not for the format, or no more once an image is made; or its value is none.
    pub fn of_amendment(format: &str, options: &str) -> Result<Self> {
        let amended = known::of_amendment(format);
        let has = |list: &[Known], name: &str| list.iter().any(|known| known.name == name);
        for option in split_options(options) {
            let name = option.split_once('=').map_or(option.as_str(), |(name, _)| name);
            if !has(amended, name) && has(known::of_format(format), name) {
                let refusal = invalid(format!("Invalid parameter '{name}'"));
                return Err(refusal.with_hint("This option is only supported for image creation"));
            }
        }
        Self::of(format, amended.to_vec(), options)
    }

    fn of(format: &str, known: Vec<Known>, options: &str) -> Result<Self> {
        let mut given = Self {
            format: format.to_owned(),
            known,
            open: known::is_open(format),
            values: Vec::new(),
        };
        for option in split_options(options) {
            match option.split_once('=') {
                Some((name, value)) => given.set(name, value.to_owned())?,
                None => given.turn(&option)?,
            }
        }
        Ok(given)
    }

    /// As everywhere in QEMU's command lines a name alone turns something on, and `no` before it off.
    fn turn(&mut self, option: &str) -> Result<()> {
        match option.strip_prefix("no") {
            Some(name) if !self.takes(option) => self.set(name, "off".to_owned()),
            _ => self.set(option, "on".to_owned()),
        }
    }

    fn takes(&self, name: &str) -> bool {
        self.open || self.known.iter().any(|known| known.name == name)
    }

    /// What was given for an option.
    #[must_use]
    pub fn get(&self, name: &str) -> Option<&str> {
        let mut values = self.values.iter();
        values
            .find(|(known, _)| known == name)
            .map(|(_, value)| value.as_str())
    }

    /// The last one given of a name counts.
    fn set(&mut self, name: &str, value: String) -> Result<()> {
        if !self.takes(name) {
            return Err(invalid(format!("Invalid parameter '{name}'")));
        }
        self.values.retain(|(known, _)| known != name);
        // Looked at here, so that a value that cannot be is told before anything is made.
        self.value(name, &value)?;
        self.values.push((name.to_owned(), value));
        Ok(())
    }

    fn value(&self, name: &str, value: &str) -> Result<Value> {
        let known = self.known.iter().find(|known| known.name == name);
        Ok(match known.map_or(Kind::Text, |known| known.kind) {
            Kind::Size => size(name, value)?.into(),
            Kind::Number => parse_unsigned(value)
                .ok_or_else(|| invalid(format!("Parameter '{name}' expects a number")))?
                .into(),
            Kind::Flag => match value {
                "on" | "yes" | "true" | "y" => true.into(),
                "off" | "no" | "false" | "n" => false.into(),
                _ => return Err(invalid(format!("Parameter '{name}' expects 'on' or 'off'"))),
            },
            Kind::Text => value.into(),
        })
    }

    /// The same of an option that takes some texts only.
    fn choice(&self, name: &str, value: &str) -> Result<Value> {
        let choices = known::choices(&self.format, name).filter(|_| !self.open);
        if choices.is_some_and(|choices| !choices.contains(&value)) {
            let member = name.strip_prefix(ENCRYPT).unwrap_or(name).replace('_', "-");
            let text = format!("Parameter '{member}' does not accept value '{value}'");
            return Err(invalid(text));
        }
        self.value(name, value)
    }

    /// What `blockdev-create` takes for the format, but for `driver`, `size` and `file`.
    ///
    /// # Errors
    /// There is no such version of the format, or encryption is asked for in two ways.
    pub fn to_create(&self) -> Result<Options> {
        // A raw image is its file.
        let takes = match self.format.as_str() {
            "raw" => known::of_protocol("file"),
            format => known::of_format(format),
        };
        let is_for_it = |name: &str| {
            let is_known = takes.iter().any(|known| known.name == name);
            // The space of an encrypted image is laid out by the file below, as the image says.
            is_known || self.open || (self.format == "luks" && name == "preallocation")
        };
        let mut options = Options::new();
        let encrypt = self.encrypt()?;
        if !encrypt.is_empty() {
            options.insert("encrypt".to_owned(), encrypt.into());
        }
        let is_apart = |name: &str| matches!(name, "size" | "encryption") || name.starts_with(ENCRYPT);
        let values = self.values.iter();
        for (name, text) in values.filter(|(name, _)| !is_apart(name) && is_for_it(name)) {
            let (name, value) = match (name.as_str(), text.as_str()) {
                ("compat", "0.10") => ("version", "v2".into()),
                ("compat", "1.1") => ("version", "v3".into()),
                ("compat", version @ ("v2" | "v3")) => ("version", version.into()),
                ("compat", other) => {
                    let text = format!("Parameter 'version' does not accept value '{other}'");
                    return Err(invalid(text));
                }
                ("preallocation", mode)
                    if self.format != "qcow2" && !known::PREALLOCATIONS.contains(&mode) =>
                {
                    return Err(invalid(format!("invalid parameter value: {mode}")));
                }
                // All of a static image is laid out from the start.
                ("static", text) => match self.value("static", text)? {
                    Value::Bool(true) => ("preallocation", "metadata".into()),
                    _ => continue,
                },
                (name, text) => (name, self.choice(name, text)?),
            };
            options.insert(name.replace('_', "-"), value);
        }
        Ok(options)
    }

    /// What `blockdev-create` takes for the file that the format is made in, but for `driver`, `size` and `filename`. How its
    /// space is laid out is up to the format.
    ///
    /// # Errors
    /// None that [`Given::new`] would not have met.
    pub fn to_create_file(&self) -> Result<Options> {
        let mut options = Options::new();
        for (name, text) in &self.values {
            // A format that has no such option of its own leaves it to the file.
            let is_left = name == "preallocation" && self.format == "vdi";
            if is_left && !known::PREALLOCATIONS.contains(&text.as_str()) {
                return Err(invalid(format!("invalid parameter value: {text}")));
            }
            if (matches!(name.as_str(), "nocow" | "extent_size_hint") || is_left) && !self.open {
                options.insert(name.replace('_', "-"), self.value(name, text)?);
            }
        }
        Ok(options)
    }

    /// What [`Amend`](millpond_messages::graph::Amend) takes.
    ///
    /// # Errors
    /// An option does not take its value.
    pub fn to_amend(&self) -> Result<Options> {
        let mut options = Options::new();
        for (name, text) in &self.values {
            options.insert(name.clone(), self.choice(name, text)?);
        }
        Ok(options)
    }

    /// How the image is to be encrypted, which is one object; empty if it is not.
    fn encrypt(&self) -> Result<Options> {
        let mut encrypt = Options::new();
        for (name, text) in &self.values {
            match (name.strip_prefix(ENCRYPT), text.as_str()) {
                // The old method has another name here.
                (Some("format"), "aes") => encrypt.insert("format".to_owned(), "qcow".into()),
                (Some(member), text) => encrypt.insert(member.to_owned(), self.choice(name, text)?),
                (None, _) => None,
            };
        }
        let is_old_name = self
            .get("encryption")
            .is_some_and(|text| matches!(text, "on" | "yes" | "true" | "y"));
        if is_old_name && encrypt.insert("format".to_owned(), "qcow".into()).is_some() {
            let text = "'encrypt.format' and its alias 'encryption' can't be used at the same time";
            return Err(invalid(text));
        }
        Ok(encrypt)
    }

    /// The line that `qemu-img` tells of an image.
    #[must_use]
    pub fn told(&self, image: &NewImage, size: u64) -> String {
        let mut line = format!("Formatting '{}', fmt={}", image.filename, image.format);
        for known in &self.known {
            let value = match (known.name, self.get(known.name)) {
                ("size", _) => Some(size.to_string()),
                (_, Some(value)) if known.kind == Kind::Size => {
                    parse_size(value).map(|bytes| bytes.to_string())
                }
                // QEMU tells the unsigned number as a signed one.
                (_, Some(value)) if known.kind == Kind::Number => {
                    parse_unsigned(value).map(|number| number.cast_signed().to_string())
                }
                // A comma in a value is told as two, which the options can be given by again.
                (_, Some(value)) => Some(value.replace(',', ",,")),
                (_, None) => known.default.map(str::to_owned),
            };
            if let Some(value) = value {
                line.push_str(&format!(" {}={value}", known.name));
            }
        }
        line
    }
}

/// The size that an option's value says.
fn size(name: &str, value: &str) -> Result<u64> {
    if let Some(size) = parse_size(value) {
        return Ok(size);
    }
    if is_size_out_of_range(value) {
        return Err(invalid(format!(
            "Value '{value}' is out of range for parameter '{name}'"
        )));
    }
    let text = format!("Parameter '{name}' expects a non-negative number below 2^64");
    Err(invalid(text).with_hint(SIZE_HINT))
}

/// Whether options as `-o` takes them can be read: they neither begin nor end with a comma that parts nothing.
#[must_use]
pub fn is_option_list(text: &str) -> bool {
    let at_start = text.len() - text.trim_start_matches(',').len();
    let at_end = text.len() - text.trim_end_matches(',').len();
    let is_commas = at_start == text.len();
    !is_commas && at_start.is_multiple_of(2) && at_end.is_multiple_of(2)
}

/// Whether options as `-o` takes them ask for help.
#[must_use]
pub fn asks_for_help(options: &str) -> bool {
    split_options(options)
        .iter()
        .any(|option| matches!(option.as_str(), "help" | "?"))
}

/// Options by their commas; two commas are one in a value.
fn split_options(text: &str) -> Vec<String> {
    let mut options = vec![String::new()];
    let mut characters = text.chars().peekable();
    while let Some(character) = characters.next() {
        let is_end = character == ',' && characters.next_if_eq(&',').is_none();
        match options.last_mut() {
            Some(option) if !is_end => option.push(character),
            _ => options.push(String::new()),
        }
    }
    options.retain(|option| !option.is_empty());
    options
}

/// A filename's protocol, and the rest.
#[must_use]
pub fn protocol_of(filename: &str) -> (&str, &str) {
    match filename.split_once(':') {
        Some((protocol, rest)) if path_has_protocol(filename) => (protocol, rest),
        _ => ("file", filename),
    }
}

/// Checks the name of an image's base.
///
/// # Errors
/// It is empty, or the image's own.
pub fn check_base(filename: &str, base: Option<&str>) -> Result<()> {
    match base {
        Some("") => Err(invalid("Expected backing file name, got empty string")),
        Some(base) if base == filename => Err(invalid(
            "Error: Trying to create an image with the same filename as the backing file",
        )),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_are_split_at_single_commas() {
        assert_eq!(split_options("a=1,b=x,,y,c"), ["a=1", "b=x,y", "c"]);
        assert_eq!(split_options(",,"), [","]);
        assert!(split_options("").is_empty() && split_options(",").is_empty());
    }

    #[test]
    fn lists_of_options_neither_begin_nor_end_with_a_comma() {
        for (text, is_list) in [
            ("a=1", true),
            ("a=1,b", true),
            ("a=1,,", true),
            ("", false),
            (",", false),
            (",,", false),
            (",a", false),
            ("a,", false),
            ("a,,,", false),
        ] {
            assert_eq!(is_option_list(text), is_list, "{text}");
        }
    }
}
