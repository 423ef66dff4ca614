//! What a new image is to be, in `qemu-img create`'s words: which options its format has, and what is told of it.

use millpond_messages::graph::Options;
use millpond_messages::path::path_has_protocol;
use millpond_messages::qapi::parse_size;
use millpond_messages::{Error, ErrorKind, OpenFlags, Result};
use serde_json::Value;

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

/// What an option of a format is, by the name that `-o` has for it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Size,
    Number,
    Flag,
    Text,
}

/// A format's options in the order in which they are told, each with the default that is told where none is given.
type Known = &'static [(&'static str, Kind, Option<&'static str>)];

const QCOW2: Known = &[
    ("encryption", Kind::Flag, None),
    ("encrypt.format", Kind::Text, None),
    ("encrypt.key-secret", Kind::Text, None),
    ("encrypt.cipher-alg", Kind::Text, None),
    ("encrypt.cipher-mode", Kind::Text, None),
    ("encrypt.ivgen-alg", Kind::Text, None),
    ("encrypt.ivgen-hash-alg", Kind::Text, None),
    ("encrypt.hash-alg", Kind::Text, None),
    ("encrypt.iter-time", Kind::Number, None),
    ("cluster_size", Kind::Size, Some("65536")),
    ("extended_l2", Kind::Flag, Some("off")),
    ("preallocation", Kind::Text, None),
    ("compression_type", Kind::Text, Some("zlib")),
    ("size", Kind::Size, None),
    ("compat", Kind::Text, None),
    ("data_file", Kind::Text, None),
    ("data_file_raw", Kind::Flag, None),
    ("backing_file", Kind::Text, None),
    ("backing_fmt", Kind::Text, None),
    ("lazy_refcounts", Kind::Flag, Some("off")),
    ("refcount_bits", Kind::Number, Some("16")),
];
/// What the names of options about encryption begin with.
const ENCRYPT: &str = "encrypt.";
const FILE: Known = &[
    ("size", Kind::Size, None),
    ("nocow", Kind::Flag, None),
    ("preallocation", Kind::Text, None),
    ("extent_size_hint", Kind::Size, None),
];
/// Of a format that an embedder has brought only what every format has is known.
const OTHER: Known = &[("size", Kind::Size, None)];

fn invalid(text: impl Into<String>) -> Error {
    Error::new(ErrorKind::InvalidArgument, text.into())
}

/// The options of an image, by `-o`'s names, as they were given.
pub struct Given {
    known: Known,
    /// Names that are not known are passed on as they are.
    open: bool,
    values: Vec<(String, String)>,
}

impl Given {
    /// Those of an image, checked.
    ///
    /// # Errors
    /// One of them is not for the format, or its value is none.
    pub fn new(image: &NewImage) -> Result<Self> {
        let (known, open) = match image.format.as_str() {
            "qcow2" => (QCOW2, false),
            "raw" | "file" => (FILE, false),
            _ => (OTHER, true),
        };
        let mut given = Self {
            known,
            open,
            values: Vec::new(),
        };
        for option in split_options(&image.options) {
            let (name, value) = match option.split_once('=') {
                Some((name, value)) => (name, value.to_owned()),
                // As everywhere in QEMU's command lines a name alone turns something on.
                None => (option.as_str(), "on".to_owned()),
            };
            given.set(name, value)?;
        }
        if let Some(size) = image.size {
            if given.get("size").is_some() {
                return Err(invalid("The image size must be specified only once"));
            }
            given.set("size", size.to_string())?;
        }
        let backing = [
            ("backing_file", &image.base, "Backing file"),
            ("backing_fmt", &image.base_format, "Backing format"),
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

    fn takes(&self, name: &str) -> bool {
        self.open || self.known.iter().any(|(known, ..)| *known == name)
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
        let kind = self.known.iter().find(|(known, ..)| *known == name);
        Ok(match kind.map_or(Kind::Text, |(_, kind, _)| *kind) {
            Kind::Size => parse_size(value)
                .ok_or_else(|| {
                    invalid(format!(
                        "Parameter '{name}' expects a non-negative number below 2^64"
                    ))
                })?
                .into(),
            Kind::Number => value
                .parse::<u64>()
                .map_err(|_| invalid(format!("Parameter '{name}' expects a number")))?
                .into(),
            Kind::Flag => match value {
                "on" => true.into(),
                "off" => false.into(),
                _ => return Err(invalid(format!("Parameter '{name}' expects 'on' or 'off'"))),
            },
            Kind::Text => value.into(),
        })
    }

    /// What `blockdev-create` takes, but for `driver`, `size` and `file`.
    ///
    /// # Errors
    /// There is no such version of the format, or encryption is asked for in two ways.
    pub fn to_create(&self) -> Result<Options> {
        let mut options = Options::new();
        let encrypt = self.encrypt()?;
        if !encrypt.is_empty() {
            options.insert("encrypt".to_owned(), encrypt.into());
        }
        let is_apart = |name: &str| matches!(name, "size" | "encryption") || name.starts_with(ENCRYPT);
        for (name, text) in self.values.iter().filter(|(name, _)| !is_apart(name)) {
            let (name, value) = match (name.as_str(), text.as_str()) {
                ("compat", "0.10") => ("version", "v2".into()),
                ("compat", "1.1") => ("version", "v3".into()),
                ("compat", version @ ("v2" | "v3")) => ("version", version.into()),
                ("compat", other) => {
                    let text = format!("Parameter 'version' does not accept value '{other}'");
                    return Err(invalid(text));
                }
                (name, text) => (name, self.value(name, text)?),
            };
            options.insert(name.replace('_', "-"), value);
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
                (Some(member), text) => encrypt.insert(member.to_owned(), self.value(name, text)?),
                (None, _) => None,
            };
        }
        if self.get("encryption") == Some("on")
            && encrypt.insert("format".to_owned(), "qcow".into()).is_some()
        {
            let text = "'encrypt.format' and its alias 'encryption' can't be used at the same time";
            return Err(invalid(text));
        }
        Ok(encrypt)
    }

    /// The line that `qemu-img` tells of an image.
    #[must_use]
    pub fn told(&self, image: &NewImage, size: u64) -> String {
        let mut line = format!("Formatting '{}', fmt={}", image.filename, image.format);
        for (name, kind, default) in self.known {
            let value = match (*name, self.get(name)) {
                ("size", _) => Some(size.to_string()),
                (_, Some(value)) if *kind == Kind::Size => parse_size(value).map(|bytes| bytes.to_string()),
                // A comma in a value is told as two, which the options can be given by again.
                (_, Some(value)) => Some(value.replace(',', ",,")),
                (_, None) => default.map(str::to_owned),
            };
            if let Some(value) = value {
                line.push_str(&format!(" {name}={value}"));
            }
        }
        line
    }
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
}
