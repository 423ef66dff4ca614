//! `raw`: the format that is none, a window on its child.
//!
//! Every request goes to the `file` child as it is, moved by the option `offset`. The child's data is ours.

use std::cell::{Cell, RefCell};
use std::rc::Rc;

use futures_util::future::LocalBoxFuture;
use millpond_messages::graph::Options;
use millpond_messages::io::Preallocation;
use millpond_messages::{
    ChildSlot, DebugEvent, Error, ErrorKind, ImagePlan, IoError, IoResult, Range, RequestFlags, Result, Role,
    SECTOR_SIZE,
};

use millpond_ring::buffer::Buffers;

use crate::api::bytes_in;
use crate::api::reopen::check_unchanged;
use crate::api::{
    Abilities, Answer, Child, ChildKind, DebugEvents, Driver, DriverKind, Exchanged, Extent, Lifecycle,
    Moved, OpenRequest, Opened, OptionNames, PassThrough, Placement, Purpose, ReopenRequest, SavesState,
    Size, Transfer, parse_options, parse_size,
};
use crate::delegate;

/// The driver `raw`: data without a format.
#[derive(Debug, Clone, Copy, Default)]
pub struct RawKind;

impl DriverKind for RawKind {
    fn name(&self) -> &'static str {
        "raw"
    }

    fn measure(&self, options: Options) -> Result<ImagePlan> {
        let size = options
            .get("size")
            .and_then(serde_json::Value::as_u64)
            .unwrap_or_default();
        Ok(ImagePlan {
            metadata: 0,
            disk: size,
            sparse: None,
            is_overlay: false,
            bitmaps: None,
        })
    }

    fn option_names(&self) -> OptionNames {
        OptionNames::Checked
    }

    fn children(&self) -> &'static [ChildKind] {
        &[ChildKind::FILTERED]
    }

    /// A window is not the same data at the same offsets: the file stores what the node shows of it.
    fn child_role(&self, _slot: ChildSlot, options: &Options) -> Role {
        let is_window = ["offset", "size"].iter().any(|name| options.contains_key(*name));
        if is_window {
            Role::DATA | Role::PRIMARY
        } else {
            ChildKind::FILTERED.role
        }
    }

    fn is_protocol(&self) -> bool {
        false
    }

    fn prepares_permissions(&self) -> bool {
        false
    }

    /// Anything may be raw: only a format that knows better is preferred.
    fn probe(&self, _head: &[u8]) -> u8 {
        1
    }

    fn open(&self, request: OpenRequest) -> LocalBoxFuture<'static, Result<Opened>> {
        Box::pin(async move {
            let below = PassThrough::to_only(request.children)?;
            let window = Window::new(&request.options, below.child()).await?;
            let driver = Rc::new(Raw::new(request.options, window, below));
            Ok(Opened {
                driver,
                flags: request.flags,
                backing: None,
            })
        })
    }
}

/// The options as QAPI's `BlockdevOptionsRaw` has them. Numbers that do not fit are told apart below.
#[derive(Debug, serde::Deserialize)]
#[serde(deny_unknown_fields)]
struct RawOptions {
    offset: Option<Size>,
    size: Option<Size>,
}

/// The part of the child that is shown.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Window {
    /// Where it starts in the child, in bytes.
    offset: u64,
    /// How long it is, in bytes; as long as the child if unset.
    size: Option<u64>,
}

impl Window {
    async fn new(options: &Options, file: &Child) -> Result<Self> {
        let RawOptions { offset, size } = parse_options(options.clone())?;
        let window = Self {
            offset: parse_size("offset", offset.as_ref())?.unwrap_or(0),
            size: parse_size("size", size.as_ref())?,
        };
        let real = file
            .length()
            .await
            .map_err(|error| Error::io("Could not get image size", error))?;
        window.check(real)?;
        Ok(window)
    }

    /// Checks that the window lies in a child of `real` bytes.
    fn check(self, real: u64) -> Result<()> {
        let Self { offset, size } = self;
        let text = if offset > real {
            format!("Offset ({offset}) cannot be greater than size of the containing file ({real})")
        } else if let Some(size) = size.filter(|size| *size > real - offset) {
            // The two blanks are QEMU's: programs match on the text.
            format!(
                "The sum of offset ({offset}) and size ({size}) has to be smaller or equal to the  actual size of \
                 the containing file ({real})"
            )
        } else if size.is_some_and(|size| size % SECTOR_SIZE != 0) {
            "Specified size is not multiple of 512".to_owned()
        } else {
            return Ok(());
        };
        Err(Error::new(ErrorKind::InvalidArgument, text))
    }

    /// How much of the window a child of `real` bytes fills.
    fn length(self, real: u64) -> u64 {
        let rest = real.saturating_sub(self.offset);
        self.size.map_or(rest, |size| size.min(rest))
    }

    /// Where a range is in the child.
    #[inline]
    fn shift(self, range: Range) -> IoResult<Range> {
        let offset = range.offset().checked_add(self.offset);
        let offset = offset.ok_or(IoError::OutOfRange)?;
        Ok(range.moved_to(offset)?)
    }

    /// Where a range is in the child that is changed. Who may make a node longer may write behind its end, but a window
    /// has no room there: what is behind it is not the node's.
    #[inline]
    fn shift_within(self, range: Range) -> IoResult<Range> {
        if self.size.is_some_and(|size| range.end() > size) {
            return Err(IoError::NoSpace);
        }
        self.shift(range)
    }
}

/// An open raw image.
struct Raw {
    options: RefCell<Options>,
    window: Cell<Window>,
    /// What a reopen has prepared.
    pending: RefCell<Option<(Options, Window)>>,
    below: PassThrough,
}

impl Raw {
    fn new(options: Options, window: Window, below: PassThrough) -> Self {
        Self {
            options: RefCell::new(options),
            window: Cell::new(window),
            pending: RefCell::default(),
            below,
        }
    }
}

impl Raw {
    /// An answer that is given once those below were told of what it is for.
    async fn raise_first<T: Unpin>(&self, event: DebugEvent, answer: Answer<'_, T>) -> T {
        self.below.child().raise(event).await;
        answer.await
    }
}

impl Driver for Raw {
    delegate!(below: settle, flush, allocated_size);

    fn abilities(&self) -> Abilities {
        Abilities {
            events: DebugEvents::Forward,
            ..self.below.abilities()
        }
    }

    fn locate(&self, purpose: Purpose, range: Range) -> Answer<'_, IoResult<Extent>> {
        let found = match self.window.get().shift(range) {
            Ok(range) => self.below.locate(purpose, range),
            Err(error) => Answer::ready(Err(error)),
        };
        if purpose == Purpose::Read && self.below.child().observes() {
            return Answer::wait(self.raise_first(DebugEvent::ReadAio, found));
        }
        found
    }

    fn read(self: Rc<Self>, offset: u64, buffers: Buffers, flags: RequestFlags) -> Answer<'static, Transfer> {
        let range = Range::new(offset, bytes_in(&buffers)).map_err(IoError::from);
        match range.and_then(|range| self.window.get().shift(range)) {
            Ok(range) => Answer::wait(async move { self.below.read(range.offset(), buffers, flags).await }),
            Err(error) => Answer::ready((Err(error), buffers)),
        }
    }

    fn place(&self, range: Range, flags: RequestFlags) -> Answer<'_, IoResult<Placement>> {
        let placed = match self.window.get().shift_within(range) {
            Ok(range) => self.below.place(range, flags),
            Err(error) => Answer::ready(Err(error)),
        };
        if self.below.child().observes() {
            return Answer::wait(self.raise_first(DebugEvent::WriteAio, placed));
        }
        placed
    }

    fn write(
        self: Rc<Self>,
        offset: u64,
        buffers: Buffers,
        flags: RequestFlags,
    ) -> Answer<'static, Transfer> {
        let range = Range::new(offset, bytes_in(&buffers)).map_err(IoError::from);
        match range.and_then(|range| self.window.get().shift_within(range)) {
            Ok(range) => Answer::wait(async move { self.below.write(range.offset(), buffers, flags).await }),
            Err(error) => Answer::ready((Err(error), buffers)),
        }
    }

    fn write_zeroes(&self, range: Range, flags: RequestFlags) -> Answer<'_, IoResult<()>> {
        match self.window.get().shift_within(range) {
            Ok(range) => Answer::wait(self.below.write_zeroes(range, flags)),
            Err(error) => Answer::ready(Err(error)),
        }
    }

    fn discard(&self, range: Range) -> Answer<'_, IoResult<()>> {
        match self.window.get().shift_within(range) {
            Ok(range) => Answer::wait(self.below.discard(range)),
            Err(error) => Answer::ready(Err(error)),
        }
    }

    fn truncate(
        &self,
        size: u64,
        exact: bool,
        preallocation: Preallocation,
        flags: RequestFlags,
    ) -> Answer<'_, Result<()>> {
        let window = self.window.get();
        if window.size.is_some() {
            let text = "Cannot resize fixed-size raw disks";
            return Answer::ready(Err(Error::new(ErrorKind::Unsupported, text)));
        }
        let end = size
            .checked_add(window.offset)
            .filter(|end| i64::try_from(*end).is_ok());
        let Some(end) = end else {
            let text = "Disk size too large for the chosen offset";
            return Answer::ready(Err(Error::new(ErrorKind::InvalidArgument, text)));
        };
        Answer::wait(self.below.truncate(end, exact, preallocation, flags))
    }

    fn length(&self) -> Answer<'_, IoResult<u64>> {
        Answer::wait(async move {
            let real = self.below.length().await?;
            Ok(self.window.get().length(real))
        })
    }
}

impl Lifecycle for Raw {
    fn reopen_prepare(&self, request: ReopenRequest) -> Answer<'_, Result<()>> {
        if let Err(error) = check_unchanged(&self.options.borrow(), &request.options, &["offset", "size"]) {
            return Answer::ready(Err(error));
        }
        Answer::wait(async move {
            let window = Window::new(&request.options, self.below.child()).await?;
            self.pending.replace(Some((request.options, window)));
            Ok(())
        })
    }

    fn reopen_commit(&self) {
        if let Some((options, window)) = self.pending.take() {
            self.options.replace(options);
            self.window.set(window);
        }
    }

    fn reopen_abort(&self) {
        self.pending.take();
    }

    fn exchange_prepare(&self, _slots: &[ChildSlot]) -> Answer<'_, Result<()>> {
        Answer::ready(Ok(()))
    }

    /// The window is what the options say, if there is such a window on the other data.
    fn exchange(self: Rc<Self>, _slots: &[ChildSlot]) -> Answer<'static, Result<Exchanged>> {
        let pending = self.pending.borrow().as_ref().map(|(options, _)| options.clone());
        let options = pending.unwrap_or_else(|| self.options.borrow().clone());
        Answer::wait(async move {
            Window::new(&options, self.below.child()).await?;
            Ok(Exchanged::nothing())
        })
    }

    fn saved_state(&self) -> Option<&dyn SavesState> {
        None
    }

    fn depart(&self) -> Moved {
        let state = (self.options.borrow().clone(), self.window.get());
        Moved::new(state, |(options, window), children, _| {
            Rc::new(Raw::new(options, window, PassThrough::moved(children)))
        })
    }

    fn close(&self) -> Answer<'_, Result<()>> {
        Answer::ready(Ok(()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(offset: u64, size: Option<u64>) -> String {
        Window { offset, size }
            .check(4096)
            .err()
            .map_or_else(String::new, |error| error.to_string())
    }

    #[test]
    fn windows_must_lie_in_the_file_and_hold_whole_sectors() {
        assert_eq!(text(0, None), "");
        assert_eq!(text(4096, Some(0)), "");
        assert_eq!(text(1, Some(512)), "");
        assert_eq!(
            text(4097, None),
            "Offset (4097) cannot be greater than size of the containing file (4096)"
        );
        assert_eq!(
            text(512, Some(u64::MAX)),
            "The sum of offset (512) and size (18446744073709551615) has to be smaller or equal to the  actual size \
             of the containing file (4096)"
        );
        assert_eq!(text(0, Some(513)), "Specified size is not multiple of 512");
    }

    #[test]
    fn a_window_is_as_long_as_the_file_lets_it_be() {
        assert_eq!(
            Window {
                offset: 512,
                size: None
            }
            .length(4096),
            3584
        );
        assert_eq!(
            Window {
                offset: 512,
                size: Some(1024)
            }
            .length(4096),
            1024
        );
        assert_eq!(
            Window {
                offset: 512,
                size: Some(1024)
            }
            .length(1024),
            512
        );
        assert_eq!(
            Window {
                offset: 512,
                size: None
            }
            .length(256),
            0
        );
    }
}
