//! The session, the version and the list of commands.

use super::define::{EnumType, I64, STR, Struct, StructType, enumeration, req, structure};

pub(super) static QMP_CAPABILITY: EnumType = enumeration("QMPCapability", &["oob"]);

pub(super) static VERSION_INFO: StructType = structure(
    "VersionInfo",
    &[req("qemu", Struct(&VERSION_TRIPLE)), req("package", STR)],
);

pub(super) static VERSION_TRIPLE: StructType = structure(
    "VersionTriple",
    &[req("major", I64), req("minor", I64), req("micro", I64)],
);

pub(super) static COMMAND_INFO: StructType = structure("CommandInfo", &[req("name", STR)]);
