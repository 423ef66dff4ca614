//! The shell: the image that is open, the requests in flight, and what is told.

use std::future::Future;
use std::pin::pin;

use futures_util::StreamExt;
use futures_util::future::LocalBoxFuture;
use futures_util::stream::FuturesUnordered;
use millpond_messages::graph::SetRootPermissions;
use millpond_messages::{Error, Permissions};

use super::in_flight::Finished;
use super::table;
use crate::cli::texts::printable;
use crate::cli::tool::HeldOutput;
use crate::graph::GraphHandle;
use crate::log::tell;
use crate::node::Client;

/// A command that has failed, and why has been told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Failed;

/// How a command ends.
pub type Ended = Result<(), Failed>;

/// The image that is open.
pub struct Image {
    /// What its requests go by.
    pub client: Client,
    /// The name of its node.
    pub node: String,
    /// What the client may do.
    pub permissions: Permissions,
    /// Every write is made durable before it is reported.
    pub writethrough: bool,
}

/// The tool while it runs.
pub struct Shell {
    /// The name of the program.
    pub program: String,
    /// Who opens and changes images.
    pub graph: GraphHandle,
    /// What goes to standard output.
    pub out: HeldOutput,
    /// The image, where one is open.
    pub image: Option<Image>,
    /// Requests that were begun and have not ended.
    pub in_flight: FuturesUnordered<LocalBoxFuture<'static, Finished>>,
    /// Tags of breakpoints that have held nothing yet.
    pub armed: Vec<String>,
    /// Whether it was asked to end.
    pub has_quit: bool,
}

impl Shell {
    /// A shell without an image.
    pub fn new(program: &str, graph: GraphHandle) -> Self {
        Self {
            program: program.to_owned(),
            graph,
            out: HeldOutput::new(),
            image: None,
            in_flight: FuturesUnordered::new(),
            armed: Vec::new(),
            has_quit: false,
        }
    }

    /// Waits for something, and reports requests that end meanwhile.
    pub async fn wait<T>(&mut self, work: impl Future<Output = T>) -> T {
        let mut work = pin!(work);
        loop {
            if self.in_flight.is_empty() {
                return work.await;
            }
            tokio::select! {
                biased;
                done = &mut work => return done,
                Some(finished) = self.in_flight.next() => finished.report(&mut self.out),
            }
        }
    }

    /// Prints a line on standard output.
    pub fn say(&mut self, line: &str) {
        self.out.line(line);
    }

    /// Prints why a command fails, on standard output.
    pub fn refuse(&mut self, line: &str) -> Ended {
        self.say(line);
        Err(Failed)
    }

    /// Tells on standard error why a command fails, behind the program's name.
    pub fn complain(&self, why: &str) -> Ended {
        tell(&printable(&format!("{}: {why}", self.program)));
        Err(Failed)
    }

    /// Tells an error and what can be done about it.
    pub fn complain_of(&self, error: &Error) -> Ended {
        match error.hint() {
            Some(hint) => self.complain(&format!("{error}\n{hint}")),
            None => self.complain(&error.to_string()),
        }
    }

    /// Prints how a command is used that was used otherwise.
    pub fn misused(&mut self, words: &[String], wrong: Option<String>) -> Ended {
        if let Some(wrong) = wrong {
            tell(&printable(&wrong));
        }
        let called = words.first().map_or("", String::as_str);
        match table::find(called) {
            Some(row) => self.refuse(&row.usage(called)),
            None => Err(Failed),
        }
    }

    /// The image; commands that need one are not carried out without it.
    pub fn image(&self) -> Result<&Image, Failed> {
        self.image.as_ref().ok_or(Failed)
    }

    /// Changes what the client may do.
    pub async fn set_permissions(&mut self, permissions: Permissions) -> Ended {
        let request = SetRootPermissions {
            root: self.image()?.client.root(),
            permissions,
            shared: Permissions::all(),
        };
        let asked = self.graph.ask(request);
        if let Err(error) = self.wait(asked).await {
            return self.complain_of(&error);
        }
        if let Some(image) = &mut self.image {
            image.permissions = permissions;
        }
        Ok(())
    }
}
