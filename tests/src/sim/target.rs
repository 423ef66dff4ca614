//! What jobs copy the disk to: images beside the chain, some of which take its place.

use std::io;

use serde_json::{Value, json};

use super::monitor::Monitor;
use super::site::{Images, add_file, file_nodes, qcow2_options};
use super::stage::Stage;

/// The node that is backed up to.
pub const TARGET: &str = "target";

/// The first number of an image that is made to take the chain's place: no overlay has one.
pub const FIRST_SUCCESSOR: usize = 32;

/// How many of those a run has: each has a bit in what a section covers.
pub const MOST_SUCCESSORS: usize = 24;

/// An image that is to take the place of the disk, or of its last image.
#[derive(Debug, Clone)]
pub struct Successor {
    /// Its number.
    pub index: usize,
    pub is_qcow2: bool,
    /// The place of the image that it stands on.
    pub below: Option<usize>,
}

impl Successor {
    /// Its node.
    #[must_use]
    pub fn node(&self) -> String {
        format!("n{}", self.index)
    }

    /// Its nodes, the first to be deleted first.
    #[must_use]
    pub fn nodes(&self, stage: &Stage) -> Vec<String> {
        let files = file_nodes(stage.swarm(), self.index);
        [self.node()].into_iter().chain(files).collect()
    }

    /// Makes the image, and opens it.
    ///
    /// # Errors
    /// The connection is lost; inside, why it could not be made.
    pub async fn add(
        &self,
        stage: &Stage,
        monitor: &mut Monitor,
        images: &Images,
    ) -> io::Result<Result<(), String>> {
        let path = images.path(&format!("img{}", self.index));
        if let Err(text) = create_file(stage, monitor, path, self.is_qcow2).await? {
            return Ok(Err(text));
        }
        let file = match add_file(stage, monitor, images, self.index).await? {
            Ok(file) => file,
            Err(text) => return Ok(Err(text)),
        };
        let mut options =
            json!({"driver": "raw", "node-name": self.node(), "file": file, "discard": "unmap"});
        if self.is_qcow2 {
            let backing = self.below.map(|below| images.backing_name(below));
            let made = monitor.create("create-target", qcow2_options(stage, &file, backing));
            if let Err(text) = made.await? {
                return Ok(Err(text));
            }
            options["driver"] = json!("qcow2");
            options["backing"] = match self.below {
                Some(below) => json!(format!("n{}", images.chain[below])),
                None => Value::Null,
            };
        }
        Ok(monitor.run("blockdev-add", options).await?.map(drop))
    }
}

async fn create_file(
    stage: &Stage,
    monitor: &mut Monitor,
    path: String,
    is_qcow2: bool,
) -> io::Result<Result<(), String>> {
    let size = if is_qcow2 { 0 } else { stage.swarm().size };
    let file = json!({"driver": "file", "filename": path, "size": size});
    monitor.create("create-target", file).await
}

/// Makes an empty image as long as the served disk, and opens it to be backed up to.
///
/// # Errors
/// The connection is lost; inside, why it could not be made.
pub async fn add_target(
    stage: &Stage,
    monitor: &mut Monitor,
    images: &Images,
    name: &str,
    is_qcow2: bool,
) -> io::Result<Result<(), String>> {
    let path = images.path(name);
    if let Err(text) = create_file(stage, monitor, path.clone(), is_qcow2).await? {
        return Ok(Err(text));
    }
    let below = format!("{TARGET}-file");
    let file = json!({"driver": "file", "node-name": below, "filename": path, "discard": "unmap"});
    if let Err(text) = monitor.run("blockdev-add", file).await? {
        return Ok(Err(text));
    }
    if is_qcow2
        && let Err(text) = monitor
            .create("create-target", qcow2_options(stage, &below, None))
            .await?
    {
        return Ok(Err(text));
    }
    let driver = if is_qcow2 { "qcow2" } else { "raw" };
    let options = json!({"driver": driver, "node-name": TARGET, "file": below, "discard": "unmap"});
    Ok(monitor.run("blockdev-add", options).await?.map(drop))
}
