//! Changes of the graph during a load: QMP commands that are sent to a daemon at given times.

use std::path::Path;
use std::str::FromStr;
use std::time::{Duration, Instant};

use serde_json::Value;

use super::running::Running;
use crate::Outcome;
use crate::qmp::Connection;

/// A command and when to send it.
#[derive(Debug, Clone, PartialEq)]
pub struct Action {
    /// Since the load began to count.
    pub at: Duration,
    /// The command, one JSON object.
    pub command: Value,
}

impl FromStr for Action {
    type Err = String;

    /// `SECONDS:JSON`.
    fn from_str(text: &str) -> Result<Action, String> {
        let (seconds, command) = text.split_once(':').ok_or("an action is SECONDS:JSON")?;
        let at = seconds
            .trim()
            .parse()
            .ok()
            .and_then(|at| Duration::try_from_secs_f64(at).ok());
        let command: Value =
            serde_json::from_str(command).map_err(|error| format!("a QMP command: {error}"))?;
        if !command["execute"].is_string() {
            return Err("a QMP command is an object with 'execute'".to_owned());
        }
        Ok(Action {
            at: at.ok_or_else(|| format!("'{seconds}' is no number of seconds"))?,
            command,
        })
    }
}

/// Sends commands at their times, each after the reply to the one before, and marks them in the load's timeline.
///
/// # Errors
/// The monitor does not answer, or answers with an error. The load goes on.
pub(super) fn perform(running: &Running, socket: &Path, actions: &[Action]) -> Outcome<()> {
    let mut monitor = Connection::connect(socket)?;
    let mut actions: Vec<_> = actions.iter().collect();
    actions.sort_by_key(|action| action.at);
    for action in actions {
        if !running.wait_until(running.counted_from() + action.at) {
            break;
        }
        let begun = Instant::now();
        let reply = monitor.run(&action.command.to_string());
        let label = action.command["execute"].as_str().unwrap_or_default();
        running.mark(label, begun, Instant::now());
        reply.map_err(|error| format!("{label}: {}", error.to_string().trim()))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_action_is_a_time_and_a_command() {
        let action: Action = r#"1.5:{"execute": "query-status"}"#.parse().unwrap();
        assert_eq!(action.at, Duration::from_millis(1500));
        assert_eq!(action.command["execute"], "query-status");
        for text in [
            "",
            "1",
            "x:{\"execute\": \"quit\"}",
            "1:{}",
            "1:quit",
            "-1:{\"execute\": \"quit\"}",
        ] {
            assert!(text.parse::<Action>().is_err(), "{text}");
        }
    }
}
