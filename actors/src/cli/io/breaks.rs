//! Breakpoints of `blkdebug`: requests that are held at an event until somebody lets them go.

use std::time::Duration;

use millpond_messages::error::errno::ENOENT;
use millpond_messages::graph::{DebugNode, IsSuspended};
use millpond_messages::{Error, IoError};

use super::shell::{Ended, Shell};

/// How long the tool waits before it looks again whether a request is held.
const LOOK_AGAIN: Duration = Duration::from_millis(1);

/// `break`: has the next request that reaches an event held.
pub async fn set(shell: &mut Shell, words: &[String]) -> Ended {
    let [_, event, tag] = words else {
        return shell.misused(words, None);
    };
    let node = shell.image()?.node.clone();
    match order(shell, DebugNode::breakpoint(node, event, tag)).await {
        Ok(()) => {
            shell.armed.push(tag.clone());
            Ok(())
        }
        Err(error) => shell.refuse(&format!("Could not set breakpoint: {}", reason(&error))),
    }
}

/// `remove_break`: forgets a breakpoint, and lets go of what it holds.
pub async fn remove(shell: &mut Shell, words: &[String]) -> Ended {
    let [_, tag] = words else {
        return shell.misused(words, None);
    };
    let node = shell.image()?.node.clone();
    let is_held = look(shell, tag).await;
    let is_armed = shell.armed.contains(tag);
    shell.armed.retain(|armed| armed != tag);
    let why = match order(shell, DebugNode::remove_breakpoint(node, tag)).await {
        Ok(()) => {
            if is_held {
                shell.say(&format!("blkdebug: Resuming request '{tag}'"));
            }
            if is_armed {
                return Ok(());
            }
            // QEMU's lets go of what is held all the same.
            IoError::from_errno(ENOENT)
        }
        Err(error) => reason(&error),
    };
    shell.refuse(&format!("Could not remove breakpoint {tag}: {why}"))
}

/// `resume`: lets go of a held request.
pub async fn resume(shell: &mut Shell, words: &[String]) -> Ended {
    let [_, tag] = words else {
        return shell.misused(words, None);
    };
    let node = shell.image()?.node.clone();
    look(shell, tag).await;
    match order(shell, DebugNode::resume(node, tag)).await {
        Ok(()) => {
            shell.say(&format!("blkdebug: Resuming request '{tag}'"));
            Ok(())
        }
        Err(error) => shell.refuse(&format!("Could not resume request: {}", reason(&error))),
    }
}

/// `wait_break`: waits until a request is held.
pub async fn wait(shell: &mut Shell, words: &[String]) -> Ended {
    let [_, tag] = words else {
        return shell.misused(words, None);
    };
    shell.image()?;
    while !look(shell, tag).await {
        shell.wait(tokio::time::sleep(LOOK_AGAIN)).await;
    }
    Ok(())
}

/// Whether a request is held under a tag. That it is, is told once for each breakpoint.
async fn look(shell: &mut Shell, tag: &str) -> bool {
    let Some(image) = &shell.image else {
        return false;
    };
    let asked = shell.graph.ask(IsSuspended::under(&image.node, tag));
    let is_held = shell.wait(asked).await.unwrap_or(false);
    if is_held && let Some(at) = shell.armed.iter().position(|armed| armed == tag) {
        shell.armed.remove(at);
        shell.say(&format!("blkdebug: Suspended request '{tag}'"));
    }
    is_held
}

async fn order(shell: &mut Shell, order: DebugNode) -> Result<(), Error> {
    let asked = shell.graph.ask(order);
    shell.wait(asked).await
}

fn reason(error: &Error) -> IoError {
    IoError::from_errno(error.errno())
}
