//! What an image has: its length, what is allocated of it, what its format says; and how its length changes.

use millpond_messages::graph::{DescribeImage, ListDrivers, NamedNodes, Truncate};
use millpond_messages::io::{Operation, Preallocation};
use millpond_messages::qapi::in_qdict_order;
use millpond_messages::{
    BlockStatus, ErrorKind, IoError, IoResult, Range, RequestFlags, SECTOR_SIZE, StatusFlags,
};
use serde_json::Value;

use super::report;
use super::shell::{Ended, Failed, Shell};
use super::table::Zone;
use super::transfer::size;
use super::words::cut;

/// Drivers that are listed as protocols too, though they store nothing themselves.
const NAMED_AS_PROTOCOLS: &[&str] = &["blkdebug", "blkverify"];

/// `length`: tells the image's length.
pub async fn length(shell: &mut Shell) -> Ended {
    match length_of(shell).await {
        Ok(len) => {
            shell.say(&report::size(len));
            Ok(())
        }
        Err(error) => shell.refuse(&format!("getlength: {error}")),
    }
}

/// The length of the image, the last sector whole.
async fn length_of(shell: &mut Shell) -> IoResult<u64> {
    let client = shell.image().map_err(|Failed| IoError::NoMedium)?.client.clone();
    let sectors = shell.wait(client.sectors()).await?;
    Ok(sectors.saturating_mul(SECTOR_SIZE))
}

/// `flush`: makes durable what was written.
pub async fn flush(shell: &mut Shell) -> Ended {
    let client = shell.image()?.client.clone();
    shell.wait(client.flush()).await.map_err(|_| Failed)
}

/// `truncate`: changes the image's length.
pub async fn truncate(shell: &mut Shell, words: &[String]) -> Ended {
    let cut = cut(words, "m:");
    let mut preallocation = Preallocation::Off;
    for (_, value) in &cut.options {
        preallocation = match value.as_str() {
            "off" => Preallocation::Off,
            "metadata" => Preallocation::Metadata,
            "falloc" => Preallocation::Falloc,
            "full" => Preallocation::Full,
            other => return shell.complain(&format!("Invalid preallocation mode '{other}'")),
        };
    }
    let len = match (cut.operands.first(), cut.wrong) {
        (Some(len), None) => len,
        (_, wrong) => return shell.misused(words, wrong),
    };
    let request = Truncate {
        size: size(shell, len)?,
        node_name: shell.image()?.node.clone(),
        exact: false,
        preallocation,
        flags: RequestFlags::empty(),
    };
    let asked = shell.graph.ask(request);
    match shell.wait(asked).await {
        Ok(()) => Ok(()),
        Err(error) => shell.complain_of(&error),
    }
}

/// `alloc`: counts what is allocated in a range.
pub async fn alloc(shell: &mut Shell, words: &[String]) -> Ended {
    let mut numbers = Vec::new();
    for word in words.iter().skip(1) {
        numbers.push(size(shell, word)?);
    }
    let offset = numbers.first().copied().unwrap_or(0);
    let count = numbers.get(1).copied().unwrap_or(SECTOR_SIZE);
    let len = match length_of(shell).await {
        Ok(len) => len,
        Err(error) => return shell.refuse(&format!("getlength: {error}")),
    };
    let range = Range::between(offset, offset.saturating_add(count).min(len).max(offset));
    let mut allocated = 0;
    let counted = each_extent(shell, range, |extent| {
        if extent.flags.contains(StatusFlags::ALLOCATED) {
            allocated += extent.len;
        }
    });
    if let Err(error) = counted.await {
        return shell.refuse(&format!("is_allocated failed: {error}"));
    }
    let line = format!(
        "{allocated}/{} bytes allocated at offset {}",
        range.len(),
        report::size(offset)
    );
    shell.say(&line);
    Ok(())
}

/// `map`: tells what is allocated.
pub async fn map(shell: &mut Shell) -> Ended {
    let len = match length_of(shell).await {
        Ok(len) => len,
        Err(error) => return shell.complain(&format!("Failed to query image length: {error}")),
    };
    let mut runs: Vec<(u64, bool)> = Vec::new();
    let mapped = each_extent(shell, Range::between(0, len), |extent| {
        let is_allocated = extent.flags.contains(StatusFlags::ALLOCATED);
        match runs.last_mut() {
            Some((run, same)) if *same == is_allocated => *run += extent.len,
            _ => runs.push((extent.len, is_allocated)),
        }
    });
    if let Err(error) = mapped.await {
        return shell.complain(&format!("Failed to get allocation status: {error}"));
    }
    let mut offset = 0;
    for (len, is_allocated) in runs {
        let word = if is_allocated {
            "    allocated"
        } else {
            "not allocated"
        };
        let line = format!(
            "{} (0x{len:x}) bytes {word} at offset {} (0x{offset:x})",
            report::size(len),
            report::size(offset)
        );
        shell.say(&line);
        offset += len;
    }
    Ok(())
}

/// Looks at what a range of the image itself is made of, whatever is below.
async fn each_extent(shell: &mut Shell, range: Range, mut look: impl FnMut(&BlockStatus)) -> IoResult<()> {
    let client = shell.image().map_err(|Failed| IoError::NoMedium)?.client.clone();
    let mut rest = range;
    while !rest.is_empty() {
        let operation = Operation::Map {
            range: rest,
            want_zero: false,
            whole_chain: false,
        };
        let extents = shell.wait(client.request(operation)).await.into_map()?;
        let before = rest;
        for extent in &extents {
            let len = extent.len.min(rest.len());
            look(&BlockStatus { len, ..*extent });
            rest = rest.after(len);
        }
        if rest == before {
            return Err(IoError::Invalid);
        }
    }
    Ok(())
}

/// `info`: describes the image.
pub async fn info(shell: &mut Shell) -> Ended {
    let node_name = shell.image()?.node.clone();
    let asked = shell.graph.ask(DescribeImage {
        node_name: node_name.clone(),
    });
    let found = match shell.wait(asked).await {
        Ok(info) => Some(info),
        Err(error) if error.kind() == ErrorKind::Unsupported => None,
        Err(_) => return Err(Failed),
    };
    let asked = shell.graph.ask(NamedNodes { flat: true });
    let nodes = shell.wait(asked).await.map_err(|_| Failed)?;
    let asked = shell.graph.ask(ListDrivers { read_only: true });
    let drivers = shell.wait(asked).await.map_err(|_| Failed)?;
    let mut nodes = nodes.into_iter();
    let node = nodes
        .find(|node| node.node_name.as_deref() == Some(&node_name))
        .ok_or(Failed)?;
    let driver = node.drv;
    let stores = drivers
        .iter()
        .any(|facts| facts.name == driver && facts.is_protocol);
    let times = if stores || NAMED_AS_PROTOCOLS.contains(&driver.as_str()) {
        2
    } else {
        1
    };
    for _ in 0..times {
        shell.say(&format!("format name: {driver}"));
    }
    // Where a driver tells nothing of its image, that is all.
    let info = found.ok_or(Failed)?;
    shell.say(&format!("cluster size: {}", report::size(info.cluster_size)));
    shell.say(&format!(
        "vm state offset: {}",
        report::size(info.vm_state_offset)
    ));
    let specific = node.image.format_specific;
    let specific = specific.and_then(|specific| serde_json::to_value(specific).ok());
    if let Some(data) = specific.as_ref().and_then(|specific| specific.get("data"))
        && data.as_object().is_some_and(|data| !data.is_empty())
    {
        shell.say("Format specific information:");
        let mut lines = String::new();
        describe(data, 1, &mut lines);
        shell.out.text(&lines);
    }
    Ok(())
}

/// The members of a value, one a line.
fn describe(value: &Value, depth: usize, lines: &mut String) {
    let mut member = |name: String, value: &Value| {
        lines.push_str(&"    ".repeat(depth));
        lines.push_str(&name);
        lines.push(':');
        match value {
            Value::Object(_) | Value::Array(_) => {
                lines.push('\n');
                describe(value, depth + 1, lines);
            }
            Value::String(text) => lines.push_str(&format!(" {text}\n")),
            other => lines.push_str(&format!(" {other}\n")),
        }
    };
    match value {
        Value::Object(members) => {
            for (name, value) in in_qdict_order(members) {
                member(name.replace('-', " "), value);
            }
        }
        Value::Array(values) => {
            for (at, value) in values.iter().enumerate() {
                member(format!("[{at}]"), value);
            }
        }
        _ => {}
    }
}

/// What would be done to zones, which no image has here.
pub fn zone(shell: &mut Shell, zone: Zone, words: &[String]) -> Ended {
    let verb = match zone {
        Zone::Append => {
            let cut = cut(words, "");
            if let Some(wrong) = cut.wrong {
                crate::log::tell(&wrong);
            }
            "append"
        }
        Zone::Report => "report",
        Zone::Change(verb) => verb,
    };
    for word in words.iter().skip(1).filter(|word| !word.starts_with('-')) {
        size(shell, word)?;
    }
    shell.refuse(&format!("zone {verb} failed: {}", IoError::NotSupported))
}
