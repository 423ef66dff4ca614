//! Header extensions: the typed blocks behind the header's fields, up to the backing file's name.

use millpond_messages::{Error, ErrorKind, Result};

use crate::format::qcow2::layout::bytes::{be32, be64, text};
use crate::format::qcow2::layout::space::HostOffset;

const END: u32 = 0;
const BACKING_FORMAT: u32 = 0xe279_2aca;
const FEATURE_NAMES: u32 = 0x6803_f857;
const BITMAPS: u32 = 0x2385_2875;
/// Bytes of the bitmaps extension.
const BITMAPS_LEN: usize = 24;
const CRYPTO: u32 = 0x0537_be77;
/// Bytes of the extension that tells of an encryption header.
const CRYPTO_LEN: usize = 16;
const DATA_FILE: u32 = 0x4441_5441;

/// Bytes of an entry of the feature name table: type, bit, name.
const FEATURE_ENTRY: usize = 48;
/// Bytes of a feature's name.
const FEATURE_NAME: usize = 46;
/// Longer formats are refused: QEMU's bound, the terminating zero included.
const BACKING_FORMAT_MAX: usize = 16;

/// The feature words that names are given for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum FeatureType {
    Incompatible = 0,
    Compatible = 1,
    Autoclear = 2,
}

/// Every feature that the format's specification names: what an image's feature name table tells older programs.
const KNOWN_FEATURES: [(FeatureType, u8, &str); 8] = [
    (FeatureType::Incompatible, 0, "dirty bit"),
    (FeatureType::Incompatible, 1, "corrupt bit"),
    (FeatureType::Incompatible, 2, "external data file"),
    (FeatureType::Incompatible, 3, "compression type"),
    (FeatureType::Incompatible, 4, "extended L2 entries"),
    (FeatureType::Compatible, 0, "lazy refcounts"),
    (FeatureType::Autoclear, 0, "bitmaps"),
    (FeatureType::Autoclear, 1, "raw external data"),
];

/// The most bitmaps in an image, and the bytes of the largest directory: what each may take there at most.
pub(crate) const MAX_BITMAPS: u32 = 65_535;
pub(crate) const MAX_BITMAP_DIRECTORY: u64 = MAX_BITMAPS as u64 * 1024;

/// Where an image's bitmaps are listed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct BitmapDirectory {
    /// How many bitmaps there are.
    pub count: u32,
    /// Zero, until a later version of the format says otherwise.
    reserved: u32,
    /// How many bytes the directory has.
    pub size: u64,
    /// The byte at which the directory starts.
    pub offset: HostOffset,
}

/// Where an image has the header that tells how it is encrypted, with the keys.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct CryptoHeader {
    /// The byte at which it starts.
    pub offset: HostOffset,
    /// How many bytes it has.
    pub len: u64,
}

/// An image's header extensions.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Extensions {
    /// The backing file's format.
    pub backing_format: Option<String>,
    /// The name of the external data file.
    pub data_file: Option<String>,
    /// The image's own feature name table, only to name what is not known here.
    feature_names: Vec<u8>,
    /// What is said of an encryption header, as it stands there.
    crypto: Option<Vec<u8>>,
    /// Everything else, kept as it is for the header's next rewrite.
    kept: Vec<(u32, Vec<u8>)>,
}

impl Extensions {
    /// Reads the extensions from `bytes`, the header cluster from the end of its fields to where they may reach.
    pub fn parse(bytes: &[u8]) -> Result<Self> {
        let mut found = Self::default();
        let mut rest = bytes;
        while let Some((head, behind)) = rest.split_at_checked(8) {
            let (kind, len) = (be32(head, 0), be32(head, 4) as usize);
            if kind == END {
                break;
            }
            let data = behind
                .get(..len)
                .ok_or_else(|| Error::new(ErrorKind::InvalidArgument, "Header extension too large"))?;
            found.take(kind, data)?;
            rest = len
                .checked_next_multiple_of(8)
                .and_then(|padded| behind.get(padded..))
                .unwrap_or_default();
        }
        Ok(found)
    }

    fn take(&mut self, kind: u32, data: &[u8]) -> Result<()> {
        match kind {
            BACKING_FORMAT if data.len() >= BACKING_FORMAT_MAX => {
                let text = format!(
                    "ERROR: ext_backing_format: len={} too large (>={BACKING_FORMAT_MAX})",
                    data.len()
                );
                return Err(Error::new(ErrorKind::InvalidArgument, text));
            }
            BACKING_FORMAT => {
                let format = String::from_utf8_lossy(text(data));
                self.backing_format = (!format.is_empty()).then(|| format.into_owned());
            }
            DATA_FILE => self.data_file = Some(String::from_utf8_lossy(text(data)).into_owned()),
            BITMAPS if data.len() != BITMAPS_LEN => {
                let text = "bitmaps_ext: Invalid extension length";
                return Err(Error::new(ErrorKind::InvalidArgument, text));
            }
            FEATURE_NAMES => self.feature_names = data.to_vec(),
            CRYPTO => self.crypto = Some(data.to_vec()),
            _ => self.kept.push((kind, data.to_vec())),
        }
        Ok(())
    }

    /// The extensions' bytes, the closing one included. `feature_names` adds the table of the known names.
    pub fn encode(&self, feature_names: bool) -> Vec<u8> {
        let mut bytes = Vec::new();
        if let Some(format) = &self.backing_format {
            put(&mut bytes, BACKING_FORMAT, format.as_bytes());
        }
        if let Some(name) = &self.data_file {
            put(&mut bytes, DATA_FILE, name.as_bytes());
        }
        if let Some(data) = &self.crypto {
            put(&mut bytes, CRYPTO, data);
        }
        if feature_names {
            put(&mut bytes, FEATURE_NAMES, &known_features());
        }
        for (kind, data) in &self.kept {
            put(&mut bytes, *kind, data);
        }
        put(&mut bytes, END, &[]);
        bytes
    }

    /// The name that the image gives to a feature bit.
    pub fn feature_name(&self, kind: FeatureType, bit: u8) -> Option<String> {
        // The last name may end with the table.
        let entry = self
            .feature_names
            .chunks(FEATURE_ENTRY)
            .find(|entry| entry.first() == Some(&(kind as u8)) && entry.get(1) == Some(&bit))?;
        Some(String::from_utf8_lossy(text(entry.get(2..)?)).into_owned())
    }

    /// Where the bitmaps are listed, if the image has any.
    pub fn bitmaps(&self) -> Option<BitmapDirectory> {
        let (_, data) = self
            .kept
            .iter()
            .find(|(kind, data)| *kind == BITMAPS && data.len() == BITMAPS_LEN)?;
        Some(BitmapDirectory {
            count: be32(data, 0),
            reserved: be32(data, 4),
            size: be64(data, 8),
            offset: HostOffset::new(be64(data, 16)),
        })
    }

    /// Says that so many bitmaps are listed in `size` bytes at `offset`, or that there are none.
    pub fn set_bitmaps(&mut self, count: u32, size: u64, offset: HostOffset) {
        self.kept.retain(|(kind, _)| *kind != BITMAPS);
        if count > 0 {
            let mut data = Vec::with_capacity(BITMAPS_LEN);
            data.extend_from_slice(&count.to_be_bytes());
            data.extend_from_slice(&0_u32.to_be_bytes());
            data.extend_from_slice(&size.to_be_bytes());
            data.extend_from_slice(&offset.get().to_be_bytes());
            self.kept.push((BITMAPS, data));
        }
    }

    /// Refuses bitmaps that cannot be where they are said to be, with `cluster` bytes in a cluster.
    pub fn check_bitmaps(&self, cluster: u64) -> Result<()> {
        let Some(directory) = self.bitmaps() else {
            return Ok(());
        };
        let text = if directory.reserved != 0 {
            "bitmaps_ext: Reserved field is not zero".into()
        } else if directory.count > MAX_BITMAPS {
            format!(
                "bitmaps_ext: Image has {} bitmaps, exceeding the QEMU supported maximum of {MAX_BITMAPS}",
                directory.count
            )
        } else if directory.count == 0 {
            "found bitmaps extension with zero bitmaps".into()
        } else if !directory.offset.get().is_multiple_of(cluster) {
            "bitmaps_ext: invalid bitmap directory offset".into()
        } else if directory.size > MAX_BITMAP_DIRECTORY {
            format!(
                "bitmaps_ext: bitmap directory size ({}) exceeds the maximum supported size ({MAX_BITMAP_DIRECTORY})",
                directory.size
            )
        } else if directory.size == 0 {
            "Requested bitmap directory size is zero".into()
        } else {
            return Ok(());
        };
        Err(Error::new(ErrorKind::InvalidArgument, text))
    }

    /// Where the encryption header is, if the image has one.
    pub fn crypto(&self) -> Option<CryptoHeader> {
        let data = self.crypto.as_ref().filter(|data| data.len() == CRYPTO_LEN)?;
        Some(CryptoHeader {
            offset: HostOffset::new(be64(data, 0)),
            len: be64(data, 8),
        })
    }

    /// Says where the encryption header is.
    pub fn set_crypto(&mut self, header: CryptoHeader) {
        let fields = [header.offset.get(), header.len];
        self.crypto = Some(fields.iter().flat_map(|field| field.to_be_bytes()).collect());
    }

    /// Refuses an encryption header that cannot be where it is said to be, or that the image has no use for, with `cluster`
    /// bytes in a cluster.
    pub fn check_crypto(&self, is_luks: bool, cluster: u64) -> Result<()> {
        let Some(data) = &self.crypto else { return Ok(()) };
        let text = match self.crypto() {
            _ if !is_luks => "CRYPTO header extension only expected with LUKS encryption method".to_owned(),
            None => format!(
                "CRYPTO header extension size {}, but expected size {CRYPTO_LEN}",
                data.len()
            ),
            Some(header) if !header.offset.get().is_multiple_of(cluster) => format!(
                "Encryption header offset '{}' is not a multiple of cluster size '{cluster}'",
                header.offset.get()
            ),
            Some(_) => return Ok(()),
        };
        Err(Error::new(ErrorKind::InvalidArgument, text))
    }
}

/// Appends one extension, padded to eight bytes.
fn put(bytes: &mut Vec<u8>, kind: u32, data: &[u8]) {
    bytes.extend_from_slice(&kind.to_be_bytes());
    // Extensions are read from, and written to, a cluster: their length fits in 32 bits.
    bytes.extend_from_slice(&u32::try_from(data.len()).unwrap_or(u32::MAX).to_be_bytes());
    bytes.extend_from_slice(data);
    bytes.resize(bytes.len().next_multiple_of(8), 0);
}

fn known_features() -> Vec<u8> {
    let mut table = Vec::with_capacity(KNOWN_FEATURES.len() * FEATURE_ENTRY);
    for (kind, bit, name) in KNOWN_FEATURES {
        table.extend_from_slice(&[kind as u8, bit]);
        table.extend_from_slice(name.as_bytes());
        table.resize(table.len() + FEATURE_NAME - name.len(), 0);
    }
    table
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn unknown_extensions_survive_a_rewrite() {
        let mut bytes = Vec::new();
        put(&mut bytes, 0x1234_5678, b"hello");
        put(&mut bytes, BACKING_FORMAT, b"raw");
        put(&mut bytes, END, &[]);
        let parsed = Extensions::parse(&bytes).unwrap();
        assert_eq!(parsed.backing_format.as_deref(), Some("raw"));
        let again = Extensions::parse(&parsed.encode(true)).unwrap();
        assert_eq!(again.kept, [(0x1234_5678, b"hello".to_vec())]);
        assert_eq!(
            again.feature_name(FeatureType::Autoclear, 1).as_deref(),
            Some("raw external data")
        );
    }

    #[test]
    fn lengths_past_the_end_are_refused() {
        let mut bytes = 0x1234_5678_u32.to_be_bytes().to_vec();
        bytes.extend_from_slice(&u32::MAX.to_be_bytes());
        bytes.resize(64, 0);
        assert_eq!(
            Extensions::parse(&bytes).unwrap_err().to_string(),
            "Header extension too large"
        );
        let mut bytes = Vec::new();
        put(&mut bytes, BACKING_FORMAT, b"sixteen bytes ok");
        let text = Extensions::parse(&bytes).unwrap_err().to_string();
        assert_eq!(text, "ERROR: ext_backing_format: len=16 too large (>=16)");
    }
}
