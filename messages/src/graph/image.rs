//! What images are opened by.

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::common::OpenFlags;

/// A node's options as QMP's `blockdev-add` takes them: typed JSON, nested or by reference.
pub type Options = Map<String, Value>;

/// Whether an image whose format nobody has said is opened by what it begins with.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Probing {
    /// The format is never guessed.
    Off,
    /// If it is opened read-only. Whoever may write to a raw image can write another format's header into it.
    #[default]
    ReadOnly,
    /// Also for writing, unless that would be to an image that begins with no known format.
    Formats,
    /// Always, as QEMU does: the first sector of an image that is taken to be raw then refuses what would make it look
    /// like another format.
    Always,
}

/// What an image is opened by: a name, options, or both.
#[derive(Debug, Clone, Default)]
pub struct OpenImage {
    /// A path, `protocol:rest`, `json:{...}`, or `json:` with dotted keys inside. Options given beside it win.
    pub filename: Option<String>,
    /// A node that exists, by name. Then there is neither a filename nor an option.
    pub reference: Option<String>,
    /// Options as `blockdev-add` takes them, nested or with dotted keys. Where `driver` is missing, a protocol is found by
    /// the filename and a format by probing. `cache.writeback` is for the holder.
    pub options: Options,
    /// How to open, where options do not say: RDWR, AUTO_RDONLY, NOCACHE, NO_FLUSH, UNMAP, NATIVE_AIO and IO_URING stand for
    /// options of theirs. The others have none.
    pub flags: OpenFlags,
    /// Whether the format may be guessed.
    pub probing: Probing,
}
