//! The options of `millpond serve`.

use super::getopt::{self, Row};

/// An option of `millpond serve`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Name {
    /// A node to open (`--blockdev`).
    Blockdev,
    /// A character device (`--chardev`).
    Chardev,
    /// How much the control thread is preferred.
    ControlPriority,
    /// Go to the background.
    Daemonize,
    /// An export to start (`--export`).
    Export,
    /// The options are to be explained (`--help`).
    Help,
    /// Where the log goes.
    Log,
    /// A monitor on a character device (`--monitor`).
    Monitor,
    /// The NBD server's address and limits (`--nbd-server`).
    NbdServer,
    /// An object to make (`--object`).
    Object,
    /// Where to write the process id.
    Pidfile,
    /// How long the end may take.
    ShutdownGrace,
    /// What to log besides warnings (`--trace`).
    Trace,
    /// The version is to be told (`--version`).
    Version,
}

/// An option with its value, or a word that is none.
pub type ServeArgument = getopt::Argument<Name>;

const OPTIONS: &[Row<Name>] = &[
    Row::value("blockdev", None, Name::Blockdev),
    Row::value("chardev", None, Name::Chardev),
    Row::flag("daemonize", None, Name::Daemonize),
    Row::value("export", None, Name::Export),
    Row::flag("help", Some('h'), Name::Help),
    Row::value("log", None, Name::Log),
    Row::value("monitor", None, Name::Monitor),
    Row::value("nbd-server", None, Name::NbdServer),
    Row::value("object", None, Name::Object),
    Row::value("pidfile", None, Name::Pidfile),
    Row::value("trace", Some('T'), Name::Trace),
    Row::flag("version", Some('V'), Name::Version),
    Row::value("x-millpond-control-priority", None, Name::ControlPriority),
    Row::value("x-millpond-shutdown-grace", None, Name::ShutdownGrace),
];

/// The options in `arguments`, in order, ending with the first that is wrong. What follows `--` is not looked at.
pub fn parse(arguments: &[String]) -> Vec<Result<ServeArgument, String>> {
    getopt::parse(OPTIONS, arguments).arguments
}
