//! Writes JSON as QEMU prints it: member order, spacing, escapes and number forms.
//!
//! A value is written as it is serialised, without a tree of it in between; see [`draft`](super::draft) for how members come
//! into their order.

use super::double::seventeen_digits;
use super::draft::Draft;
use super::spread::spread;
use serde::ser::{self, Serialize};
use serde_json::Value;
use std::fmt;

/// `{"a": 1, "b": [2, 3]}`: one line, a space after each colon and comma.
///
/// # Errors
/// The value says that it has no form in JSON, or an object of it has a member whose name is no text.
pub fn to_text<T: Serialize + ?Sized>(value: &T) -> Result<String, WriteError> {
    let mut draft = Draft::default();
    value.serialize(&mut Writer(&mut draft))?;
    Ok(draft.finish())
}

/// The same of what is JSON already.
pub fn to_compact(value: &Value) -> String {
    // Whatever a `Value` holds has a form in JSON.
    to_text(value).unwrap_or_default()
}

/// One member a line, four spaces a level; empty objects and arrays take two lines.
pub fn to_pretty(value: &Value) -> String {
    spread(&to_compact(value))
}

/// Why a value was not written.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum WriteError {
    /// What the value says.
    #[error("{0}")]
    Value(String),
    /// Members of objects have text as their names.
    #[error("a member's name is no text")]
    Name,
}

impl ser::Error for WriteError {
    fn custom<T: fmt::Display>(text: T) -> Self {
        Self::Value(text.to_string())
    }
}

/// Writes a single value into a draft.
struct Writer<'a>(&'a mut Draft);

/// Writes the members of an object, or the items of an array.
struct Parts<'a> {
    draft: &'a mut Draft,
    /// How many were written.
    count: usize,
    /// Around it is an object of which it is the only member.
    is_wrapped: bool,
}

impl<'a> Writer<'a> {
    fn number(self, number: impl itoa::Integer) -> Result<(), WriteError> {
        self.0.push(itoa::Buffer::new().format(number));
        Ok(())
    }

    fn word(self, word: &str) -> Result<(), WriteError> {
        self.0.push(word);
        Ok(())
    }

    fn array(self, is_wrapped: bool) -> Parts<'a> {
        self.0.push("[");
        self.parts(is_wrapped)
    }

    fn object(self, is_wrapped: bool) -> Parts<'a> {
        self.0.begin_object();
        self.parts(is_wrapped)
    }

    fn parts(self, is_wrapped: bool) -> Parts<'a> {
        Parts {
            draft: self.0,
            count: 0,
            is_wrapped,
        }
    }

    /// Begins the object around a variant that has more than a name.
    fn variant(&mut self, variant: &'static str) {
        self.0.begin_object();
        self.0.begin_member(Draft::bucket_of(variant), variant);
    }
}

impl Parts<'_> {
    fn item<T: Serialize + ?Sized>(&mut self, value: &T) -> Result<(), WriteError> {
        if self.count > 0 {
            self.draft.push(", ");
        }
        self.count += 1;
        value.serialize(&mut Writer(self.draft))
    }

    fn field<T: Serialize + ?Sized>(&mut self, key: &'static str, value: &T) -> Result<(), WriteError> {
        let bucket = self.draft.bucket(key);
        self.draft.begin_member(bucket, key);
        value.serialize(&mut Writer(self.draft))?;
        self.draft.end_member();
        Ok(())
    }

    fn end_array(self) {
        self.draft.push("]");
        self.end_variant();
    }

    fn end_object(self) {
        self.draft.end_object();
        self.end_variant();
    }

    fn end_variant(self) {
        if self.is_wrapped {
            self.draft.end_member();
            self.draft.end_object();
        }
    }
}

macro_rules! numbers {
    ($($function:ident: $of:ty,)*) => {
        $(fn $function(self, value: $of) -> Result<(), WriteError> {
            Writer(self.0).number(value)
        })*
    };
}

impl<'a> ser::Serializer for &'a mut Writer<'_> {
    type Ok = ();
    type Error = WriteError;
    type SerializeSeq = Parts<'a>;
    type SerializeTuple = Parts<'a>;
    type SerializeTupleStruct = Parts<'a>;
    type SerializeTupleVariant = Parts<'a>;
    type SerializeMap = Parts<'a>;
    type SerializeStruct = Parts<'a>;
    type SerializeStructVariant = Parts<'a>;

    numbers! {
        serialize_i8: i8,
        serialize_i16: i16,
        serialize_i32: i32,
        serialize_i64: i64,
        serialize_u8: u8,
        serialize_u16: u16,
        serialize_u32: u32,
        serialize_u64: u64,
    }

    fn serialize_bool(self, value: bool) -> Result<(), WriteError> {
        Writer(self.0).word(if value { "true" } else { "false" })
    }

    fn serialize_f32(self, value: f32) -> Result<(), WriteError> {
        self.serialize_f64(value.into())
    }

    fn serialize_f64(self, value: f64) -> Result<(), WriteError> {
        match value.is_finite() {
            true => Writer(self.0).word(&seventeen_digits(value)),
            false => self.serialize_unit(),
        }
    }

    fn serialize_char(self, value: char) -> Result<(), WriteError> {
        self.serialize_str(value.encode_utf8(&mut [0; 4]))
    }

    fn serialize_str(self, value: &str) -> Result<(), WriteError> {
        self.0.push_string(value);
        Ok(())
    }

    fn serialize_bytes(self, value: &[u8]) -> Result<(), WriteError> {
        self.collect_seq(value)
    }

    fn serialize_none(self) -> Result<(), WriteError> {
        self.serialize_unit()
    }

    fn serialize_some<T: Serialize + ?Sized>(self, value: &T) -> Result<(), WriteError> {
        value.serialize(self)
    }

    fn serialize_unit(self) -> Result<(), WriteError> {
        Writer(self.0).word("null")
    }

    fn serialize_unit_struct(self, _: &'static str) -> Result<(), WriteError> {
        self.serialize_unit()
    }

    fn serialize_unit_variant(
        self,
        _: &'static str,
        _: u32,
        variant: &'static str,
    ) -> Result<(), WriteError> {
        self.serialize_str(variant)
    }

    fn serialize_newtype_struct<T: Serialize + ?Sized>(
        self,
        _: &'static str,
        value: &T,
    ) -> Result<(), WriteError> {
        value.serialize(self)
    }

    fn serialize_newtype_variant<T: Serialize + ?Sized>(
        self,
        _: &'static str,
        _: u32,
        variant: &'static str,
        value: &T,
    ) -> Result<(), WriteError> {
        self.variant(variant);
        value.serialize(&mut Writer(self.0))?;
        self.0.end_member();
        self.0.end_object();
        Ok(())
    }

    fn serialize_seq(self, _: Option<usize>) -> Result<Parts<'a>, WriteError> {
        Ok(Writer(self.0).array(false))
    }

    fn serialize_tuple(self, _: usize) -> Result<Parts<'a>, WriteError> {
        Ok(Writer(self.0).array(false))
    }

    fn serialize_tuple_struct(self, _: &'static str, _: usize) -> Result<Parts<'a>, WriteError> {
        Ok(Writer(self.0).array(false))
    }

    fn serialize_tuple_variant(
        self,
        _: &'static str,
        _: u32,
        variant: &'static str,
        _: usize,
    ) -> Result<Parts<'a>, WriteError> {
        self.variant(variant);
        Ok(Writer(self.0).array(true))
    }

    fn serialize_map(self, _: Option<usize>) -> Result<Parts<'a>, WriteError> {
        Ok(Writer(self.0).object(false))
    }

    fn serialize_struct(self, _: &'static str, _: usize) -> Result<Parts<'a>, WriteError> {
        Ok(Writer(self.0).object(false))
    }

    fn serialize_struct_variant(
        self,
        _: &'static str,
        _: u32,
        variant: &'static str,
        _: usize,
    ) -> Result<Parts<'a>, WriteError> {
        self.variant(variant);
        Ok(Writer(self.0).object(true))
    }
}

macro_rules! arrays {
    ($($interface:ident $function:ident,)*) => {
        $(impl ser::$interface for Parts<'_> {
            type Ok = ();
            type Error = WriteError;

            fn $function<T: Serialize + ?Sized>(&mut self, value: &T) -> Result<(), WriteError> {
                self.item(value)
            }

            fn end(self) -> Result<(), WriteError> {
                self.end_array();
                Ok(())
            }
        })*
    };
}

arrays! {
    SerializeSeq serialize_element,
    SerializeTuple serialize_element,
    SerializeTupleStruct serialize_field,
    SerializeTupleVariant serialize_field,
}

macro_rules! objects {
    ($($interface:ident)*) => {
        $(impl ser::$interface for Parts<'_> {
            type Ok = ();
            type Error = WriteError;

            fn serialize_field<T: Serialize + ?Sized>(
                &mut self,
                key: &'static str,
                value: &T,
            ) -> Result<(), WriteError> {
                self.field(key, value)
            }

            fn end(self) -> Result<(), WriteError> {
                self.end_object();
                Ok(())
            }
        })*
    };
}

objects!(SerializeStruct SerializeStructVariant);

impl ser::SerializeMap for Parts<'_> {
    type Ok = ();
    type Error = WriteError;

    fn serialize_key<T: Serialize + ?Sized>(&mut self, key: &T) -> Result<(), WriteError> {
        match serde_json::to_value(key) {
            Ok(Value::String(name)) => {
                self.draft.begin_member(Draft::bucket_of(&name), &name);
                Ok(())
            }
            _ => Err(WriteError::Name),
        }
    }

    fn serialize_value<T: Serialize + ?Sized>(&mut self, value: &T) -> Result<(), WriteError> {
        value.serialize(&mut Writer(self.draft))?;
        self.draft.end_member();
        Ok(())
    }

    fn end(self) -> Result<(), WriteError> {
        self.end_object();
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde::Serialize;
    use serde_json::json;

    #[test]
    fn compact_and_pretty() {
        let value = json!({"b": [1, {}], "a": []});
        assert_eq!(to_compact(&value), r#"{"a": [], "b": [1, {}]}"#);
        assert_eq!(to_pretty(&json!({"a": [], "b": {}})).matches('\n').count(), 5);
        assert_eq!(to_pretty(&json!([])), "[\n]");
        assert_eq!(
            to_pretty(&json!({"a, {": ["\"]\\", 1]})),
            "{\n    \"a, {\": [\n        \"\\\"]\\\\\",\n        1\n    ]\n}"
        );
    }

    #[test]
    fn what_is_not_plain_ascii_is_escaped() {
        assert_eq!(
            to_compact(&json!("a\"\\\n\u{1}\u{7f}é😀")),
            r#""a\"\\\n\u0001\u007F\u00E9\uD83D\uDE00""#
        );
    }

    #[derive(Serialize)]
    struct Inner {
        offset: u64,
        len: Option<i64>,
    }

    #[derive(Serialize)]
    enum Shape {
        Point,
        Line(u8),
        Corner(i8, f64),
        Box { status: Inner, busy: bool },
    }

    #[derive(Serialize)]
    struct Outer {
        shapes: Vec<Shape>,
        device: &'static str,
        status: Inner,
        #[serde(flatten)]
        rest: Inner,
        last: char,
    }

    /// One way from a type to its text, and from the same as a tree.
    #[test]
    fn a_typed_value_is_written_as_its_tree_is() {
        let inner = |offset| Inner { offset, len: None };
        let value = Outer {
            shapes: vec![
                Shape::Point,
                Shape::Line(3),
                Shape::Corner(-4, 0.5),
                Shape::Box {
                    status: inner(1),
                    busy: true,
                },
            ],
            device: "\"disk\"\n",
            status: Inner {
                offset: u64::MAX,
                len: Some(i64::MIN),
            },
            rest: inner(7),
            last: 'é',
        };
        let tree = serde_json::to_value(&value).unwrap();
        assert_eq!(to_text(&value), Ok(to_compact(&tree)));
        assert_eq!(to_text(&[&value, &value]), Ok(to_compact(&json!([tree, tree]))));
        assert_eq!(
            to_text(&inner(2)).unwrap(),
            r#"{"len": null, "offset": 2}"#,
            "the order is QEMU's, not the type's"
        );
    }

    #[test]
    fn a_name_that_is_no_text_is_refused() {
        let map = std::collections::BTreeMap::from([(vec![1], 2)]);
        assert_eq!(to_text(&map), Err(WriteError::Name));
    }
}
