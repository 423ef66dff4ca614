//! `blkverify`: a filter that makes each request to two children, and ends the program where the results differ.
//!
//! Writes go to `raw` and to `test`; reads are made from both and compared. It finds the request after which a format
//! under test shows something else than a plain copy does.

use std::rc::Rc;

use futures_util::future::{LocalBoxFuture, join};
use millpond_messages::error::errno::{EIO, ENOMEM};
use millpond_messages::graph::Options;
use millpond_messages::{ChildSlot, Error, ErrorKind, IoError, IoResult, Range, RequestFlags, Result, Role};
use millpond_ring::buffer::{Buffer, Buffers};
use serde_json::json;

use crate::api::bytes_in;
use crate::api::reopen::not_supported;
use crate::api::{
    Abilities, Ability, Answer, Child, ChildKind, Driver, DriverKind, Lifecycle, Moved, Notice, Notices,
    OpenRequest, Opened, OptionNames, PassThrough, ReopenRequest, SavesState, Transfer, arrived, declared,
    parse_options,
};
use crate::delegate;
use crate::replica::copies::{Ranges, Use, copy_of, first_difference};

const RAW: ChildKind = ChildKind::named("raw", Role::FILTERED.union(Role::PRIMARY));
const TEST: ChildKind = ChildKind::named("test", Role::DATA);

/// The driver `blkverify`, which compares two images.
#[derive(Debug, Clone, Copy, Default)]
pub struct BlkverifyKind;

/// There are no options but the children.
#[derive(Debug, serde::Deserialize)]
#[serde(deny_unknown_fields)]
struct BlkverifyOptions {}

impl DriverKind for BlkverifyKind {
    fn name(&self) -> &'static str {
        "blkverify"
    }

    fn option_names(&self) -> OptionNames {
        OptionNames::Checked
    }

    fn children(&self) -> &'static [ChildKind] {
        &[RAW, TEST]
    }

    fn is_protocol(&self) -> bool {
        false
    }

    fn prepares_permissions(&self) -> bool {
        false
    }

    fn reopens(&self) -> bool {
        false
    }

    fn is_filter(&self) -> bool {
        true
    }

    fn has_filenames(&self) -> bool {
        true
    }

    fn parse_filename(&self, filename: &str) -> Result<Options> {
        let names = filename.strip_prefix("blkverify:").unwrap_or(filename);
        let Some((raw, test)) = names.split_once(':') else {
            return Err(Error::new(
                ErrorKind::InvalidArgument,
                "blkverify requires raw copy and original image path",
            ));
        };
        let mut options = Options::new();
        options.insert("raw".to_owned(), json!({ "filename": raw }));
        options.insert("test".to_owned(), json!({ "file": { "filename": test } }));
        Ok(options)
    }

    fn filename_over(&self, _options: &Options, children: &[&str]) -> Option<String> {
        let [raw, test] = children else { return None };
        Some(format!("blkverify:{raw}:{test}"))
    }

    fn check_options(&self, options: &Options, _numbered: usize) -> Result<()> {
        parse_options::<BlkverifyOptions>(options.clone()).map(|BlkverifyOptions {}| ())
    }

    fn open(&self, request: OpenRequest) -> LocalBoxFuture<'static, Result<Opened>> {
        Box::pin(async move {
            let driver = Blkverify::new(request.node_name, declared(request.children)?, request.notices);
            Ok(Opened {
                driver: Rc::new(driver),
                flags: request.flags,
                backing: None,
            })
        })
    }
}

/// A node of the driver that is open.
struct Blkverify {
    node_name: String,
    raw: PassThrough,
    test: Child,
    /// The ranges in use: a write has its range to itself, because half of a write would look like a difference.
    ranges: Ranges,
    notices: Notices,
}

impl Blkverify {
    fn new(node_name: String, [raw, test]: [Child; 2], notices: Notices) -> Self {
        Self {
            node_name,
            raw: PassThrough::new(raw),
            test,
            ranges: Ranges::default(),
            notices,
        }
    }

    /// Reports a difference. The request fails, and the program is to end.
    fn mismatch(&self, operation: &str, offset: u64, len: u64, what: &str) -> IoError {
        let message = format!("blkverify: {operation} offset={offset} bytes={len} {what}");
        self.notices.report(Notice::Mismatch { message });
        IoError::Os(EIO)
    }

    /// The common result of both children, unless they differ.
    fn same(
        &self,
        operation: &str,
        offset: u64,
        len: u64,
        raw: IoResult<()>,
        test: IoResult<()>,
    ) -> IoResult<()> {
        let code = |result: IoResult<()>| result.err().map_or(0, |error| -error.errno());
        if code(raw) == code(test) {
            return test;
        }
        let what = format!("return value mismatch {} != {}", code(test), code(raw));
        Err(self.mismatch(operation, offset, len, &what))
    }

    async fn read_both(&self, offset: u64, buffers: Buffers) -> Transfer {
        let (size, len) = (buffers.len(), bytes_in(&buffers));
        let _shared = self.ranges.hold(offset, len, Use::Read).await;
        let Some(spare) = Buffer::try_alloc(size).map(Buffers::from) else {
            return (Err(IoError::Os(ENOMEM)), buffers);
        };
        let ((test, buffers), (raw, spare)) = join(
            self.test.read(offset, buffers),
            self.raw.child().read(offset, spare),
        )
        .await;
        let mut result = self.same("read", offset, len, raw, test);
        if result.is_ok()
            && let Some(at) = first_difference(&buffers, &spare)
        {
            let at = offset.saturating_add(u64::try_from(at).unwrap_or(u64::MAX));
            let what = format!("contents mismatch at offset {at}");
            result = Err(self.mismatch("read", offset, len, &what));
        }
        (result, buffers)
    }

    async fn write_both(&self, offset: u64, buffers: Buffers, flags: RequestFlags) -> Transfer {
        let len = bytes_in(&buffers);
        let _alone = self.ranges.hold(offset, len, Use::Write).await;
        let Some(copy) = copy_of(&buffers) else {
            return (Err(IoError::Os(ENOMEM)), buffers);
        };
        let ((test, buffers), (raw, _)) = join(
            self.test.write(offset, buffers, flags),
            self.raw.child().write(offset, copy, flags),
        )
        .await;
        (self.same("write", offset, len, raw, test), buffers)
    }
}

impl Driver for Blkverify {
    // As QEMU has it, a change of length is for the filtered child alone.
    delegate!(raw: locate_here, place_here, settle, flush, truncate, allocated_size);

    fn abilities(&self) -> Abilities {
        Abilities {
            write_zeroes: Ability::Emulated,
            zero_unmap: false,
            discard: Ability::None,
            fua: Ability::Emulated,
            ..self.raw.abilities()
        }
    }

    fn read(
        self: Rc<Self>,
        offset: u64,
        buffers: Buffers,
        _flags: RequestFlags,
    ) -> Answer<'static, Transfer> {
        Answer::wait(async move { self.read_both(offset, buffers).await })
    }

    fn write(
        self: Rc<Self>,
        offset: u64,
        buffers: Buffers,
        flags: RequestFlags,
    ) -> Answer<'static, Transfer> {
        Answer::wait(async move { self.write_both(offset, buffers, flags).await })
    }

    fn write_zeroes(&self, _range: Range, _flags: RequestFlags) -> Answer<'_, IoResult<()>> {
        // Zeroes are written as data, so that they are compared like any other.
        Answer::ready(Err(IoError::NotSupported))
    }

    fn discard(&self, _range: Range) -> Answer<'_, IoResult<()>> {
        Answer::ready(Err(IoError::NotSupported))
    }

    fn length(&self) -> Answer<'_, IoResult<u64>> {
        Answer::wait(self.test.length())
    }
}

impl Lifecycle for Blkverify {
    fn reopen_prepare(&self, _request: ReopenRequest) -> Answer<'_, Result<()>> {
        Answer::ready(Err(not_supported("blkverify", &self.node_name)))
    }

    fn exchange_prepare(&self, _slots: &[ChildSlot]) -> Answer<'_, Result<()>> {
        // The filter keeps nothing of what its children hold.
        Answer::ready(Ok(()))
    }

    fn saved_state(&self) -> Option<&dyn SavesState> {
        None
    }

    fn depart(&self) -> Moved {
        // Nothing is in flight, so no range is in use.
        let state = (self.node_name.clone(), self.notices.clone());
        Moved::new(state, |(node_name, notices), children, _| {
            Rc::new(Blkverify::new(node_name, arrived(children), notices))
        })
    }

    fn close(&self) -> Answer<'_, Result<()>> {
        Answer::ready(Ok(()))
    }
}
