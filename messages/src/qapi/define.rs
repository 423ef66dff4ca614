//! The terms in which the schema is written: tables of types, commands and events, and the traits by which Rust types say
//! which of them they are. [`row`](super::row) makes both of one row.

use super::{Object, QmpError, to_compact, to_text};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::Value;
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
    /// The features of each word; words at the end that have none may be left out.
    pub features: &'static [&'static [&'static str]],
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
    fn into_text(self) -> Result<JsonText, QmpError>;
}

impl Answers<()> for () {
    fn into_text(self) -> Result<JsonText, QmpError> {
        Ok(JsonText("{}".to_owned()))
    }
}

impl<T: Qapi + Serialize> Answers<T> for T {
    fn into_text(self) -> Result<JsonText, QmpError> {
        JsonText::of(&self)
    }
}

/// A value of another type that has the same form in JSON as a `T`: it is not put into one to be written.
#[derive(Clone, Debug, PartialEq)]
pub struct Like<T, V>(V, PhantomData<T>);

impl<T, V> Like<T, V> {
    /// A value that has the form of a `T`.
    pub const fn new(value: V) -> Self {
        Self(value, PhantomData)
    }
}

impl<T, V: Serialize> Answers<T> for Like<T, V> {
    fn into_text(self) -> Result<JsonText, QmpError> {
        JsonText::of(&self.0)
    }
}

/// JSON as QEMU prints it, in one line: what a command answers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct JsonText(String);

impl JsonText {
    /// The text of a value.
    ///
    /// # Errors
    /// The value has no form in JSON.
    pub fn of<T: Serialize + ?Sized>(value: &T) -> Result<Self, QmpError> {
        let text = to_text(value).map_err(|error| QmpError::generic(error.to_string()))?;
        Ok(Self(text))
    }

    /// The text, in one line.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl From<Value> for JsonText {
    fn from(value: Value) -> Self {
        Self(to_compact(&value))
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
