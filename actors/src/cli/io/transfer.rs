//! Reads, writes and discards that are waited for.

use std::fs::File;
use std::io::Read;
use std::time::Instant;

use millpond_messages::graph::{LoadVmState, SaveVmState};
use millpond_messages::io::Operation;
use millpond_messages::{IoError, IoResult, Range, RequestFlags, SECTOR_SIZE};
use millpond_ring::buffer::Buffers;

use super::memory::{READ_FILL, WRITE_FILL, filled, repeated};
use super::report::dump;
use super::shell::{Ended, Failed, Shell};
use super::shown::Shown;
use super::words::cut;
use super::{memory, number};
use crate::log::tell;

/// The most bytes of one request.
pub const MOST: u64 = 2_147_483_136;

/// Options of a read that is waited for.
#[derive(Default)]
struct ReadOptions {
    shown: Shown,
    of_state: bool,
    check_from: Option<u64>,
    check_len: Option<u64>,
}

/// `read`: reads a range.
pub async fn read(shell: &mut Shell, words: &[String]) -> Ended {
    let cut = cut(words, "bCl:pP:qrs:v");
    let mut options = ReadOptions::default();
    for (option, value) in &cut.options {
        match option {
            'b' => options.of_state = true,
            'l' => options.check_len = Some(size(shell, value)?),
            's' => options.check_from = Some(size(shell, value)?),
            _ => take(shell, &mut options.shown, *option, value)?,
        }
    }
    let [offset, len] = cut.operands.as_slice() else {
        return shell.misused(words, cut.wrong);
    };
    if cut.wrong.is_some() {
        return shell.misused(words, cut.wrong);
    }
    let offset = size(shell, offset)?;
    let len = length(shell, len, false)?;
    let is_partial = options.check_from.is_some() || options.check_len.is_some();
    if options.shown.pattern.is_none() && is_partial {
        return shell.misused(words, None);
    }
    let from = options.check_from.unwrap_or(0);
    let checked = options.check_len.or_else(|| len.checked_sub(from));
    let Some(checked) = checked.filter(|&checked| from.checked_add(checked).is_some_and(|end| end <= len))
    else {
        return shell.refuse("pattern verification range exceeds end of read data");
    };
    if options.of_state {
        check_aligned(shell, offset, len)?;
    }
    let since = Instant::now();
    let read = match options.of_state {
        true => load_state(shell, offset, len).await,
        false => read_range(shell, offset, &[len]).await,
    };
    let time = since;
    let bytes = match read {
        Ok(bytes) => bytes,
        Err(error) => return shell.refuse(&format!("read failed: {error}")),
    };
    let checked = (from, checked);
    show_read(shell, &options.shown, (offset, &bytes), checked, time)
}

/// `readv`: reads a range into several buffers.
pub async fn readv(shell: &mut Shell, words: &[String]) -> Ended {
    let cut = cut(words, "CP:qrv");
    let mut shown = Shown::default();
    for (option, value) in &cut.options {
        take(shell, &mut shown, *option, value)?;
    }
    let (offset, parts) = match (cut.operands.split_first(), cut.wrong) {
        (Some((offset, parts)), None) if !parts.is_empty() => (offset, parts),
        (_, wrong) => return shell.misused(words, wrong),
    };
    let offset = size(shell, offset)?;
    let parts = lengths(shell, parts)?;
    let since = Instant::now();
    let bytes = match read_range(shell, offset, &parts).await {
        Ok(bytes) => bytes,
        Err(error) => return shell.refuse(&format!("readv failed: {error}")),
    };
    let all = (0, bytes.len() as u64);
    show_read(shell, &shown, (offset, &bytes), all, since)
}

/// Checks, shows and reports what was read.
fn show_read(
    shell: &mut Shell,
    shown: &Shown,
    (offset, bytes): (u64, &Buffers),
    (from, checked): (u64, u64),
    since: Instant,
) -> Ended {
    let report = shown.report("read", (offset, bytes.len() as u64), since);
    let is_good = shown
        .pattern
        .is_none_or(|pattern| memory::is_all(bytes, (from, checked), pattern));
    if !is_good {
        let at = offset.saturating_add(from);
        shell.say(&format!(
            "Pattern verification failed at offset {at}, {checked} bytes"
        ));
    }
    if let Some(report) = report {
        if shown.dump {
            shell.out.text(&dump(offset, &bytes.to_vec()));
        }
        shell.say(&report);
    }
    if is_good { Ok(()) } else { Err(Failed) }
}

async fn read_range(shell: &mut Shell, offset: u64, parts: &[u64]) -> IoResult<Buffers> {
    let image = shell.image().map_err(|Failed| IoError::NoMedium)?;
    let buffers = filled(parts, READ_FILL)?;
    let operation = Operation::Read {
        offset,
        buffers,
        flags: RequestFlags::empty(),
    };
    let client = image.client.clone();
    let (result, buffers) = shell.wait(client.request(operation)).await.into_parts();
    result?;
    buffers.ok_or(IoError::NoMedium)
}

async fn load_state(shell: &mut Shell, offset: u64, len: u64) -> IoResult<Buffers> {
    let node_name = shell.image().map_err(|Failed| IoError::NoMedium)?.node.clone();
    let asked = shell.graph.ask(LoadVmState {
        node_name,
        offset,
        len,
    });
    let state = shell.wait(asked).await;
    let state = state.map_err(|error| IoError::from_errno(error.errno()))?;
    let mut buffers = filled(&[state.len() as u64], READ_FILL)?;
    buffers.copy_from_slice(0, &state);
    Ok(buffers)
}

/// Options of a write that is waited for.
#[derive(Default)]
struct WriteOptions {
    shown: Shown,
    flags: RequestFlags,
    of_state: bool,
    zeroes: bool,
    source: Option<String>,
}

impl WriteOptions {
    /// Why the options do not go together.
    fn conflict(&self) -> Option<&'static str> {
        let is_special = self.of_state || self.flags.contains(RequestFlags::WRITE_COMPRESSED);
        let sources = [self.zeroes, self.shown.pattern.is_some(), self.source.is_some()];
        if self.of_state && self.zeroes {
            Some("-b and -z cannot be specified at the same time")
        } else if self.flags.contains(RequestFlags::FUA) && is_special {
            Some("-f and -b or -c cannot be specified at the same time")
        } else if self.flags.contains(RequestFlags::NO_FALLBACK) && !self.zeroes {
            Some("-n requires -z to be specified")
        } else if self.flags.contains(RequestFlags::MAY_UNMAP) && !self.zeroes {
            Some("-u requires -z to be specified")
        } else if sources.into_iter().filter(|&source| source).count() > 1 {
            Some("Only one of -z, -P, and -s can be specified at the same time")
        } else {
            None
        }
    }
}

/// `write`: writes a range.
pub async fn write(shell: &mut Shell, words: &[String]) -> Ended {
    let cut = cut(words, "bcCfnpP:qrs:uz");
    let mut options = WriteOptions::default();
    let mut is_registered = false;
    for (option, value) in &cut.options {
        match option {
            'b' => options.of_state = true,
            'c' => options.flags |= RequestFlags::WRITE_COMPRESSED,
            'f' => options.flags |= RequestFlags::FUA,
            'n' => options.flags |= RequestFlags::NO_FALLBACK,
            'u' => options.flags |= RequestFlags::MAY_UNMAP,
            's' => options.source = Some(value.clone()),
            'z' => options.zeroes = true,
            'r' => is_registered = true,
            _ => take(shell, &mut options.shown, *option, value)?,
        }
    }
    let (offset, len) = match (cut.operands.as_slice(), cut.wrong) {
        ([offset, len], None) => (offset, len),
        (_, wrong) => return shell.misused(words, wrong),
    };
    if let Some(conflict) = options.conflict() {
        return shell.refuse(conflict);
    }
    let offset = size(shell, offset)?;
    let len = length_of_write(shell, len, options.flags)?;
    if options.of_state || options.flags.contains(RequestFlags::WRITE_COMPRESSED) {
        check_aligned(shell, offset, len)?;
    }
    if options.zeroes && is_registered {
        return shell.refuse("cannot combine zero write with registered I/O buffer");
    }
    let written = write_with(shell, &options, offset, len).await;
    match written? {
        (since, Ok(())) => {
            if let Some(report) = options.shown.report("wrote", (offset, len), since) {
                shell.say(&report);
            }
            Ok(())
        }
        (_, Err(error)) => shell.refuse(&format!("write failed: {error}")),
    }
}

/// Writes; answers when that began, and how it ended.
async fn write_with(
    shell: &mut Shell,
    options: &WriteOptions,
    offset: u64,
    len: u64,
) -> Result<(Instant, IoResult<()>), Failed> {
    let flags = options.flags | durability(shell)?;
    if options.zeroes {
        let since = Instant::now();
        return Ok((since, zero(shell, offset, len, flags).await));
    }
    let buffers = match &options.source {
        Some(source) => from_file(source, len)?,
        None => match filled(&[len], options.shown.pattern.unwrap_or(WRITE_FILL)) {
            Ok(buffers) => buffers,
            Err(error) => return Ok((Instant::now(), Err(error))),
        },
    };
    let since = Instant::now();
    let result = if options.of_state {
        let node_name = shell.image()?.node.clone();
        let state = buffers.to_vec();
        let asked = shell.graph.ask(SaveVmState {
            node_name,
            offset,
            state,
        });
        let saved = shell.wait(asked).await;
        saved.map_err(|error| IoError::from_errno(error.errno()))
    } else {
        let operation = Operation::Write {
            offset,
            buffers,
            flags,
        };
        let client = shell.image()?.client.clone();
        shell.wait(client.request(operation)).await.into_done()
    };
    Ok((since, result))
}

async fn zero(shell: &mut Shell, offset: u64, len: u64, flags: RequestFlags) -> IoResult<()> {
    let range = Range::new(offset, len)?;
    let client = shell.image().map_err(|Failed| IoError::NoMedium)?.client.clone();
    let operation = Operation::WriteZeroes { range, flags };
    shell.wait(client.request(operation)).await.into_done()
}

/// `writev`: writes a range from several buffers.
pub async fn writev(shell: &mut Shell, words: &[String]) -> Ended {
    let cut = cut(words, "CfqrP:");
    let mut shown = Shown::default();
    let mut flags = durability(shell)?;
    for (option, value) in &cut.options {
        match option {
            'f' => flags |= RequestFlags::FUA,
            _ => take(shell, &mut shown, *option, value)?,
        }
    }
    let (offset, parts) = match (cut.operands.split_first(), cut.wrong) {
        (Some((offset, parts)), None) if !parts.is_empty() => (offset, parts),
        (_, wrong) => return shell.misused(words, wrong),
    };
    let offset = size(shell, offset)?;
    let parts = lengths(shell, parts)?;
    let written = match filled(&parts, shown.pattern.unwrap_or(WRITE_FILL)) {
        Ok(buffers) => {
            let since = Instant::now();
            let client = shell.image()?.client.clone();
            let operation = Operation::Write {
                offset,
                buffers,
                flags,
            };
            let written = shell.wait(client.request(operation)).await.into_done();
            written.map(|()| since)
        }
        Err(error) => Err(error),
    };
    match written {
        Ok(since) => {
            if let Some(report) = shown.report("wrote", (offset, parts.iter().sum()), since) {
                shell.say(&report);
            }
            Ok(())
        }
        Err(error) => shell.refuse(&format!("writev failed: {error}")),
    }
}

/// `discard`: forgets a range.
pub async fn discard(shell: &mut Shell, words: &[String]) -> Ended {
    let cut = cut(words, "Cq");
    let mut shown = Shown::default();
    for (option, value) in &cut.options {
        take(shell, &mut shown, *option, value)?;
    }
    let (offset, len) = match (cut.operands.as_slice(), cut.wrong) {
        ([offset, len], None) => (offset, len),
        (_, wrong) => return shell.misused(words, wrong),
    };
    let offset = size(shell, offset)?;
    let len = length(shell, len, false)?;
    let since = Instant::now();
    let client = shell.image()?.client.clone();
    if let Err(error) = shell.wait(client.discard(offset, len)).await {
        return shell.refuse(&format!("discard failed: {error}"));
    }
    if let Some(report) = shown.report("discard", (offset, len), since) {
        shell.say(&report);
    }
    Ok(())
}

/// The flag of writes that are durable before they are reported.
pub fn durability(shell: &Shell) -> Result<RequestFlags, Failed> {
    Ok(match shell.image()?.writethrough {
        true => RequestFlags::FUA,
        false => RequestFlags::empty(),
    })
}

/// Takes an option of reports, or prints that it is wrong.
pub fn take(shell: &mut Shell, shown: &mut Shown, option: char, value: &str) -> Ended {
    match shown.take(option, value) {
        Ok(_) => Ok(()),
        Err(why) => shell.refuse(&why),
    }
}

/// A size, or the line that says that it is none.
pub fn size(shell: &mut Shell, text: &str) -> Result<u64, Failed> {
    number::size(text).map_err(|why| {
        shell.say(&why);
        Failed
    })
}

fn length_of_write(shell: &mut Shell, text: &str, flags: RequestFlags) -> Result<u64, Failed> {
    if flags.contains(RequestFlags::NO_FALLBACK) {
        return size(shell, text);
    }
    length(shell, text, true)
}

/// The length of one request.
fn length(shell: &mut Shell, text: &str, may_be_longer: bool) -> Result<u64, Failed> {
    let len = size(shell, text)?;
    if len <= MOST {
        return Ok(len);
    }
    let unless = if may_be_longer { " without -n" } else { "" };
    shell.say(&format!("length cannot exceed {MOST}{unless}, given {text}"));
    Err(Failed)
}

/// The lengths of the buffers of one request.
pub fn lengths(shell: &mut Shell, texts: &[String]) -> Result<Vec<u64>, Failed> {
    let mut parts = Vec::new();
    for text in texts {
        let len = size(shell, text)?;
        if len > MOST {
            shell.say(&format!("Argument '{text}' exceeds maximum size {MOST}"));
            return Err(Failed);
        }
        parts.push(len);
        if parts.iter().sum::<u64>() > MOST {
            shell.say(&format!(
                "The total number of bytes exceed the maximum size {MOST}"
            ));
            return Err(Failed);
        }
    }
    Ok(parts)
}

fn check_aligned(shell: &mut Shell, offset: u64, len: u64) -> Ended {
    for (value, name) in [(offset, "offset"), (len, "count")] {
        if !value.is_multiple_of(SECTOR_SIZE) {
            return shell.refuse(&format!("{value} is not a sector-aligned value for '{name}'"));
        }
    }
    Ok(())
}

/// What a file has, again and again, until there are `len` bytes.
fn from_file(name: &str, len: u64) -> Result<Buffers, Failed> {
    let read = || -> std::io::Result<Vec<u8>> {
        let mut bytes = Vec::new();
        File::open(name)?.take(len).read_to_end(&mut bytes)?;
        Ok(bytes)
    };
    let wrong = |why: &dyn std::fmt::Display| {
        tell(&crate::cli::texts::printable(&format!("{name}: {why}")));
        Failed
    };
    let bytes = read().map_err(|error| wrong(&IoError::from(error)))?;
    if bytes.is_empty() {
        return Err(wrong(&"file is empty"));
    }
    repeated(&bytes, len).map_err(|error| wrong(&error))
}
