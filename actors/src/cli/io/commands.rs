//! How a line becomes a command: the row that it names, what that needs, and what carries it out.

use super::shell::{Ended, Failed, Shell};
use super::table::{self, Act, CommandEntry};
use super::{aio, breaks, file, help, process, space, transfer, words};
use crate::cli::texts::printable;
use crate::log::tell;

/// Carries out a line.
pub async fn carry_out(shell: &mut Shell, line: &str) -> Ended {
    let words = words::split(line);
    let Some(called) = words.first() else {
        return Ok(());
    };
    let Some(row) = table::find(called) else {
        tell(&printable(&format!("command \"{called}\" not found")));
        return Err(Failed);
    };
    if shell.image.is_none() && !row.without_image {
        tell("no file open, try 'help open'");
        return Err(Failed);
    }
    let count = words.len() - 1;
    if count < row.least || row.most.is_some_and(|most| count > most) {
        tell(&printable(&row.refuse_count(called, count)));
        return Err(Failed);
    }
    take_permissions(shell, row).await?;
    dispatch(shell, row.verb, &words).await
}

/// Ends what is in flight, and lets go of the image.
pub async fn finish(shell: &mut Shell) -> Ended {
    let closed = match shell.image {
        Some(_) => file::close(shell).await,
        None => Ok(()),
    };
    shell.out.flush();
    closed
}

/// Takes the permissions that a command needs. They stay until the image is reopened read-only.
async fn take_permissions(shell: &mut Shell, row: &CommandEntry) -> Ended {
    let Some(image) = &shell.image else {
        return Ok(());
    };
    if image.permissions.contains(row.needs) {
        return Ok(());
    }
    let permissions = image.permissions | row.needs;
    shell.set_permissions(permissions).await
}

async fn dispatch(shell: &mut Shell, verb: Act, words: &[String]) -> Ended {
    match verb {
        Act::Abort => process::abort(),
        Act::AioFlush => aio::flush(shell).await,
        Act::AioRead => aio::read(shell, words).await,
        Act::AioWrite => aio::write(shell, words).await,
        Act::Alloc => space::alloc(shell, words).await,
        Act::Break => breaks::set(shell, words).await,
        Act::Close => file::close(shell).await,
        Act::Discard => transfer::discard(shell, words).await,
        Act::Flush => space::flush(shell).await,
        Act::Help => help::help(shell, words),
        Act::Info => space::info(shell).await,
        Act::Length => space::length(shell).await,
        Act::Map => space::map(shell).await,
        Act::Open => file::open(shell, words).await,
        Act::Quit => {
            shell.has_quit = true;
            Ok(())
        }
        Act::Read => transfer::read(shell, words).await,
        Act::Readv => transfer::readv(shell, words).await,
        Act::RemoveBreak => breaks::remove(shell, words).await,
        Act::Reopen => file::reopen(shell, words).await,
        Act::Resume => breaks::resume(shell, words).await,
        Act::Sigraise => process::raise(shell, words).await,
        Act::Sleep => process::sleep(shell, words).await,
        Act::Truncate => space::truncate(shell, words).await,
        Act::WaitBreak => breaks::wait(shell, words).await,
        Act::Write => transfer::write(shell, words).await,
        Act::Writev => transfer::writev(shell, words).await,
        Act::Zone(zone) => space::zone(shell, zone, words),
    }
}
