//! The session, the version, what there is to ask, and the end.

use super::SchemaInfo;
use crate::qapi::row::qapi;

qapi! {
    /// What a client may ask of a session beyond the usual.
    enum QMPCapability {
        /// Commands that overtake others.
        Oob = "oob",
    }

    /// Ends the negotiation that a session begins with. The session carries it out itself.
    command QmpCapabilities = "qmp_capabilities" {
        /// The capabilities that the client wants.
        enable: Option<Vec<QMPCapability>>,
    };

    /// Three numbers of a version.
    #[derive(Copy, Eq)]
    struct VersionTriple {
        /// The first number, which marks great changes.
        major: i64,
        /// The second number, one for each release.
        minor: i64,
        /// The third number, one for each mending.
        micro: i64,
    }

    /// Which version this is, also part of the greeting.
    #[derive(Eq)]
    struct VersionInfo {
        /// The version of QEMU whose interface this is.
        qemu: VersionTriple,
        /// Who built this program.
        package: String,
    }

    /// Asks which version this is.
    command QueryVersion = "query-version" {} -> VersionInfo;

    /// A command that there is.
    #[derive(Eq)]
    struct CommandInfo {
        /// The command's name on the wire.
        name: String,
    }

    /// Lists the commands that there are.
    command QueryCommands = "query-commands" {} -> Vec<CommandInfo>;

    /// Describes the commands, events and types that there are.
    command QueryQmpSchema = "query-qmp-schema" {} -> Vec<SchemaInfo>;

    /// Asks the daemon to end.
    command Quit = "quit" {};

    /// Writes the flight record to a file.
    command XMillpondFlightRecord = "x-millpond-flight-record" {
        /// The file that is written.
        filename: String,
    } ["unstable"];

    /// Opens the log's file anew, after somebody has moved it away.
    command XMillpondLogReopen = "x-millpond-log-reopen" {} ["unstable"];
}

impl VersionInfo {
    /// This build: QEMU 10.0.2's interface, Millpond's package name.
    pub fn current() -> Self {
        let qemu = VersionTriple {
            major: 10,
            minor: 0,
            micro: 2,
        };
        Self {
            qemu,
            package: concat!("millpond-", env!("CARGO_PKG_VERSION")).into(),
        }
    }
}
