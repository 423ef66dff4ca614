//! Disks by name: images made, opened, read, written and snapshotted without a word about nodes.
//!
//! Each is a shorthand of what [`GraphHandle`] does: a [`Disk`] is a node that was opened, and a [`Client`] that has hold of
//! it. Whoever needs more than that asks the graph for it by the node's name, [`Disk::node_name`].

use std::future::IntoFuture;
use std::ops::Deref;
use std::pin::Pin;

use millpond_engine::node::Client;
use millpond_messages::graph::{DeleteNode, DetachRoot, OpenImage, Probing, RootRequest, RootUser};
use millpond_messages::path::path_has_protocol;
use millpond_messages::{Error, ErrorKind, IoError, OpenFlags, Permissions, Result};
use serde_json::{Value, json};

use crate::embed::BlockLayer;
use crate::graph::GraphHandle;
use crate::image::NewImage;

type BoxFuture<T> = Pin<Box<dyn Future<Output = T> + Send>>;

/// The name that holds of disks have in errors about who uses a node.
const USER: &str = "disk";

impl BlockLayer {
    /// Opens an image: a path, `protocol:rest` or `json:{...}`. Its format is found by what it begins with, unless it is said;
    /// of a raw image that is to be written to it must be said.
    ///
    /// The result is awaited; before, its methods say how it is to be opened.
    #[must_use = "nothing is opened before this is awaited"]
    pub fn open(&self, filename: impl Into<String>) -> OpenDisk {
        let image = OpenImage {
            filename: Some(filename.into()),
            flags: OpenFlags::RDWR | OpenFlags::UNMAP,
            probing: Probing::Formats,
            ..OpenImage::default()
        };
        OpenDisk {
            graph: self.graph().clone(),
            image,
            shared: Permissions::all() - Permissions::WRITE - Permissions::RESIZE,
        }
    }

    /// Makes an image of `size` bytes: a qcow2 image, unless another format is said. What was in the file is gone.
    ///
    /// The result is awaited; before, its methods say what image it is to be.
    #[must_use = "nothing is made before this is awaited"]
    pub fn create(&self, filename: impl Into<String>, size: u64) -> CreateDisk {
        let image = NewImage {
            filename: filename.into(),
            format: "qcow2".to_owned(),
            size: Some(size),
            quiet: true,
            ..NewImage::default()
        };
        CreateDisk {
            graph: self.graph().clone(),
            image,
        }
    }
}

/// How an image is to be opened; see [`BlockLayer::open`].
pub struct OpenDisk {
    graph: GraphHandle,
    image: OpenImage,
    shared: Permissions,
}

impl OpenDisk {
    /// Nothing will be written.
    #[must_use]
    pub fn read_only(mut self) -> Self {
        self.image.flags -= OpenFlags::RDWR;
        self
    }

    /// The image's format: a driver's name, such as `raw`. Of a raw image it must be said before it is written to, since what
    /// its user writes could make it look like another format.
    #[must_use]
    pub fn format(self, driver: impl Into<String>) -> Self {
        self.option("driver", driver.into())
    }

    /// The node's name; without one it gets a name that nobody else chooses.
    #[must_use]
    pub fn node_name(self, name: impl Into<String>) -> Self {
        self.option("node-name", name.into())
    }

    /// Any option of `blockdev-add`, with dots between levels: `.option("file.aio", "io_uring")`.
    #[must_use]
    pub fn option(mut self, name: impl Into<String>, value: impl Into<Value>) -> Self {
        self.image.options.insert(name.into(), value.into());
        self
    }

    /// What others may do with it meanwhile: all but writing and resizing, unless this says more.
    #[must_use]
    pub fn shared(mut self, shared: Permissions) -> Self {
        self.shared = shared;
        self
    }

    async fn open(self) -> Result<Disk> {
        let (permissions, _) = self.image.flags.root_permissions();
        let node = self.graph.open(self.image).await?;
        let mut opened = Opened {
            graph: self.graph,
            nodes: vec![node.clone()],
        };
        let request = RootRequest {
            shared: self.shared,
            ..RootRequest::new(node, RootUser::Embedder(USER.to_owned()), permissions)
        };
        match opened.graph.attach(request).await {
            Ok(client) => Ok(Disk { client, opened }),
            Err(error) => {
                // The open is undone; why the disk cannot be had is the error that counts.
                drop(opened.delete().await);
                Err(error)
            }
        }
    }
}

impl IntoFuture for OpenDisk {
    type Output = Result<Disk>;
    type IntoFuture = BoxFuture<Self::Output>;

    fn into_future(self) -> Self::IntoFuture {
        Box::pin(self.open())
    }
}

/// What a new image is to be; see [`BlockLayer::create`].
pub struct CreateDisk {
    graph: GraphHandle,
    image: NewImage,
}

impl CreateDisk {
    /// Another format than qcow2: a driver's name.
    #[must_use]
    pub fn format(mut self, driver: impl Into<String>) -> Self {
        self.image.format = driver.into();
        self
    }

    /// The image that it shows where it has nothing of its own, and that image's format. A relative name is relative to the
    /// new image's folder.
    #[must_use]
    pub fn backing(mut self, filename: impl Into<String>, format: impl Into<String>) -> Self {
        self.image.base = Some(filename.into());
        self.image.base_format = Some(format.into());
        self
    }

    /// The format's options, as `qemu-img create -o` takes them: `cluster_size=4k,lazy_refcounts=on`.
    #[must_use]
    pub fn options(mut self, options: impl Into<String>) -> Self {
        self.image.options = options.into();
        self
    }
}

impl IntoFuture for CreateDisk {
    type Output = Result<()>;
    type IntoFuture = BoxFuture<Self::Output>;

    fn into_future(self) -> Self::IntoFuture {
        Box::pin(async move { self.graph.create_image(self.image).await.map(drop) })
    }
}

/// The nodes that a disk consists of, the top last: those that were opened by name, not what they opened by themselves.
struct Opened {
    graph: GraphHandle,
    nodes: Vec<String>,
}

impl Opened {
    async fn delete(&mut self) -> Result<()> {
        let mut result = Ok(());
        while let Some(node) = self.nodes.pop() {
            result = result.and(self.graph.delete_node(node).await);
        }
        result
    }
}

/// An image that is open. Its requests are those of its [`Client`], whose copies may be used from any thread.
#[must_use = "the image is closed when this is dropped"]
pub struct Disk {
    client: Client,
    opened: Opened,
}

impl Deref for Disk {
    type Target = Client;

    fn deref(&self) -> &Client {
        &self.client
    }
}

impl Disk {
    /// The name of the node that requests go to: that of the newest snapshot's overlay.
    #[must_use]
    pub fn node_name(&self) -> &str {
        // `open` puts one there, and only `close`, which takes the disk, takes the last one away.
        self.opened.nodes.last().map_or("", String::as_str)
    }

    /// Keeps what is in the image now as it is: what is written from now on goes to a new qcow2 image, `overlay`, on top of
    /// it. Requests go on meanwhile; those in flight end before.
    ///
    /// # Errors
    /// The overlay cannot be made or opened, or the graph refuses the change. The disk goes on as it was.
    pub async fn snapshot(&mut self, overlay: impl Into<String>) -> Result<()> {
        let (graph, overlay) = (self.opened.graph.clone(), overlay.into());
        let base = graph.node(self.node_name()).await?;
        // Its header's relative names would be relative to the overlay's folder, not to ours.
        let base_name = match path_has_protocol(&base.filename) {
            true => base.filename,
            false => std::path::absolute(&base.filename)
                .map_err(|error| Error::io("the image's path", IoError::from(error)))?
                .to_str()
                .ok_or_else(|| Error::new(ErrorKind::InvalidArgument, "the image's path is not UTF-8"))?
                .to_owned(),
        };
        let image = NewImage {
            filename: overlay.clone(),
            format: "qcow2".to_owned(),
            base: Some(base_name),
            base_format: Some(base.driver),
            size: Some(base.size),
            flags: OpenFlags::NO_BACKING,
            quiet: true,
            ..NewImage::default()
        };
        graph.create_image(image).await?;
        let mut image = OpenImage {
            filename: Some(overlay),
            flags: OpenFlags::RDWR | OpenFlags::UNMAP,
            ..OpenImage::default()
        };
        image.options.insert("driver".to_owned(), json!("qcow2"));
        image.options.insert("backing".to_owned(), Value::Null);
        let node = graph.open(image).await?;
        if let Err(error) = graph.snapshot(self.node_name(), node.as_str()).await {
            // The overlay that nothing is written to yet is given up; the refusal is the error that counts.
            drop(graph.delete_node(node).await);
            return Err(error);
        }
        self.opened.nodes.push(node);
        Ok(())
    }

    /// Flushes and closes the image. Copies of the client are of no use from then on.
    ///
    /// # Errors
    /// It cannot be flushed or closed, or somebody else uses its node: then that node stays.
    pub async fn close(mut self) -> Result<()> {
        self.opened.graph.detach(self.client.root()).await?;
        self.opened.delete().await
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        if self.opened.nodes.is_empty() {
            return;
        }
        let graph = &self.opened.graph;
        graph.send(DetachRoot(self.client.root()));
        for node_name in self.opened.nodes.drain(..).rev() {
            graph.send(DeleteNode { node_name });
        }
    }
}
