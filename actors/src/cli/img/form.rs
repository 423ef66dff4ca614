//! Whether a command answers people or programs.

use crate::cli::tool::Failure;

/// The form of an answer (`--output`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Output {
    /// Text with columns.
    #[default]
    Human,
    /// JSON.
    Json,
}

impl Output {
    /// The form with this name.
    ///
    /// # Errors
    /// There is none.
    pub fn read(name: &str) -> Result<Self, Failure> {
        match name {
            "human" => Ok(Self::Human),
            "json" => Ok(Self::Json),
            _ => Err(Failure::new(
                "--output must be used with human or json as argument.",
            )),
        }
    }
}
