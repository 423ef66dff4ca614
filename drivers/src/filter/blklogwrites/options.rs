//! Options, as QAPI's `BlockdevOptionsBlklogwrites` has them.

use millpond_messages::graph::Options;
use millpond_messages::{Error, ErrorKind, Result};

use crate::api::parse_options;

/// What the options say of the log.
#[derive(Debug, Clone, PartialEq, Eq, serde::Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct LogOptions {
    #[serde(rename = "log-sector-size")]
    pub sector_size: Option<u32>,
    #[serde(default, rename = "log-append")]
    pub append: bool,
    #[serde(default = "interval", rename = "log-super-update-interval")]
    pub interval: u64,
}

const fn interval() -> u64 {
    4096
}

impl LogOptions {
    /// Reads a node's options.
    pub fn parse(options: Options) -> Result<Self> {
        parse_options(options)
    }

    /// Checks what does not depend on the log itself.
    pub fn check(&self) -> Result<()> {
        if self.interval == 0 {
            let text = "Invalid log superblock update interval 0";
            return Err(Error::new(ErrorKind::InvalidArgument, text));
        }
        Ok(())
    }
}
