//! What a user asks for of a backup: what of it cannot be, and the filter that it means.

use millpond_messages::graph::{BackupBitmap, Options};
use millpond_messages::qapi::QmpError;
use millpond_messages::qapi::schema::{BitmapSyncMode, BlockdevBackup, MirrorSyncMode};

use super::copy;
use super::holds::refused;
use crate::job::saved::qapi_name;

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

/// When a bitmap follows what a backup has copied. An incremental one needs not say.
pub(super) fn bitmap_mode(asked: &BlockdevBackup) -> Option<BitmapSyncMode> {
    match asked.sync {
        MirrorSyncMode::Incremental => Some(BitmapSyncMode::OnSuccess),
        _ => asked.bitmap_mode,
    }
}

/// The bitmap that has a part in a backup.
pub(super) fn bitmap_of(asked: &BlockdevBackup) -> Option<BackupBitmap> {
    let mode = bitmap_mode(asked);
    let sync = qapi_name(&asked.sync);
    let limits = matches!(asked.sync, MirrorSyncMode::Bitmap | MirrorSyncMode::Incremental);
    let is_never = mode == Some(BitmapSyncMode::Never);
    let useless = match asked.sync {
        MirrorSyncMode::None => Some(format!(
            "sync mode '{sync}' does not produce meaningful bitmap outputs"
        )),
        _ if is_never && !limits => Some(format!(
            "Bitmap sync mode 'never' has no meaningful effect when combined with sync mode '{sync}'"
        )),
        _ => None,
    };
    let lacks = "Bitmap sync mode must be given when providing a bitmap";
    Some(BackupBitmap {
        name: asked.bitmap.clone()?,
        limits,
        changes: !is_never,
        lacks: mode.is_none().then(|| lacks.to_owned()),
        refused: useless,
    })
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
