//! Exports.

use super::define::{
    Alternate, AlternateType, BOOL, Enum, EnumType, List, STR, Struct, StructType, alternate, enumeration,
    opt, req, structure,
};

pub(super) static BLOCK_EXPORT_INFO: StructType = structure(
    "BlockExportInfo",
    &[
        req("id", STR),
        req("type", Enum(&BLOCK_EXPORT_TYPE)),
        req("node-name", STR),
        req("shutting-down", BOOL),
    ],
);

pub(super) static BLOCK_EXPORT_TYPE: EnumType = enumeration("BlockExportType", &["nbd"]);

/// The arguments of `block-export-add`, also what `--export` takes.
pub static BLOCK_EXPORT_OPTIONS: StructType = structure(
    "BlockExportOptions",
    &[
        req("type", Enum(&BLOCK_EXPORT_TYPE)),
        req("id", STR),
        opt("fixed-iothread", BOOL),
        opt("iothread", STR),
        req("node-name", STR),
        opt("writable", BOOL),
        opt("writethrough", BOOL),
        opt("allow-inactive", BOOL),
    ],
)
.union("type", &[("nbd", &BLOCK_EXPORT_OPTIONS_NBD)]);

/// The arguments of `block-export-add`, also what `--export` takes.
pub static BLOCK_EXPORT_OPTIONS_NBD: StructType = structure(
    "BlockExportOptionsNbd",
    &[
        opt("name", STR),
        opt("description", STR),
        opt("bitmaps", List(&Alternate(&BLOCK_DIRTY_BITMAP_OR_STR))),
        opt("allocation-depth", BOOL),
    ],
);

pub(super) static BLOCK_DIRTY_BITMAP_OR_STR: AlternateType =
    alternate("BlockDirtyBitmapOrStr", &[STR, Struct(&BLOCK_DIRTY_BITMAP)]);

pub(super) static BLOCK_DIRTY_BITMAP: StructType =
    structure("BlockDirtyBitmap", &[req("node", STR), req("name", STR)]);

pub(super) static BLOCK_EXPORT_REMOVE_MODE: EnumType =
    enumeration("BlockExportRemoveMode", &["safe", "hard"]);

pub(super) static NBD_SERVER_ADD_OPTIONS: StructType = structure(
    "NbdServerAddOptions",
    &[
        opt("name", STR),
        opt("description", STR),
        req("device", STR),
        opt("writable", BOOL),
        opt("bitmap", STR),
    ],
);
