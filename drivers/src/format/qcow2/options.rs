//! A node's options, with QEMU's names and defaults, and the cache sizes that follow from them.

use millpond_messages::graph::Options;
use millpond_messages::qapi::parse_size;
use millpond_messages::{Error, ErrorKind, OpenFlags, Result};
use serde::de::{Deserialize, Deserializer};
use serde_json::Value;

use super::encryption::EncryptOptions;
use super::header::{Header, LAZY_REFCOUNTS};
use super::table::overlap::Guarded;
use crate::api::parse_options;

/// The most bytes of L2 cache unless asked for more.
const DEFAULT_L2_CACHE_MAX: u64 = 32 << 20;
/// Bytes of an L2 slice unless asked otherwise, or a cluster where that is smaller.
const DEFAULT_SLICE: u64 = 4096;
/// The fewest refcount blocks that are cached.
const MIN_REFBLOCKS: u64 = 4;
/// The fewest L2 slices that are cached: enough that a few requests at once do not push out each other's.
const MIN_SLICES: u64 = 16;
/// Seconds after which unused cache entries are dropped, unless asked otherwise.
const DEFAULT_CLEAN_INTERVAL: u64 = 600;

/// The option that asks for a log of the bitmaps.
pub(super) const BITMAP_LOG: &str = "x-millpond-bitmap-log";

#[derive(Debug, Default, serde::Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case", default)]
struct Raw {
    #[serde(deserialize_with = "boolean")]
    lazy_refcounts: Option<bool>,
    #[serde(deserialize_with = "boolean")]
    pass_discard_request: Option<bool>,
    #[serde(deserialize_with = "boolean")]
    pass_discard_snapshot: Option<bool>,
    #[serde(deserialize_with = "boolean")]
    pass_discard_other: Option<bool>,
    #[serde(deserialize_with = "boolean")]
    discard_no_unref: Option<bool>,
    overlap_check: Option<Value>,
    #[serde(deserialize_with = "number")]
    cache_size: Option<u64>,
    #[serde(deserialize_with = "number")]
    l2_cache_size: Option<u64>,
    #[serde(deserialize_with = "number")]
    l2_cache_entry_size: Option<u64>,
    #[serde(deserialize_with = "number")]
    refcount_cache_size: Option<u64>,
    #[serde(deserialize_with = "number")]
    cache_clean_interval: Option<u64>,
    #[serde(deserialize_with = "boolean")]
    x_millpond_bitmap_log: Option<bool>,
    encrypt: Option<Value>,
}

/// A boolean, also as the text that command lines give.
pub(super) fn boolean<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<bool>, D::Error> {
    match Value::deserialize(deserializer)? {
        Value::Bool(value) => Ok(Some(value)),
        Value::String(text) if text == "on" => Ok(Some(true)),
        Value::String(text) if text == "off" => Ok(Some(false)),
        _ => Err(serde::de::Error::custom("invalid type: expected a boolean")),
    }
}

/// A number of bytes or seconds, also as the text that command lines give.
pub(super) fn number<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<u64>, D::Error> {
    let value = Value::deserialize(deserializer)?;
    let number = match &value {
        Value::Number(number) => number.as_u64(),
        Value::String(text) => parse_size(text),
        _ => None,
    };
    number
        .map(Some)
        .ok_or_else(|| serde::de::Error::custom("invalid type: expected a size"))
}

/// Options that fit the image.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Settings {
    /// Refcounts are written late, and the image is marked dirty meanwhile.
    pub lazy_refcounts: bool,
    /// Clusters freed by the guest's discards are discarded in the file.
    pub pass_discard_request: bool,
    /// Clusters freed with snapshots are discarded in the file.
    pub pass_discard_snapshot: bool,
    /// Clusters freed for any other reason are discarded in the file.
    pub pass_discard_other: bool,
    /// Discards keep the cluster and only mark it zero.
    pub discard_no_unref: bool,
    /// What is guarded against being overwritten.
    pub guarded: Guarded,
    /// Bytes of an L2 slice.
    pub slice_size: u32,
    /// L2 slices in the cache.
    pub slices: usize,
    /// Refcount blocks in the cache.
    pub refblocks: usize,
    /// Seconds after which unused entries are dropped, 0 for never.
    pub clean_interval: u64,
    /// A log keeps what changes dirty by the stored bitmaps after a crash.
    pub logs_bitmaps: bool,
}

fn invalid(text: impl Into<std::borrow::Cow<'static, str>>) -> Error {
    Error::new(ErrorKind::InvalidArgument, text)
}

impl Settings {
    /// Reads a node's options for the image that `header` heads.
    pub fn parse(options: Options, header: &Header, flags: OpenFlags) -> Result<Self> {
        let raw: Raw = parse_options(options)?;
        EncryptOptions::parse(raw.encrypt.as_ref())?.check(header.encryption)?;
        let lazy_refcounts = raw
            .lazy_refcounts
            .unwrap_or(header.compatible & LAZY_REFCOUNTS != 0);
        if lazy_refcounts && header.version < 3 {
            let text = "Lazy refcounts require a qcow2 image with at least qemu 1.1 compatibility level";
            return Err(invalid(text));
        }
        let discard_no_unref = raw.discard_no_unref.unwrap_or(false);
        if discard_no_unref && header.version < 3 {
            let text = "discard-no-unref is only supported since qcow2 version 3";
            return Err(invalid(text));
        }
        let sizes = CacheSizes::choose(&raw, header)?;
        Ok(Self {
            lazy_refcounts,
            pass_discard_request: raw
                .pass_discard_request
                .unwrap_or(flags.contains(OpenFlags::UNMAP)),
            pass_discard_snapshot: raw.pass_discard_snapshot.unwrap_or(true),
            pass_discard_other: raw.pass_discard_other.unwrap_or(false),
            discard_no_unref,
            guarded: Guarded::parse(raw.overlap_check.as_ref())?,
            slice_size: u32::try_from(sizes.slice).map_err(|_| invalid("L2 cache entry size too big"))?,
            slices: entries(sizes.l2 / sizes.slice, MIN_SLICES, "L2")?,
            refblocks: entries(sizes.refcount >> header.cluster_bits, MIN_REFBLOCKS, "Refcount")?,
            clean_interval: clean_interval(raw.cache_clean_interval)?,
            logs_bitmaps: raw.x_millpond_bitmap_log.unwrap_or(false),
        })
    }
}

/// Whether a node's options ask for a log of its bitmaps.
pub(super) fn logs_bitmaps(options: &Options) -> bool {
    let wanted = options.get(BITMAP_LOG).cloned().map(boolean);
    matches!(wanted, Some(Ok(Some(true))))
}

fn entries(wanted: u64, min: u64, name: &str) -> Result<usize> {
    let wanted = i32::try_from(wanted.max(min)).map_err(|_| invalid(format!("{name} cache size too big")))?;
    Ok(wanted.unsigned_abs() as usize)
}

fn clean_interval(wanted: Option<u64>) -> Result<u64> {
    let seconds = wanted.unwrap_or(DEFAULT_CLEAN_INTERVAL);
    u32::try_from(seconds).map_err(|_| invalid("Cache clean interval too big"))?;
    Ok(seconds)
}

/// Bytes of the two caches and of an L2 slice.
struct CacheSizes {
    l2: u64,
    refcount: u64,
    slice: u64,
}

impl CacheSizes {
    fn choose(raw: &Raw, header: &Header) -> Result<Self> {
        let cluster = 1_u64 << header.cluster_bits;
        // The header's checks bound the disk at 2^63 bytes, so its entries' bytes fit.
        let all_l2 = (header.size.div_ceil(cluster) << header.entry_bits()).next_multiple_of(cluster);
        let min_refcount = MIN_REFBLOCKS * cluster;
        let slice = raw.l2_cache_entry_size.unwrap_or(DEFAULT_SLICE.min(cluster));
        if !(512..=cluster).contains(&slice) || !slice.is_power_of_two() {
            return Err(invalid(format!(
                "L2 cache entry size must be a power of two between 512 and the cluster size ({cluster})"
            )));
        }
        let l2 = all_l2.min(raw.l2_cache_size.unwrap_or(DEFAULT_L2_CACHE_MAX));
        let refcount = raw.refcount_cache_size.unwrap_or(0);
        let Some(combined) = raw.cache_size else {
            return Ok(Self { l2, refcount, slice });
        };
        let (l2, refcount) = match (raw.l2_cache_size, raw.refcount_cache_size) {
            (Some(_), Some(_)) => {
                return Err(invalid(
                    "cache-size, l2-cache-size and refcount-cache-size may not be set at the same time",
                ));
            }
            (Some(l2), None) if l2 > combined => {
                return Err(invalid("l2-cache-size may not exceed cache-size"));
            }
            (None, Some(refcount)) if refcount > combined => {
                return Err(invalid("refcount-cache-size may not exceed cache-size"));
            }
            (Some(_), None) => (l2, combined - l2),
            (None, Some(refcount)) => (combined - refcount, refcount),
            (None, None) if combined >= all_l2.saturating_add(min_refcount) => (all_l2, combined - all_l2),
            (None, None) => {
                let refcount = combined.min(min_refcount);
                (combined - refcount, refcount)
            }
        };
        Ok(Self { l2, refcount, slice })
    }
}
