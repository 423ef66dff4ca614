//! Options of images that are changed in place.

use super::define::{Enum, EnumType, I64, STR, Struct, StructType, enumeration, opt, req, structure};
use super::node::BLOCKDEV_DRIVER;

pub(super) static BLOCKDEV_AMEND_OPTIONS: StructType =
    structure("BlockdevAmendOptions", &[req("driver", Enum(&BLOCKDEV_DRIVER))])
        .union("driver", &[("qcow2", &BLOCKDEV_AMEND_OPTIONS_QCOW2)]);

pub(super) static BLOCKDEV_AMEND_OPTIONS_QCOW2: StructType = structure(
    "BlockdevAmendOptionsQcow2",
    &[opt("encrypt", Struct(&QCRYPTO_BLOCK_AMEND_OPTIONS))],
);

pub(super) static QCRYPTO_BLOCK_AMEND_OPTIONS: StructType = structure(
    "QCryptoBlockAmendOptions",
    &[req("format", Enum(&QCRYPTO_BLOCK_FORMAT))],
)
.union("format", &[("luks", &QCRYPTO_BLOCK_AMEND_OPTIONS_LUKS)]);

pub(super) static QCRYPTO_BLOCK_FORMAT: EnumType = enumeration("QCryptoBlockFormat", &["qcow", "luks"]);

pub(super) static QCRYPTO_BLOCK_AMEND_OPTIONS_LUKS: StructType = structure(
    "QCryptoBlockAmendOptionsLUKS",
    &[
        req("state", Enum(&QCRYPTO_BLOCK_LUKS_KEYSLOT_STATE)),
        opt("new-secret", STR),
        opt("old-secret", STR),
        opt("keyslot", I64),
        opt("iter-time", I64),
        opt("secret", STR),
    ],
);

pub(super) static QCRYPTO_BLOCK_LUKS_KEYSLOT_STATE: EnumType =
    enumeration("QCryptoBlockLUKSKeyslotState", &["active", "inactive"]);
