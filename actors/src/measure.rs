//! How large an image will be, as `qemu-img measure` tells it.

use millpond_graph::new_image::Given;
use millpond_messages::graph::{MeasureImage, NamedNodes, RootRequest, RootUser};
use millpond_messages::io::Operation;
use millpond_messages::qapi::{BlockDeviceInfo, ImageInfoSpecific};
use millpond_messages::{DataCount, Error, ErrorKind, ImageMeasure, Permissions, Range, Result, SECTOR_SIZE};

use crate::graph::GraphHandle;
use crate::node::Client;

/// The hold on a source while it is looked at.
const USER: &str = "measure-image";
/// Bytes of an entry in the table of a stored dirty bitmap.
const BITMAP_ENTRY: u64 = 8;
/// Bytes of an entry in the directory of stored dirty bitmaps, before the name.
const DIRECTORY_ENTRY: u64 = 24;

/// What is to be measured.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Measured {
    /// An image with a disk of so many bytes, and nothing on it.
    Empty(u64),
    /// An image that has the data of a node, which is called this.
    CopyOf(String),
}

impl GraphHandle {
    /// How large a new image of this format will be, with options as `-o` takes them.
    ///
    /// # Errors
    /// In `qemu-img`'s words: there is no such format, it cannot tell, or an option is not for it; there is no such node, or it
    /// cannot be read.
    pub async fn measure_image(
        &self,
        format: &str,
        options: &str,
        measured: &Measured,
    ) -> Result<ImageMeasure> {
        let given = Given::of_format(format, options)?;
        let request = |size: u64| -> Result<MeasureImage> {
            let too_large = || Error::new(ErrorKind::InvalidArgument, "The image size is too large");
            let size = size.checked_next_multiple_of(SECTOR_SIZE).ok_or_else(too_large)?;
            let mut options = given.to_create()?;
            // What is in which file makes no difference.
            options.retain(|name, _| !matches!(name.as_str(), "data-file" | "data-file-raw"));
            options.insert("size".to_owned(), size.into());
            let driver = format.to_owned();
            Ok(MeasureImage { driver, options })
        };
        let node = match measured {
            Measured::Empty(size) => {
                let plan = self.ask(request(*size)?).await?;
                return Ok(plan.with_data(0, None));
            }
            Measured::CopyOf(node) => node,
        };
        let user = RootUser::Embedder(USER.to_owned());
        let source = self
            .attach(RootRequest::new(node, user, Permissions::CONSISTENT_READ))
            .await?;
        let measured = async {
            let size = source.length().await.map_err(unreadable)?;
            let plan = self.ask(request(size)?).await?;
            let data = match plan.sparse {
                Some(cluster) if !plan.is_overlay => count_data(&source, size, cluster).await?,
                _ => plan.disk,
            };
            let bitmaps = match plan.bitmaps {
                Some(cluster) => self.stored_bitmaps(node, size, cluster).await?,
                None => None,
            };
            Ok(plan.with_data(data, bitmaps))
        };
        let measured = measured.await;
        let detached = self.detach(source.root()).await;
        measured.and_then(|measured| detached.map(|()| measured))
    }

    /// Bytes that the dirty bitmaps take which a node's image stores; `None` where it cannot store any.
    async fn stored_bitmaps(&self, node: &str, size: u64, cluster: u64) -> Result<Option<u64>> {
        let nodes = self.ask(NamedNodes { flat: true }).await?;
        let info = nodes
            .into_iter()
            .find(|info| info.node_name.as_deref() == Some(node));
        Ok(info
            .filter(stores_bitmaps)
            .map(|info| size_of_bitmaps(&info, size, cluster)))
    }
}

fn unreadable(error: millpond_messages::IoError) -> Error {
    Error::io("Unable to get block status", error)
}

async fn count_data(source: &Client, size: u64, cluster: u64) -> Result<u64> {
    let mut count = DataCount::new(cluster);
    while count.at() < size {
        let map = Operation::Map {
            range: Range::between(count.at(), size),
            want_zero: true,
            whole_chain: true,
        };
        let before = count.at();
        let extents = source.request(map).await.into_map().map_err(unreadable)?;
        extents.iter().for_each(|extent| count.add(extent));
        if count.at() == before {
            return Err(unreadable(millpond_messages::IoError::Invalid));
        }
    }
    Ok(count.bytes())
}

fn stores_bitmaps(info: &BlockDeviceInfo) -> bool {
    match &info.image.format_specific {
        Some(ImageInfoSpecific::Qcow2(specific)) => specific.data.compat != "0.10",
        _ => false,
    }
}

fn size_of_bitmaps(info: &BlockDeviceInfo, size: u64, cluster: u64) -> u64 {
    let bitmaps = info.dirty_bitmaps.iter().flatten();
    let (mut total, mut directory) = (0, 0);
    for bitmap in bitmaps.filter(|bitmap| bitmap.persistent) {
        let granularity = u64::from(bitmap.granularity).max(1);
        let clusters = size.div_ceil(granularity).div_ceil(8).div_ceil(cluster);
        total += clusters * cluster + (clusters * BITMAP_ENTRY).next_multiple_of(cluster);
        let name = bitmap.name.as_deref().unwrap_or_default().len() as u64;
        directory += (DIRECTORY_ENTRY + name).next_multiple_of(BITMAP_ENTRY);
    }
    total + u64::next_multiple_of(directory, cluster)
}
