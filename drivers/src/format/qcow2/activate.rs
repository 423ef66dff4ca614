//! Readying an image for its first change, and reopening it with other options.

use millpond_messages::{Error, ErrorKind, IoError, OpenFlags, Result};

use super::header::{AUTOCLEAR_BITMAP_LOG, AUTOCLEAR_BITMAPS, AUTOCLEAR_DATA_FILE_RAW, CORRUPT, DIRTY};
use super::image::{GivenOptions, Prepared, Qcow2};
use super::open::{is_writable, open_state};
use super::options::{BITMAP_LOG, Settings};
use super::state::State;
use super::table::cache::Cache;
use super::table::overlap::Kind;
use crate::api::reopen::check_kept;
use crate::api::{ReopenRequest, Repair};

impl Qcow2 {
    /// Readies an image for changes: repairs refcounts after an unclean end, and clears the flags by which programs with features
    /// that are not known here, and users of bitmaps, see whether the image was changed without them.
    pub(super) async fn activate(&self) -> Result<()> {
        self.state.borrow().check_snapshots_known()?;
        if self.state.borrow().header.incompatible & DIRTY != 0 {
            let everything = Repair {
                leaks: true,
                errors: true,
            };
            let result = self.check_image(everything).await;
            let result = result.map_err(|error| error.within("Could not repair dirty image"))?;
            if result.corruptions > 0 || result.check_errors > 0 {
                return Err(Error::new(
                    ErrorKind::Corrupt,
                    "Could not repair dirty image: Input/output error",
                ));
            }
            self.clear_marks()
                .await
                .map_err(|error| Error::io("Could not repair dirty image", error))?;
        }
        let marked = self.keep_bitmaps().await;
        let bitmaps = marked.map_err(|error| Error::io("Could not update the image's bitmaps", error))?;
        self.clear_unkept(bitmaps | AUTOCLEAR_DATA_FILE_RAW)
            .await
            .map_err(|error| Error::io("Could not update qcow2 header", error))?;
        self.state.borrow_mut().active = true;
        Ok(())
    }

    /// Clears the flags of features that a change of the image does not keep, which are all but those in `kept`.
    pub(super) async fn clear_unkept(&self, kept: u64) -> Result<(), IoError> {
        let had = {
            let autoclear = &mut self.state.borrow_mut().header.autoclear;
            std::mem::replace(autoclear, *autoclear & kept)
        };
        match had & !kept {
            0 => Ok(()),
            _ => self.write_features().await,
        }
    }

    /// Says in the image that its bitmaps are kept here; answers the flags by which it has them still.
    async fn keep_bitmaps(&self) -> Result<u64, IoError> {
        self.ready_log().await?;
        if !self.mark_bitmaps().await? {
            return Ok(0);
        }
        let is_logged = self.state.borrow().bitmaps.log.is_some();
        Ok(AUTOCLEAR_BITMAPS | if is_logged { AUTOCLEAR_BITMAP_LOG } else { 0 })
    }

    /// Readies the image for the first request that changes something after a reopen.
    pub(super) async fn activate_late(&self) -> Result<(), IoError> {
        use super::wait::Key;
        let _held = self.waits.hold(Key::Activation).await;
        let (is_active, is_stored) = {
            let state = self.state.borrow();
            (state.active, state.bitmaps.is_stored)
        };
        if is_active && is_stored {
            return self.keep_bitmaps().await.map(drop);
        }
        if is_active {
            return Ok(());
        }
        self.activate().await.map_err(|error| {
            tracing::error!(%error, "a qcow2 image cannot be written to");
            IoError::from_errno(error.errno())
        })
    }

    pub(super) async fn prepare_reopen(&self, request: ReopenRequest) -> Result<()> {
        let (header, was_writable) = {
            let state = self.state.borrow();
            (state.header.clone(), state.writable)
        };
        let writable = is_writable(request.flags);
        let given = GivenOptions {
            options: request.options,
            flags: request.flags,
            secrets: self.secrets.clone(),
        };
        if writable {
            self.state.borrow().check_own_tables()?;
        }
        let settings = Settings::parse(given.options.clone(), &header, given.flags)?;
        if settings.logs_bitmaps != self.state.borrow().settings.logs_bitmaps {
            let text = format!("Cannot change the option '{BITMAP_LOG}'");
            return Err(Error::new(ErrorKind::InvalidArgument, text));
        }
        let about = GivenOptions::about_encryption;
        check_kept(&about(&self.given.borrow().options), &about(&given.options), &[])?;
        let check = request.flags.contains(OpenFlags::CHECK);
        if writable && !was_writable && header.incompatible & CORRUPT != 0 && !check {
            return Err(Error::new(
                ErrorKind::ReadOnly,
                "qcow2: Image is corrupt; cannot be opened read/write",
            ));
        }
        if !writable && was_writable {
            self.flush_and_close().await?;
        }
        if settings.guarded != self.state.borrow().settings.guarded {
            // What is guarded too soon is guarded all the same.
            self.guard_metadata(settings.guarded).await?;
        }
        *self.prepared.borrow_mut() = Some(Prepared {
            given,
            settings,
            writable,
        });
        Ok(())
    }

    pub(super) fn commit_reopen(&self) {
        let Some(Prepared {
            given,
            mut settings,
            writable,
        }) = self.prepared.borrow_mut().take()
        else {
            return;
        };
        self.given.replace(given);
        let mut state = self.state.borrow_mut();
        if settings.slice_size != state.settings.slice_size {
            if state.l2.dirty() == 0 {
                state.l2 = Cache::new(settings.slices);
                state.geometry = state.header.geometry(settings.slice_size);
            } else {
                // What changed since the preparation is in slices of the old size: they stay as they are.
                settings.slice_size = state.settings.slice_size;
            }
        }
        state.l2.set_capacity(settings.slices);
        state.refblocks.set_capacity(settings.refblocks);
        state.active &= writable && state.writable;
        state.writable = writable;
        let guards_others = settings.guarded != state.settings.guarded;
        state.settings = settings;
        if guards_others {
            state.mark_again();
        }
    }

    /// Forgets what is cached of the image, and reads it again.
    pub(super) async fn reload(&self) -> Result<()> {
        self.flush_and_close().await?;
        let given = self.wanted();
        let flags = given.flags;
        let mut state = open_state(&self.file, &self.ring, &given, self.encryption()).await?;
        self.check_same_kind(&state)?;
        state.notices = self.state.borrow().notices.clone();
        let writable = state.writable;
        let guarded = state.settings.guarded;
        let shows = self.state.replace(state).shows;
        if guarded.has(Kind::InactiveL2) {
            self.guard_metadata(guarded).await?;
        }
        self.last.borrow_mut().take();
        self.load_bitmaps(!flags.contains(OpenFlags::INACTIVE)).await?;
        match shows {
            Some(name) => self.show_snapshot(&name).await.map(drop),
            None if writable => self.activate().await,
            None => Ok(()),
        }
    }

    /// Refuses an image that has its data elsewhere than the one before.
    pub(super) fn check_same_kind(&self, state: &State) -> Result<()> {
        if state.data_slot == self.state.borrow().data_slot {
            return Ok(());
        }
        let text = "The image has its data elsewhere than the one that was open";
        Err(Error::new(ErrorKind::InvalidArgument, text))
    }

    /// The options and flags of the node, once a reopen under way has ended well.
    pub(super) fn wanted(&self) -> GivenOptions {
        match &*self.prepared.borrow() {
            Some(prepared) => prepared.given.clone(),
            None => self.given.borrow().clone(),
        }
    }

    pub(super) fn abort_reopen(&self) {
        self.prepared.borrow_mut().take();
    }
}
