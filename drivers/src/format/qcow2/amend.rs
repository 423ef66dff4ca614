//! Changes of an open image's format options, as `qemu-img amend` makes them and with its names and words.

use millpond_messages::graph::Options;
use millpond_messages::io::Preallocation;
use millpond_messages::{Error, ErrorKind, IoError, RequestFlags, Result, SECTOR_SIZE, check_length};
use serde_json::Value;

use super::encryption::is_about_keys;
use super::header::{AUTOCLEAR_DATA_FILE_RAW, DIRTY, Header, LAZY_REFCOUNTS};
use super::image::Qcow2;
use super::layout::entry::Cluster;
use super::layout::space::GuestOffset;
use super::options::{boolean, number};
use millpond_ring::buffer::Buffers;

/// The width that refcounts of version 2 have, as a power of two.
const V2_REFCOUNT_ORDER: u32 = 4;

fn invalid(text: impl Into<std::borrow::Cow<'static, str>>) -> Error {
    Error::new(ErrorKind::InvalidArgument, text)
}

fn unsupported(text: impl Into<std::borrow::Cow<'static, str>>) -> Error {
    Error::new(ErrorKind::Unsupported, text)
}

/// The changes that the options ask for; options that stay the same are left out.
#[derive(Debug, Default, PartialEq, Eq)]
struct Wanted {
    version: Option<u32>,
    lazy_refcounts: Option<bool>,
    /// The width of refcounts, as a power of two.
    refcount_order: Option<u32>,
    size: Option<u64>,
    /// The name that the image is to have for its data file; an empty one is none.
    data_file: Option<String>,
    data_file_raw: Option<bool>,
}

impl Wanted {
    fn parse(options: &Options, header: &Header) -> Result<Self> {
        let mut wanted = Self::default();
        let mut refcount_bits = None;
        for (name, value) in options {
            match name.as_str() {
                "compat" => wanted.version = Some(version(value)?),
                "lazy_refcounts" => wanted.lazy_refcounts = Some(truth(name, value)?),
                "size" => wanted.size = Some(natural(name, value)?),
                "refcount_bits" => refcount_bits = Some(natural(name, value)?),
                "backing_file" | "backing_fmt" => check_backing(options, header)?,
                "data_file" => wanted.data_file = Some(data_file(value, header)?),
                "data_file_raw" => wanted.data_file_raw = Some(truth(name, value)?),
                // The keys are changed by themselves.
                name if is_about_keys(name) => {}
                // Options that are for new images only are invalid here too.
                _ => return Err(invalid(format!("Invalid parameter '{name}'"))),
            }
        }
        wanted.version = wanted.version.filter(|version| *version != header.version);
        wanted.check_refcount_bits(refcount_bits, header)?;
        let lazy = header.compatible & LAZY_REFCOUNTS != 0;
        wanted.lazy_refcounts = wanted.lazy_refcounts.filter(|wanted| *wanted != lazy);
        if wanted.lazy_refcounts == Some(true) && wanted.version.unwrap_or(header.version) < 3 {
            return Err(invalid(
                "Lazy refcounts only supported with compatibility level 1.1 and above (use compat=1.1 or greater)",
            ));
        }
        wanted.check_data_file(header)?;
        wanted.size = wanted.size.filter(|size| *size != header.size);
        wanted.check_size(header)?;
        if wanted.version == Some(2) {
            check_downgrade(header)?;
        }
        Ok(wanted)
    }

    fn check_refcount_bits(&mut self, bits: Option<u64>, header: &Header) -> Result<()> {
        let Some(bits) = bits else { return Ok(()) };
        if !bits.is_power_of_two() || bits > 64 {
            return Err(invalid(
                "Refcount width must be a power of two and may not exceed 64 bits",
            ));
        }
        if bits == 1 << header.refcount_order {
            return Ok(());
        }
        if self.version.unwrap_or(header.version) < 3 {
            return Err(invalid(
                "Refcount widths other than 16 bits require compatibility level 1.1 or above (use compat=1.1 or greater)",
            ));
        }
        self.refcount_order = Some(bits.trailing_zeros());
        Ok(())
    }

    fn check_data_file(&mut self, header: &Header) -> Result<()> {
        let is_raw = header.data_file_is_raw();
        if self.data_file_raw == Some(true) && !is_raw {
            return Err(invalid("data-file-raw cannot be set on existing images"));
        }
        self.data_file_raw = self.data_file_raw.filter(|raw| *raw != is_raw);
        let stored = header.extensions.data_file.as_deref().unwrap_or_default();
        self.data_file = self.data_file.take().filter(|name| name != stored);
        Ok(())
    }

    /// Refuses what a resize would refuse, before anything else changes.
    fn check_size(&self, header: &Header) -> Result<()> {
        let Some(size) = self.size else { return Ok(()) };
        check_length(size)?;
        if !size.is_multiple_of(SECTOR_SIZE) {
            return Err(invalid("The new size must be a multiple of 512"));
        }
        if header.snapshots > 0 && header.version < 3 && self.version.is_none() {
            return Err(unsupported("Can't resize a v2 image which has snapshots"));
        }
        Ok(())
    }
}

fn version(value: &Value) -> Result<u32> {
    match value.as_str() {
        Some("0.10" | "v2") => Ok(2),
        Some("1.1" | "v3") => Ok(3),
        Some(other) => Err(invalid(format!("Unknown compatibility level {other}"))),
        None => Err(invalid("Invalid parameter type for 'compat', expected: string")),
    }
}

/// The new name of the data file, for an image that has one.
fn data_file(value: &Value, header: &Header) -> Result<String> {
    let name = value
        .as_str()
        .ok_or_else(|| invalid("Invalid parameter type for 'data_file', expected: string"))?;
    if !header.has_data_file() {
        let text = "data-file can only be set for images that use an external data file";
        return Err(invalid(text));
    }
    Ok(name.to_owned())
}

fn truth(name: &str, value: &Value) -> Result<bool> {
    let parsed = boolean(value.clone()).ok().flatten();
    parsed.ok_or_else(|| invalid(format!("Parameter '{name}' expects 'on' or 'off'")))
}

fn natural(name: &str, value: &Value) -> Result<u64> {
    let parsed = number(value.clone()).ok().flatten();
    let text = || format!("Parameter '{name}' expects a non-negative number below 2^64");
    parsed.ok_or_else(|| invalid(text()))
}

/// Refuses another backing file. To name the one that the image has already is no change.
fn check_backing(options: &Options, header: &Header) -> Result<()> {
    let given = |name| options.get(name).and_then(Value::as_str);
    let file = given("backing_file").map(str::as_bytes);
    if file == header.backing.as_deref()
        && given("backing_fmt") == header.extensions.backing_format.as_deref()
    {
        return Ok(());
    }
    let refusal = unsupported("Cannot amend the backing file");
    Err(refusal.with_hint("You can use 'qemu-img rebase' instead."))
}

/// Refuses what version 2 cannot express, except in the clusters, which are looked at later.
fn check_downgrade(header: &Header) -> Result<()> {
    if header.refcount_order != V2_REFCOUNT_ORDER {
        return Err(unsupported("compat=0.10 requires refcount_bits=16"));
    }
    if header.has_data_file() {
        return Err(unsupported("Cannot downgrade an image with a data file"));
    }
    let features = header.incompatible & !DIRTY;
    if features != 0 {
        let text = format!("Cannot downgrade an image with incompatible features {features:#x} set");
        return Err(unsupported(text));
    }
    if header.snapshots > 0 {
        return Err(unsupported("Internal snapshots prevent downgrade of image"));
    }
    if header.extensions.bitmaps().is_some() {
        return Err(unsupported("Bitmaps prevent downgrade of image"));
    }
    Ok(())
}

impl Qcow2 {
    /// Changes what the options ask for. Where one change fails, those before it stay.
    pub(super) async fn amend_image(&self, options: &Options) -> Result<()> {
        if !self.state.borrow().writable {
            return Err(Error::new(ErrorKind::ReadOnly, "Image is read-only"));
        }
        let wanted = Wanted::parse(options, &self.state.borrow().header)?;
        if wanted == Wanted::default() {
            return Ok(());
        }
        let readied = self.activate_late().await;
        readied.map_err(|error| Error::io("Could not prepare the image", error))?;
        if wanted.version == Some(3) {
            self.complete_snapshots().await?;
            self.set_version(3).await?;
        }
        if let Some(order) = wanted.refcount_order {
            self.set_refcount_width(order).await?;
        }
        if wanted.data_file.is_some() || wanted.data_file_raw.is_some() {
            self.set_data_file(wanted.data_file, wanted.data_file_raw).await?;
        }
        if let Some(lazy) = wanted.lazy_refcounts {
            self.set_lazy_refcounts(lazy).await?;
        }
        if let Some(size) = wanted.size {
            self.resize(size, Preallocation::Off, RequestFlags::empty())
                .await?;
        }
        if wanted.version == Some(2) {
            let expanded = self.expand_zero_clusters().await;
            expanded.map_err(|error| Error::io("Failed to turn zero into data clusters", error))?;
            self.set_lazy_refcounts(false).await?;
            self.set_version(2).await?;
        }
        Ok(())
    }

    /// Writes the snapshot table anew, whose entries say all that version 3 wants to know.
    async fn complete_snapshots(&self) -> Result<()> {
        let snapshots = self.state.borrow().snapshots.clone();
        if snapshots.is_empty() {
            return Ok(());
        }
        let stored = self.store_snapshots(snapshots).await;
        stored.map_err(|error| Error::io("Could not update the snapshot table", error))
    }

    async fn set_version(&self, version: u32) -> Result<()> {
        let mut header = self.state.borrow().header.clone();
        header.version = version;
        if version < 3 {
            (header.incompatible, header.compatible, header.autoclear) = (0, 0, 0);
            header.unknown.clear();
        }
        self.replace_header(header, |header, old| *header = old).await?;
        let mut state = self.state.borrow_mut();
        state.geometry.version = version;
        state.settings.discard_no_unref &= version >= 3;
        Ok(())
    }

    /// Gives the data file another name in the image, or lets it differ from what the disk reads as.
    async fn set_data_file(&self, name: Option<String>, raw: Option<bool>) -> Result<()> {
        let mut header = self.state.borrow().header.clone();
        if let Some(name) = name {
            header.extensions.data_file = Some(name).filter(|name| !name.is_empty());
        }
        if raw == Some(false) {
            header.autoclear &= !AUTOCLEAR_DATA_FILE_RAW;
        }
        self.replace_header(header, |header, old| {
            header.extensions.data_file = old.extensions.data_file;
            header.autoclear |= old.autoclear & AUTOCLEAR_DATA_FILE_RAW;
        })
        .await
    }

    /// Turns lazy refcounts on or off. Without them the image is never marked as one whose refcounts lag behind.
    async fn set_lazy_refcounts(&self, lazy: bool) -> Result<()> {
        let old = {
            let mut state = self.state.borrow_mut();
            std::mem::replace(&mut state.settings.lazy_refcounts, lazy)
        };
        let stored = self.store_lazy_refcounts(lazy).await;
        if stored.is_err() {
            self.state.borrow_mut().settings.lazy_refcounts = old;
        }
        stored
    }

    async fn store_lazy_refcounts(&self, lazy: bool) -> Result<()> {
        if !lazy {
            self.flush_and_close().await?;
        }
        let old = {
            let header = &mut self.state.borrow_mut().header;
            let old = header.compatible;
            header.compatible = if lazy {
                old | LAZY_REFCOUNTS
            } else {
                old & !LAZY_REFCOUNTS
            };
            old
        };
        self.store_features().await.map_err(|error| {
            self.state.borrow_mut().header.compatible = old;
            Error::io("Could not update the image header", error)
        })
    }

    /// Takes the zero clusters out, which version 2 has no way to store: what is unallocated reads as zeroes, unless a
    /// backing file shows through. There zeroes are stored.
    async fn expand_zero_clusters(&self) -> Result<(), IoError> {
        let (hides, cluster) = {
            let state = self.state.borrow();
            let hides = self.backing.is_connected() || state.header.backing.is_some();
            (hides, state.geometry.cluster_size())
        };
        let mut from = GuestOffset::default();
        while let Some(found) = self.next_zero_cluster(from).await? {
            if hides {
                self.store(found, Buffers::zeroed(cluster as usize)).await?;
            } else {
                self.run(move |state| state.drop_some(found, cluster)).await?;
            }
            from = found + cluster;
        }
        Ok(())
    }

    /// The first zero cluster from an offset on, also behind the disk's end.
    async fn next_zero_cluster(&self, mut offset: GuestOffset) -> Result<Option<GuestOffset>, IoError> {
        let (geometry, end) = {
            let state = self.state.borrow();
            let tables = state.l1.len() as u64;
            (state.geometry, tables << state.geometry.l2_span_bits())
        };
        while offset.get() < end {
            let (found, next) = self
                .run(move |state| {
                    let Some(key) = state.slice_key(offset)? else {
                        return Ok((None, offset + geometry.rest_of_table(offset)));
                    };
                    let entries = state.slice(key)?.iter().skip(geometry.slice_index(offset));
                    let left = geometry.slice_entries() - geometry.slice_index(offset);
                    let mut places = entries.zip(0_u64..);
                    let zero = places.find(|(entry, _)| {
                        matches!(
                            geometry.cluster(**entry),
                            Cluster::ZeroPlain | Cluster::ZeroAllocated(_)
                        )
                    });
                    let found = zero.map(|(_, at)| offset + geometry.bytes(at));
                    Ok((found, offset + geometry.bytes(left as u64)))
                })
                .await?;
            if found.is_some() {
                return Ok(found);
            }
            offset = next;
        }
        Ok(None)
    }
}
