//! A copy without any job: the limit of what a job can reach, on the same file system in the same run.

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use super::Place;
use crate::Outcome;

/// Bytes that a thread of the bare copy reads and writes at once.
const PIECE: usize = 1 << 20;

/// The fastest of `cp` and a bare loop of two threads, on the large image.
pub fn large(place: &Place<'_>) -> Outcome<Duration> {
    fastest(&place.image("full"), place.dir)
}

/// The same on the image of half its size.
pub fn half(place: &Place<'_>) -> Outcome<Duration> {
    fastest(&place.image("half"), place.dir)
}

/// `cp` that may share or copy extents, on the raw file.
pub fn reflink(place: &Place<'_>) -> Outcome<Duration> {
    cp(
        &place.dir.join("full.raw"),
        &place.dir.join("limit"),
        "--reflink=auto",
    )
}

fn fastest(source: &Path, dir: &Path) -> Outcome<Duration> {
    let target = dir.join("limit");
    Ok(cp(source, &target, "--sparse=never")?.min(bare(source, &target)?))
}

/// Copies with `cp`, and removes the copy; the time it took.
fn cp(source: &Path, target: &Path, how: &str) -> Outcome<Duration> {
    let begun = Instant::now();
    let status = Command::new("cp").arg(how).args([source, target]).status()?;
    let took = begun.elapsed();
    if !status.success() {
        return Err(format!("cp {} failed", source.display()).into());
    }
    fs::remove_file(target)?;
    Ok(took)
}

/// The same by two threads, each with half of the file.
fn bare(source: &Path, target: &Path) -> Outcome<Duration> {
    let begun = Instant::now();
    let (from, to) = (File::open(source)?, File::create_new(target)?);
    let len = from.metadata()?.len();
    let middle = len / 2;
    let part = |mut at: u64, end: u64| -> std::io::Result<()> {
        let mut room = vec![0; PIECE];
        while at < end {
            let most = usize::try_from(end - at).unwrap_or(PIECE).min(PIECE);
            from.read_exact_at(&mut room[..most], at)?;
            to.write_all_at(&room[..most], at)?;
            at += most as u64;
        }
        Ok(())
    };
    thread::scope(|scope| {
        let first = scope.spawn(|| part(0, middle));
        part(middle, len)?;
        first
            .join()
            .map_err(|_| std::io::Error::other("a thread of the copy panicked"))?
    })?;
    let took = begun.elapsed();
    fs::remove_file(target)?;
    Ok(took)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_copies_leave_nothing_behind() {
        let dir = tempfile::tempdir().unwrap();
        let (source, target) = (dir.path().join("a"), dir.path().join("b"));
        fs::write(&source, vec![7; 3 * PIECE + 1]).unwrap();
        cp(&source, &target, "--sparse=never").unwrap();
        bare(&source, &target).unwrap();
        assert!(!target.exists());
        assert!(cp(&target, &source, "--sparse=never").is_err());
    }
}
