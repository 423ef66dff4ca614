//! The values of `-T`: `[[enable=]FILTER][,events=FILE][,file=FILE]`, as QEMU's option has them, with filters of ours.

use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

use crate::log;
use millpond_messages::IoError;

/// The longest file of filters, in bytes.
const LONGEST: u64 = 1 << 20;

/// The levels by their names.
const LEVELS: &[&str] = &["off", "error", "warn", "info", "debug", "trace"];

/// What the targets of messages begin with.
const ROOTS: &[&str] = &[
    "millpond",
    "millpond_drivers",
    "millpond_engine",
    "millpond_graph",
    "millpond_messages",
    "millpond_ring",
];

/// What all values of `-T` ask for.
#[derive(Debug, Default)]
pub struct Filters {
    /// What is logged besides warnings: directives, in their order.
    pub directives: Vec<String>,
    /// Where to, if not to standard error.
    pub file: Option<PathBuf>,
    /// What to warn of.
    pub warnings: Vec<String>,
}

impl Filters {
    /// Reads the values, each with the text that it was typed as. Files are opened: what cannot be is told before anything
    /// is started.
    ///
    /// # Errors
    /// QEMU's texts, with what was typed before them: a key that is not known, or a file that cannot be opened.
    pub fn parse(values: impl IntoIterator<Item = (String, String)>) -> Result<Self, String> {
        let mut filters = Self::default();
        for (typed, value) in values {
            for part in value.split(',').filter(|part| !part.is_empty()) {
                filters.part(&typed, part)?;
            }
        }
        Ok(filters)
    }

    fn part(&mut self, typed: &str, part: &str) -> Result<(), String> {
        if let Some(path) = part.strip_prefix("file=") {
            let opened = log::open_file(Path::new(path)).and_then(|_| std::path::absolute(path));
            let failed = |error| format!(" {typed}: Error opening logfile {path}: {}", log::why(&error));
            self.file = Some(opened.map_err(failed)?);
        } else if let Some(path) = part.strip_prefix("events=") {
            self.events(path)?;
        } else {
            let filter = part.strip_prefix("enable=").unwrap_or(part);
            match filter.split_once('=') {
                Some((key, _)) if filter == part && !is_directive(filter) => {
                    return Err(format!(" {typed}: Invalid parameter '{key}'"));
                }
                _ => self.enable(filter, &format!(" {typed}")),
            }
        }
        Ok(())
    }

    /// A file with a filter a line; `#` begins a comment, and `-` turns a filter off.
    fn events(&mut self, path: &str) -> Result<(), String> {
        let text = read(Path::new(path)).map_err(|why| format!("{path}: {why}"))?;
        for (number, line) in text.lines().enumerate() {
            let line = line.trim();
            let place = format!("{path}:{}", number + 1);
            match line.strip_prefix('-') {
                _ if line.is_empty() || line.starts_with('#') => {}
                Some(off) => self.enable(&format!("{off}=off"), &place),
                None => self.enable(line, &place),
            }
        }
        Ok(())
    }

    fn enable(&mut self, filter: &str, place: &str) {
        if is_directive(filter) {
            self.directives.push(filter.to_owned());
        } else {
            let name = filter.strip_suffix("=off").unwrap_or(filter);
            self.warnings
                .push(format!("{place}: warning: trace event '{name}' does not exist"));
        }
    }
}

fn read(path: &Path) -> Result<String, IoError> {
    let mut text = String::new();
    File::open(path)?.take(LONGEST).read_to_string(&mut text)?;
    Ok(text)
}

/// Whether a filter is a level, or names a part of the program.
fn is_directive(filter: &str) -> bool {
    let (target, level) = match filter.rsplit_once('=') {
        Some((target, level)) if LEVELS.contains(&level) => (target, Some(level)),
        _ => (filter, None),
    };
    let root = target.split([':', '[']).next().unwrap_or_default();
    let is_known = ROOTS.contains(&root) || target.starts_with('[') || LEVELS.contains(&filter);
    is_known && (level.is_some() || !filter.contains('=') || filter.ends_with(']'))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(value: &str) -> Result<Filters, String> {
        Filters::parse([(format!("-T {value}"), value.to_owned())])
    }

    #[test]
    fn keys_and_filters_are_told_apart() {
        let filters = parse(
            "debug,enable=millpond_engine::node=trace,millpond_drivers,millpond_engine::node[request]=info",
        )
        .unwrap();
        assert_eq!(
            filters.directives,
            [
                "debug",
                "millpond_engine::node=trace",
                "millpond_drivers",
                "millpond_engine::node[request]=info"
            ]
        );
        assert!(filters.warnings.is_empty() && filters.file.is_none());
        assert_eq!(
            parse("enable=qcow2_*,bar=1").unwrap_err(),
            " -T enable=qcow2_*,bar=1: Invalid parameter 'bar'"
        );
        assert_eq!(
            parse("nope").unwrap().warnings,
            [" -T nope: warning: trace event 'nope' does not exist"]
        );
    }

    #[test]
    fn files_of_filters_have_comments_and_turn_off() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("events").display().to_string();
        std::fs::write(
            &path,
            "# ours\n\nmillpond::graph=debug\n-millpond_drivers::format::qcow2\nnope\n",
        )
        .unwrap();
        let filters = parse(&format!("events={path},file={path}.log")).unwrap();
        assert_eq!(
            filters.directives,
            ["millpond::graph=debug", "millpond_drivers::format::qcow2=off"]
        );
        assert_eq!(
            filters.warnings,
            [format!("{path}:5: warning: trace event 'nope' does not exist")]
        );
        assert!(filters.file.is_some());
        std::fs::write(&path, [0; 512]).unwrap();
        let refused = parse(&format!("file={path}")).unwrap_err();
        assert!(refused.ends_with("the file exists and is no text"), "{refused}");
        assert_eq!(std::fs::read(&path).unwrap(), [0; 512]);
        let refused = parse("events=/nonexistent/x").unwrap_err();
        assert_eq!(refused, "/nonexistent/x: No such file or directory");
        let refused = parse("file=/nonexistent/x").unwrap_err();
        assert_eq!(
            refused,
            " -T file=/nonexistent/x: Error opening logfile /nonexistent/x: No such file or directory"
        );
    }
}
