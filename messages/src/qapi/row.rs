//! One row for each thing of QAPI.
//!
//! [`qapi!`] makes three things of a row: the table that introspection and validation read, the Rust type with its form in
//! JSON, and, for a command, what says which arguments it takes and what it answers. Rows look like Rust:
//!
//! ```text
//! qapi! {
//!     /// Words to choose from, with their names on the wire, and features in brackets.
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
            name: $crate::qapi::row::wire_name!($field $($wire)?),
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
            members: &[$($crate::qapi::row::member!(
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
            type Answer = $crate::qapi::row::answer!($($answer)?);
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

/// A struct of members without a tag, and its table under the name that the schema has for it.
macro_rules! members_type {
    ($(#[$meta:meta])* $name:ident, $listed:expr, [$($sfeature:tt),*] {
        $($(#[$fmeta:meta])* $field:ident ($($wire:tt)?) ($type:ty) ($($default:ident)?) [$($feature:tt),*];)*
    }) => {
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

        $crate::qapi::row::object_type!($name, $crate::qapi::row::plain!(
            $listed,
            [$($sfeature),*]
            $($field ($($wire)?) ($type) ($($default)?) [$($feature),*];)*
        ));
    };
}

/// Makes types, tables and commands of their rows; see the head of this file.
macro_rules! qapi {
    () => {};

    (
        $(#[$meta:meta])* enum $name:ident {
            $($(#[$vmeta:meta])* $variant:ident = $wire:tt $([$($feature:tt),*])?),* $(,)?
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
                    features: &[$(&[$($($feature),*)?]),*],
                };
                &SCHEMA
            });
        }

        $crate::qapi::row::qapi! { $($rest)* }
    };

    (
        $(#[$meta:meta])* struct $name:ident $([$($sfeature:tt),*])? {
            $($(#[$fmeta:meta])* $field:ident $(as $wire:tt)? : $type:ty $(= $default:ident)?
                $([$($feature:tt),*])?),* $(,)?
        } $($rest:tt)*
    ) => {
        $crate::qapi::row::members_type!($(#[$meta])* $name, stringify!($name), [$($($sfeature),*)?] {
            $($(#[$fmeta])* $field ($($wire)?) ($type) ($($default)?) [$($($feature),*)?];)*
        });

        $crate::qapi::row::qapi! { $($rest)* }
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

        $crate::qapi::row::object_type!($name, $crate::qapi::define::StructType {
            name: stringify!($name),
            members: &[$crate::qapi::row::tag!($tag, <$words as $crate::qapi::define::Qapi>::TYPE)],
            tag: Some($tag),
            branches: <$name as $crate::qapi::define::Branches>::BRANCHES,
            features: &[],
        });

        $crate::qapi::row::qapi! { $($rest)* }
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

        $crate::qapi::row::object_type!($name, $crate::qapi::define::StructType {
            name: stringify!($name),
            members: &[
                $($crate::qapi::row::member!($before ($($bwire)?) ($btype) () []),)*
                $crate::qapi::row::tag!(
                    <$branches as $crate::qapi::define::Branches>::TAG,
                    <$branches as $crate::qapi::define::Branches>::TAG_TYPE
                ),
                $($crate::qapi::row::member!(
                    $field ($($wire)?) ($type) ($($default)?) [$($($feature),*)?]
                )),*
            ],
            tag: Some(<$branches as $crate::qapi::define::Branches>::TAG),
            branches: <$branches as $crate::qapi::define::Branches>::BRANCHES,
            features: &[],
        });

        $crate::qapi::row::qapi! { $($rest)* }
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

        $crate::qapi::row::alternate_type!($name [$($body),*]);
        $crate::qapi::row::qapi! { $($rest)* }
    };

    (
        $(#[$meta:meta])* command $name:ident = $wire:tt {
            $($(#[$fmeta:meta])* $field:ident $(as $fwire:tt)? : $type:ty $(= $default:ident)?
                $([$($ffeature:tt),*])?),* $(,)?
        } $(-> $answer:ty)? $([$($feature:tt),*])?; $($rest:tt)*
    ) => {
        $crate::qapi::row::members_type!($(#[$meta])* $name, "", [] {
            $($(#[$fmeta])* $field ($($fwire)?) ($type) ($($default)?) [$($($ffeature),*)?];)*
        });
        $crate::qapi::row::command_row!($name $wire ($name) ($($answer)?) [$($($feature),*)?]);
        $crate::qapi::row::qapi! { $($rest)* }
    };

    (
        $(#[$meta:meta])* command $name:ident = $wire:tt ($arguments:ty)
            $(-> $answer:ty)? $([$($feature:tt),*])?; $($rest:tt)*
    ) => {
        $(#[$meta])*
        #[derive(Clone, Copy, Debug)]
        pub struct $name;

        $crate::qapi::row::command_row!($name $wire ($arguments) ($($answer)?) [$($($feature),*)?]);
        $crate::qapi::row::qapi! { $($rest)* }
    };

    (
        $(#[$meta:meta])* open struct $name:ident $([$($sfeature:tt),*])? {
            $($(#[$fmeta:meta])* $field:ident $(as $wire:tt)? : $type:ty $([$($feature:tt),*])?),* $(,)?
        } $($rest:tt)*
    ) => {
        $crate::qapi::row::open_type!($(#[$meta])* $name($crate::qapi::Object));
        $crate::qapi::row::object_type!($name, $crate::qapi::row::plain!(
            stringify!($name),
            [$($($sfeature),*)?]
            $($field ($($wire)?) ($type) () [$($($feature),*)?];)*
        ));
        $crate::qapi::row::qapi! { $($rest)* }
    };

    (
        $(#[$meta:meta])* open union $name:ident {
            @ $tag:tt: $words:ty { $($word:tt: $body:ty),* $(,)? },
            $($(#[$fmeta:meta])* $field:ident $(as $wire:tt)? : $type:ty $([$($feature:tt),*])?),* $(,)?
        } $($rest:tt)*
    ) => {
        $crate::qapi::row::open_type!($(#[$meta])* $name($crate::qapi::Object));
        $crate::qapi::row::object_type!($name, $crate::qapi::define::StructType {
            name: stringify!($name),
            members: &[
                $crate::qapi::row::tag!($tag, <$words as $crate::qapi::define::Qapi>::TYPE),
                $($crate::qapi::row::member!($field ($($wire)?) ($type) () [$($($feature),*)?])),*
            ],
            tag: Some($tag),
            branches: &[$(($word, <$body as $crate::qapi::define::Structure>::schema)),*],
            features: &[],
        });
        $crate::qapi::row::qapi! { $($rest)* }
    };

    (
        $(#[$meta:meta])* open alternate $name:ident [$($body:ty),* $(,)?]; $($rest:tt)*
    ) => {
        $crate::qapi::row::open_type!($(#[$meta])* $name(serde_json::Value));
        $crate::qapi::row::alternate_type!($name [$($body),*]);
        $crate::qapi::row::qapi! { $($rest)* }
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
                        $crate::qapi::row::plain!("", [] $($field ($($fwire)?) ($type) () [];)*);
                    &DATA
                },
            },)*
        ];
    };
}

pub(super) use {
    alternate_type, answer, command_row, events, member, members_type, object_type, open_type, plain, qapi,
    tag, wire_name,
};
