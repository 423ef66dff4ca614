//! `x-blockdev-amend` as a job.

use std::future::ready;

use futures_util::FutureExt;
use futures_util::future::LocalBoxFuture;
use millpond_messages::qapi::JobType;
use millpond_messages::saved::{SavedOptions, SavedWork};
use millpond_messages::{Error, ErrorKind, Result};

use super::pace::Pace;
use super::work::Job;

/// Changes how an image is encrypted. No image that can be opened is encrypted, so there is nothing that it could change.
pub struct AmendJob {
    /// Whether a change of the encryption is asked for.
    pub encryption: bool,
}

impl Job for AmendJob {
    fn kind(&self) -> JobType {
        JobType::Amend
    }

    fn options(&self) -> SavedOptions {
        let encryption = ("encryption".to_owned(), self.encryption.into());
        SavedOptions::of(&[encryption].into_iter().collect())
    }

    fn saved_work(&self) -> SavedWork {
        SavedWork::default()
    }

    fn run(&mut self, pace: Pace) -> LocalBoxFuture<'static, Result<()>> {
        pace.progress(1, 1);
        let text = "image is not encrypted, can't amend";
        let result = match self.encryption {
            true => Err(Error::new(ErrorKind::Unsupported, text)),
            false => Ok(()),
        };
        ready(result).boxed_local()
    }
}
