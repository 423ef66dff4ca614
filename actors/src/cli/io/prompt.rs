//! Commands typed at a terminal, with a history and with names that are completed.

use super::commands;
use super::shell::Shell;
use super::table::COMMANDS;
use rustyline::completion::Completer;
use rustyline::error::ReadlineError;
use rustyline::highlight::Highlighter;
use rustyline::hint::Hinter;
use rustyline::history::DefaultHistory;
use rustyline::validate::Validator;
use rustyline::{CompletionType, Config, Context, Editor, Helper};

/// A line editor that knows the commands.
type LineEditor = Editor<Names, DefaultHistory>;

/// Carries out the commands that are typed, up to the end of the input; whether one has failed.
pub async fn carry_out(shell: &mut Shell, prompt: &'static str) -> bool {
    let config = Config::builder()
        .completion_type(CompletionType::List)
        .auto_add_history(true)
        .build();
    let mut editor = match LineEditor::with_config(config) {
        Ok(editor) => editor,
        Err(error) => return shell.complain(&error.to_string()).is_err(),
    };
    editor.set_helper(Some(Names));
    let mut has_failed = false;
    while !shell.has_quit {
        shell.out.flush();
        // Requests that end meanwhile are reported while this waits.
        let read = tokio::task::spawn_blocking(move || {
            let read = editor.readline(prompt);
            (editor, read)
        });
        let Ok((again, read)) = shell.wait(read).await else {
            return true;
        };
        editor = again;
        match read {
            Ok(line) => has_failed |= commands::carry_out(shell, &line).await.is_err(),
            Err(ReadlineError::Eof | ReadlineError::Interrupted) => break,
            Err(error) => return shell.complain(&error.to_string()).is_err(),
        }
    }
    has_failed
}

/// Completes the names of commands, where one is typed.
struct Names;

impl Completer for Names {
    type Candidate = String;

    fn complete(&self, line: &str, at: usize, _: &Context<'_>) -> rustyline::Result<(usize, Vec<String>)> {
        let typed = line.get(..at).unwrap_or_default();
        let start = typed.len() - typed.trim_start_matches(' ').len();
        let word = &typed[start..];
        // What follows a command is no name of one, but behind `help`.
        let (start, word) = match word.split_once(' ') {
            None => (start, word),
            Some(("help" | "?", rest)) if !rest.contains(' ') => (at - rest.len(), rest),
            Some(_) => return Ok((at, Vec::new())),
        };
        let names = COMMANDS.iter().map(|row| row.name);
        let fitting = names.filter(|name| name.starts_with(word));
        Ok((start, fitting.map(|name| format!("{name} ")).collect()))
    }
}

impl Hinter for Names {
    type Hint = String;
}

impl Highlighter for Names {}

impl Validator for Names {}

impl Helper for Names {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_commands_are_completed_and_nothing_else() {
        let history = DefaultHistory::new();
        let complete = |line: &str| {
            let context = Context::new(&history);
            Names.complete(line, line.len(), &context).unwrap()
        };
        assert_eq!(complete("le"), (0, vec!["length ".to_owned()]));
        assert_eq!(complete(" zone_re").1, ["zone_report ", "zone_reset "]);
        assert_eq!(complete("help tr"), (5, vec!["truncate ".to_owned()]));
        assert_eq!(complete("read re").1, Vec::<String>::new());
    }
}
