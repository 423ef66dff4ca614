//! Keeping the log of an image's dirty bitmaps while the image is written to, so that a crash leaves bitmaps that miss nothing.
//!
//! Before the first change of a region since the bitmaps were stored, the region's bit reaches the file, and a flush makes it
//! durable: only then is the change made. Changes of other regions that come meanwhile wait for that flush, and share the
//! next one. What is dirty after a crash is what a bitmap was stored with and the log's regions.
//!
//! The log begins anew, empty, where the bitmaps are stored while the image is in use: in the free cluster that gets their
//! directory, before the header names that. Where it cannot go on it is given up, and says so durably before anything else
//! changes; after a crash the bitmaps are inconsistent then, as without a log.

use millpond_messages::{Error, IoResult, Range, Result};

use super::listed::Listed;
use super::log::{Doubt, Home, Log};
use super::store::NextLog;
use crate::api::ImageBitmap;
use crate::format::qcow2::header::AUTOCLEAR_BITMAP_LOG;
use crate::format::qcow2::header::extensions::BitmapDirectory;
use crate::format::qcow2::image::Qcow2;
use crate::format::qcow2::state::State;
use crate::format::qcow2::wait::Key;

impl State {
    /// Whether a change of a range might miss in the log, or a log might have to begin first.
    #[inline]
    pub fn may_miss(&self, range: Range) -> bool {
        let is_ready = self.active && !self.bitmaps.is_stored;
        match &self.bitmaps.log {
            Some(log) => !is_ready || log.doubt.is_some() || !log.has(range),
            None => self.settings.logs_bitmaps && !is_ready,
        }
    }

    fn is_log_named(&self) -> bool {
        self.header.autoclear & AUTOCLEAR_BITMAP_LOG != 0
    }

    fn home_of(&self, directory: BitmapDirectory) -> Home {
        Home::new(directory.offset, directory.size, &self.geometry)
    }
}

impl Qcow2 {
    /// Has the log say that a range changes, before it does.
    pub(in crate::format::qcow2) async fn log_change(&self, range: Range) -> IoResult<()> {
        if !self.state.borrow().may_miss(range) {
            return Ok(());
        }
        self.run(|state| state.check_writable()).await?;
        if let Some(log) = self.state.borrow_mut().bitmaps.log.as_mut() {
            log.note(range);
        }
        let _held = self.waits.hold(Key::BitmapLog).await;
        self.end_doubt().await?;
        // Somebody else may have written it meanwhile, with what was to be written for others.
        let missing = match &self.state.borrow().bitmaps.log {
            Some(log) if !log.has(range) => log.missing(),
            Some(_) | None => None,
        };
        let Some(missing) = missing else { return Ok(()) };
        self.file.write_slice(missing.offset, &missing.bytes).await?;
        self.file.flush().await?;
        if let Some(log) = self.state.borrow_mut().bitmaps.log.as_mut() {
            log.written(&missing);
        }
        Ok(())
    }

    /// The log that belongs to a directory, if it has one that counts.
    pub(super) async fn read_log(
        &self,
        directory: BitmapDirectory,
        listed: &[Listed],
    ) -> IoResult<Option<Log>> {
        let (home, is_named) = {
            let state = self.state.borrow();
            (state.home_of(directory), state.is_log_named())
        };
        let Some((start, len)) = home.tail().filter(|_| is_named) else {
            return Ok(None);
        };
        // It has a cluster at most.
        let tail = self.file.read_vec(start, len as usize).await?.into_single();
        Ok(Log::parse(&home, &tail, listed))
    }

    /// Readies the log before the bitmaps are called in use: one that was found goes on, else one begins. What the image says
    /// of its bitmaps is all that is dirty by them.
    pub(in crate::format::qcow2) async fn ready_log(&self) -> IoResult<()> {
        let (directory, goes_on) = {
            let state = self.state.borrow();
            let bitmaps = &state.bitmaps;
            let is_wanted = state.settings.logs_bitmaps && !bitmaps.listed.is_empty();
            let is_possible = bitmaps.listed.iter().all(|listed| !listed.is_inconsistent);
            if is_wanted && !is_possible {
                self.warn_without_log("one of them is inconsistent, and is to be removed first");
            }
            let directory = state.bitmap_directory().filter(|_| is_wanted && is_possible);
            (directory, bitmaps.log.is_some())
        };
        match directory {
            None => self.give_up_log().await,
            Some(_) if goes_on => Ok(()),
            Some(directory) => self.begin_log(directory).await,
        }
    }

    async fn begin_log(&self, directory: BitmapDirectory) -> IoResult<()> {
        let (home, listed, log) = {
            let state = self.state.borrow();
            let home = state.home_of(directory);
            let log = Log::new(&home, state.header.size);
            (home, state.bitmaps.listed.clone(), log)
        };
        let Some(log) = log else {
            self.warn_without_log("their directory leaves no room for it");
            return self.give_up_log().await;
        };
        self.file
            .write_slice(log.start(), &log.encode(&home, &listed))
            .await?;
        self.file.flush().await?;
        self.name_log().await?;
        self.state.borrow_mut().bitmaps.log = Some(log);
        Ok(())
    }

    fn warn_without_log(&self, why: &str) {
        tracing::warn!(
            "After a crash the bitmaps of '{}' are inconsistent, since there is no log of them: {why}",
            self.file.name()
        );
    }

    /// Has the header say, durably, that the log of the directory that it names counts.
    async fn name_log(&self) -> IoResult<()> {
        if self.state.borrow().is_log_named() {
            return Ok(());
        }
        self.state.borrow_mut().header.autoclear |= AUTOCLEAR_BITMAP_LOG;
        let named = self.store_features().await;
        if named.is_err() {
            self.state.borrow_mut().header.autoclear &= !AUTOCLEAR_BITMAP_LOG;
        }
        named
    }

    /// Sees to it that the header names the bitmaps that the log belongs to, or says that it does not count.
    async fn end_doubt(&self) -> IoResult<()> {
        let doubt = self.state.borrow().bitmaps.log.as_ref().and_then(|log| log.doubt);
        match doubt {
            None => return Ok(()),
            Some(Doubt::Outdated) => return self.give_up_log().await,
            Some(Doubt::Unnamed) => {}
        }
        self.store_header().await?;
        if let Some(log) = &mut self.state.borrow_mut().bitmaps.log {
            log.doubt = None;
        }
        Ok(())
    }

    /// A change of the bitmaps has failed that leaves the log right: only what the header names is in doubt.
    pub(super) async fn go_on_with_log(&self) {
        if let Some(log) = &mut self.state.borrow_mut().bitmaps.log {
            log.doubt = log.doubt.or(Some(Doubt::Unnamed));
        }
        if let Err(error) = self.end_doubt().await {
            let name = self.file.name();
            tracing::error!(%error, "'{name}' is not written to until its header can be");
        }
    }

    /// Has the header say, durably, that no log counts. Until that has succeeded nothing that is logged changes.
    pub(super) async fn give_up_log(&self) -> IoResult<()> {
        {
            let mut state = self.state.borrow_mut();
            let is_named = state.is_log_named();
            match &mut state.bitmaps.log {
                Some(log) => log.doubt = Some(Doubt::Outdated),
                None if !is_named => return Ok(()),
                None => {}
            }
            state.header.autoclear &= !AUTOCLEAR_BITMAP_LOG;
        }
        // As a whole: which bitmaps it names may be in doubt too.
        let written = self.store_header().await;
        let mut state = self.state.borrow_mut();
        match written {
            Ok(()) => state.bitmaps.log = None,
            Err(_) => state.header.autoclear |= AUTOCLEAR_BITMAP_LOG,
        }
        written
    }

    /// Stores the bitmaps while the image goes on to be written to, and begins a new log. Where that is not possible the old
    /// one is given up, because it belongs to bitmaps as they were.
    pub(super) async fn store_and_log(&self, bitmaps: Vec<ImageBitmap>) -> Result<()> {
        if !self.state.borrow().settings.logs_bitmaps {
            return Ok(());
        }
        let readied = self.run(|state| state.check_writable()).await;
        readied.map_err(|error| Error::io("Could not store the image's bitmaps", error))?;
        let listed = self.state.borrow().bitmaps.listed.clone();
        let is_kept = |listed: &Listed| bitmaps.iter().any(|bitmap| bitmap.name.as_bytes() == listed.name);
        let stored = if !listed.iter().all(is_kept) {
            self.warn_without_log("nobody knows what is dirty by one of them");
            Err(None)
        } else if bitmaps.is_empty() {
            Ok(())
        } else {
            self.store_in_use(bitmaps).await.map_err(Some)
        };
        let Err(error) = stored else { return Ok(()) };
        if let Some(error) = error {
            self.warn_without_log(&error.to_string());
        }
        let given_up = self.give_up_log().await;
        given_up.map_err(|error| Error::io("Could not give up the log of the image's bitmaps", error))
    }

    async fn store_in_use(&self, bitmaps: Vec<ImageBitmap>) -> Result<()> {
        self.write_bitmaps(bitmaps, NextLog::Empty).await?;
        if self.state.borrow().bitmaps.log.is_none() {
            self.warn_without_log("their directory leaves no room for it");
            return Ok(());
        }
        let named = self.name_log().await;
        named.map_err(|error| Error::io("Could not update the image header", error))
    }

    /// The image is left as others expect it: no log counts, which says nothing new of bitmaps that are not in use.
    pub(super) async fn leave_without_log(&self) -> IoResult<()> {
        {
            let mut state = self.state.borrow_mut();
            state.bitmaps.log = None;
            if !state.is_log_named() {
                return Ok(());
            }
            state.header.autoclear &= !AUTOCLEAR_BITMAP_LOG;
        }
        self.write_features().await
    }
}
