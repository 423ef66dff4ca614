//! Checks of images while they are open. QEMU has them in its image tool only: the command's name says so.

use super::define::{EnumType, STR, StructType, U64, enumeration, req, structure};

pub(super) static CHECK_REPAIR: EnumType = enumeration("MillpondCheckRepair", &["none", "leaks", "all"]);

/// `ImageCheck` of QEMU's tool, in which what is zero is not left out.
pub(super) static CHECK_RESULT: StructType = structure(
    "MillpondImageCheck",
    &[
        req("filename", STR),
        req("format", STR),
        req("check-errors", U64),
        req("image-end-offset", U64),
        req("corruptions", U64),
        req("leaks", U64),
        req("corruptions-fixed", U64),
        req("leaks-fixed", U64),
        req("total-clusters", U64),
        req("allocated-clusters", U64),
        req("fragmented-clusters", U64),
        req("compressed-clusters", U64),
    ],
);
