//! The options of formats and protocols as `qemu-img` has them: their names, what values they take, and how they are told.

/// What values an option takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Bytes, with a suffix.
    Size,
    /// A whole number, as C reads it.
    Number,
    /// It is on or off.
    Flag,
    /// Any text at all.
    Text,
}

/// An option of a format or a protocol.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Known {
    /// The name that `-o` has for it.
    pub name: &'static str,
    /// What values it takes.
    pub kind: Kind,
    /// What is told of an image that was given no value.
    pub default: Option<&'static str>,
    /// What `-o help` says of it.
    pub help: &'static str,
}

const fn known(name: &'static str, kind: Kind, default: Option<&'static str>, help: &'static str) -> Known {
    Known {
        name,
        kind,
        default,
        help,
    }
}

const SIZE: Known = known("size", Kind::Size, None, "Virtual disk size");
const BACKING_FILE: Known = known("backing_file", Kind::Text, None, "File name of a base image");
const BACKING_FMT: Known = known("backing_fmt", Kind::Text, None, "Image format of the base image");
const COMPAT: Known = known(
    "compat",
    Kind::Text,
    None,
    "Compatibility level (v2 [0.10] or v3 [1.1])",
);
const DATA_FILE: Known = known(
    "data_file",
    Kind::Text,
    None,
    "File name of an external data file",
);
const DATA_FILE_RAW: Known = known(
    "data_file_raw",
    Kind::Flag,
    None,
    "The external data file must stay valid as a raw image",
);
const LAZY_REFCOUNTS: Known = known(
    "lazy_refcounts",
    Kind::Flag,
    Some("off"),
    "Postpone refcount updates",
);
const REFCOUNT_BITS: Known = known(
    "refcount_bits",
    Kind::Number,
    Some("16"),
    "Width of a reference count entry in bits",
);

/// Which ways there are to lay out space.
pub const PREALLOCATIONS: &[&str] = &["off", "metadata", "falloc", "full"];
const CIPHERS: &[&str] = &[
    "aes-128",
    "aes-192",
    "aes-256",
    "des",
    "3des",
    "cast5-128",
    "serpent-128",
    "serpent-192",
    "serpent-256",
    "twofish-128",
    "twofish-192",
    "twofish-256",
    "sm4",
];
const HASHES: &[&str] = &[
    "md5",
    "sha1",
    "sha224",
    "sha256",
    "sha384",
    "sha512",
    "ripemd160",
    "sm3",
];
/// The drivers that an image's base may have in QEMU.
pub const FORMATS: &[&str] = &[
    "blkdebug",
    "blklogwrites",
    "blkreplay",
    "blkverify",
    "bochs",
    "cloop",
    "compress",
    "copy-before-write",
    "copy-on-read",
    "dmg",
    "file",
    "ftp",
    "ftps",
    "gluster",
    "host_cdrom",
    "host_device",
    "http",
    "https",
    "iscsi",
    "luks",
    "nbd",
    "nfs",
    "null-aio",
    "null-co",
    "nvme",
    "parallels",
    "preallocate",
    "qcow",
    "qcow2",
    "qed",
    "quorum",
    "raw",
    "rbd",
    "replication",
    "snapshot-access",
    "ssh",
    "throttle",
    "vdi",
    "vhdx",
    "vmdk",
    "vpc",
    "vvfat",
];

const CIPHER_ALG: &str = "Name of encryption cipher algorithm";
const CIPHER_MODE: &str = "Name of encryption cipher mode";
const IVGEN_ALG: &str = "Name of IV generator algorithm";
const IVGEN_HASH_ALG: &str = "Name of IV generator hash algorithm";
const HASH_ALG: &str = "Name of encryption hash algorithm";
const ITER_TIME: &str = "Time to spend in PBKDF in milliseconds";
const STATE: &str = "Select new state of affected keyslots (active/inactive)";
const KEYSLOT: &str = "Select a single keyslot to modify explicitly";
const OLD_SECRET: &str = "Select all keyslots that match this password";
const NEW_SECRET: &str = "New secret to set in the matching keyslots. Empty string to erase";

/// Those of a new qcow2 image, in the order in which they are told.
const QCOW2: &[Known] = &[
    known(
        "encryption",
        Kind::Flag,
        None,
        "Encrypt the image with format 'aes'. (Deprecated in favor of encrypt.format=aes)",
    ),
    known(
        "encrypt.format",
        Kind::Text,
        None,
        "Encrypt the image, format choices: 'aes', 'luks'",
    ),
    known(
        "encrypt.key-secret",
        Kind::Text,
        None,
        "ID of secret providing qcow AES key or LUKS passphrase",
    ),
    known("encrypt.cipher-alg", Kind::Text, None, CIPHER_ALG),
    known("encrypt.cipher-mode", Kind::Text, None, CIPHER_MODE),
    known("encrypt.ivgen-alg", Kind::Text, None, IVGEN_ALG),
    known("encrypt.ivgen-hash-alg", Kind::Text, None, IVGEN_HASH_ALG),
    known("encrypt.hash-alg", Kind::Text, None, HASH_ALG),
    known("encrypt.iter-time", Kind::Number, None, ITER_TIME),
    known("cluster_size", Kind::Size, Some("65536"), "qcow2 cluster size"),
    known("extended_l2", Kind::Flag, Some("off"), "Extended L2 tables"),
    known(
        "preallocation",
        Kind::Text,
        None,
        "Preallocation mode (allowed values: off, metadata, falloc, full)",
    ),
    known(
        "compression_type",
        Kind::Text,
        Some("zlib"),
        "Compression method used for image cluster compression",
    ),
    SIZE,
    COMPAT,
    BACKING_FILE,
    BACKING_FMT,
    DATA_FILE,
    DATA_FILE_RAW,
    LAZY_REFCOUNTS,
    REFCOUNT_BITS,
];

/// Those of a new LUKS volume.
const LUKS: &[Known] = &[
    SIZE,
    known(
        "key-secret",
        Kind::Text,
        None,
        "ID of the secret that provides the keyslot passphrase",
    ),
    known("cipher-alg", Kind::Text, None, CIPHER_ALG),
    known("cipher-mode", Kind::Text, None, CIPHER_MODE),
    known("ivgen-alg", Kind::Text, None, IVGEN_ALG),
    known("ivgen-hash-alg", Kind::Text, None, IVGEN_HASH_ALG),
    known("hash-alg", Kind::Text, None, HASH_ALG),
    known("iter-time", Kind::Number, None, ITER_TIME),
    known(
        "detached-header",
        Kind::Flag,
        None,
        "Create a detached LUKS header",
    ),
];

/// Those of a new VDI image.
const VDI: &[Known] = &[
    SIZE,
    known(
        "static",
        Kind::Flag,
        Some("off"),
        "VDI static (pre-allocated) image",
    ),
];

/// Those of a new file.
const FILE: &[Known] = &[
    SIZE,
    known(
        "nocow",
        Kind::Flag,
        None,
        "Turn off copy-on-write (valid only on btrfs)",
    ),
    known(
        "preallocation",
        Kind::Text,
        None,
        "Preallocation mode (allowed values: off, falloc, full)",
    ),
    known(
        "extent_size_hint",
        Kind::Size,
        None,
        "Extent size hint for the image file, 0 to disable",
    ),
];

/// What every format has, and so those that an embedder has brought.
const OTHER: &[Known] = &[SIZE];

/// What a qcow2 image can be amended by.
const QCOW2_AMEND: &[Known] = &[
    known("encrypt.state", Kind::Text, None, STATE),
    known("encrypt.keyslot", Kind::Number, None, KEYSLOT),
    known("encrypt.old-secret", Kind::Text, None, OLD_SECRET),
    known("encrypt.new-secret", Kind::Text, None, NEW_SECRET),
    known("encrypt.iter-time", Kind::Number, None, ITER_TIME),
    SIZE,
    COMPAT,
    BACKING_FILE,
    BACKING_FMT,
    DATA_FILE,
    DATA_FILE_RAW,
    LAZY_REFCOUNTS,
    REFCOUNT_BITS,
];

/// What a LUKS volume can be amended by.
const LUKS_AMEND: &[Known] = &[
    known("state", Kind::Text, None, STATE),
    known("keyslot", Kind::Number, None, KEYSLOT),
    known("old-secret", Kind::Text, None, OLD_SECRET),
    known("new-secret", Kind::Text, None, NEW_SECRET),
    known("iter-time", Kind::Number, None, ITER_TIME),
];

/// The options that a new image of a format has.
#[must_use]
pub fn of_format(format: &str) -> &'static [Known] {
    match format {
        "qcow2" => QCOW2,
        "luks" => LUKS,
        "vdi" => VDI,
        "file" => FILE,
        _ => OTHER,
    }
}

/// Whether a format has options besides those that are known here: then any name is passed on.
pub(super) fn is_open(format: &str) -> bool {
    !matches!(format, "qcow2" | "luks" | "vdi" | "file" | "raw")
}

/// The options that a protocol has for the files of new images.
#[must_use]
pub fn of_protocol(protocol: &str) -> &'static [Known] {
    match protocol {
        "file" => FILE,
        _ => &[],
    }
}

/// The options that an image of a format can be amended by.
#[must_use]
pub fn of_amendment(format: &str) -> &'static [Known] {
    match format {
        "qcow2" => QCOW2_AMEND,
        "luks" => LUKS_AMEND,
        _ => &[],
    }
}

/// The values that an option of texts takes, where only some are known.
pub(super) fn choices(format: &str, name: &str) -> Option<&'static [&'static str]> {
    let name = name.strip_prefix("encrypt.").unwrap_or(name);
    Some(match name {
        "compression_type" => &["zlib", "zstd"],
        "preallocation" if format == "qcow2" => PREALLOCATIONS,
        "cipher-alg" => CIPHERS,
        "cipher-mode" => &["ecb", "cbc", "xts", "ctr"],
        "ivgen-alg" => &["plain", "plain64", "essiv"],
        "state" => &["active", "inactive"],
        "hash-alg" | "ivgen-hash-alg" => HASHES,
        _ => return None,
    })
}

/// The options of both lists; of those that both have, the first list's.
#[must_use]
pub fn joined(first: &[Known], second: &[Known]) -> Vec<Known> {
    let is_new = |known: &&Known| first.iter().all(|other| other.name != known.name);
    first
        .iter()
        .chain(second.iter().filter(is_new))
        .copied()
        .collect()
}

/// What `-o help` says of options, a line each, by their names.
#[must_use]
pub fn help(options: &[Known]) -> String {
    let mut options = options.to_vec();
    options.sort_unstable_by_key(|known| known.name);
    let lines = options.iter().map(|known| {
        let kind = match known.kind {
            Kind::Size => "size",
            Kind::Number => "num",
            Kind::Flag => "bool (on/off)",
            Kind::Text => "str",
        };
        let usage = format!("{}=<{kind}>", known.name);
        format!("  {usage:<22} - {}\n", known.help)
    });
    lines.collect()
}
