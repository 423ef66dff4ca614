//! Encryption: secrets, ciphers, and how a LUKS header is made, changed and shown.

use super::node::BlockdevRef;
use crate::io::Preallocation;
use crate::qapi::define::Size;
use crate::qapi::row::qapi;

qapi! {
    /// The properties of a secret whose data is given, or in a file.
    open struct SecretProperties {
        format: Option<QCryptoSecretFormat>,
        keyid: Option<String>,
        iv: Option<String>,
        data: Option<String>,
        file: Option<String>,
    }

    /// The properties of a secret that the kernel keeps.
    open struct SecretKeyringProperties {
        format: Option<QCryptoSecretFormat>,
        keyid: Option<String>,
        iv: Option<String>,
        serial: i32,
    }

    /// How the data of a secret is written.
    #[derive(Default)]
    enum QCryptoSecretFormat {
        /// The data is the secret itself.
        #[default]
        Raw = "raw",
        /// The data is the secret in base64.
        Base64 = "base64",
    }

    /// The ciphers, with the length of their keys in bits.
    enum QCryptoCipherAlgo {
        /// AES with keys of 128 bits.
        Aes128 = "aes-128",
        /// AES with keys of 192 bits.
        Aes192 = "aes-192",
        /// AES with keys of 256 bits.
        Aes256 = "aes-256",
        /// DES, which is broken and not served.
        Des = "des",
        /// DES three times, which is not served.
        TripleDes = "3des",
        /// CAST5 with keys of 128 bits.
        Cast5128 = "cast5-128",
        /// Serpent with keys of 128 bits.
        Serpent128 = "serpent-128",
        /// Serpent with keys of 192 bits.
        Serpent192 = "serpent-192",
        /// Serpent with keys of 256 bits.
        Serpent256 = "serpent-256",
        /// Twofish with keys of 128 bits.
        Twofish128 = "twofish-128",
        /// Twofish with keys of 192 bits.
        Twofish192 = "twofish-192",
        /// Twofish with keys of 256 bits.
        Twofish256 = "twofish-256",
        /// SM4, which is not served.
        Sm4 = "sm4",
    }

    /// How a cipher is used on more than a block.
    enum QCryptoCipherMode {
        /// Each block by itself.
        Ecb = "ecb",
        /// Each block mixed with the one before.
        Cbc = "cbc",
        /// Each block by its place, with a second key.
        Xts = "xts",
        /// The cipher of a counter, mixed into the data.
        Ctr = "ctr",
    }

    /// What a sector's number becomes before the mode begins with it.
    enum QCryptoIVGenAlgo {
        /// The number's low 32 bits.
        Plain = "plain",
        /// The number's 64 bits.
        Plain64 = "plain64",
        /// The number, encrypted with a digest of the key.
        Essiv = "essiv",
    }

    /// The digests, by their names in image headers.
    enum QCryptoHashAlgo {
        /// MD5, which is broken: served for volumes that have it.
        Md5 = "md5",
        /// SHA-1, broken as well.
        Sha1 = "sha1",
        /// SHA-2 with 224 bits.
        Sha224 = "sha224",
        /// SHA-2 with 256 bits.
        Sha256 = "sha256",
        /// SHA-2 with 384 bits.
        Sha384 = "sha384",
        /// SHA-2 with 512 bits.
        Sha512 = "sha512",
        /// RIPEMD with 160 bits.
        Ripemd160 = "ripemd160",
        /// SM3 with 256 bits.
        Sm3 = "sm3",
    }

    /// Options of the driver `luks`.
    open struct BlockdevOptionsLUKS {
        file: BlockdevRef,
        key_secret: Option<String>,
        header: Option<BlockdevRef>,
    }

    /// Options of a LUKS image that is to be made.
    open struct BlockdevCreateOptionsLUKS {
        key_secret: Option<String>,
        cipher_alg: Option<QCryptoCipherAlgo>,
        cipher_mode: Option<QCryptoCipherMode>,
        ivgen_alg: Option<QCryptoIVGenAlgo>,
        ivgen_hash_alg: Option<QCryptoHashAlgo>,
        hash_alg: Option<QCryptoHashAlgo>,
        iter_time: Option<i64>,
        file: Option<BlockdevRef>,
        header: Option<BlockdevRef>,
        size: Size,
        preallocation: Option<Preallocation>,
    }

    /// How a qcow2 image that is opened is encrypted.
    open union BlockdevQcow2Encryption {
        @"format": BlockdevQcow2EncryptionFormat {
            "aes": QCryptoBlockOptionsQCow,
            "luks": QCryptoBlockOptionsLUKS,
        },
    }

    /// The ways in which a qcow2 image may be encrypted.
    enum BlockdevQcow2EncryptionFormat {
        /// The old one, which is weak.
        Aes = "aes",
        /// The one with several keys.
        Luks = "luks",
    }

    /// Options of the old encryption.
    open struct QCryptoBlockOptionsQCow {
        key_secret: Option<String>,
    }

    /// Options of LUKS inside an image.
    open struct QCryptoBlockOptionsLUKS {
        key_secret: Option<String>,
    }

    /// How an image that is made is to be encrypted.
    open union QCryptoBlockCreateOptions {
        @"format": QCryptoBlockFormat {
            "qcow": QCryptoBlockOptionsQCow,
            "luks": QCryptoBlockCreateOptionsLUKS,
        },
    }

    /// Options of LUKS inside an image that is made.
    open struct QCryptoBlockCreateOptionsLUKS {
        key_secret: Option<String>,
        cipher_alg: Option<QCryptoCipherAlgo>,
        cipher_mode: Option<QCryptoCipherMode>,
        ivgen_alg: Option<QCryptoIVGenAlgo>,
        ivgen_hash_alg: Option<QCryptoHashAlgo>,
        hash_alg: Option<QCryptoHashAlgo>,
        iter_time: Option<i64>,
    }

    /// How an image's encryption is changed.
    open union QCryptoBlockAmendOptions {
        @"format": QCryptoBlockFormat { "luks": QCryptoBlockAmendOptionsLUKS },
    }

    /// The formats of encryption.
    enum QCryptoBlockFormat {
        /// The old one, which is weak.
        Qcow = "qcow",
        /// The one with several keys.
        Luks = "luks",
    }

    /// How the keys of an image are changed.
    open struct QCryptoBlockAmendOptionsLUKS {
        state: QCryptoBlockLUKSKeyslotState,
        new_secret: Option<String>,
        old_secret: Option<String>,
        keyslot: Option<i64>,
        iter_time: Option<i64>,
        secret: Option<String>,
    }

    /// What becomes of a place for a key.
    enum QCryptoBlockLUKSKeyslotState {
        /// It has a key that opens the image.
        Active = "active",
        /// Its key does not open the image.
        Inactive = "inactive",
    }

    /// What an encrypted image says of itself, one level down.
    struct ImageInfoSpecificLUKSWrapper {
        /// What the image's header says.
        data: QCryptoBlockInfoLUKS,
    }

    /// What a qcow2 image says of its encryption.
    branches ImageInfoSpecificQCow2Encryption by "format": BlockdevQcow2EncryptionFormat {
        /// The old one, of which there is nothing to say.
        Aes = "aes",
        /// The one with several keys.
        Luks = "luks": QCryptoBlockInfoLUKS,
    }

    /// What a LUKS header says, but for keys.
    struct QCryptoBlockInfoLUKS {
        /// The cipher of the data.
        cipher_alg: QCryptoCipherAlgo,
        /// How the cipher is used.
        cipher_mode: QCryptoCipherMode,
        /// What a sector's number becomes.
        ivgen_alg: QCryptoIVGenAlgo,
        /// The digest that makes the key for that.
        ivgen_hash_alg: Option<QCryptoHashAlgo>,
        /// The digest that derives keys from passwords.
        hash_alg: QCryptoHashAlgo,
        /// The header is in another file than the data.
        detached_header: bool,
        /// Where the data begins, in bytes.
        payload_offset: i64,
        /// How often the digest of the master key is iterated.
        master_key_iters: i64,
        /// The volume's UUID, as text.
        uuid: String,
        /// The places for keys, used or not.
        slots: Vec<QCryptoBlockInfoLUKSSlot>,
    }

    /// A place for a key of an encrypted image.
    struct QCryptoBlockInfoLUKSSlot {
        /// It has a key that opens the image.
        active: bool,
        /// How often the digest of its password is iterated.
        iters: Option<i64>,
        /// Into how many parts its key is split.
        stripes: Option<i64>,
        /// Where its key is in the header, in bytes.
        key_offset: i64,
    }
}
