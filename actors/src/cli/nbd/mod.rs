//! `millpond nbd`: an image served by the NBD protocol, as `qemu-nbd` serves it, with its options and texts.

mod help;
mod list;
mod negotiate;
mod options;
mod secure;
mod serve;

use super::background::{Background, Side, split};
use super::tool::{Failure, Program, Tool, flush_output};
use millpond_messages::IoError;
use options::{Plan, Task};
use std::process::ExitCode;

/// Runs the tool; `program` is its name in texts.
pub fn run(program: &str, arguments: &[String]) -> ExitCode {
    let program = Program(program);
    let code = start(program, arguments).unwrap_or_else(|failure| failure.tell(program));
    flush_output();
    code
}

fn start(program: Program<'_>, arguments: &[String]) -> Result<ExitCode, Failure> {
    let plan = match options::read(program, arguments)? {
        Ok(plan) => plan,
        Err(code) => return Ok(code),
    };
    match &plan.task {
        // Credentials are objects, which a block layer makes.
        Task::List if !plan.objects.is_empty() || plan.tls_creds.is_some() => {
            Ok(Tool::run(program, &plan.objects, async |tool| {
                list::list(&plan, Some(&tool.daemon().site().tls))
            }))
        }
        Task::List => list::list(&plan, None),
        Task::Serve(image) => {
            let background = match plan.forks.then(split).transpose() {
                Ok(None) => None,
                Ok(Some(Side::Child(background))) => Some(background),
                Ok(Some(Side::Parent(code))) => return Ok(code),
                Err(error) => return Err(Failure::new(format!("Failed to fork: {error}"))),
            };
            Ok(served(program, &plan, image, background))
        }
        Task::Connect(_, device) => Err(not_of_the_kernel("Failed to open", device)),
        Task::Disconnect(device) => Err(not_of_the_kernel("Cannot open", device)),
    }
}

fn served(program: Program<'_>, plan: &Plan, image: &str, background: Option<Background>) -> ExitCode {
    Tool::run(program, &plan.objects, async |tool| {
        serve::serve(tool, plan, image, background).await
    })
}

/// What is told of a device of the kernel: that it is not there, or else what this program lacks.
fn not_of_the_kernel(opening: &str, device: &str) -> Failure {
    match std::fs::OpenOptions::new().read(true).write(true).open(device) {
        Err(error) => Failure::new(format!("{opening} {device}: {}", IoError::from(error))),
        Ok(_) => Failure::new(format!(
            "{device}: the kernel's own NBD client cannot be set up by this program; `nbd-client` can, with a server that \
             listens on a socket"
        )),
    }
}
