//! The same command lines given to one of QEMU's tools and to ours in its place: both must say and do the same.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use tempfile::TempDir;

use crate::program::millpond;
use crate::tool::{Run, hint, run_with};

/// Two folders with the same files, in the one of which QEMU's tools run and in the other ours.
pub struct Both {
    dir: TempDir,
}

/// One of the two.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Side {
    /// Our tools, in their folder.
    Ours,
    /// QEMU's tools, in theirs.
    Theirs,
}

/// What came of a command line in both folders, as far as it is the same.
#[derive(Debug, PartialEq, Eq)]
pub struct Said {
    /// The exit code; none if a signal ended it.
    pub code: Option<i32>,
    /// Standard output.
    pub stdout: String,
    /// Standard error.
    pub stderr: String,
}

impl Default for Both {
    fn default() -> Self {
        Self::new()
    }
}

impl Both {
    /// Two empty folders.
    #[must_use]
    pub fn new() -> Self {
        let dir = tempfile::tempdir().expect("a temporary folder");
        for name in ["ours", "theirs", "bin"] {
            fs::create_dir(dir.path().join(name)).expect("a folder");
        }
        for tool in ["qemu-img", "qemu-io", "qemu-nbd"] {
            symlink(millpond(), dir.path().join("bin").join(tool)).expect("a link");
        }
        Self { dir }
    }

    /// The folder in which our tools run.
    #[must_use]
    pub fn ours(&self) -> PathBuf {
        self.dir.path().join("ours")
    }

    /// The folder in which QEMU's tools run.
    #[must_use]
    pub fn theirs(&self) -> PathBuf {
        self.dir.path().join("theirs")
    }

    /// The folder in which the tools of a side run.
    #[must_use]
    pub fn folder(&self, side: Side) -> PathBuf {
        match side {
            Side::Ours => self.ours(),
            Side::Theirs => self.theirs(),
        }
    }

    /// The file of a tool of a side, or its name where it is found where programs are.
    #[must_use]
    pub fn program(&self, side: Side, name: &str) -> PathBuf {
        match side {
            Side::Ours => self.dir.path().join("bin").join(name),
            Side::Theirs => PathBuf::from(name),
        }
    }

    /// Runs a command line with the tools of one side, in its folder.
    #[track_caller]
    pub fn run(&self, side: Side, words: &[&str]) -> Run {
        let bin = match side {
            Side::Ours => self.dir.path().join("bin"),
            Side::Theirs => PathBuf::new(),
        };
        run_in(&self.folder(side), words, &bin)
    }

    /// Has QEMU's tool make or change files, the same in both folders. Words are parted by blanks.
    #[track_caller]
    pub fn prepare(&self, line: &str) {
        self.prepare_words(&words(line));
    }

    /// The same for words that may have blanks.
    #[track_caller]
    pub fn prepare_words(&self, words: &[&str]) {
        for folder in [self.ours(), self.theirs()] {
            let run = run_in(&folder, words, Path::new(""));
            assert_eq!(run.code, Some(0), "{words:?}:\n{}{}", run.stdout, run.stderr);
        }
    }

    /// Writes into an image with QEMU's tool, the same in both folders: what [`prepare`](Self::prepare) cannot say, as each
    /// write is one word.
    #[track_caller]
    pub fn write_image(&self, format: &str, name: &str, writes: &[&str]) {
        let mut words = vec!["qemu-io", "-f", format];
        for write in writes {
            words.extend(["-c", write]);
        }
        words.push(name);
        self.prepare_words(&words);
    }

    /// Writes a file of these bytes into both folders.
    #[track_caller]
    pub fn write(&self, name: &str, bytes: &[u8]) {
        for folder in [self.ours(), self.theirs()] {
            fs::write(folder.join(name), bytes).expect("a file is written");
        }
    }

    /// Runs a command line, whose words are parted by blanks, with both tools. They must say the same.
    #[track_caller]
    pub fn same(&self, line: &str) -> Said {
        self.same_but_for(line, |text| text)
    }

    /// The same for a command line whose texts have parts that differ from run to run: `normal` makes them equal.
    #[track_caller]
    pub fn same_but_for(&self, line: &str, normal: impl Fn(String) -> String) -> Said {
        self.same_words(&words(line), normal)
    }

    /// The same for words that may have blanks.
    #[track_caller]
    pub fn same_words(&self, words: &[&str], normal: impl Fn(String) -> String) -> Said {
        let said = |run: Run| Said {
            code: run.code,
            stdout: normal(run.stdout),
            stderr: normal(run.stderr),
        };
        let theirs = said(run_in(&self.theirs(), words, Path::new("")));
        let ours = said(run_in(&self.ours(), words, &self.dir.path().join("bin")));
        let line = words.join(" ");
        assert_eq!(
            ours.stderr, theirs.stderr,
            "{line}: left is ours, right is QEMU's"
        );
        assert_eq!(
            ours.stdout, theirs.stdout,
            "{line}: left is ours, right is QEMU's"
        );
        assert_eq!(ours.code, theirs.code, "{line}: left is ours, right is QEMU's");
        ours
    }

    /// Fails unless a file is the same in both folders, byte for byte, or is in neither.
    #[track_caller]
    pub fn assert_same_bytes(&self, name: &str) {
        let (ours, theirs) = (
            fs::read(self.ours().join(name)),
            fs::read(self.theirs().join(name)),
        );
        assert!(ours.ok() == theirs.ok(), "{name} differs");
    }

    /// Fails unless an image of ours shows what QEMU's does, and `qemu-img check` finds no fault in it.
    #[track_caller]
    pub fn assert_same_image(&self, format: &str, name: &str) {
        let path = |folder: PathBuf| folder.join(name).display().to_string();
        let (ours, theirs) = (path(self.ours()), path(self.theirs()));
        crate::image::assert_identical((format, &ours), (format, &theirs));
        if format == "qcow2" {
            crate::image::assert_clean(Path::new(&ours));
        }
    }
}

fn words(line: &str) -> Vec<&str> {
    line.split_whitespace().collect()
}

/// Runs `words` in `folder`; the program is taken from `bin`, or found where programs are.
#[track_caller]
fn run_in(folder: &Path, words: &[&str], bin: &Path) -> Run {
    let (program, arguments) = words.split_first().expect("a command line");
    let run = run_with(bin.join(program), arguments, |command| {
        command.current_dir(folder);
    });
    assert_ne!(run.code, Some(127), "{program} is not installed{}", hint(program));
    Run {
        line: words.join(" "),
        ..run
    }
}
