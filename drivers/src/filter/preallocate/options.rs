//! Options, as QAPI's `BlockdevOptionsPreallocate` has them.

use millpond_messages::graph::Options;
use millpond_messages::{Error, ErrorKind, Result, SECTOR_SIZE};

use crate::api::{Size, parse_options, parse_size};

#[derive(Debug, serde::Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
struct Parsed {
    prealloc_align: Option<Size>,
    prealloc_size: Option<Size>,
}

/// How far the file is grown ahead.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Room {
    /// A grown file ends at a multiple of this.
    align: u64,
    /// Bytes beyond those that are needed.
    size: u64,
}

impl Room {
    /// Reads a node's options. `child_alignment` is what the child asks of requests.
    pub fn parse(options: Options, child_alignment: u32) -> Result<Self> {
        let parsed: Parsed = parse_options(options)?;
        let align = parse_size("prealloc-align", parsed.prealloc_align.as_ref())?.unwrap_or(1 << 20);
        let size = parse_size("prealloc-size", parsed.prealloc_size.as_ref())?.unwrap_or(128 << 20);
        let wrong = |what: String| {
            let text = format!("prealloc-align parameter of preallocate filter is not aligned to {what}");
            Err(Error::new(ErrorKind::InvalidArgument, text))
        };
        if !align.is_multiple_of(SECTOR_SIZE) {
            return wrong(SECTOR_SIZE.to_string());
        }
        if !align.is_multiple_of(u64::from(child_alignment).max(1)) {
            return wrong(format!("underlying node request alignment ({child_alignment})"));
        }
        Ok(Self { align, size })
    }

    /// Where a file is to end that has to reach to `end`; none if no file can.
    pub fn beyond(self, end: u64) -> Option<u64> {
        end.checked_add(self.size)?
            .checked_next_multiple_of(self.align.max(1))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn parse(json: serde_json::Value, child_alignment: u32) -> std::result::Result<Room, String> {
        let serde_json::Value::Object(options) = json else {
            panic!("options are an object")
        };
        Room::parse(options, child_alignment).map_err(|error| error.to_string())
    }

    #[test]
    fn a_file_grows_by_the_size_up_to_the_alignment() {
        let room = parse(json!({}), 1).unwrap();
        assert_eq!(room.beyond(1), Some(129 << 20));
        assert_eq!(room.beyond(1 << 20), Some(129 << 20));
        let small = parse(json!({"prealloc-align": 512, "prealloc-size": 0}), 512).unwrap();
        assert_eq!(small.beyond(513), Some(1024));
        assert_eq!(small.beyond(u64::MAX), None);
        assert_eq!(room.beyond(u64::MAX - 5), None);
        let unaligned = parse(json!({"prealloc-align": 0, "prealloc-size": 7}), 1).unwrap();
        assert_eq!(unaligned.beyond(10), Some(17));
    }

    #[test]
    fn an_alignment_that_the_child_cannot_have_is_refused() {
        let text = "prealloc-align parameter of preallocate filter is not aligned to ";
        assert_eq!(
            parse(json!({"prealloc-align": 100}), 1).unwrap_err(),
            format!("{text}512")
        );
        assert_eq!(
            parse(json!({"prealloc-align": 512}), 4096).unwrap_err(),
            format!("{text}underlying node request alignment (4096)")
        );
    }
}
