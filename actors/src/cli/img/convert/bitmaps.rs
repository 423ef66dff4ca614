//! The persistent dirty bitmaps of a source, copied with its disk.

use millpond_messages::graph::{BitmapChange, BitmapEdit, BitmapName, EditBitmap, NamedNodes, NodeFacts};
use millpond_messages::qapi::{BlockDeviceInfo, BlockDirtyInfo, ImageInfoSpecific};

use super::plan::ConvertPlan;
use super::source::OpenedSource;
use crate::cli::tool::{Failure, Tool};

async fn info(tool: &Tool<'_>, node: &str) -> Result<BlockDeviceInfo, Failure> {
    let nodes = tool.graph().ask(NamedNodes { flat: true }).await?;
    let mut nodes = nodes.into_iter();
    nodes
        .find(|info| info.node_name.as_deref() == Some(node))
        .ok_or_else(|| Failure::new(format!("Cannot find device='' nor node-name='{node}'")))
}

/// Whether an image can store bitmaps.
fn stores_bitmaps(info: &BlockDeviceInfo) -> bool {
    match &info.image.format_specific {
        Some(ImageInfoSpecific::Qcow2(specific)) => specific.data.compat != "0.10",
        _ => false,
    }
}

fn stored(info: &BlockDeviceInfo) -> impl Iterator<Item = &BlockDirtyInfo> {
    let bitmaps = info.dirty_bitmaps.iter().flatten();
    bitmaps.filter(|bitmap| bitmap.persistent)
}

fn name_of(bitmap: &BlockDirtyInfo) -> &str {
    bitmap.name.as_deref().unwrap_or_default()
}

/// Looks at the source's bitmaps.
///
/// # Errors
/// There is more than one source, it stores none, or one of them cannot be copied.
pub async fn check(tool: &Tool<'_>, plan: &ConvertPlan, sources: &[OpenedSource]) -> Result<(), Failure> {
    let [source] = sources else {
        return Err(Failure::new("Copying bitmaps only possible with single source"));
    };
    let info = info(tool, &source.node).await?;
    if !stores_bitmaps(&info) {
        return Err(Failure::new("Source lacks bitmap support"));
    }
    let mut bitmaps = stored(&info);
    match bitmaps.find(|bitmap| bitmap.inconsistent == Some(true) && !plan.skips_broken_bitmaps) {
        Some(broken) => {
            let text = format!("Cannot copy inconsistent bitmap '{}'", name_of(broken));
            let program = tool.program().0;
            let hint = format!("Try --skip-broken-bitmaps, or use '{program} bitmap --remove' to delete it");
            Err(Failure::new(text).with_hint(hint))
        }
        None => Ok(()),
    }
}

/// Refuses a target that stores no bitmaps.
///
/// # Errors
/// It does not.
pub async fn check_target(tool: &Tool<'_>, target: &NodeFacts) -> Result<(), Failure> {
    match stores_bitmaps(&info(tool, &target.name).await?) {
        true => Ok(()),
        false => {
            let text = format!("Format driver '{}' does not support bitmaps", target.driver);
            Err(Failure::new(text))
        }
    }
}

/// Copies them. Those that record writes in the source will do so in the target.
///
/// # Errors
/// One of them cannot be made, or not filled.
pub async fn copy(tool: &Tool<'_>, plan: &ConvertPlan, source: &str, target: &str) -> Result<(), Failure> {
    let info = info(tool, source).await?;
    for bitmap in stored(&info) {
        let name = name_of(bitmap);
        if bitmap.inconsistent == Some(true) && plan.skips_broken_bitmaps {
            tool.program()
                .warn(&format!("Skipping inconsistent bitmap '{name}'"));
            continue;
        }
        let add = BitmapChange::Add {
            granularity: Some(bitmap.granularity),
            persistent: true,
            disabled: !bitmap.recording,
        };
        let told = format!("Failed to create bitmap {name}");
        edit(tool, target, name, add)
            .await
            .map_err(|failure| failure.within(&told))?;
        let from = BitmapName {
            node: source.to_owned(),
            name: name.to_owned(),
        };
        let merged = edit(tool, target, name, BitmapChange::Merge(vec![from])).await;
        if let Err(failure) = merged {
            edit(tool, target, name, BitmapChange::Remove).await?;
            return Err(failure.within(&format!("Failed to populate bitmap {name}")));
        }
    }
    Ok(())
}

async fn edit(tool: &Tool<'_>, node: &str, name: &str, change: BitmapChange) -> Result<(), Failure> {
    let bitmap = BitmapName {
        node: node.to_owned(),
        name: name.to_owned(),
    };
    let edit = BitmapEdit { bitmap, change };
    tool.graph().ask(EditBitmap(edit)).await.map_err(Failure::from)
}
