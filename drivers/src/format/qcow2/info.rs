//! The facts about an open image that queries show.

use millpond_messages::DriverInfo;
use millpond_messages::qapi::{
    ImageInfoSpecific, ImageInfoSpecificQCow2, ImageInfoSpecificQCow2Wrapper, Qcow2CompressionType,
};

use super::encryption::Encryption;
use super::header::{CORRUPT, Compression, DIRTY, LAZY_REFCOUNTS};
use super::state::State;

impl State {
    /// The facts that every format reports of itself.
    pub fn info(&self) -> DriverInfo {
        let cluster_size = self.geometry.cluster_size();
        DriverInfo {
            cluster_size,
            vm_state_offset: self.geometry.l1_entries(self.header.size) << self.geometry.l2_span_bits(),
            is_dirty: self.header.incompatible & DIRTY != 0,
            subcluster_size: self.geometry.zero_unit(),
            needs_compressed_writes: false,
        }
    }

    /// The facts that only this format has.
    pub fn specific_info(&self) -> ImageInfoSpecific {
        let is_new = self.header.version >= 3;
        let only_new = |value: bool| Some(value).filter(|_| is_new);
        let data = ImageInfoSpecificQCow2 {
            compat: if is_new { "1.1" } else { "0.10" }.to_owned(),
            data_file: self.header.extensions.data_file.clone(),
            data_file_raw: self
                .header
                .has_data_file()
                .then(|| self.header.data_file_is_raw()),
            extended_l2: only_new(self.header.has_extended_l2()),
            lazy_refcounts: only_new(self.header.compatible & LAZY_REFCOUNTS != 0),
            corrupt: only_new(self.header.incompatible & CORRUPT != 0),
            refcount_bits: 1 << self.geometry.refcount_order,
            encrypt: self.encryption.as_ref().map(Encryption::info),
            bitmaps: self.bitmap_infos(),
            compression_type: match self.header.compression {
                Compression::Zlib => Qcow2CompressionType::Zlib,
                Compression::Zstd => Qcow2CompressionType::Zstd,
            },
        };
        ImageInfoSpecific::Qcow2(ImageInfoSpecificQCow2Wrapper { data })
    }
}
