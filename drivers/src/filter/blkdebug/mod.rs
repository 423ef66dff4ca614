//! `blkdebug`: a filter that fails requests, or holds them, by rules.
//!
//! Rules wait for events, which formats above raise by name ([`DebugEvent`]). An event arms errors for the requests that
//! follow it, changes the state on which other rules depend, or holds the request that raised it until it is resumed. Limits can
//! be overridden, so that what is above meets a child that is harder to please.

mod config;
mod options;
mod rules;
mod saved;

use std::cell::RefCell;
use std::future::poll_fn;
use std::rc::Rc;
use std::task::Poll;

use futures_util::future::LocalBoxFuture;
use millpond_messages::error::errno::ENOENT;
use millpond_messages::graph::Options;
use millpond_messages::{
    ChildSlot, DebugEvent, DebugOrder, Error, IoError, IoResult, Permissions, Range, RequestFlags, Result,
    Role,
};
use millpond_ring::Ring;
use millpond_ring::buffer::Buffers;
use serde_json::Value;

use crate::api::bytes_in;
use crate::api::reopen::check_unchanged;
use crate::api::{
    Abilities, Answer, ChildKind, DebugEvents, DebugPoints, Driver, DriverKind, EdgeUse, Extent, Lifecycle,
    Moved, OpenRequest, Opened, OptionNames, PassThrough, Purpose, ReopenRequest, SavesState, Transfer,
};
use crate::delegate;
use options::Config;
use rules::{Failure, IoType, Rules};

const IMAGE: ChildKind = ChildKind::named("image", Role::FILTERED.union(Role::PRIMARY));

/// The driver `blkdebug`, which injects errors.
#[derive(Debug, Clone, Copy, Default)]
pub struct BlkdebugKind;

impl DriverKind for BlkdebugKind {
    fn name(&self) -> &'static str {
        "blkdebug"
    }

    fn option_names(&self) -> OptionNames {
        OptionNames::Checked
    }

    fn children(&self) -> &'static [ChildKind] {
        &[IMAGE]
    }

    fn is_protocol(&self) -> bool {
        false
    }

    fn prepares_permissions(&self) -> bool {
        false
    }

    fn is_filter(&self) -> bool {
        true
    }

    fn flushes_to_disk(&self) -> bool {
        true
    }

    fn has_filenames(&self) -> bool {
        true
    }

    fn parse_filename(&self, filename: &str) -> Result<Options> {
        options::parse_filename(filename)
    }

    fn filename_over(&self, options: &Options, children: &[&str]) -> Option<String> {
        let [image] = children else { return None };
        let plain = |name: &String| name == "config" || name.ends_with("-child-perms");
        let config = options.get("config").and_then(Value::as_str).unwrap_or_default();
        let is_plain = options.keys().all(plain);
        is_plain.then(|| format!("blkdebug:{config}:{image}"))
    }

    fn child_permissions(&self, edge: EdgeUse<'_>) -> (Permissions, Permissions) {
        let (taken, shared) = millpond_messages::child_permissions(
            edge.role,
            edge.taken,
            edge.shared,
            edge.writable,
            edge.force_share,
        );
        let (more, unshared) = options::extra_permissions(edge.options);
        (taken | more, shared - unshared)
    }

    fn open(&self, request: OpenRequest) -> LocalBoxFuture<'static, Result<Opened>> {
        Box::pin(async move {
            let below = PassThrough::to_only(request.children)?;
            let limits = below.child().limits();
            let (config, given) = Config::new(request.options, limits.request_alignment)?;
            let mut rules = match &config.file {
                Some(path) => read_config(&request.ring, path.clone()).await?,
                None => Vec::new(),
            };
            rules.extend(given);
            let rules = Rc::new(RefCell::new(Rules::new(rules)));
            Rules::happens(&rules, DebugEvent::None);
            let driver = Rc::new(Blkdebug { config, rules, below });
            Ok(Opened {
                driver,
                flags: request.flags,
                backing: None,
            })
        })
    }
}

async fn read_config(ring: &Ring, path: String) -> Result<Vec<rules::Rule>> {
    let text = ring.blocking(move || std::fs::read(path)).await;
    let text = text.map_err(|error| Error::io("Could not read blkdebug config file", error.into()))?;
    config::parse(&String::from_utf8_lossy(&text))
}

/// A node of the driver that is open.
struct Blkdebug {
    config: Config,
    rules: Rc<RefCell<Rules>>,
    below: PassThrough,
}

impl Blkdebug {
    /// How a request fails, if a rule says so.
    fn check(&self, iotype: IoType, offset: u64, len: u64) -> Option<Failure> {
        self.rules.borrow_mut().check(iotype, offset, len)
    }

    /// Checks a request without data, and passes it on.
    fn checked<'a, F: Future<Output = IoResult<()>> + 'a>(
        &self,
        iotype: IoType,
        range: Range,
        pass_on: impl FnOnce() -> F,
    ) -> Answer<'a, IoResult<()>> {
        match self.check(iotype, range.offset(), range.len()) {
            None => Answer::wait(pass_on()),
            Some(failure) => fail(failure, Err(failure.error)),
        }
    }
}

/// The answer to a request that fails: at once if the rule says so, else after everything else has had a turn.
fn fail<'a, T: Unpin + 'a>(failure: Failure, answer: T) -> Answer<'a, T> {
    if failure.immediately {
        return Answer::ready(answer);
    }
    Answer::wait(async move {
        let mut waited = false;
        poll_fn(|context| {
            if std::mem::replace(&mut waited, true) {
                return Poll::Ready(());
            }
            context.waker().wake_by_ref();
            Poll::Pending
        })
        .await;
        answer
    })
}

impl Driver for Blkdebug {
    delegate!(below: place_here, settle, truncate, length, allocated_size);

    fn abilities(&self) -> Abilities {
        Abilities {
            limits: self.config.overrides.limits(),
            events: DebugEvents::Handle,
            ..self.below.abilities()
        }
    }

    fn locate(&self, purpose: Purpose, range: Range) -> Answer<'_, IoResult<Extent>> {
        if purpose != Purpose::Read
            && let Some(failure) = self.check(IoType::BlockStatus, range.offset(), range.len())
        {
            return fail(failure, Err(failure.error));
        }
        // Data passes through here, so that rules and limits hold for it.
        self.below.locate_here(purpose, range)
    }

    fn read(self: Rc<Self>, offset: u64, buffers: Buffers, flags: RequestFlags) -> Answer<'static, Transfer> {
        match self.check(IoType::Read, offset, bytes_in(&buffers)) {
            None => Answer::wait(async move { self.below.read(offset, buffers, flags).await }),
            Some(failure) => fail(failure, (Err(failure.error), buffers)),
        }
    }

    fn write(
        self: Rc<Self>,
        offset: u64,
        buffers: Buffers,
        flags: RequestFlags,
    ) -> Answer<'static, Transfer> {
        match self.check(IoType::Write, offset, bytes_in(&buffers)) {
            None => Answer::wait(async move { self.below.write(offset, buffers, flags).await }),
            Some(failure) => fail(failure, (Err(failure.error), buffers)),
        }
    }

    fn write_zeroes(&self, range: Range, flags: RequestFlags) -> Answer<'_, IoResult<()>> {
        if range.len() < self.config.overrides.least_zero_write() {
            return Answer::ready(Err(IoError::NotSupported));
        }
        self.checked(IoType::WriteZeroes, range, || {
            self.below.write_zeroes(range, flags)
        })
    }

    fn discard(&self, range: Range) -> Answer<'_, IoResult<()>> {
        if range.len() < self.config.overrides.least_discard() {
            return Answer::ready(Err(IoError::NotSupported));
        }
        self.checked(IoType::Discard, range, || self.below.discard(range))
    }

    fn flush(&self) -> Answer<'_, IoResult<()>> {
        self.checked(IoType::Flush, Range::default(), || self.below.flush())
    }

    fn debug(&self) -> &dyn DebugPoints {
        self
    }
}

impl DebugPoints for Blkdebug {
    fn debug_event(&self, event: DebugEvent) -> Option<LocalBoxFuture<'static, ()>> {
        let held = Rules::happens(&self.rules, event)?;
        tracing::debug!(event = event.name(), "a request is held");
        Some(Box::pin(held))
    }

    fn debug_order(&self, order: &DebugOrder) -> IoResult<bool> {
        let mut rules = self.rules.borrow_mut();
        match order {
            DebugOrder::Breakpoint { event, tag } => {
                let event = DebugEvent::from_name(event).ok_or(IoError::Os(ENOENT))?;
                rules.hold_at(event, tag);
            }
            DebugOrder::RemoveBreakpoint { tag } => rules.forget(tag)?,
            DebugOrder::Resume { tag } => rules.let_go(tag)?,
            DebugOrder::IsSuspended { tag } => return Ok(rules.is_held(tag)),
        }
        Ok(false)
    }
}

impl Lifecycle for Blkdebug {
    fn reopen_prepare(&self, request: ReopenRequest) -> Answer<'_, Result<()>> {
        Answer::ready(check_unchanged(&self.config.options, &request.options, &[]))
    }

    fn exchange_prepare(&self, _slots: &[ChildSlot]) -> Answer<'_, Result<()>> {
        // The filter keeps nothing of what its children hold.
        Answer::ready(Ok(()))
    }

    fn saved_state(&self) -> Option<&dyn SavesState> {
        Some(self)
    }

    fn depart(&self) -> Moved {
        // The node is still, so nothing is held: the rules have no waker in them.
        let rules = self.rules.replace(Rules::new(Vec::new()));
        Moved::new((self.config.clone(), rules), |(config, rules), children, _| {
            Rc::new(Blkdebug {
                config,
                rules: Rc::new(RefCell::new(rules)),
                below: PassThrough::moved(children),
            })
        })
    }

    fn close(&self) -> Answer<'_, Result<()>> {
        Answer::ready(Ok(()))
    }
}
