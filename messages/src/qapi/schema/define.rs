//! The terms in which the schema's tables are written.

/// An object of the schema: members, and for a union the further members that its tag selects.
#[derive(Debug)]
pub struct StructType {
    /// The name in the schema.
    pub name: &'static str,
    /// What it always has, in the order in which they are checked.
    pub members: &'static [Member],
    /// The member that selects a branch.
    pub tag: Option<&'static str>,
    /// The branches by the tag's value; a value without one adds nothing.
    pub branches: &'static [(&'static str, &'static StructType)],
    /// Features of the type.
    pub features: &'static [&'static str],
}

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
    Enum(&'static EnumType),
    /// An object with known members.
    Struct(&'static StructType),
    /// One of several types, told apart by their JSON type.
    Alternate(&'static AlternateType),
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
pub struct Command {
    /// The command's name on the wire.
    pub name: &'static str,
    /// The arguments that the command takes.
    pub arguments: Arguments,
    /// What it answers; `None` for an empty object.
    pub returns: Option<Type>,
    /// Features such as `unstable`.
    pub features: &'static [&'static str],
}

/// The arguments of a command or the data of an event.
#[derive(Debug)]
pub enum Arguments {
    /// Written out in place.
    Inline(StructType),
    /// A type with a name.
    Named(&'static StructType),
}

/// An event that clients are sent.
#[derive(Debug)]
pub struct Event {
    /// The event's name on the wire.
    pub name: &'static str,
    /// The data that comes with it.
    pub data: Arguments,
}

impl Arguments {
    /// The object they form.
    pub const fn object(&self) -> &StructType {
        match self {
            Self::Inline(object) => object,
            Self::Named(object) => object,
        }
    }
}

pub(super) const STR: Type = Type::Str;
pub(super) const BOOL: Type = Type::Bool;
pub(super) const NUMBER: Type = Type::Number;
pub(super) const NULL: Type = Type::Null;
pub(super) const ANY: Type = Type::Any;
pub(super) const I64: Type = Type::Int(Int::I64);
pub(super) const I32: Type = Type::Int(Int::I32);
pub(super) const U64: Type = Type::Int(Int::U64);
pub(super) const U32: Type = Type::Int(Int::U32);
pub(super) const U16: Type = Type::Int(Int::U16);
pub(super) const SIZE: Type = Type::Int(Int::Size);

pub(super) use Type::{Alternate, Enum, List, Struct};

pub(super) const fn structure(name: &'static str, members: &'static [Member]) -> StructType {
    StructType {
        name,
        members,
        tag: None,
        branches: &[],
        features: &[],
    }
}

pub(super) const fn enumeration(name: &'static str, values: &'static [&'static str]) -> EnumType {
    EnumType { name, values }
}

pub(super) const fn alternate(name: &'static str, branches: &'static [Type]) -> AlternateType {
    AlternateType { name, branches }
}

/// A member that must be there.
pub(super) const fn req(name: &'static str, of: Type) -> Member {
    Member {
        name,
        of,
        optional: false,
        features: &[],
    }
}

/// A member that may be left out.
pub(super) const fn opt(name: &'static str, of: Type) -> Member {
    Member {
        name,
        of,
        optional: true,
        features: &[],
    }
}

/// A command without arguments that answers an empty object.
pub(super) const fn command(name: &'static str) -> Command {
    Command {
        name,
        arguments: Arguments::Inline(structure("", &[])),
        returns: None,
        features: &[],
    }
}

pub(super) const fn event(name: &'static str, members: &'static [Member]) -> Event {
    Event {
        name,
        data: Arguments::Inline(structure("", members)),
    }
}

impl StructType {
    pub(super) const fn union(
        mut self,
        tag: &'static str,
        branches: &'static [(&'static str, &'static Self)],
    ) -> Self {
        self.tag = Some(tag);
        self.branches = branches;
        self
    }

    pub(super) const fn with(mut self, features: &'static [&'static str]) -> Self {
        self.features = features;
        self
    }

    /// The further members for a value of the tag.
    pub fn branch(&self, value: &str) -> Option<&'static StructType> {
        self.branches
            .iter()
            .find(|(name, _)| *name == value)
            .map(|(_, branch)| *branch)
    }
}

impl Member {
    pub(super) const fn with(mut self, features: &'static [&'static str]) -> Self {
        self.features = features;
        self
    }
}

impl Command {
    pub(super) const fn takes(mut self, members: &'static [Member]) -> Self {
        self.arguments = Arguments::Inline(structure("", members));
        self
    }

    pub(super) const fn boxed(mut self, object: &'static StructType) -> Self {
        self.arguments = Arguments::Named(object);
        self
    }

    pub(super) const fn returns(mut self, of: Type) -> Self {
        self.returns = Some(of);
        self
    }

    pub(super) const fn with(mut self, features: &'static [&'static str]) -> Self {
        self.features = features;
        self
    }
}
