//! What is chosen about an image, and the files that it is in.

use std::path::PathBuf;

use millpond_tests::daemon::{Daemon, daemon_in, scratch};
use millpond_tests::pairwise::Choice;
use millpond_tests::program::Program;
use serde_json::{Value, json};
use tempfile::TempDir;

pub const KIB: u64 = 1 << 10;
pub const MIB: u64 = 1 << 20;
/// Bytes of each disk.
pub const SIZE: u64 = 8 * MIB;
/// Bytes of a backing image, which is shorter.
pub const BASE_SIZE: u64 = 3 * MIB;
/// The byte that it is full of.
pub const BASE_BYTE: u8 = 0xb0;

/// The id of the one secret, and what it is.
pub const KEY: &str = "key";
pub const PASSWORD: &str = "a password";

/// What an image is.
#[derive(Debug, Clone, Copy)]
pub struct Kind {
    pub cluster: u64,
    pub refcount_bits: u64,
    pub is_old: bool,
    pub has_subclusters: bool,
    pub data_file: DataFile,
    pub is_zstd: bool,
    pub encryption: Option<&'static str>,
    pub has_bitmaps: bool,
    pub has_snapshots: bool,
    pub backing: Option<&'static str>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DataFile {
    None,
    Mapped,
    Raw,
}

const CLUSTERS: [u64; 4] = [64 * KIB, 512, 4 * KIB, 2 * MIB];
const WIDTHS: [u64; 4] = [16, 1, 8, 64];
const DATA_FILES: [DataFile; 3] = [DataFile::None, DataFile::Mapped, DataFile::Raw];
const ENCRYPTIONS: [Option<&str>; 3] = [None, Some("aes"), Some("luks")];
const BACKINGS: [Option<&str>; 3] = [None, Some("raw"), Some("qcow2")];

/// How many choices there are about each member of [`Kind`], in that order. The first is what goes with everything.
pub const COUNTS: [usize; 10] = [4, 4, 2, 2, 3, 2, 3, 2, 2, 3];

const OLD: Choice = (2, 1);
const SUBCLUSTERS: Choice = (3, 1);
const MAPPED: Choice = (4, 1);
const RAW: Choice = (4, 2);
const SNAPSHOTS: Choice = (8, 1);

/// What does not go together.
pub const FORBIDDEN: &[(Choice, Choice)] = &[
    // Version 2 knows of none of these.
    (OLD, (1, 1)),
    (OLD, (1, 2)),
    (OLD, (1, 3)),
    (OLD, SUBCLUSTERS),
    (OLD, MAPPED),
    (OLD, RAW),
    (OLD, (5, 1)),
    (OLD, (7, 1)),
    // Subclusters are a sector at least.
    (SUBCLUSTERS, (0, 1)),
    (SUBCLUSTERS, (0, 2)),
    // What is in a backing file is not in a raw data file.
    (RAW, (9, 1)),
    (RAW, (9, 2)),
    // A data file's clusters are not counted, so no two tables can share them.
    (MAPPED, SNAPSHOTS),
    (RAW, SNAPSHOTS),
    // One bit does not count two tables.
    (SNAPSHOTS, (1, 1)),
];

impl Kind {
    pub fn of(row: &[usize]) -> Kind {
        Kind {
            cluster: CLUSTERS[row[0]],
            refcount_bits: WIDTHS[row[1]],
            is_old: row[2] == 1,
            has_subclusters: row[3] == 1,
            data_file: DATA_FILES[row[4]],
            is_zstd: row[5] == 1,
            encryption: ENCRYPTIONS[row[6]],
            has_bitmaps: row[7] == 1,
            has_snapshots: row[8] == 1,
            backing: BACKINGS[row[9]],
        }
    }

    /// Whether a new disk reads as anything: all of a raw data file is the disk's from the start, and zeroes there are decrypted.
    pub fn is_noise_at_first(&self) -> bool {
        self.data_file == DataFile::Raw && self.encryption.is_some()
    }

    /// Whether clusters can be stored compressed: neither in a data file nor encrypted.
    pub fn compresses(&self) -> bool {
        self.data_file == DataFile::None && self.encryption.is_none()
    }
}

/// The files of an image, in a folder of their own.
pub struct Image {
    pub dir: TempDir,
    pub kind: Kind,
}

impl Image {
    pub fn new(kind: Kind) -> Image {
        let dir = scratch();
        let image = Image { dir, kind };
        std::fs::write(image.path("password"), PASSWORD).expect("the folder can be written to");
        image
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// A daemon in the folder that knows the secret.
    pub fn serve(&self, program: &Program) -> Daemon {
        let mut daemon = daemon_in(self.dir.path())
            .program(program.clone())
            .nbd_unix()
            .start();
        let secret = json!({"qom-type": "secret", "id": KEY, "file": self.path("password")});
        daemon.qmp.ok("object-add", secret);
        daemon
    }

    /// Options of a node over the image, with all its files.
    pub fn node(&self, read_only: bool) -> Value {
        let file = |name: &str| json!({"driver": "file", "node-name": name, "filename": self.path(name), "discard": "unmap"});
        let mut node = json!({
            "driver": "qcow2", "node-name": "disk", "file": file("image"), "discard": "unmap", "read-only": read_only
        });
        if let Some(format) = self.kind.encryption {
            node["encrypt"] = json!({"format": format, "key-secret": KEY});
        }
        if self.kind.data_file != DataFile::None {
            node["data-file"] = file("data");
        }
        if let Some(format) = self.kind.backing {
            let file = json!({"driver": "file", "node-name": "base-file", "filename": self.path("base")});
            node["backing"] = json!({"driver": format, "node-name": "base", "read-only": true, "file": file});
        }
        node
    }
}
