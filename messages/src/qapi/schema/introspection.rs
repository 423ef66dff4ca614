//! What `query-qmp-schema` answers, in its own terms.

use super::define::{
    ANY, BOOL, Enum, EnumType, List, STR, Struct, StructType, enumeration, opt, req, structure,
};

pub(super) static SCHEMA_INFO: StructType = structure(
    "SchemaInfo",
    &[
        req("name", STR),
        req("meta-type", Enum(&SCHEMA_META_TYPE)),
        opt("features", List(&STR)),
    ],
)
.union(
    "meta-type",
    &[
        ("builtin", &SCHEMA_INFO_BUILTIN),
        ("enum", &SCHEMA_INFO_ENUM),
        ("array", &SCHEMA_INFO_ARRAY),
        ("object", &SCHEMA_INFO_OBJECT),
        ("alternate", &SCHEMA_INFO_ALTERNATE),
        ("command", &SCHEMA_INFO_COMMAND),
        ("event", &SCHEMA_INFO_EVENT),
    ],
);

pub(super) static SCHEMA_META_TYPE: EnumType = enumeration(
    "SchemaMetaType",
    &[
        "builtin",
        "enum",
        "array",
        "object",
        "alternate",
        "command",
        "event",
    ],
);

pub(super) static SCHEMA_INFO_BUILTIN: StructType =
    structure("SchemaInfoBuiltin", &[req("json-type", Enum(&JSON_TYPE))]);

pub(super) static JSON_TYPE: EnumType = enumeration(
    "JSONType",
    &[
        "string", "number", "int", "boolean", "null", "object", "array", "value",
    ],
);

pub(super) static SCHEMA_INFO_ENUM: StructType = structure(
    "SchemaInfoEnum",
    &[
        req("members", List(&Struct(&SCHEMA_INFO_ENUM_MEMBER))),
        req("values", List(&STR)).with(&["deprecated"]),
    ],
);

pub(super) static SCHEMA_INFO_ENUM_MEMBER: StructType = structure(
    "SchemaInfoEnumMember",
    &[req("name", STR), opt("features", List(&STR))],
);

pub(super) static SCHEMA_INFO_ARRAY: StructType = structure("SchemaInfoArray", &[req("element-type", STR)]);

pub(super) static SCHEMA_INFO_OBJECT: StructType = structure(
    "SchemaInfoObject",
    &[
        req("members", List(&Struct(&SCHEMA_INFO_OBJECT_MEMBER))),
        opt("tag", STR),
        opt("variants", List(&Struct(&SCHEMA_INFO_OBJECT_VARIANT))),
    ],
);

pub(super) static SCHEMA_INFO_OBJECT_MEMBER: StructType = structure(
    "SchemaInfoObjectMember",
    &[
        req("name", STR),
        req("type", STR),
        opt("default", ANY),
        opt("features", List(&STR)),
    ],
);

pub(super) static SCHEMA_INFO_OBJECT_VARIANT: StructType =
    structure("SchemaInfoObjectVariant", &[req("case", STR), req("type", STR)]);

pub(super) static SCHEMA_INFO_ALTERNATE: StructType = structure(
    "SchemaInfoAlternate",
    &[req("members", List(&Struct(&SCHEMA_INFO_ALTERNATE_MEMBER)))],
);

pub(super) static SCHEMA_INFO_ALTERNATE_MEMBER: StructType =
    structure("SchemaInfoAlternateMember", &[req("type", STR)]);

pub(super) static SCHEMA_INFO_COMMAND: StructType = structure(
    "SchemaInfoCommand",
    &[req("arg-type", STR), req("ret-type", STR), opt("allow-oob", BOOL)],
);

pub(super) static SCHEMA_INFO_EVENT: StructType = structure("SchemaInfoEvent", &[req("arg-type", STR)]);
