//! The image of the plain mode: what can be said of it beforehand, how it is made and opened.

use super::super::foreign;
use super::greeting::human_size;
use super::{NODE, Plain, object};
use crate::daemon::Daemon;
use crate::image::NewImage;
use crate::socket::OwnFile;
use millpond_messages::graph::{Open, OpenImage, Probing};
use millpond_messages::qapi::QmpError;
use millpond_messages::{IoError, OpenFlags};
use serde_json::json;
use std::fs::OpenOptions;
use std::io;
use std::os::unix::fs::OpenOptionsExt;

/// The end of the graph's text for an image that may be raw or not.
const UNKNOWN_FORMAT: &str = "if it is a raw image, that must be said";

/// The formats there are: also what names of their images end in.
const FORMATS: &[&str] = &["qcow2", "raw"];

impl Plain {
    /// What can be told of the image before anything is started.
    pub(super) fn check_image(&self) -> Result<(), String> {
        let image = self.image.display();
        if self.create.is_some() {
            self.check_suffix()?;
        }
        match (self.create.is_some(), self.image.try_exists()) {
            (true, Ok(true)) => Err(self.exists_already()),
            (false, Ok(false)) => Err(format!(
                "{image} cannot be opened: No such file or directory; use --create SIZE to create it"
            )),
            _ => Ok(()),
        }
    }

    /// Refuses to make an image whose name says another format than it would have.
    fn check_suffix(&self) -> Result<(), String> {
        let suffix = self.image.extension().and_then(|suffix| suffix.to_str());
        let suffix = suffix.unwrap_or_default().to_ascii_lowercase();
        let named = match suffix.as_str() {
            // Any format may be in it.
            "img" => return Ok(()),
            own if FORMATS.contains(&own) => own,
            other => match foreign::format(other) {
                Some(format) => format,
                None => return Ok(()),
            },
        };
        let made = self.new_format();
        let image = self.image.display();
        if named == made {
            return Ok(());
        }
        Err(if FORMATS.contains(&named) {
            format!(
                "{image} is named like a {named} image, but would be a {made} one; choose another name, or --format {named}"
            )
        } else {
            format!("{image} is named like an image of {named}, which cannot be created; choose another name")
        })
    }

    /// The format of an image that is to be made.
    pub(super) fn new_format(&self) -> &str {
        if let Some(format) = &self.format {
            return format;
        }
        let extension = self.image.extension().and_then(|extension| extension.to_str());
        match extension {
            Some("raw" | "img") => "raw",
            _ => "qcow2",
        }
    }

    /// Opens the image; answers the name of the node to serve.
    ///
    /// An image that begins with nothing known is not served writable: its user could write the beginning
    /// of another format, and have files of the host opened the next time.
    pub(super) async fn open_image(&self, daemon: &Daemon) -> Result<String, QmpError> {
        let mut options = object(json!({"node-name": NODE}));
        let format = self.format.as_deref().or(self.create.map(|_| self.new_format()));
        if let Some(format) = format {
            options.insert("driver".into(), format.into());
        }
        let mut flags = OpenFlags::empty();
        flags.set(OpenFlags::RDWR, !self.read_only);
        flags.set(OpenFlags::SNAPSHOT, self.snapshot);
        let image = OpenImage {
            // A path and nothing else, whatever colons are in it.
            filename: Some(self.path()?),
            options,
            flags,
            probing: Probing::Formats,
            ..OpenImage::default()
        };
        let opened = daemon.graph(Open(Box::new(image))).await;
        opened.map_err(|error| match error.desc.ends_with(UNKNOWN_FORMAT) {
            true => QmpError::generic(format!("{}: say so with --format raw", error.desc)),
            false => error,
        })
    }

    /// The image's path, such that nothing in it is taken for a protocol.
    fn path(&self) -> Result<String, QmpError> {
        let path = self
            .image
            .to_str()
            .ok_or_else(|| QmpError::generic(format!("{} is not UTF-8", self.image.display())))?;
        let is_plain = self.image.is_absolute() || path.starts_with("./") || path.starts_with("../");
        Ok(if is_plain {
            path.to_owned()
        } else {
            format!("./{path}")
        })
    }

    /// Makes the image that is to be served, and nothing if that fails.
    pub(super) async fn make_image(&self, daemon: &Daemon, format: &str, size: u64) -> Result<(), QmpError> {
        let ours = self.new_file().map_err(QmpError::generic)?;
        let image = NewImage {
            filename: self.path()?,
            format: format.to_owned(),
            size: Some(size),
            quiet: true,
            ..NewImage::default()
        };
        daemon.create_image(image).await.map(drop).map_err(|error| {
            // Half an image helps nobody, where it has not gone yet.
            ours.remove();
            let (image, size) = (self.image.display(), human_size(size));
            QmpError::generic(format!("{image} cannot be created with {size}: {}", error.desc))
        })
    }

    /// Makes the image's file, so that nobody else's is taken for it.
    fn new_file(&self) -> Result<OwnFile, String> {
        let mut options = OpenOptions::new();
        let made = options.write(true).create_new(true).mode(0o644).open(&self.image);
        let made = made.and_then(|file| OwnFile::of(&self.image, &file.metadata()?));
        made.map_err(|error| match error.kind() {
            io::ErrorKind::AlreadyExists => self.exists_already(),
            _ => format!(
                "{} cannot be created: {}",
                self.image.display(),
                IoError::from(error)
            ),
        })
    }

    fn exists_already(&self) -> String {
        format!(
            "{} exists already; leave out --create to serve it",
            self.image.display()
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;

    fn plain(arguments: &[&str]) -> Plain {
        Plain::try_parse_from([&["millpond"], arguments].concat()).unwrap()
    }

    #[test]
    fn what_is_there_and_what_is_not_is_told_before_anything_starts() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x");
        std::fs::write(&path, b"something").unwrap();
        let path = path.to_str().unwrap();
        assert_eq!(plain(&[path]).check_image(), Ok(()));
        let exists = plain(&[path, "--create", "1M"]).check_image().unwrap_err();
        assert!(exists.contains("exists"), "{exists}");
        let absent = dir.path().join("absent.img");
        let absent = absent.to_str().unwrap();
        let refused = plain(&[absent]).check_image().unwrap_err();
        assert!(refused.contains("--create"), "{refused}");
        assert_eq!(plain(&[absent, "--create", "1M"]).check_image(), Ok(()));
    }

    #[test]
    fn new_images_are_of_the_format_that_their_names_say() {
        for (name, format) in [
            ("x.img", "raw"),
            ("x.raw", "raw"),
            ("x", "qcow2"),
            ("x.qcow2", "qcow2"),
        ] {
            assert_eq!(plain(&[name, "--create", "1M"]).new_format(), format);
        }
        assert_eq!(
            plain(&["x.img", "--create", "1M", "--format", "qcow2"]).new_format(),
            "qcow2"
        );
    }

    #[test]
    fn a_suffix_that_names_another_format_is_refused() {
        for (name, format, is_good) in [
            ("x.vmdk", None, false),
            ("x.VHDX", Some("raw"), false),
            ("x.qcow", None, false),
            ("x.raw", Some("qcow2"), false),
            ("x.qcow2", Some("raw"), false),
            ("x.img", Some("qcow2"), true),
            ("x.raw", None, true),
            ("x.disk", None, true),
            ("x", Some("raw"), true),
        ] {
            let mut arguments = vec![name, "--create", "1M"];
            arguments.extend(format.iter().flat_map(|format| ["--format", format]));
            assert_eq!(
                plain(&arguments).check_suffix().is_ok(),
                is_good,
                "{name} {format:?}"
            );
        }
    }

    #[test]
    fn a_colon_in_a_path_is_no_protocol() {
        for (name, path) in [
            ("a:b", "./a:b"),
            ("/a:b", "/a:b"),
            ("../x", "../x"),
            ("x/y", "./x/y"),
        ] {
            assert_eq!(plain(&[name]).path().unwrap(), path);
        }
    }
}
