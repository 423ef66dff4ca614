//! The form in which a command's answer is printed.

use crate::cli::tool::{Failure, Program, print};
use millpond_messages::qapi::to_pretty;
use serde_json::Value;

/// For whom an answer is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum OutputForm {
    /// It is for people to read.
    #[default]
    Human,
    /// It is for programs to read.
    Json,
}

impl OutputForm {
    /// What `--output` says.
    ///
    /// # Errors
    /// It says nothing that is known.
    pub fn parse(program: Program<'_>, command: &str, word: &str) -> Result<Self, Failure> {
        match word {
            "human" => Ok(Self::Human),
            "json" => Ok(Self::Json),
            _ => {
                let text = format!("--output expects 'human' or 'json' not '{word}'");
                Err(Failure::usage(program, command, text))
            }
        }
    }
}

/// Prints a value for programs to read.
pub(super) fn print_json(value: &Value) {
    print(&format!("{}\n", to_pretty(value)));
}
