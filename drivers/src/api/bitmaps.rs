//! Dirty bitmaps that an image stores: read with the image, kept by its node while it is open, and stored again before
//! somebody else may look at the image.

use millpond_messages::{ChunkSet, Result};

use super::answer::Answer;

/// A dirty bitmap, as an image stores it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ImageBitmap {
    /// Its name in the image.
    pub name: String,
    /// The bytes that a bit stands for.
    pub granularity: u64,
    /// It records writes whenever the image is open.
    pub is_recording: bool,
    /// What is dirty. Nobody knows where the image was not closed by who wrote to it last.
    pub set: Option<ChunkSet>,
}

/// An image that can store dirty bitmaps, see [`Image::bitmaps`](super::Image::bitmaps). Its node is still whenever it is
/// asked for anything but [`StoresBitmaps::take_read`] and [`StoresBitmaps::check_new`].
pub trait StoresBitmaps {
    /// The bitmaps that were read with the image. They are given away once.
    fn take_read(&self) -> Vec<ImageBitmap>;

    /// Refuses a bitmap that the image could not store beside those of these names, some of which it may not have yet.
    ///
    /// # Errors
    /// Its name or its granularity is impossible, it would be too large, or there are too many.
    fn check_new(&self, name: &str, granularity: u64, beside: &[String]) -> Result<()>;

    /// Says in the image, durably, that its bitmaps are kept by who has it open. An image that is written to says so by itself.
    fn mark_in_use(&self) -> Answer<'_, Result<()>>;

    /// Stores bitmaps, in place of those of the same names. From then on the image may be used by others, until something is
    /// written to it.
    fn store(&self, bitmaps: Vec<ImageBitmap>) -> Answer<'_, Result<()>>;

    /// Stores bitmaps as [`StoresBitmaps::store`] does where the image goes on to be written to, and has a log tell from then
    /// on what has changed since: nothing is dirty by it. Nothing happens where the image keeps no log. Where it cannot go
    /// on with one it goes on without, and after a crash nobody knows what is dirty.
    fn store_and_log(&self, bitmaps: Vec<ImageBitmap>) -> Answer<'_, Result<()>>;

    /// Removes a bitmap from the image, if it has one of this name.
    fn remove(&self, name: &str) -> Answer<'_, Result<()>>;
}
