//! Commands from standard input, each after a prompt: line by line, or typed at a terminal.

use std::io::{self, BufRead, IsTerminal, Read};

use super::shell::Shell;
use super::{commands, prompt};

/// What asks for a command. Scripts look for it, so it is the same whatever the program is called.
const PROMPT: &str = "qemu-io> ";
/// The longest part of a line that is read at once.
const LONGEST: u64 = 1023;

/// Carries out the commands of standard input up to its end; whether one has failed.
pub async fn carry_out(shell: &mut Shell) -> bool {
    if io::stdin().is_terminal() {
        return prompt::carry_out(shell, PROMPT).await;
    }
    let mut has_failed = false;
    while !shell.has_quit {
        shell.out.text(PROMPT);
        shell.out.flush();
        // Requests that end meanwhile are reported while this waits.
        let read = tokio::task::spawn_blocking(read_line);
        let line = shell.wait(read).await;
        let Ok(Ok(Some(line))) = line else {
            break;
        };
        has_failed |= commands::carry_out(shell, &line).await.is_err();
    }
    has_failed
}

/// The next line without its end; nothing at the end of the input.
fn read_line() -> io::Result<Option<String>> {
    let mut line = Vec::new();
    let mut input = io::stdin().lock().take(LONGEST);
    if input.read_until(b'\n', &mut line)? == 0 {
        return Ok(None);
    }
    if line.last() == Some(&b'\n') {
        line.pop();
    }
    Ok(Some(String::from_utf8_lossy(&line).into_owned()))
}
