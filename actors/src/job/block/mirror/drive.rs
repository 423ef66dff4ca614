//! `drive-mirror`: a mirror whose target is a file, made or opened for it and closed after it.

use millpond_messages::graph::{NodeFacts, OpenImage, Options, Probing, RootRequest, RootUser};
use millpond_messages::qapi::QmpError;
use millpond_messages::qapi::schema::{BlockdevMirror, DriveMirror, MirrorSyncMode, NewImageMode};
use millpond_messages::{OpBlocker, OpenFlags, Permissions};

use super::plan::{MirrorPlan, check_replaced, plan};
use crate::graph::GraphHandle;
use crate::image::{self, NewImage};
use crate::job::block::chain::Chains;
use crate::job::block::holds::{as_options, refused};
use crate::node::Client;

impl MirrorPlan {
    /// What a user asks for, with the target open. What is told of an image that was made is added to `told`.
    ///
    /// # Errors
    /// QEMU's texts. A file that was made stays.
    pub async fn to_file(
        graph: GraphHandle,
        asked: DriveMirror,
        told: &mut Vec<String>,
    ) -> Result<Self, QmpError> {
        let chains = Chains::new(graph.facts().await?);
        let node = chains.find(&asked.device, &asked.device)?;
        if !chains.is_root(node) {
            return refused("Need a root block node");
        }
        graph.check_operation(&node.name, OpBlocker::MirrorSource).await?;
        if let Some(replaced) = &asked.replaces {
            if asked.node_name.is_none() {
                return refused("a node-name must be provided when replacing a named node of the graph");
            }
            check_replaced(&graph, &chains, node, Some(replaced)).await?;
        }
        let backing = chains.backing(chains.image(node));
        // What the target stands on in the end.
        let base = match asked.sync {
            MirrorSyncMode::None => Some(node),
            MirrorSyncMode::Full => None,
            _ => backing,
        };
        let named = base.map(|base| match asked.sync {
            MirrorSyncMode::None => base,
            // A header names an image, not the filters over it.
            _ => chains.image(base),
        });
        let format = make(&graph, node, &asked, named, told).await?;
        let target = open(&graph, node, &asked, format).await?;
        let is_made = asked.mode != Some(NewImageMode::Existing);
        let stands_on = base.filter(|_| is_made).map(|base| base.name.clone());
        let planned = over(&graph, asked, &target, stands_on).await;
        match planned {
            Ok(plan) => Ok(plan),
            Err(error) => {
                // Nobody else holds it, so it is closed.
                graph.detach(target.root()).await?;
                Err(error)
            }
        }
    }
}

/// Makes the file, unless it is there; answers the format that it is opened with, if that is known. `base` is the image that
/// its header names.
async fn make(
    graph: &GraphHandle,
    node: &NodeFacts,
    asked: &DriveMirror,
    base: Option<&NodeFacts>,
    told: &mut Vec<String>,
) -> Result<Option<String>, QmpError> {
    if asked.mode == Some(NewImageMode::Existing) {
        return Ok(asked.format.clone());
    }
    let format = asked.format.clone().unwrap_or_else(|| node.driver.clone());
    let image = NewImage {
        filename: asked.target.clone(),
        format: format.clone(),
        base: base.map(|base| base.filename.clone()),
        base_format: base.map(|base| base.driver.clone()),
        size: Some(node.size),
        flags: OpenFlags::NO_BACKING,
        ..NewImage::default()
    };
    image::create(graph, image, told).await?;
    Ok(Some(format))
}

/// Opens the target with the source's flags, and takes hold of it.
async fn open(
    graph: &GraphHandle,
    node: &NodeFacts,
    asked: &DriveMirror,
    format: Option<String>,
) -> Result<Client, QmpError> {
    let mut options = Options::new();
    if let Some(format) = format {
        options.insert("driver".to_owned(), format.into());
    }
    if let Some(name) = &asked.node_name {
        options.insert("node-name".to_owned(), name.clone().into());
    }
    let unwanted = OpenFlags::SNAPSHOT | OpenFlags::COPY_ON_READ | OpenFlags::PROTOCOL;
    let mut flags = (node.flags - unwanted) | OpenFlags::RDWR;
    flags.set(OpenFlags::NO_BACKING, asked.mode != Some(NewImageMode::Existing));
    let image = OpenImage {
        filename: Some(asked.target.clone()),
        options,
        flags,
        probing: Probing::Always,
        ..OpenImage::default()
    };
    let holder = RootUser::Job(asked.job_id.clone().unwrap_or_default());
    let opened = graph.open_held(image, holder.clone()).await?;
    let held = hold(graph, &opened, holder).await;
    graph.detach(opened.root()).await?;
    held
}

/// Holds what is open without taking anything: the filter alone writes to it.
async fn hold(graph: &GraphHandle, opened: &Client, holder: RootUser) -> Result<Client, QmpError> {
    let chains = Chains::new(graph.facts().await?);
    let gone = || QmpError::generic("The target was closed");
    let node = chains.held_by(opened.root()).ok_or_else(gone)?;
    let request = RootRequest {
        shared: Permissions::all(),
        ..RootRequest::new(&node.name, holder, Permissions::empty())
    };
    Ok(graph.attach(request).await?)
}

/// The plan of a mirror to a target that is open.
async fn over(
    graph: &GraphHandle,
    asked: DriveMirror,
    target: &Client,
    stands_on: Option<String>,
) -> Result<MirrorPlan, QmpError> {
    let chains = Chains::new(graph.facts().await?);
    let gone = || QmpError::generic("The target was closed");
    let node = chains.held_by(target.root()).ok_or_else(gone)?;
    let is_new = asked.mode != Some(NewImageMode::Existing) && node.has_zero_init;
    let written = as_options(&asked);
    let unmap = asked.unmap;
    let asked = BlockdevMirror {
        job_id: asked.job_id,
        device: asked.device,
        target: node.name.clone(),
        replaces: asked.replaces,
        sync: asked.sync,
        speed: asked.speed,
        granularity: asked.granularity,
        buf_size: asked.buf_size,
        on_source_error: asked.on_source_error,
        on_target_error: asked.on_target_error,
        filter_node_name: None,
        copy_mode: asked.copy_mode,
        auto_finalize: asked.auto_finalize,
        auto_dismiss: asked.auto_dismiss,
        target_is_zero: None,
    };
    let mut plan = plan(graph.clone(), &chains, &asked).await?;
    plan.asked = written;
    plan.backing = stands_on;
    plan.opened = Some(target.clone());
    if let Some(unmap) = unmap {
        plan.filter.insert("unmap".to_owned(), unmap.into());
    }
    if is_new && plan.manner.copies_all {
        plan.filter.insert("skips-holes".to_owned(), true.into());
    }
    Ok(plan)
}
