//! What can be done to an image as a whole.

use millpond_messages::graph::Options;
use millpond_messages::qapi::ImageInfoSpecific;
use millpond_messages::{
    CheckResult, DriverInfo, Error, ErrorKind, InternalSnapshot, IoError, IoResult, Repair, Result,
    SnapshotChange,
};
use millpond_ring::buffer::Buffers;

use super::answer::Answer;
use super::bitmaps::StoresBitmaps;
use super::nothing::Nothing;

/// An image as its driver sees it, see [`Driver::image`](super::Driver::image). Each default says that there is no such
/// thing, in the words that users know.
pub trait Image {
    /// Facts about the image.
    fn info(&self) -> DriverInfo {
        DriverInfo::default()
    }

    /// What only the format knows, as queries show it.
    fn specific_info(&self) -> Option<ImageInfoSpecific> {
        None
    }

    /// The filename that opens this node with default options, where there is one.
    fn filename(&self) -> Option<String> {
        None
    }

    /// The file that the image keeps the guest's data in, where that is not its own: the child
    /// [`ChildKind::DATA_FILE`](super::ChildKind::DATA_FILE).
    fn data_file(&self) -> Option<DataFileLink> {
        None
    }

    /// Checks the image's metadata; `repair` mends leaks, errors or both.
    fn check(&self, _repair: Repair) -> Answer<'_, Result<CheckResult>> {
        Answer::ready(Err(Error::new(
            ErrorKind::Unsupported,
            "This image format does not support checks",
        )))
    }

    /// The view of the dirty bitmaps that the image stores. Few formats have any.
    fn bitmaps(&self) -> Option<&dyn StoresBitmaps> {
        None
    }

    /// Forgets all that the image has of its own: it shows what its backing node does, or zeroes. Nothing else is asked of
    /// the driver meanwhile.
    fn make_empty(&self) -> Answer<'_, Result<()>> {
        Answer::ready(Err(Error::new(
            ErrorKind::Unsupported,
            "This image format does not support emptying of images",
        )))
    }

    /// Does what of a coming [`Image::amend`] takes long and needs no stillness. It changes nothing in the image, and need
    /// not be followed by the change.
    fn prepare_amend(&self, _options: &Options, _force: bool) -> Answer<'_, Result<()>> {
        Answer::ready(Ok(()))
    }

    /// Changes options of the image's format in place: `qemu-img amend`'s, by its names; with `force` even what may lose
    /// data. What can be refused is refused before anything changes. The node is still; its length is asked for afterwards,
    /// whatever the answer.
    fn amend(&self, _options: &Options, _force: bool) -> Answer<'_, Result<()>> {
        Answer::ready(Err(Error::new(
            ErrorKind::Unsupported,
            "This image format does not support option amendment",
        )))
    }

    /// The snapshots inside the image, in its order.
    fn snapshots(&self) -> Vec<InternalSnapshot> {
        Vec::new()
    }

    /// Makes, deletes, applies or shows a snapshot inside the image; answers which. The node is still; its length is asked
    /// for afterwards. Of a change that fails the image shows nothing, but clusters that are leaked.
    fn change_snapshots(&self, _change: &SnapshotChange) -> Answer<'_, Result<InternalSnapshot>> {
        Answer::ready(Err(Error::new(
            ErrorKind::Unsupported,
            "Block driver does not support internal snapshots",
        )))
    }

    /// Stores a part of a machine's state beside the disk, where the next snapshot finds it. `offset` counts from the start
    /// of the state.
    fn save_vm_state(&self, _offset: u64, _state: Buffers) -> Answer<'_, IoResult<()>> {
        Answer::ready(Err(IoError::NotSupported))
    }

    /// Reads a part of it; zeroes where nothing was stored.
    fn load_vm_state(&self, _offset: u64, _len: usize) -> Answer<'_, IoResult<Buffers>> {
        Answer::ready(Err(IoError::NotSupported))
    }

    /// Records in the image which backing file it has. The graph has linked the node already.
    fn change_backing_file(&self, _link: Option<BackingLink>) -> Answer<'_, Result<()>> {
        Answer::ready(Err(Error::new(
            ErrorKind::Unsupported,
            "This image format does not support backing files",
        )))
    }

    /// Deletes the file that the node's data is in; the node goes on with it until it is closed.
    fn delete_file(&self) -> Answer<'_, Result<()>> {
        Answer::ready(Err(Error::new(
            ErrorKind::Unsupported,
            "The block driver does not support image deletion",
        )))
    }
}

/// A backing file as an image names it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BackingLink {
    /// The stored name, neither completed nor trusted.
    pub filename: String,
    /// The format that is stored with the link.
    pub format: Option<String>,
}

/// The external data file of an image, as the image names it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DataFileLink {
    /// The stored name, which is a path whatever it looks like, and not trusted; some images have none.
    pub filename: Option<String>,
}

impl Image for Nothing {}
