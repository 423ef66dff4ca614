//! What a user asks for of a backup: what of it cannot be, and the filter that it means.

use millpond_messages::graph::Options;
use millpond_messages::qapi::QmpError;
use millpond_messages::qapi::schema::{BitmapSyncMode, BlockdevBackup, MirrorSyncMode};

use super::copy;
use super::holds::refused;

const FILTER: &str = "copy-before-write";

/// How many requests may be under way.
pub(super) fn check_perf(asked: &BlockdevBackup) -> Result<usize, QmpError> {
    let Some(perf) = &asked.x_perf else {
        return Ok(copy::PIECES);
    };
    let workers = match perf.max_workers {
        None => copy::PIECES,
        Some(workers @ 1..=0x7fff_ffff) => usize::try_from(workers).unwrap_or(copy::PIECES).min(64),
        Some(_) => return refused("max-workers must be between 1 and 2147483647"),
    };
    if perf.max_chunk.is_some_and(|most| most < 0) {
        return refused("max-chunk must be zero (which means no limit) or positive");
    }
    Ok(workers)
}

/// Whether a bitmap is named as the way of copying wants it. Whether there is such a bitmap is the graph's to say.
pub(super) fn check_bitmap(asked: &BlockdevBackup) -> Result<(), QmpError> {
    let name = match asked.sync {
        MirrorSyncMode::Bitmap => Some("bitmap"),
        MirrorSyncMode::Incremental => Some("incremental"),
        _ => None,
    };
    if let (Some(name), None) = (name, &asked.bitmap) {
        return refused(format!("must provide a valid bitmap name for '{name}' sync mode"));
    }
    let is_incremental = asked.sync == MirrorSyncMode::Incremental;
    if is_incremental && !matches!(asked.bitmap_mode, None | Some(BitmapSyncMode::OnSuccess)) {
        return refused("Bitmap sync mode must be 'on-success' when using sync mode 'incremental'");
    }
    match (&asked.bitmap, asked.bitmap_mode) {
        (None, Some(_)) => refused("Cannot specify bitmap sync mode without a bitmap"),
        _ => Ok(()),
    }
}

/// Options of the filter, but for its children.
pub(super) fn filter_options(asked: &BlockdevBackup) -> Options {
    let mut options = Options::new();
    let mut put = |name: &str, value: serde_json::Value| options.insert(name.to_owned(), value);
    put("driver", FILTER.into());
    if let Some(name) = &asked.filter_node_name {
        put("node-name", name.clone().into());
    }
    put("compress", asked.compress.unwrap_or(false).into());
    put("discard-source", asked.discard_source.unwrap_or(false).into());
    if let Some(on_error) = asked.on_cbw_error {
        put("on-cbw-error", serde_json::json!(on_error));
    }
    let perf = asked.x_perf.as_ref();
    let copies_range = perf.and_then(|perf| perf.use_copy_range).unwrap_or(true);
    put("use-copy-range", copies_range.into());
    if let Some(size) = perf.and_then(|perf| perf.min_cluster_size) {
        put("min-cluster-size", size.into());
    }
    options
}
