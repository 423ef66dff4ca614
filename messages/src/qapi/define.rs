//! One row for each thing of QAPI.
//!
//! [`qapi!`] makes three things of a row: the table that introspection and validation read, the Rust type with its form in
//! JSON, and, for a command, what says which arguments it takes and what it answers. Rows look like Rust:
//!
//! ```text
//! qapi! {
//!     /// Words to choose from, with their names on the wire.
//!     enum JobStatus { Created = "created", Null = "null" }
//!
//!     /// An object. A member is called as its field, with `-` for `_`, unless `as` says otherwise; an `Option` may be left
//!     /// out, and so may a member with `= default`. What is in brackets are features.
//!     struct JobInfo { id: String, kind as "type": JobType, error: Option<String>, iops: Option<i64> ["unstable"] }
//!
//!     /// An object whose further members a tag selects: as a Rust type, one of its branches.
//!     branches ExportKind by "type": ExportType { Nbd = "nbd": NbdOptions, Fuse = "fuse" }
//!
//!     /// The same with members of its own besides; `@` stands where the tag is checked.
//!     union ExportOptions { @kind: ExportKind, id: String }
//!
//!     /// One of several types, told apart by their JSON type.
//!     alternate BitmapOrName { Name(String), Bitmap(Bitmap) }
//!
//!     /// A command: its arguments are the type itself.
//!     command JobPause = "job-pause" { id: String };
//!
//!     /// A command whose arguments are a type with a name, which answers something, and has features.
//!     command ExportAdd = "block-export-add" (ExportOptions) -> ExportInfo ["unstable"];
//!
//!     /// An object that is checked, and stays an object: only a driver knows what its members mean.
//!     open struct FileOptions { filename: String }
//!     open union NodeOptions { @"driver": Driver { "file": FileOptions }, node_name: Option<String> }
//!     open alternate NodeRef [NodeOptions, String];
//! }
//! ```
//!
//! Members, words and branches stand in QEMU's order: of several mistakes in a command the same one is told.

use super::{Object, QmpError};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use std::marker::PhantomData;

/// An object of the schema: members, and for a union the further members that its tag selects.
#[derive(Debug)]
pub struct StructType {
    /// The name in the schema; empty for arguments that have none.
    pub name: &'static str,
    /// What it always has, in the order in which they are checked.
    pub members: &'static [Member],
    /// The member that selects a branch.
    pub tag: Option<&'static str>,
    /// The branches by the tag's value; a value without one adds nothing.
    pub branches: &'static [Branch],
    /// Features of the type.
    pub features: &'static [&'static str],
}

/// Finds the table of an object's type. A function, since types contain themselves.
pub type Find<T> = fn() -> &'static T;

/// The further members for one value of a tag.
pub type Branch = (&'static str, Find<StructType>);

/// A member of an object.
#[derive(Debug)]
pub struct Member {
    /// The member's name on the wire.
    pub name: &'static str,
    /// The type of the member's value.
    pub of: Type,
    /// It may be left out.
    pub optional: bool,
    /// Features such as `deprecated`.
    pub features: &'static [&'static str],
}

/// A type of the schema.
#[derive(Clone, Copy, Debug)]
pub enum Type {
    /// Text, as a JSON string.
    Str,
    /// A whole number within given bounds.
    Int(Int),
    /// A truth value: true or false.
    Bool,
    /// A number, with or without a fraction.
    Number,
    /// Nothing: the JSON value null.
    Null,
    /// Any JSON value at all.
    Any,
    /// One of given words.
    Enum(Find<EnumType>),
    /// An object with known members.
    Struct(Find<StructType>),
    /// One of several types, told apart by their JSON type.
    Alternate(Find<AlternateType>),
    /// A list of values of one type.
    List(&'static Type),
}

/// What a whole number may be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Int {
    /// 64 bits with sign.
    I64,
    /// 32 bits with sign.
    I32,
    /// 64 bits without a sign.
    U64,
    /// 32 bits without a sign.
    U32,
    /// 16 bits without a sign.
    U16,
    /// Bytes; may be written with a suffix where options are text.
    Size,
}

/// Words to choose from.
#[derive(Debug)]
pub struct EnumType {
    /// The name in the schema.
    pub name: &'static str,
    /// The words, in the schema's order.
    pub values: &'static [&'static str],
}

/// One of several types.
#[derive(Debug)]
pub struct AlternateType {
    /// The name in the schema; error texts show it.
    pub name: &'static str,
    /// The types, each of another JSON type.
    pub branches: &'static [Type],
}

/// A command that a client can send.
#[derive(Debug)]
pub struct CommandRow {
    /// The command's name on the wire.
    pub name: &'static str,
    /// The arguments that the command takes.
    pub arguments: Find<StructType>,
    /// Whether arguments that were checked are a value of the Rust type; they must be.
    pub accepts: fn(Object) -> Result<(), QmpError>,
    /// What it answers; `None` for an empty object.
    pub returns: Option<Type>,
    /// Features such as `unstable`.
    pub features: &'static [&'static str],
}

/// An event that clients are sent.
#[derive(Debug)]
pub struct EventRow {
    /// The event's name on the wire.
    pub name: &'static str,
    /// The data that comes with it.
    pub data: Find<StructType>,
}

impl StructType {
    /// The further members for a value of the tag.
    pub fn branch(&self, value: &str) -> Option<&'static StructType> {
        let found = self.branches.iter().find(|(name, _)| *name == value);
        found.map(|(_, branch)| branch())
    }
}

/// A Rust type whose values are values of the schema.
pub trait Qapi {
    /// Its type in the schema.
    const TYPE: Type;
    /// Whether a member of this type may be left out.
    const OPTIONAL: bool = false;

    /// Whether a member with this value is left out.
    fn is_absent(&self) -> bool {
        false
    }
}

/// A Rust type whose values are objects of the schema.
pub trait Structure {
    /// Its table: what validation and introspection read.
    fn schema() -> &'static StructType;
}

/// The branches of a union, as an enum that a tag selects from.
pub trait Branches {
    /// The name of the member that selects.
    const TAG: &'static str;
    /// The type of that member.
    const TAG_TYPE: Type;
    /// The further members by the tag's value.
    const BRANCHES: &'static [Branch];
}

/// A command: what it takes, and what it answers.
pub trait Command {
    /// The arguments, after they were checked.
    type Arguments: Structure + DeserializeOwned;
    /// What the command answers; `()` for an empty object.
    type Answer: Returned;
    /// The command's row in the schema.
    const ROW: CommandRow;
}

/// What a command can answer.
pub trait Returned {
    /// Its type in the schema; `None` for an empty object.
    const RETURNS: Option<Type>;
}

impl Returned for () {
    const RETURNS: Option<Type> = None;
}

impl<T: Qapi> Returned for T {
    const RETURNS: Option<Type> = Some(T::TYPE);
}

/// A value that answers a command whose answer has the type `T`.
pub trait Answers<T> {
    /// The answer as a client is sent it.
    ///
    /// # Errors
    /// The value has no form in JSON.
    fn into_json(self) -> Result<Value, QmpError>;
}

impl Answers<()> for () {
    fn into_json(self) -> Result<Value, QmpError> {
        Ok(json!({}))
    }
}

impl<T: Qapi + Serialize> Answers<T> for T {
    fn into_json(self) -> Result<Value, QmpError> {
        serde_json::to_value(self).map_err(|error| QmpError::generic(error.to_string()))
    }
}

/// A `T` that is JSON already: a large answer is not taken apart to be put together again.
#[derive(Clone, Debug, PartialEq)]
pub struct Json<T>(Value, PhantomData<T>);

impl<T> Json<T> {
    /// JSON that has the form of a `T`.
    pub const fn new(value: Value) -> Self {
        Self(value, PhantomData)
    }
}

impl<T> Answers<T> for Json<T> {
    fn into_json(self) -> Result<Value, QmpError> {
        Ok(self.0)
    }
}

macro_rules! builtins {
    ($($of:ty = $type:expr;)*) => {
        $(impl Qapi for $of {
            const TYPE: Type = $type;
        })*
    };
}

builtins! {
    String = Type::Str;
    bool = Type::Bool;
    f64 = Type::Number;
    i64 = Type::Int(Int::I64);
    i32 = Type::Int(Int::I32);
    u64 = Type::Int(Int::U64);
    u32 = Type::Int(Int::U32);
    u16 = Type::Int(Int::U16);
    Size = Type::Int(Int::Size);
    Null = Type::Null;
    Value = Type::Any;
}

/// A number of bytes, which may have a suffix where options are text.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Size(pub u64);

/// Arguments or options that were checked, as their Rust type.
///
/// # Errors
/// They are none of its values, which a check rules out.
pub fn parse<T: DeserializeOwned>(checked: Object) -> Result<T, QmpError> {
    serde_json::from_value(Value::Object(checked)).map_err(|error| QmpError::generic(error.to_string()))
}

/// The JSON value null, as a branch of an alternate.
#[derive(Clone, Copy, Debug)]
pub struct Null;

impl<T: Qapi> Qapi for Option<T> {
    const TYPE: Type = T::TYPE;
    const OPTIONAL: bool = true;

    fn is_absent(&self) -> bool {
        self.is_none()
    }
}

impl<T: Qapi> Qapi for Vec<T> {
    const TYPE: Type = Type::List(&T::TYPE);
}

impl<T: Qapi> Qapi for Box<T> {
    const TYPE: Type = T::TYPE;
}

/// The object without members.
pub static EMPTY: StructType = StructType {
    name: "",
    members: &[],
    tag: None,
    branches: &[],
    features: &[],
};

/// A field's name with `-` for `_`.
pub const fn kebab<const N: usize>(field: &str) -> [u8; N] {
    let mut name = [0; N];
    let mut at = 0;
    while at < N {
        let byte = field.as_bytes()[at];
        name[at] = if byte == b'_' { b'-' } else { byte };
        at += 1;
    }
    name
}

/// The name of a member on the wire.
macro_rules! wire_name {
    ($field:ident $wire:tt) => {
        $wire
    };
    ($field:ident) => {{
        const FIELD: &str = stringify!($field);
        const NAME: [u8; FIELD.len()] = $crate::qapi::define::kebab(FIELD);
        match std::str::from_utf8(&NAME) {
            Ok(name) => name,
            Err(_) => panic!("a field's name is text"),
        }
    }};
}

/// The row of a member; `($default)` is not empty for one that may be left out and is not an `Option`.
macro_rules! member {
    ($field:ident ($($wire:tt)?) ($type:ty) ($($default:tt)?) [$($feature:tt),*]) => {
        $crate::qapi::define::Member {
            name: $crate::qapi::define::wire_name!($field $($wire)?),
            of: <$type as $crate::qapi::define::Qapi>::TYPE,
            optional: <$type as $crate::qapi::define::Qapi>::OPTIONAL $(|| !stringify!($default).is_empty())?,
            features: &[$($feature),*],
        }
    };
}

/// The table of an object without tag.
macro_rules! plain {
    ($name:expr, [$($sfeature:tt),*] $($field:ident ($($wire:tt)?) ($type:ty) ($($default:tt)?) [$($feature:tt),*];)*) => {
        $crate::qapi::define::StructType {
            name: $name,
            members: &[$($crate::qapi::define::member!(
                $field ($($wire)?) ($type) ($($default)?) [$($feature),*]
            )),*],
            tag: None,
            branches: &[],
            features: &[$($sfeature),*],
        }
    };
}

/// The member that selects a branch.
macro_rules! tag {
    ($tag:expr, $of:expr) => {
        $crate::qapi::define::Member {
            name: $tag,
            of: $of,
            optional: false,
            features: &[],
        }
    };
}

/// What a command answers: nothing, if nothing is said.
macro_rules! answer {
    () => {
        ()
    };
    ($answer:ty) => {
        $answer
    };
}

/// What says of a command which arguments it takes and what it answers.
macro_rules! command_row {
    ($name:ident $wire:tt ($arguments:ty) ($($answer:ty)?) [$($feature:tt),*]) => {
        impl $crate::qapi::define::Command for $name {
            type Arguments = $arguments;
            type Answer = $crate::qapi::define::answer!($($answer)?);
            const ROW: $crate::qapi::define::CommandRow = $crate::qapi::define::CommandRow {
                name: $wire,
                arguments: <$arguments as $crate::qapi::define::Structure>::schema,
                accepts: |arguments| $crate::qapi::define::parse::<$arguments>(arguments).map(drop),
                returns: <Self::Answer as $crate::qapi::define::Returned>::RETURNS,
                features: &[$($feature),*],
            };
        }
    };
}

/// A type that says in `schema` what its table is, and that it is one of objects.
macro_rules! object_type {
    ($name:ident, $schema:expr) => {
        impl $crate::qapi::define::Structure for $name {
            fn schema() -> &'static $crate::qapi::define::StructType {
                static SCHEMA: $crate::qapi::define::StructType = $schema;
                &SCHEMA
            }
        }

        impl $crate::qapi::define::Qapi for $name {
            const TYPE: $crate::qapi::define::Type =
                $crate::qapi::define::Type::Struct(<$name as $crate::qapi::define::Structure>::schema);
        }
    };
}

/// Makes types, tables and commands of their rows; see the head of `define.rs`.
macro_rules! qapi {
    () => {};

    (
        $(#[$meta:meta])* enum $name:ident {
            $($(#[$vmeta:meta])* $variant:ident = $wire:tt),* $(,)?
        } $($rest:tt)*
    ) => {
        $(#[$meta])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, serde::Serialize, serde::Deserialize)]
        pub enum $name {
            $($(#[$vmeta])* #[serde(rename = $wire)] $variant,)*
        }

        impl $name {
            /// The word that stands for it on the wire.
            pub const fn as_str(self) -> &'static str {
                match self {
                    $(Self::$variant => $wire,)*
                }
            }
        }

        impl $crate::qapi::define::Qapi for $name {
            const TYPE: $crate::qapi::define::Type = $crate::qapi::define::Type::Enum(|| {
                static SCHEMA: $crate::qapi::define::EnumType = $crate::qapi::define::EnumType {
                    name: stringify!($name),
                    values: &[$($wire),*],
                };
                &SCHEMA
            });
        }

        $crate::qapi::define::qapi! { $($rest)* }
    };

    (
        $(#[$meta:meta])* struct $name:ident $([$($sfeature:tt),*])? {
            $($(#[$fmeta:meta])* $field:ident $(as $wire:tt)? : $type:ty $(= $default:ident)?
                $([$($feature:tt),*])?),* $(,)?
        } $($rest:tt)*
    ) => {
        $(#[$meta])*
        #[derive(Clone, Debug, PartialEq, serde::Serialize, serde::Deserialize)]
        #[serde(rename_all = "kebab-case", deny_unknown_fields)]
        pub struct $name {
            $(
                $(#[$fmeta])*
                #[serde(skip_serializing_if = "crate::qapi::define::Qapi::is_absent")]
                $(#[serde(rename = $wire)])?
                $(#[serde($default)])?
                pub $field: $type,
            )*
        }

        $crate::qapi::define::object_type!($name, $crate::qapi::define::plain!(
            stringify!($name),
            [$($($sfeature),*)?]
            $($field ($($wire)?) ($type) ($($default)?) [$($($feature),*)?];)*
        ));

        $crate::qapi::define::qapi! { $($rest)* }
    };

    (
        $(#[$meta:meta])* branches $name:ident by $tag:tt: $words:ty {
            $($(#[$vmeta:meta])* $variant:ident = $wire:tt $(: $body:ty)?),* $(,)?
        } $($rest:tt)*
    ) => {
        $(#[$meta])*
        #[derive(Clone, Debug, PartialEq, serde::Serialize, serde::Deserialize)]
        #[serde(tag = $tag)]
        pub enum $name {
            $($(#[$vmeta])* #[serde(rename = $wire)] $variant $(($body))?,)*
        }

        impl $crate::qapi::define::Branches for $name {
            const TAG: &'static str = $tag;
            const TAG_TYPE: $crate::qapi::define::Type = <$words as $crate::qapi::define::Qapi>::TYPE;
            const BRANCHES: &'static [$crate::qapi::define::Branch] = &[
                $($(($wire, <$body as $crate::qapi::define::Structure>::schema),)?)*
            ];
        }

        $crate::qapi::define::object_type!($name, $crate::qapi::define::StructType {
            name: stringify!($name),
            members: &[$crate::qapi::define::tag!($tag, <$words as $crate::qapi::define::Qapi>::TYPE)],
            tag: Some($tag),
            branches: <$name as $crate::qapi::define::Branches>::BRANCHES,
            features: &[],
        });

        $crate::qapi::define::qapi! { $($rest)* }
    };

    (
        $(#[$meta:meta])* union $name:ident {
            $($(#[$bmeta:meta])* $before:ident $(as $bwire:tt)? : $btype:ty,)*
            @ $kind:ident: $branches:ty,
            $($(#[$fmeta:meta])* $field:ident $(as $wire:tt)? : $type:ty $(= $default:ident)?
                $([$($feature:tt),*])?),* $(,)?
        } $($rest:tt)*
    ) => {
        $(#[$meta])*
        #[derive(Clone, Debug, PartialEq, serde::Serialize, serde::Deserialize)]
        #[serde(rename_all = "kebab-case")]
        pub struct $name {
            $($(#[$bmeta])* $(#[serde(rename = $bwire)])? pub $before: $btype,)*
            /// Which kind it is, with what only that kind has.
            #[serde(flatten)]
            pub $kind: $branches,
            $(
                $(#[$fmeta])*
                #[serde(skip_serializing_if = "crate::qapi::define::Qapi::is_absent")]
                $(#[serde(rename = $wire)])?
                $(#[serde($default)])?
                pub $field: $type,
            )*
        }

        $crate::qapi::define::object_type!($name, $crate::qapi::define::StructType {
            name: stringify!($name),
            members: &[
                $($crate::qapi::define::member!($before ($($bwire)?) ($btype) () []),)*
                $crate::qapi::define::tag!(
                    <$branches as $crate::qapi::define::Branches>::TAG,
                    <$branches as $crate::qapi::define::Branches>::TAG_TYPE
                ),
                $($crate::qapi::define::member!(
                    $field ($($wire)?) ($type) ($($default)?) [$($($feature),*)?]
                )),*
            ],
            tag: Some(<$branches as $crate::qapi::define::Branches>::TAG),
            branches: <$branches as $crate::qapi::define::Branches>::BRANCHES,
            features: &[],
        });

        $crate::qapi::define::qapi! { $($rest)* }
    };
    (
        $(#[$meta:meta])* alternate $name:ident {
            $($(#[$vmeta:meta])* $variant:ident($body:ty)),* $(,)?
        } $($rest:tt)*
    ) => {
        $(#[$meta])*
        #[derive(Clone, Debug, PartialEq, serde::Serialize, serde::Deserialize)]
        #[serde(untagged)]
        pub enum $name {
            $($(#[$vmeta])* $variant($body),)*
        }

        $crate::qapi::define::alternate_type!($name [$($body),*]);
        $crate::qapi::define::qapi! { $($rest)* }
    };

    (
        $(#[$meta:meta])* command $name:ident = $wire:tt {
            $($(#[$fmeta:meta])* $field:ident $(as $fwire:tt)? : $type:ty $(= $default:ident)?
                $([$($ffeature:tt),*])?),* $(,)?
        } $(-> $answer:ty)? $([$($feature:tt),*])?; $($rest:tt)*
    ) => {
        $(#[$meta])*
        #[derive(Clone, Debug, PartialEq, serde::Serialize, serde::Deserialize)]
        #[serde(rename_all = "kebab-case", deny_unknown_fields)]
        pub struct $name {
            $(
                $(#[$fmeta])*
                #[serde(skip_serializing_if = "crate::qapi::define::Qapi::is_absent")]
                $(#[serde(rename = $fwire)])?
                $(#[serde($default)])?
                pub $field: $type,
            )*
        }

        $crate::qapi::define::object_type!($name, $crate::qapi::define::plain!(
            "",
            []
            $($field ($($fwire)?) ($type) ($($default)?) [$($($ffeature),*)?];)*
        ));
        $crate::qapi::define::command_row!($name $wire ($name) ($($answer)?) [$($($feature),*)?]);
        $crate::qapi::define::qapi! { $($rest)* }
    };

    (
        $(#[$meta:meta])* command $name:ident = $wire:tt ($arguments:ty)
            $(-> $answer:ty)? $([$($feature:tt),*])?; $($rest:tt)*
    ) => {
        $(#[$meta])*
        #[derive(Clone, Copy, Debug)]
        pub struct $name;

        $crate::qapi::define::command_row!($name $wire ($arguments) ($($answer)?) [$($($feature),*)?]);
        $crate::qapi::define::qapi! { $($rest)* }
    };

    (
        $(#[$meta:meta])* open struct $name:ident $([$($sfeature:tt),*])? {
            $($(#[$fmeta:meta])* $field:ident $(as $wire:tt)? : $type:ty $([$($feature:tt),*])?),* $(,)?
        } $($rest:tt)*
    ) => {
        $crate::qapi::define::open_type!($(#[$meta])* $name($crate::qapi::Object));
        $crate::qapi::define::object_type!($name, $crate::qapi::define::plain!(
            stringify!($name),
            [$($($sfeature),*)?]
            $($field ($($wire)?) ($type) () [$($($feature),*)?];)*
        ));
        $crate::qapi::define::qapi! { $($rest)* }
    };

    (
        $(#[$meta:meta])* open union $name:ident {
            @ $tag:tt: $words:ty { $($word:tt: $body:ty),* $(,)? },
            $($(#[$fmeta:meta])* $field:ident $(as $wire:tt)? : $type:ty $([$($feature:tt),*])?),* $(,)?
        } $($rest:tt)*
    ) => {
        $crate::qapi::define::open_type!($(#[$meta])* $name($crate::qapi::Object));
        $crate::qapi::define::object_type!($name, $crate::qapi::define::StructType {
            name: stringify!($name),
            members: &[
                $crate::qapi::define::tag!($tag, <$words as $crate::qapi::define::Qapi>::TYPE),
                $($crate::qapi::define::member!($field ($($wire)?) ($type) () [$($($feature),*)?])),*
            ],
            tag: Some($tag),
            branches: &[$(($word, <$body as $crate::qapi::define::Structure>::schema)),*],
            features: &[],
        });
        $crate::qapi::define::qapi! { $($rest)* }
    };

    (
        $(#[$meta:meta])* open alternate $name:ident [$($body:ty),* $(,)?]; $($rest:tt)*
    ) => {
        $crate::qapi::define::open_type!($(#[$meta])* $name(serde_json::Value));
        $crate::qapi::define::alternate_type!($name [$($body),*]);
        $crate::qapi::define::qapi! { $($rest)* }
    };
}

/// A type that is checked and stays JSON.
macro_rules! open_type {
    ($(#[$meta:meta])* $name:ident($of:ty)) => {
        $(#[$meta])*
        #[derive(Clone, Debug, PartialEq, serde::Serialize, serde::Deserialize)]
        #[serde(transparent)]
        pub struct $name(pub $of);
    };
}

/// The table of an alternate.
macro_rules! alternate_type {
    ($name:ident [$($body:ty),*]) => {
        impl $crate::qapi::define::Qapi for $name {
            const TYPE: $crate::qapi::define::Type = $crate::qapi::define::Type::Alternate(|| {
                static SCHEMA: $crate::qapi::define::AlternateType = $crate::qapi::define::AlternateType {
                    name: stringify!($name),
                    branches: &[$(<$body as $crate::qapi::define::Qapi>::TYPE),*],
                };
                &SCHEMA
            });
        }
    };
}

/// Makes the enum of events and the table of them.
macro_rules! events {
    (
        $(#[$meta:meta])* enum $name:ident {
            $($(#[$vmeta:meta])* $variant:ident = $wire:tt {
                $($(#[$fmeta:meta])* $field:ident $(as $fwire:tt)? : $type:ty),* $(,)?
            }),* $(,)?
        }
    ) => {
        $(#[$meta])*
        #[derive(Clone, Debug, PartialEq, serde::Serialize, serde::Deserialize)]
        #[serde(tag = "event", content = "data", rename_all_fields = "kebab-case")]
        pub enum $name {
            $(
                $(#[$vmeta])*
                #[serde(rename = $wire)]
                $variant {
                    $(
                        $(#[$fmeta])*
                        #[serde(skip_serializing_if = "crate::qapi::define::Qapi::is_absent")]
                        $(#[serde(rename = $fwire)])?
                        $field: $type,
                    )*
                },
            )*
        }

        /// Every event, in the order in which they are listed.
        pub static EVENTS: &[$crate::qapi::define::EventRow] = &[
            $($crate::qapi::define::EventRow {
                name: $wire,
                data: || {
                    static DATA: $crate::qapi::define::StructType =
                        $crate::qapi::define::plain!("", [] $($field ($($fwire)?) ($type) () [];)*);
                    &DATA
                },
            },)*
        ];
    };
}

pub(super) use {
    alternate_type, answer, command_row, events, member, object_type, open_type, plain, qapi, tag, wire_name,
};
