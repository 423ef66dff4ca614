//! A chain of four qcow2 images, and the jobs on it that are refused.

use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use crate::{image, tool};

/// Bytes in a mebibyte.
pub const MIB: u64 = 1 << 20;

/// Bytes of the disk that the images show.
pub const SIZE: u64 = 6 * MIB;

/// How many images there are.
pub const LAYERS: usize = 4;

/// The path of an image of the chain.
pub fn path(dir: &Path, number: usize) -> PathBuf {
    dir.join(format!("{number}.qcow2"))
}

/// Makes the images of the chain, each with data and zeroes of its own.
pub fn make(dir: &Path) {
    for number in 0..LAYERS {
        let layer = path(dir, number);
        match number {
            0 => image::create(&layer, "qcow2", "", SIZE),
            _ => {
                let below = path(dir, number - 1);
                image::create_overlay(&layer, "", &below, "qcow2", None);
            }
        }
        let layer = layer.display().to_string();
        let write = format!("write -P {} {number}M 2M", number + 1);
        let zero = format!("write -z {} 64k", (number as u64 + 1) * MIB);
        tool::qemu_io(&["-f", "qcow2", &layer], &[&write, &zero]);
    }
}

/// Streams and commits that cannot be, with the chain open as `n0` to `n3`, and a node `u` that is not in it.
pub fn refused_jobs(dir: &Path) -> Vec<(&'static str, Value)> {
    let [zero, two] = [0, 2].map(|number| path(dir, number));
    let streams = [
        json!({"device": "n3", "base": zero, "base-node": "n0"}),
        json!({"device": "n3", "base": zero, "bottom": "n0"}),
        json!({"device": "n3", "base-node": "n0", "bottom": "n0"}),
        json!({"device": "n3", "base": "missing"}),
        json!({"device": "n3", "base-node": "missing"}),
        json!({"device": "n3", "base-node": "n3"}),
        json!({"device": "n3", "base-node": "u"}),
        json!({"device": "n3", "bottom": "missing"}),
        json!({"device": "n3", "bottom": "u"}),
        json!({"device": "n3", "backing-file": "x"}),
        json!({"device": "n3", "on-error": "never"}),
        json!({"device": "n3", "speed": "fast"}),
        json!({"device": "n3", "filter-node-name": "n1"}),
        json!({"device": "n3", "filter-node-name": "#1"}),
    ];
    let commits = [
        json!({"device": "n2"}),
        json!({"device": "n3", "top-node": "n2", "top": two}),
        json!({"device": "n3", "top-node": "missing"}),
        json!({"device": "n3", "top-node": "u"}),
        json!({"device": "n3", "top": "missing"}),
        json!({"device": "n3", "top-node": "n2", "base-node": "n0", "base": zero}),
        json!({"device": "n3", "top-node": "n2", "base-node": "missing"}),
        json!({"device": "n3", "top-node": "n1", "base-node": "n2"}),
        json!({"device": "n3", "top-node": "n1", "base": "missing"}),
        json!({"device": "n3", "top-node": "n1", "base-node": "n1"}),
        json!({"device": "n3", "top-node": "n0"}),
        json!({"device": "n3", "backing-file": "x"}),
        json!({"device": "u"}),
    ];
    let streams = streams.into_iter().map(|stream| ("block-stream", stream));
    let commits = commits.into_iter().map(|commit| ("block-commit", commit));
    streams.chain(commits).collect()
}
