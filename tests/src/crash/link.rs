//! The images of a chain: the disks that they are on, how they are opened, and what a crash leaves of them.

use std::sync::Arc;

use serde_json::{Value, json};

use super::disk::{Clock, Disk, Fate, Recording};
use super::site::Site;

/// What an image is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    /// Bytes as they are.
    Raw,
    /// A qcow2 image.
    Qcow2,
    /// A LUKS volume.
    Luks,
}

/// An image of a chain.
#[derive(Debug, Clone)]
pub struct Link {
    /// The name of its disk.
    pub name: String,
    /// The disk.
    pub disk: Arc<Disk>,
    /// What is on it.
    pub format: Format,
    /// The disk that has the image's data, where that is another one, and its name.
    pub data: Option<(String, Arc<Disk>)>,
}

impl Link {
    /// An image that is all on one disk.
    pub fn new(name: String, disk: Arc<Disk>, format: Format) -> Self {
        Self {
            name,
            disk,
            format,
            data: None,
        }
    }

    /// What was recorded of it.
    pub fn recorded(&self) -> RecordedLink {
        RecordedLink {
            main: self.disk.recording(),
            data: self.data.as_ref().map(|(_, disk)| disk.recording()),
            format: self.format,
        }
    }
}

/// The option of an image that keeps a log of its bitmaps.
pub const BITMAP_LOG: &str = "x-millpond-bitmap-log";

/// Options of a node on the last of `links`, which begin with the lowest. `key` is the secret that opens them where they are
/// encrypted.
pub fn chain_options(links: &[Link], key: Option<&str>) -> Value {
    let mut below = Value::Null;
    let on = |disk: &str| json!({"driver": "recorder", "disk": disk, "discard": "unmap"});
    for link in links {
        let file = on(&link.name);
        below = match link.format {
            Format::Raw => file,
            Format::Luks => json!({"driver": "luks", "file": file, "key-secret": key}),
            Format::Qcow2 => {
                let mut image =
                    json!({"driver": "qcow2", "file": file, "backing": below, "discard": "unmap"});
                if let Some(key) = key {
                    image["encrypt"] = json!({"format": "luks", "key-secret": key});
                }
                if let Some((data, _)) = &link.data {
                    image["data-file"] = on(data);
                }
                image
            }
        };
    }
    below
}

/// What was recorded of an image.
#[derive(Debug, Clone)]
pub struct RecordedLink {
    main: Recording,
    data: Option<Recording>,
    format: Format,
}

impl RecordedLink {
    /// How many changes had been asked for at `point` that no flush answered by then covers.
    pub fn volatile(&self, point: u64) -> usize {
        let count = |recording: &Recording| recording.volatile(point).len();
        count(&self.main) + self.data.as_ref().map_or(0, count)
    }

    /// The times just before something happened on its disks.
    pub fn points(&self) -> Vec<u64> {
        let mut points = self.main.points();
        points.extend(self.data.iter().flat_map(Recording::points));
        points
    }

    /// What a crash at `point` leaves, where `fates` says what became of the changes that are not durable.
    pub fn image(&self, point: u64, fates: &[Fate], rng: &mut fastrand::Rng) -> Stored {
        let (main, rest) = fates.split_at(self.main.volatile(point).len());
        Stored {
            bytes: self.main.image(point, main, rng),
            data: self.data.as_ref().map(|data| data.image(point, rest, rng)),
            format: self.format,
        }
    }
}

/// An image as its disks have it.
#[derive(Debug, Clone)]
pub struct Stored {
    /// What is on its disk.
    pub bytes: Vec<u8>,
    /// What is on the disk with its data, where that is another one.
    pub data: Option<Vec<u8>>,
    /// What it is.
    pub format: Format,
}

/// Images of a chain, the lowest first.
pub type Images = Vec<Stored>;

impl Stored {
    /// Puts the image on new disks that take no time.
    pub fn load(&self, site: &Site, clock: &Arc<Clock>) -> Link {
        let put = |bytes: &Vec<u8>| {
            let disk = Disk::new(bytes.clone(), clock, 1, 0, 0);
            (site.put("crashed", &disk), disk)
        };
        let (name, disk) = put(&self.bytes);
        Link {
            data: self.data.as_ref().map(put),
            ..Link::new(name, disk, self.format)
        }
    }

    /// A qcow2 image that is all on one disk.
    pub fn qcow2(bytes: Vec<u8>) -> Self {
        Self {
            bytes,
            data: None,
            format: Format::Qcow2,
        }
    }

    /// What an image's disks have now.
    pub fn of(link: &Link) -> Self {
        Self {
            bytes: link.disk.bytes(),
            data: link.data.as_ref().map(|(_, disk)| disk.bytes()),
            format: link.format,
        }
    }
}
