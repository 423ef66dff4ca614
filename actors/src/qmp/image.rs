//! Images: made, resized, checked, amended.

use crate::daemon::Daemon;
use crate::job::Amendment;
use millpond_messages::graph::{Amend, CheckImage, FindNode, RecordBackingFile, Resize, Truncate};
use millpond_messages::qapi::QmpError;
use millpond_messages::qapi::schema::{
    BlockResize, BlockdevCreate, ChangeBackingFile, MillpondCheckRepair, MillpondImageCheck, XBlockdevAmend,
    XMillpondCheck, XMillpondTruncate,
};
use millpond_messages::{Repair, RequestFlags};

pub(super) async fn create(daemon: Daemon, arguments: BlockdevCreate) -> Result<(), QmpError> {
    daemon.start_create(&arguments.job_id, arguments.options.0).await
}

/// Only encryption can be amended by this command.
pub(super) async fn amend(daemon: Daemon, arguments: XBlockdevAmend) -> Result<(), QmpError> {
    let XBlockdevAmend {
        job_id,
        node_name,
        options,
        force,
    } = arguments;
    let query = FindNode {
        node_name: node_name.clone(),
    };
    let driver = match daemon.graph(query).await {
        Ok(facts) => facts.driver,
        Err(_) => {
            let text = format!("Cannot find device='' nor node-name='{node_name}'");
            return Err(QmpError::generic(text));
        }
    };
    if driver != options.driver() {
        return Err(QmpError::generic(
            "x-blockdev-amend doesn't support changing the block driver",
        ));
    }
    let amendment = match driver.as_str() {
        "luks" | "qcow2" if driver == "luks" || options.is_about_encryption() => {
            let mut options = options.0;
            options.shift_remove("driver");
            let amend = Amend {
                node_name,
                options,
                force,
            };
            Amendment::Keys(daemon.site().graph.clone(), amend)
        }
        "qcow2" => Amendment::Nothing,
        _ => return Err(QmpError::generic("Driver does not support x-blockdev-amend")),
    };
    daemon.start_amend(&job_id, amendment).await
}

pub(super) async fn resize(daemon: Daemon, arguments: BlockResize) -> Result<(), QmpError> {
    let device = arguments.device.unwrap_or_default();
    let node_name = arguments.node_name.unwrap_or_default();
    let size = u64::try_from(arguments.size);
    let size = size.map_err(|_| QmpError::generic("Parameter 'size' expects a >0 size"));
    // Devices there are none: only a node can be meant, and where there is that node, no device is looked for. The change
    // itself looks for the node too, and asking about it takes a step for every node below.
    let node = FindNode {
        node_name: node_name.clone(),
    };
    let asks = size.is_err() || !device.is_empty();
    if node_name.is_empty() || (asks && daemon.graph(node).await.is_err()) {
        let text = format!("Cannot find device='{device}' nor node-name='{node_name}'");
        return Err(QmpError::generic(text));
    }
    let size = size?;
    daemon.graph(Resize { node_name, size }).await
}

pub(super) async fn truncate(daemon: Daemon, arguments: XMillpondTruncate) -> Result<(), QmpError> {
    let mut flags = RequestFlags::empty();
    flags.set(RequestFlags::ZERO_WRITE, arguments.zero);
    let request = Truncate {
        node_name: arguments.node_name,
        size: arguments.size.0,
        exact: arguments.exact,
        preallocation: arguments.preallocation,
        flags,
    };
    daemon.graph(request).await
}

pub(super) async fn check(daemon: Daemon, arguments: XMillpondCheck) -> Result<MillpondImageCheck, QmpError> {
    let XMillpondCheck { node_name, repair } = arguments;
    let repair = Repair {
        leaks: repair != MillpondCheckRepair::None,
        errors: repair == MillpondCheckRepair::All,
    };
    let query = FindNode {
        node_name: node_name.clone(),
    };
    let found = daemon.graph(CheckImage { node_name, repair }).await?;
    let facts = daemon.graph(query).await?;
    Ok(MillpondImageCheck {
        filename: facts.filename,
        format: facts.driver,
        check_errors: found.check_errors,
        image_end_offset: found.image_end_offset,
        corruptions: found.corruptions,
        leaks: found.leaks,
        corruptions_fixed: found.corruptions_fixed,
        leaks_fixed: found.leaks_fixed,
        total_clusters: found.fragments.total_clusters,
        allocated_clusters: found.fragments.allocated_clusters,
        fragmented_clusters: found.fragments.fragmented_clusters,
        compressed_clusters: found.fragments.compressed_clusters,
    })
}

pub(super) async fn change_backing_file(
    daemon: Daemon,
    arguments: ChangeBackingFile,
) -> Result<(), QmpError> {
    let ChangeBackingFile {
        device,
        image_node_name,
        backing_file,
    } = arguments;
    let request = RecordBackingFile {
        device,
        image_node_name,
        backing_file,
    };
    daemon.graph(request).await
}
