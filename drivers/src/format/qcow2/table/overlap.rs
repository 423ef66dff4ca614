//! The guard against writing over metadata: which clusters hold some, and which kinds the user wants guarded.

use std::collections::HashMap;

use millpond_messages::{Error, ErrorKind, Result};
use serde_json::Value;

use crate::format::qcow2::layout::space::HostCluster;

/// A kind of metadata. The order is that of QEMU's names.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u16)]
pub(crate) enum Kind {
    MainHeader = 1,
    ActiveL1 = 1 << 1,
    ActiveL2 = 1 << 2,
    RefcountTable = 1 << 3,
    RefcountBlock = 1 << 4,
    SnapshotTable = 1 << 5,
    InactiveL1 = 1 << 6,
    InactiveL2 = 1 << 7,
    BitmapDirectory = 1 << 8,
}

const KINDS: [(Kind, &str); 9] = [
    (Kind::MainHeader, "main-header"),
    (Kind::ActiveL1, "active-l1"),
    (Kind::ActiveL2, "active-l2"),
    (Kind::RefcountTable, "refcount-table"),
    (Kind::RefcountBlock, "refcount-block"),
    (Kind::SnapshotTable, "snapshot-table"),
    (Kind::InactiveL1, "inactive-l1"),
    (Kind::InactiveL2, "inactive-l2"),
    (Kind::BitmapDirectory, "bitmap-directory"),
];

impl Kind {
    /// How messages to people call it.
    pub const fn description(self) -> &'static str {
        match self {
            Self::MainHeader => "qcow2_header",
            Self::ActiveL1 => "active L1 table",
            Self::ActiveL2 => "active L2 table",
            Self::RefcountTable => "refcount table",
            Self::RefcountBlock => "refcount block",
            Self::SnapshotTable => "snapshot table",
            Self::InactiveL1 => "inactive L1 table",
            Self::InactiveL2 => "inactive L2 table",
            Self::BitmapDirectory => "bitmap directory",
        }
    }
}

/// The kinds that are guarded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Guarded(u16);

const CONSTANT: u16 =
    Kind::MainHeader as u16 | Kind::ActiveL1 as u16 | Kind::RefcountTable as u16 | Kind::SnapshotTable as u16;
const CACHED: u16 = CONSTANT
    | Kind::ActiveL2 as u16
    | Kind::RefcountBlock as u16
    | Kind::InactiveL1 as u16
    | Kind::BitmapDirectory as u16;
const ALL: u16 = CACHED | Kind::InactiveL2 as u16;

impl Guarded {
    /// Whether it guards against nothing at all.
    pub const fn is_empty(self) -> bool {
        self.0 == 0
    }

    /// Whether this kind is.
    pub const fn has(self, kind: Kind) -> bool {
        self.0 & kind as u16 != 0
    }

    /// Reads the `overlap-check` option: a template's name, or an object with `template` and a switch for each kind.
    pub fn parse(option: Option<&Value>) -> Result<Self> {
        match option {
            None => Ok(Self(CACHED)),
            Some(Value::String(name)) => template(name).map(Self),
            Some(Value::Object(fields)) => {
                let mut mask = match fields.get("template") {
                    None => CACHED,
                    Some(Value::String(name)) => template(name)?,
                    Some(_) => return Err(wrong("overlap-check.template")),
                };
                for (name, value) in fields.iter().filter(|(name, _)| *name != "template") {
                    let Some((kind, _)) = KINDS.iter().find(|(_, known)| known == name) else {
                        let text = format!("Parameter 'overlap-check.{name}' is unexpected");
                        return Err(Error::new(ErrorKind::InvalidArgument, text));
                    };
                    match value {
                        Value::Bool(true) => mask |= *kind as u16,
                        Value::Bool(false) => mask &= !(*kind as u16),
                        Value::String(text) if text == "on" => mask |= *kind as u16,
                        Value::String(text) if text == "off" => mask &= !(*kind as u16),
                        _ => return Err(wrong(&format!("overlap-check.{name}"))),
                    }
                }
                Ok(Self(mask))
            }
            Some(_) => Err(wrong("overlap-check")),
        }
    }
}

fn wrong(name: &str) -> Error {
    Error::new(
        ErrorKind::InvalidArgument,
        format!("Invalid parameter type for '{name}'"),
    )
}

fn template(name: &str) -> Result<u16> {
    match name {
        "none" => Ok(0),
        "constant" => Ok(CONSTANT),
        "cached" => Ok(CACHED),
        "all" => Ok(ALL),
        other => Err(Error::new(
            ErrorKind::InvalidArgument,
            format!(
                "Unsupported value '{other}' for qcow2 option 'overlap-check'. Allowed are any of the following: \
                 none, constant, cached, all"
            ),
        )),
    }
}

/// Groups of 64 clusters beyond this many are not tracked: a crafted image must not make memory grow without end.
const MAX_GROUPS: usize = 1 << 20;

/// The clusters that hold metadata, 64 to a word: the quick test before every write. Which kind it is matters only when
/// the test hits, and is found the slow way then.
#[derive(Debug, Default)]
pub(crate) struct MetadataMap {
    groups: HashMap<u64, u64>,
}

impl MetadataMap {
    /// Marks `count` clusters from `first` on.
    pub fn add(&mut self, first: HostCluster, count: u64) {
        for cluster in first.row(count).map(HostCluster::get) {
            if self.groups.len() < MAX_GROUPS || self.groups.contains_key(&(cluster >> 6)) {
                *self.groups.entry(cluster >> 6).or_default() |= 1 << (cluster & 63);
            }
        }
    }

    /// Takes marks off clusters again.
    pub fn remove(&mut self, first: HostCluster, count: u64) {
        for cluster in first.row(count).map(HostCluster::get) {
            if let Some(word) = self.groups.get_mut(&(cluster >> 6)) {
                *word &= !(1 << (cluster & 63));
                if *word == 0 {
                    self.groups.remove(&(cluster >> 6));
                }
            }
        }
    }

    /// The first marked cluster among `count` from `first`.
    pub fn find(&self, first: HostCluster, count: u64) -> Option<HostCluster> {
        let end = first.saturating_add(count).get();
        let mut cluster = first.get();
        while cluster < end {
            let word = self.groups.get(&(cluster >> 6)).copied().unwrap_or(0) >> (cluster & 63);
            if word != 0 {
                let found = cluster + u64::from(word.trailing_zeros());
                return (found < end).then(|| HostCluster::new(found));
            }
            cluster = (cluster | 63) + 1;
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn marked_clusters_are_found() {
        let mut map = MetadataMap::default();
        let at = HostCluster::new;
        map.add(at(100), 30);
        assert_eq!(
            (map.find(at(0), 100), map.find(at(0), 101), map.find(at(129), 9)),
            (None, Some(at(100)), Some(at(129)))
        );
        map.remove(at(100), 29);
        assert_eq!(
            (map.find(at(0), 129), map.find(at(64), 1000)),
            (None, Some(at(129)))
        );
    }

    #[test]
    fn overlap_check_takes_a_name_or_switches() {
        let parse = |json| Guarded::parse(Some(&json));
        assert!(parse(serde_json::json!("none")).unwrap().is_empty());
        let some = parse(serde_json::json!({"template": "none", "active-l2": true})).unwrap();
        assert!(some.has(Kind::ActiveL2) && !some.has(Kind::MainHeader));
        assert!(
            parse(serde_json::json!("often"))
                .unwrap_err()
                .to_string()
                .contains("none, constant, cached")
        );
    }
}
