//! Making new images, as `blockdev-create` asks for them.

use millpond_messages::io::Preallocation;
use millpond_messages::{Error, ErrorKind, OpenFlags, RequestFlags, Result, SECTOR_SIZE, check_length};
use serde_json::Value;

use super::encryption::NewEncryption;
use super::file::ImageFile;
use super::header::{
    AUTOCLEAR_DATA_FILE_RAW, CLUSTER_BITS, COMPRESSION, Compression, DATA_FILE, EXTENDED_L2, Header,
    LAZY_REFCOUNTS, MAX_BACKING_NAME, MIN_EXTENDED_BITS,
};
use super::image::{GivenOptions, Qcow2};
use super::layout::bytes::table_to_be;
use super::layout::space::HostOffset;
use super::open::open_state;
use super::options::{boolean, number};
use super::refcount::counts::set;
use crate::api::{Child, ChildPort, CreateRequest, parse_options};
use crate::secret::Secrets;

/// The default size of a cluster, in bytes.
const DEFAULT_CLUSTER: u64 = 65_536;

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, serde::Deserialize)]
#[serde(rename_all = "kebab-case")]
enum Version {
    V2,
    #[default]
    V3,
}

/// The options, as QAPI's `BlockdevCreateOptionsQcow2`.
#[derive(Debug, Default, serde::Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub(super) struct CreateOptions {
    #[serde(deserialize_with = "number")]
    pub(super) size: Option<u64>,
    #[serde(default)]
    version: Version,
    #[serde(default)]
    pub(super) backing_file: Option<String>,
    #[serde(default)]
    backing_fmt: Option<String>,
    #[serde(default, deserialize_with = "number")]
    cluster_size: Option<u64>,
    #[serde(default)]
    pub(super) preallocation: Preallocation,
    #[serde(default, deserialize_with = "boolean")]
    lazy_refcounts: Option<bool>,
    #[serde(default, deserialize_with = "number")]
    refcount_bits: Option<u64>,
    #[serde(default)]
    compression_type: Compression,
    #[serde(default, deserialize_with = "boolean")]
    pub(super) extended_l2: Option<bool>,
    #[serde(default)]
    pub(super) encrypt: Option<Value>,
    #[serde(default, deserialize_with = "boolean")]
    data_file_raw: Option<bool>,
}

fn invalid(text: &'static str) -> Error {
    Error::new(ErrorKind::InvalidArgument, text)
}

impl CreateOptions {
    /// Those that the layout of an image follows from. The others are not looked at by who asks for no more.
    pub(super) fn of_layout(&self) -> Self {
        Self {
            size: self.size,
            version: self.version,
            cluster_size: self.cluster_size,
            refcount_bits: self.refcount_bits,
            extended_l2: self.extended_l2,
            ..Self::default()
        }
    }

    /// The header of an image without a disk yet.
    pub(super) fn header(&self, data_file: Option<&Child>) -> Result<Header> {
        self.check_together()?;
        let cluster = self.cluster_size.unwrap_or(DEFAULT_CLUSTER);
        let cluster_bits = cluster.trailing_zeros();
        if !cluster.is_power_of_two() || !CLUSTER_BITS.contains(&cluster_bits) {
            return Err(invalid(
                "Cluster size must be a power of two between 512 and 2048k",
            ));
        }
        let v3 = self.version == Version::V3;
        let extended = self.extended_l2 == Some(true);
        if extended {
            check_extended_l2(cluster, v3)?;
        }
        let lazy = self.lazy_refcounts.unwrap_or(false);
        if lazy && !v3 {
            return Err(invalid(
                "Lazy refcounts only supported with compatibility level 1.1 and above (use version=v3 or greater)",
            ));
        }
        let bits = self.refcount_bits.unwrap_or(16);
        if !bits.is_power_of_two() || bits > 64 {
            return Err(invalid(
                "Refcount width must be a power of two and may not exceed 64 bits",
            ));
        }
        if bits != 16 && !v3 {
            return Err(invalid(
                "Different refcount widths than 16 bits require compatibility level 1.1 or above (use version=v3 or \
                 greater)",
            ));
        }
        let zstd = self.compresses_by_zstd(v3)?;
        let mut header = Header {
            version: if v3 { 3 } else { 2 },
            cluster_bits,
            size: 0,
            l1_size: 0,
            l1_offset: HostOffset::default(),
            reftable_offset: HostOffset::new(cluster),
            reftable_clusters: 1,
            snapshots: 0,
            snapshots_offset: HostOffset::default(),
            incompatible: if zstd { COMPRESSION } else { 0 } | if extended { EXTENDED_L2 } else { 0 },
            compatible: if lazy { LAZY_REFCOUNTS } else { 0 },
            autoclear: 0,
            refcount_order: bits.trailing_zeros(),
            compression: self.compression_type,
            encryption: None,
            unknown: Vec::new(),
            extensions: Default::default(),
            backing: None,
        };
        header.set_backing(self.backing_file.as_deref(), self.backing_fmt.as_deref())?;
        self.set_data_file(&mut header, data_file)?;
        Ok(header)
    }

    fn compresses_by_zstd(&self, v3: bool) -> Result<bool> {
        let zstd = self.compression_type != Compression::Zlib;
        if zstd && !v3 {
            return Err(invalid(
                "Non-zlib compression type is only supported with compatibility level 1.1 and above (use version=v3 or \
                 greater)",
            ));
        }
        Ok(zstd)
    }

    fn check_together(&self) -> Result<()> {
        if !self.size.unwrap_or(0).is_multiple_of(SECTOR_SIZE) {
            return Err(invalid("Image size must be a multiple of 512 bytes"));
        }
        let preallocates = self.preallocation != Preallocation::Off && self.extended_l2 != Some(true);
        if self.backing_file.is_some() && preallocates {
            return Err(invalid(
                "Backing file and preallocation can only be used at the same time if extended_l2 is on",
            ));
        }
        if self.backing_fmt.is_some() && self.backing_file.is_none() {
            return Err(invalid("Backing format cannot be used without backing file"));
        }
        Ok(())
    }
}

impl CreateOptions {
    fn set_data_file(&self, header: &mut Header, data_file: Option<&Child>) -> Result<()> {
        let raw = self.data_file_raw == Some(true);
        if raw && self.backing_file.is_some() {
            return Err(invalid(
                "Backing file and data-file-raw cannot be used at the same time",
            ));
        }
        let Some(data_file) = data_file else {
            return if raw {
                Err(invalid("data-file-raw requires data-file"))
            } else {
                Ok(())
            };
        };
        if header.version < 3 {
            return Err(invalid(
                "External data files are only supported with compatibility level 1.1 and above (use version=v3 or greater)",
            ));
        }
        header.incompatible |= DATA_FILE;
        header.autoclear |= if raw { AUTOCLEAR_DATA_FILE_RAW } else { 0 };
        header.extensions.data_file = Some(data_file.filename());
        Ok(())
    }
}

/// Refuses an image with subclusters whose layout has no room for them.
fn check_extended_l2(cluster: u64, v3: bool) -> Result<()> {
    if cluster < 1 << MIN_EXTENDED_BITS {
        return Err(invalid(
            "Extended L2 entries are only supported with cluster sizes of at least 16384 bytes",
        ));
    }
    if !v3 {
        return Err(invalid(
            "Extended L2 entries are only supported with compatibility level 1.1 and above (use version=v3 or greater)",
        ));
    }
    Ok(())
}

impl Header {
    /// Sets the backing file's name and format.
    pub fn set_backing(&mut self, name: Option<&str>, format: Option<&str>) -> Result<()> {
        if name.is_some_and(|name| name.len() as u64 > MAX_BACKING_NAME) {
            return Err(invalid("Backing file name too long"));
        }
        self.backing = name
            .filter(|name| !name.is_empty())
            .map(|name| name.as_bytes().to_vec());
        self.extensions.backing_format = format.map(ToOwned::to_owned);
        Ok(())
    }
}

/// Stands for the children that a new image does not have: nothing is read through them.
struct Unconnected;

impl ChildPort for Unconnected {
    fn request(
        &self,
        _operation: millpond_messages::io::Operation<millpond_ring::buffer::Buffers>,
    ) -> crate::api::Answer<'static, millpond_messages::io::Outcome<millpond_ring::buffer::Buffers>> {
        crate::api::Answer::ready(millpond_messages::io::Outcome::plain(Err(
            millpond_messages::IoError::NoMedium,
        )))
    }

    fn limits(&self) -> millpond_messages::Limits {
        millpond_messages::Limits::default()
    }

    fn is_connected(&self) -> bool {
        false
    }

    fn node_name(&self) -> String {
        String::new()
    }

    fn filename(&self) -> String {
        String::new()
    }
}

/// Makes an image in the request's file.
pub(super) async fn create(secrets: Secrets, request: CreateRequest) -> Result<()> {
    let Some(file) = request.file else {
        return Err(invalid("Parameter 'file' is missing"));
    };
    let mut options: CreateOptions = parse_options(request.options)?;
    let Some(size) = options.size else {
        return Err(invalid("Parameter 'size' is missing"));
    };
    let header = options.header(request.data_file.as_ref())?;
    let encrypt = options.encrypt.take();
    let encryption = encrypt
        .map(|option| NewEncryption::parse(&secrets, option))
        .transpose()?;
    check_length(size).map_err(|error| error.within("Could not resize image"))?;
    write_empty(&file, &header).await?;
    let given = GivenOptions {
        flags: OpenFlags::RDWR,
        secrets,
        ..GivenOptions::default()
    };
    let state = open_state(&ImageFile::new(file.clone()), &request.ring, &given, None).await?;
    let none = Child::new(std::rc::Rc::new(Unconnected));
    let data_file = request.data_file.unwrap_or_else(|| none.clone());
    let image = Qcow2::new([file.clone(), none, data_file], request.ring, state, given);
    image.activate().await?;
    image
        .resize(size, options.preallocation, RequestFlags::empty())
        .await
        .map_err(|error| error.within("Could not resize image"))?;
    if let Some(encryption) = encryption {
        image.set_up_encryption(encryption).await?;
    }
    image.flush_and_close().await?;
    let flushed = match file.flush().await {
        Ok(()) if image.state.borrow().geometry.external => image.data.flush().await,
        flushed => flushed,
    };
    flushed.map_err(|error| Error::io("Could not flush the new image", error))
}

/// Writes the clusters that an image of no length has: header, refcount table, refcount block.
async fn write_empty(file: &Child, header: &Header) -> Result<()> {
    let cluster = 1_usize << header.cluster_bits;
    let mut bytes = header.encode()?;
    bytes.resize(cluster, 0);
    bytes.extend(table_to_be(&[2 * cluster as u64]));
    bytes.resize(2 * cluster, 0);
    let mut block = vec![0; cluster];
    (0..3).for_each(|index| set(&mut block, header.refcount_order, index, 1));
    bytes.extend(block);
    let (written, _) = file.write(0, bytes.into(), RequestFlags::empty()).await;
    written.map_err(|error| Error::io("Could not write qcow2 header", error))
}
