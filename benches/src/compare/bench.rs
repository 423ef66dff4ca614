//! What every row needs: the programs, where to work, and how long.

use std::path::{Path, PathBuf};

use super::tools::Tool;
use super::{CompareArguments, Group};
use crate::Outcome;
use crate::qmp::Monitor;
use crate::server::Program;

/// A side by side in progress.
#[derive(Debug)]
pub struct Bench<'a> {
    arguments: &'a CompareArguments,
    dir: PathBuf,
    disk_dir: PathBuf,
    peer: Option<Program>,
    ours: Program,
}

impl<'a> Bench<'a> {
    /// Makes folders of its own below those that the arguments name, and looks for the peer.
    pub fn new(arguments: &'a CompareArguments) -> Outcome<Bench<'a>> {
        if !arguments.millpond.is_file() {
            return Err(format!(
                "{} is not there: build it with cargo build --profile dist",
                arguments.millpond.display()
            )
            .into());
        }
        let own = format!("millpond-compare-{}", std::process::id());
        let (dir, disk_dir) = (arguments.dir.join(&own), arguments.disk_dir.join(&own));
        for folder in [&dir, &disk_dir] {
            std::fs::create_dir_all(folder).map_err(|error| format!("{}: {error}", folder.display()))?;
        }
        Ok(Bench {
            arguments,
            dir,
            disk_dir,
            peer: Tool::Peer.find().map(|_| Program::peer()),
            ours: Program::millpond(arguments.millpond.clone()),
        })
    }

    /// A folder in memory.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// A folder on a disk.
    pub fn disk_dir(&self) -> &Path {
        &self.disk_dir
    }

    /// The peer, if it is installed.
    pub fn peer(&self) -> Option<&Program> {
        self.peer.as_ref()
    }

    /// Millpond.
    pub fn ours(&self) -> &Program {
        &self.ours
    }

    /// The peer, if it is installed, and Millpond, in this order.
    pub fn programs(&self) -> Vec<&Program> {
        self.peer.iter().chain([&self.ours]).collect()
    }

    /// A daemon without nodes of each program.
    pub fn monitors(&self) -> Outcome<Vec<(Monitor, &'static str)>> {
        let start = |program: &Program| Ok((Monitor::start(program, &self.dir)?, program.name));
        self.programs().into_iter().map(start).collect()
    }

    /// What the programs showed, with nothing in the peer's place if it is not installed.
    pub fn beside_peer<T>(&self, mut runs: Vec<Vec<T>>) -> Vec<Vec<T>> {
        if self.peer.is_none() {
            runs.insert(0, Vec::new());
        }
        runs
    }

    /// Whether a row of this name is asked for. It is announced, since a table comes only at the end.
    pub fn wants(&self, work: &str) -> bool {
        let wanted = work.contains(&self.arguments.only);
        if wanted {
            eprintln!("{work}");
        }
        wanted
    }

    /// Whether rows of this kind are asked for.
    pub fn wants_group(&self, group: Group) -> bool {
        self.arguments.group.is_none_or(|only| only == group)
    }

    /// Runs of each program.
    pub fn runs(&self) -> u32 {
        if self.quick() {
            1
        } else {
            self.arguments.runs.max(1)
        }
    }

    /// Seconds a run.
    pub fn seconds(&self) -> f64 {
        if self.quick() {
            self.arguments.seconds.min(0.2)
        } else {
            self.arguments.seconds
        }
    }

    /// Where a plot of this name goes, and how the tables refer to it; `None` if nothing is to be written.
    pub fn plot(&self, name: &str) -> Option<(PathBuf, String)> {
        let output = self.arguments.output.as_ref()?;
        let file = format!("{}-{name}.svg", output.file_stem()?.to_string_lossy());
        Some((output.with_file_name(&file), file))
    }

    /// Where criterion's results are.
    pub fn criterion(&self) -> &Path {
        &self.arguments.criterion
    }

    /// Whether it is only to be seen that everything works.
    pub fn quick(&self) -> bool {
        self.arguments.quick
    }

    /// Seconds that a daemon may take for adding nodes.
    pub fn fill_seconds(&self) -> u64 {
        self.arguments.fill_seconds
    }
}

impl Drop for Bench<'_> {
    fn drop(&mut self) {
        for folder in [&self.dir, &self.disk_dir] {
            if let Err(error) = std::fs::remove_dir_all(folder) {
                eprintln!("{}: {error}", folder.display());
            }
        }
    }
}
