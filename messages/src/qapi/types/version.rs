//! Which version of QEMU the daemon behaves as.

use serde::{Deserialize, Serialize};

/// Three numbers of a version.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct VersionTriple {
    /// The first number, which marks great changes.
    pub major: i64,
    /// The second number, one for each release.
    pub minor: i64,
    /// The third number, one for each mending.
    pub micro: i64,
}

/// The reply of `query-version`, also part of the greeting.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct VersionInfo {
    /// The version of QEMU whose interface this is.
    pub qemu: VersionTriple,
    /// Who built this program.
    pub package: String,
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
