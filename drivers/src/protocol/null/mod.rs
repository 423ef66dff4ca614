//! `null-co` and `null-aio`: a device without storage, for measuring what lies above it.
//!
//! Writes are forgotten. Reads leave the buffers as they are, so that they cost nothing, unless `read-zeroes` is on.
//! QEMU's two drivers differ in how they wait, which no user can see; here both wait in the ring.

use std::rc::Rc;
use std::time::Duration;

use futures_util::future::LocalBoxFuture;
use millpond_messages::graph::Options;
use millpond_messages::io::Preallocation;
use millpond_messages::{Error, ErrorKind, IoError, IoResult, Range, RequestFlags, Result};

use crate::api::reopen::check_unchanged;
use crate::api::{
    Abilities, Ability, AllocationTicket, Answer, At, ChildKind, Driver, DriverKind, Extent, Image,
    LengthSource, Lifecycle, Moved, OpenRequest, Opened, OptionNames, Placement, Purpose, ReopenRequest,
    SavesState, Size, Transfer, parse_options,
};
use millpond_ring::Ring;
use millpond_ring::buffer::Buffers;

/// The length without the option `size`.
const DEFAULT_SIZE: u64 = 1 << 30;

/// One of the two names of the null driver.
#[derive(Debug, Clone, Copy)]
pub struct NullKind {
    name: &'static str,
}

impl NullKind {
    /// The driver under its name `null-co`.
    pub const CO: Self = Self { name: "null-co" };
    /// The driver under its name `null-aio`.
    pub const AIO: Self = Self { name: "null-aio" };
}

/// The options as QAPI's `BlockdevOptionsNull` has them. Numbers that do not fit are told apart below.
#[derive(Debug, Clone, serde::Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
struct NullOptions {
    size: Option<Size>,
    latency_ns: Option<Size>,
    #[serde(default)]
    read_zeroes: bool,
}

/// What the options say.
#[derive(Debug, Clone)]
struct Config {
    kind: NullKind,
    options: Options,
    size: u64,
    latency: Duration,
    read_zeroes: bool,
}

impl Config {
    fn new(kind: NullKind, options: Options) -> Result<Self> {
        let parsed: NullOptions = parse_options(options.clone())?;
        let size = match &parsed.size {
            None => DEFAULT_SIZE,
            Some(number) => number.as_u64().ok_or_else(|| {
                let text = format!("Value '{}' is out of range for parameter 'size'", **number);
                Error::new(ErrorKind::InvalidArgument, text)
            })?,
        };
        let latency = parsed
            .latency_ns
            .as_ref()
            .map_or(Some(0), |number| number.as_u64());
        let latency = latency
            .filter(|nanoseconds| i64::try_from(*nanoseconds).is_ok())
            .ok_or_else(|| Error::new(ErrorKind::InvalidArgument, "latency-ns is invalid"))?;
        Ok(Self {
            kind,
            options,
            size,
            latency: Duration::from_nanos(latency),
            read_zeroes: parsed.read_zeroes,
        })
    }
}

impl DriverKind for NullKind {
    fn name(&self) -> &'static str {
        self.name
    }

    fn option_names(&self) -> OptionNames {
        OptionNames::Checked
    }

    fn children(&self) -> &'static [ChildKind] {
        &[]
    }

    fn is_protocol(&self) -> bool {
        true
    }

    fn prepares_permissions(&self) -> bool {
        false
    }

    fn parse_filename(&self, filename: &str) -> Result<Options> {
        if filename.strip_prefix(self.name) == Some("://") {
            return Ok(Options::new());
        }
        let text = format!("The only allowed filename for this driver is '{}://'", self.name);
        Err(Error::new(ErrorKind::InvalidArgument, text))
    }

    fn open(&self, request: OpenRequest) -> LocalBoxFuture<'static, Result<Opened>> {
        let kind = *self;
        Box::pin(async move {
            let config = Config::new(kind, request.options)?;
            let driver = Rc::new(Null {
                config,
                ring: request.ring,
            });
            Ok(Opened {
                driver,
                flags: request.flags,
                backing: None,
            })
        })
    }
}

/// An open null device.
struct Null {
    config: Config,
    ring: Ring,
}

impl Null {
    /// `value`, after the latency asked for.
    fn after_latency<T: 'static>(&self, value: T) -> Answer<'static, T> {
        if self.config.latency.is_zero() {
            return Answer::ready(value);
        }
        let sleep = self.ring.sleep(self.config.latency);
        Answer::wait(async move {
            sleep.await;
            value
        })
    }
}

impl Driver for Null {
    fn abilities(&self) -> Abilities {
        Abilities {
            write_zeroes: Ability::Native,
            fua: Ability::Native,
            // As QEMU has it: nothing is known of a new null device's contents.
            has_zero_init: false,
            // What is written is nowhere, and the length stays as it is.
            grows: true,
            length: LengthSource::Requests,
            ..Abilities::default()
        }
    }

    fn locate(&self, purpose: Purpose, range: Range) -> Answer<'_, IoResult<Extent>> {
        let at = match purpose {
            Purpose::Status { .. } if self.config.read_zeroes => At::Zero { reserved: None },
            Purpose::Status { .. } | Purpose::Read => At::Own,
        };
        Answer::ready(Ok(Extent::new(range.len(), at)))
    }

    fn read(
        self: Rc<Self>,
        _offset: u64,
        mut buffers: Buffers,
        _flags: RequestFlags,
    ) -> Answer<'static, Transfer> {
        if self.config.read_zeroes {
            buffers.fill_zero(0..buffers.len());
        }
        self.after_latency((Ok(()), buffers))
    }

    fn place(&self, range: Range, _flags: RequestFlags) -> Answer<'_, IoResult<Placement>> {
        Answer::ready(Ok(Placement::own(range.len())))
    }

    fn settle(&self, _ticket: AllocationTicket, written: IoResult<()>) -> Answer<'_, IoResult<()>> {
        Answer::ready(written)
    }

    fn write(
        self: Rc<Self>,
        _offset: u64,
        buffers: Buffers,
        _flags: RequestFlags,
    ) -> Answer<'static, Transfer> {
        self.after_latency((Ok(()), buffers))
    }

    fn write_zeroes(&self, _range: Range, _flags: RequestFlags) -> Answer<'_, IoResult<()>> {
        self.after_latency(Ok(()))
    }

    fn discard(&self, _range: Range) -> Answer<'_, IoResult<()>> {
        Answer::ready(Err(IoError::NotSupported))
    }

    fn flush(&self) -> Answer<'_, IoResult<()>> {
        self.after_latency(Ok(()))
    }

    fn truncate(
        &self,
        _size: u64,
        _exact: bool,
        _preallocation: Preallocation,
        _flags: RequestFlags,
    ) -> Answer<'_, Result<()>> {
        Answer::ready(Err(Error::new(
            ErrorKind::Unsupported,
            "Image format driver does not support resize",
        )))
    }

    fn length(&self) -> Answer<'_, IoResult<u64>> {
        Answer::ready(Ok(self.config.size))
    }

    fn allocated_size(&self) -> Answer<'_, IoResult<u64>> {
        Answer::ready(Ok(0))
    }

    fn image(&self) -> &dyn Image {
        self
    }
}

impl Image for Null {
    fn filename(&self) -> Option<String> {
        let plain = !["size", "read-zeroes"]
            .iter()
            .any(|name| self.config.options.contains_key(*name));
        plain.then(|| format!("{}://", self.config.kind.name))
    }
}

impl Lifecycle for Null {
    fn reopen_prepare(&self, request: ReopenRequest) -> Answer<'_, Result<()>> {
        Answer::ready(check_unchanged(&self.config.options, &request.options, &[]))
    }

    fn saved_state(&self) -> Option<&dyn SavesState> {
        None
    }

    fn depart(&self) -> Moved {
        Moved::new(self.config.clone(), |config, _, ring| {
            Rc::new(Null { config, ring })
        })
    }

    fn close(&self) -> Answer<'_, Result<()>> {
        Answer::ready(Ok(()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn config(options: serde_json::Value) -> Result<Config> {
        let serde_json::Value::Object(options) = options else {
            panic!("options are an object")
        };
        Config::new(NullKind::CO, options)
    }

    #[test]
    fn the_default_is_a_gibibyte_without_latency() {
        let config = config(json!({})).unwrap();
        assert_eq!(
            (config.size, config.latency, config.read_zeroes),
            (1 << 30, Duration::ZERO, false)
        );
    }

    #[test]
    fn numbers_out_of_range_are_refused_by_name() {
        let text = |options| config(options).unwrap_err().to_string();
        assert_eq!(text(json!({"latency-ns": -1})), "latency-ns is invalid");
        assert_eq!(text(json!({"latency-ns": u64::MAX})), "latency-ns is invalid");
        assert_eq!(
            text(json!({"size": -1})),
            "Value '-1' is out of range for parameter 'size'"
        );
        assert_eq!(text(json!({"speed": 1})), "Parameter 'speed' is unexpected");
    }
}
