//! What a tool failed by, and how it tells.

use super::Program;
use crate::cli::texts::failure;
use millpond_messages::Error;
use millpond_messages::qapi::QmpError;
use std::process::ExitCode;

/// Why a command failed: what is told of it, line by line, and the exit code.
#[derive(Debug, Clone, thiserror::Error)]
#[error("{text}")]
pub struct Failure {
    text: String,
    hint: Option<String>,
    /// The command that stands behind the program's name.
    speaker: Option<String>,
    code: u8,
}

impl Failure {
    /// A failure in these words, with the exit code that most have.
    pub fn new(text: impl Into<String>) -> Self {
        Self {
            text: text.into(),
            hint: None,
            speaker: None,
            code: 1,
        }
    }

    /// A command line that cannot be understood, with where to read how it should be. `command` is empty where the program
    /// itself was misused.
    pub fn usage(program: Program<'_>, command: &str, text: impl Into<String>) -> Self {
        Self {
            hint: Some(try_help(program, command)),
            ..Self::new(text)
        }
    }

    /// An option that cannot be cut, which is told behind the command's name too, as C's `getopt_long` would.
    pub fn misspelt(program: Program<'_>, command: &str, text: impl Into<String>) -> Self {
        Self {
            speaker: Some(command.to_owned()),
            ..Self::usage(program, command, text)
        }
    }

    /// The same failure with advice below its text.
    #[must_use]
    pub fn with_hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }

    /// The same failure with another exit code.
    #[must_use]
    pub fn with_code(mut self, code: u8) -> Self {
        self.code = code;
        self
    }

    /// The same failure with `prefix: ` before its text.
    #[must_use]
    pub fn within(mut self, prefix: &str) -> Self {
        self.text = format!("{prefix}: {}", self.text);
        self
    }

    /// Tells it behind the program's name, and answers the exit code.
    pub fn tell(&self, program: Program<'_>) -> ExitCode {
        let hint = self.hint.as_deref().map(|hint| format!("\n{hint}"));
        let speaker = self.speaker.as_deref().map(|speaker| format!(" {speaker}"));
        let name = format!("{}{}", program.0, speaker.unwrap_or_default());
        failure(&name, &format!("{}{}", self.text, hint.unwrap_or_default()));
        ExitCode::from(self.code)
    }
}

/// Where to read how a command is used.
pub fn try_help(program: Program<'_>, command: &str) -> String {
    let space = if command.is_empty() { "" } else { " " };
    format!("Try '{}{space}{command} --help' for more info", program.0)
}

impl From<QmpError> for Failure {
    fn from(error: QmpError) -> Self {
        Self {
            hint: error.hint,
            ..Self::new(error.desc)
        }
    }
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        QmpError::from(&error).into()
    }
}
