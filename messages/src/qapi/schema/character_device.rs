//! Character devices.

use super::define::{BOOL, STR, StructType, req, structure};

pub(super) static CHARDEV_INFO: StructType = structure(
    "ChardevInfo",
    &[
        req("label", STR),
        req("filename", STR),
        req("frontend-open", BOOL),
    ],
);

pub(super) static CHARDEV_BACKEND_INFO: StructType = structure("ChardevBackendInfo", &[req("name", STR)]);
