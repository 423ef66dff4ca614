//! Makes the images that are served.

use std::fs::File;
use std::io::Write;
use std::path::Path;
use std::process::Command;

use crate::Outcome;
use crate::compare::tools::Tool;

/// Creates an image with these further arguments for `qemu-img create`.
pub fn create(path: &Path, format: &str, size: &str, further: &[&str]) -> Outcome<()> {
    let mut command = Command::new("qemu-img");
    command
        .args(["create", "-q", "-f", format])
        .args(further)
        .arg(path)
        .arg(size);
    let status = command
        .status()
        .map_err(|error| format!("{error}: {}", Tool::QemuImg.missing()))?;
    if status.success() {
        Ok(())
    } else {
        Err(format!("qemu-img create {} failed", path.display()).into())
    }
}

/// Writes a raw file full of bytes that no program takes for zeroes, unless it is there.
pub fn fill(path: &Path, size: u64) -> Outcome<()> {
    const PIECE: usize = 1 << 20;
    if path.exists() {
        return Ok(());
    }
    let piece: Vec<u8> = (0..PIECE).map(|index| (index % 251 + 1) as u8).collect();
    let mut file = File::create(path)?;
    for _ in 0..size / PIECE as u64 {
        file.write_all(&piece)?;
    }
    // What a disk has yet to write would slow the first rows.
    Ok(file.sync_all()?)
}

/// Makes a qcow2 image of a raw file with these further arguments for `qemu-img convert`, unless it is there.
pub fn convert(from: &Path, to: &Path, further: &[&str]) -> Outcome<()> {
    if to.exists() {
        return Ok(());
    }
    let mut command = Command::new("qemu-img");
    command
        .args(["convert", "-f", "raw", "-O", "qcow2"])
        .args(further)
        .arg(from)
        .arg(to);
    let status = command
        .status()
        .map_err(|error| format!("{error}: {}", Tool::QemuImg.missing()))?;
    if !status.success() {
        return Err(format!("qemu-img convert to {} failed", to.display()).into());
    }
    Ok(File::open(to)?.sync_all()?)
}
