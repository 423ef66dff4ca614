//! What the tools have in common: a block layer for as long as one command runs, images that are opened as options say,
//! and how they tell what went wrong.
//!
//! ```text
//!   arguments --- getopt ---> a command's plan --- Tool::run ---> its work ---> exit code
//!                                 |                   |
//!                          Failure::usage       everything is flushed and closed, whatever came of it
//! ```

mod failure;
mod number;
mod open;
mod output;
mod pairs;
mod shown_snapshot;
mod told;

pub use failure::Failure;
pub use number::{LARGEST, number, size_option};
pub use open::{ImageName, read_cache, warn_of_raw};
pub use output::{HeldOutput, flush_output, print};
pub use pairs::read_pairs;
pub use shown_snapshot::ShownSnapshot;

use super::objects;
use super::runtime::{control_thread, start};
use crate::daemon::Daemon;
use crate::graph::GraphHandle;
use std::process::ExitCode;

/// The name of a program, as its texts have it.
#[derive(Clone, Copy, Debug)]
pub struct Program<'a>(pub &'a str);

impl Program<'_> {
    /// Tells a line of standard error, behind the program's name.
    pub fn tell(self, text: &str) {
        super::texts::failure(self.0, &text);
    }

    /// Tells what the user should know though the program goes on.
    pub fn warn(self, text: &str) {
        self.tell(&format!("warning: {text}"));
    }
}

/// A running block layer, on the control thread, for one command.
pub struct Tool<'a> {
    program: Program<'a>,
    daemon: Daemon,
}

impl<'a> Tool<'a> {
    /// Starts a block layer, makes the objects that the user has asked for, does the work, and closes everything.
    pub fn run(
        program: Program<'a>,
        objects: &[String],
        work: impl AsyncFnOnce(&Tool<'a>) -> Result<ExitCode, Failure>,
    ) -> ExitCode {
        told::tell_findings();
        let system = match control_thread() {
            Ok(system) => system,
            Err(why) => return Failure::new(why).tell(program),
        };
        system.block_on(async {
            let daemon = match start() {
                Ok(daemon) => daemon,
                Err(error) => {
                    let why = format!("the main iothread cannot be started: {error}");
                    return Failure::new(why).tell(program);
                }
            };
            let tool = Tool { program, daemon };
            let done = match tool.make_objects(objects).await {
                Ok(None) => work(&tool).await,
                Ok(Some(code)) => Ok(code),
                Err(failure) => Err(failure),
            };
            let code = done.unwrap_or_else(|failure| failure.tell(program));
            match tool.daemon.shut_down().await {
                Ok(()) => code,
                Err(error) => Failure::from(error).tell(program),
            }
        })
    }

    /// Makes objects that the user has asked for; answers an exit code where help was asked for instead.
    ///
    /// # Errors
    /// QEMU's text: it is no such object, or a property is wrong.
    pub async fn make_objects(&self, objects: &[String]) -> Result<Option<ExitCode>, Failure> {
        for text in objects {
            if objects::add(&self.daemon, text).await? == objects::Added::Explained {
                return Ok(Some(ExitCode::SUCCESS));
            }
        }
        Ok(None)
    }

    /// The name that texts begin with.
    pub fn program(&self) -> Program<'a> {
        self.program
    }

    /// The graph of the nodes that are opened.
    pub fn graph(&self) -> &GraphHandle {
        &self.daemon.site().graph
    }

    /// All that a storage daemon has besides: jobs, exports, secrets.
    pub fn daemon(&self) -> &Daemon {
        &self.daemon
    }
}
