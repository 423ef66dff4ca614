//! Images by the names and options that a tool's command line has.

use super::{Failure, Program, Tool, read_pairs};
use crate::cli::texts::printable;
use crate::graph::GraphHandle;
use crate::log::tell;
use crate::node::Client;
use millpond_messages::OpenFlags;
use millpond_messages::graph::{FindRoot, OpenImage, Options, Probing, RootUser};
use serde_json::Value;

/// An image as a command line names it, and how it is to be opened.
#[derive(Clone, Debug, Default)]
pub struct ImageName {
    /// A path, `protocol:rest` or `json:{...}`; with `is_options` a list `key=value,...`.
    pub name: String,
    /// The format that the user says it has.
    pub format: Option<String>,
    /// The name is a list of options (`--image-opts`).
    pub is_options: bool,
    /// What is to be done with it. RDWR and RESIZE are permissions too.
    pub flags: OpenFlags,
    /// Writes are on stable storage when they are answered.
    pub writes_through: bool,
    /// Others may do with it what they like (`-U`).
    pub force_share: bool,
}

impl ImageName {
    /// An image that is only read, of this name.
    pub fn new(name: impl Into<String>) -> Self {
        Self {
            name: name.into(),
            ..Self::default()
        }
    }

    /// As [`OpenImage`] has it.
    ///
    /// # Errors
    /// The options cannot be read, or contradict the others.
    pub fn to_open(&self, program: Program<'_>) -> Result<OpenImage, Failure> {
        let mut options = Options::new();
        if self.is_options {
            if self.format.is_some() {
                return Err(Failure::new("--image-opts and --format are mutually exclusive"));
            }
            let pairs = read_pairs(&self.name, Some("file"), |warning| program.warn(warning))?;
            options.extend(pairs.into_iter().map(|(name, value)| (name, value.into())));
        }
        if let Some(format) = &self.format {
            options.insert("driver".to_owned(), format.as_str().into());
        }
        if self.force_share {
            match options.get("force-share") {
                None => {}
                Some(Value::String(text)) if text == "on" => {}
                Some(_) => return Err(Failure::new("--force-share/-U conflicts with image options")),
            }
            options.insert("force-share".to_owned(), true.into());
        }
        if self.writes_through {
            options
                .entry("cache.writeback".to_owned())
                .or_insert(Value::Bool(false));
        }
        Ok(OpenImage {
            filename: (!self.is_options).then(|| self.name.clone()),
            options,
            flags: self.flags,
            probing: Probing::Always,
            ..OpenImage::default()
        })
    }
}

impl Tool<'_> {
    /// Opens an image and takes hold of it. It is closed when the tool's work is done, or when its root is detached.
    ///
    /// # Errors
    /// QEMU's text, with the image's name.
    pub async fn open(&self, image: &ImageName) -> Result<Client, Failure> {
        let open = image.to_open(self.program())?;
        let is_guess = !open.options.contains_key("driver") && !image.name.starts_with("json:");
        let user = RootUser::Embedder(self.program().0.to_owned());
        let within = format!("Could not open '{}'", image.name);
        let opened = self.graph().open_held(open, user).await;
        let client = opened.map_err(|error| Failure::from(error).within(&within))?;
        if is_guess && image.flags.contains(OpenFlags::RDWR) {
            warn_of_raw(self.graph(), &client).await?;
        }
        Ok(client)
    }
}

/// Says what follows if an image that is open for writing was guessed to be raw.
///
/// # Errors
/// The client has gone.
pub async fn warn_of_raw(graph: &GraphHandle, client: &Client) -> Result<(), Failure> {
    let node = graph.ask(FindRoot(client.root())).await?;
    if node.driver == "raw" {
        tell(&printable(&format!(
            "WARNING: Image format was not specified for '{}' and probing guessed raw.\n         \
            Automatically detecting the format is dangerous for raw images, write operations on block 0 will be \
            restricted.\n         Specify the 'raw' format explicitly to remove the restrictions.",
            node.filename
        )));
    }
    Ok(())
}

/// What `-t` or `-T` says of the page cache: flags for opening, and whether writes go through. Nothing for an unknown word.
pub fn read_cache(mode: &str) -> Option<(OpenFlags, bool)> {
    match mode {
        "none" | "off" => Some((OpenFlags::NOCACHE, false)),
        "directsync" => Some((OpenFlags::NOCACHE, true)),
        "writeback" => Some((OpenFlags::empty(), false)),
        "unsafe" => Some((OpenFlags::NO_FLUSH, false)),
        "writethrough" => Some((OpenFlags::empty(), true)),
        _ => None,
    }
}
