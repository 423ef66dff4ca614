//! What a command does to this process: to wait, to be signalled, to crash.

use std::time::Duration;

use rustix::process::{Signal, getpid, kill_process};

use super::number;
use super::shell::{Ended, Failed, Shell};
use super::transfer::size;

/// The first number that is no signal.
const END_OF_SIGNALS: u64 = 65;

/// `abort`: ends the process as a crash does.
pub fn abort() -> Ended {
    std::process::abort()
}

/// `sleep`: waits a while.
pub async fn sleep(shell: &mut Shell, words: &[String]) -> Ended {
    let time = match number::milliseconds(words.get(1).map_or("", String::as_str)) {
        Ok(time) => time,
        Err(why) => return shell.refuse(&why),
    };
    shell.wait(tokio::time::sleep(Duration::from_millis(time))).await;
    Ok(())
}

/// `sigraise`: sends this process a signal.
pub async fn raise(shell: &mut Shell, words: &[String]) -> Ended {
    let text = words.get(1).map_or("", String::as_str);
    let number = size(shell, text)?;
    if number > END_OF_SIGNALS {
        return shell.refuse(&format!(
            "signal argument '{text}' is too large to be a valid signal"
        ));
    }
    shell.out.flush();
    let number = i32::try_from(number).map_err(|_| Failed)?;
    let Some(signal) = Signal::from_named_raw(number) else {
        return Ok(());
    };
    kill_process(getpid(), signal).map_err(|_| Failed)?;
    // Any thread may take the signal: no further command begins before it has.
    shell.wait(tokio::time::sleep(Duration::from_millis(1))).await;
    Ok(())
}
