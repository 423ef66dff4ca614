//! Options whose types may have got lost on their way: command lines and `json:` names know texts alone.

use millpond_messages::qapi::{parse_size, parse_unsigned};
use serde::de::value::{MapDeserializer, SeqDeserializer};
use serde::de::{Deserializer, IntoDeserializer, Visitor};
use serde::{Deserialize, forward_to_deserialize_any};
use serde_json::{Error, Number, Value};
use std::ops::Deref;

/// A number of bytes among a driver's options, which as a text may have a suffix.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct Size(Number);

impl Deref for Size {
    type Target = Number;

    fn deref(&self) -> &Number {
        &self.0
    }
}

/// A value of which a text may stand for what is wanted: a number or a truth.
pub(super) struct Confused(pub Value);

/// What a text says that is on or off.
fn truth(text: &str) -> Option<bool> {
    match text {
        "on" | "yes" | "true" | "y" => Some(true),
        "off" | "no" | "false" | "n" => Some(false),
        _ => None,
    }
}

/// The number that a text says.
fn number(text: &str) -> Option<Number> {
    let negative = text.strip_prefix('-').and_then(|text| text.parse::<i64>().ok());
    match negative.and_then(i64::checked_neg) {
        Some(negative) => Some(negative.into()),
        None => parse_unsigned(text).map(Number::from),
    }
}

impl IntoDeserializer<'_, Error> for Confused {
    type Deserializer = Self;

    fn into_deserializer(self) -> Self {
        self
    }
}

/// Whole numbers of all widths.
macro_rules! whole_numbers {
    ($($name:ident)*) => {
        $(
            fn $name<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
                let meant = match &self.0 {
                    Value::String(text) => number(text),
                    _ => None,
                };
                meant.map_or(self.0, Value::Number).$name(visitor)
            }
        )*
    };
}

impl<'de> Deserializer<'de> for Confused {
    type Error = Error;

    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        match self.0 {
            Value::Object(members) => {
                let members = members.into_iter().map(|(name, value)| (name, Self(value)));
                visitor.visit_map(MapDeserializer::new(members))
            }
            Value::Array(items) => visitor.visit_seq(SeqDeserializer::new(items.into_iter().map(Self))),
            value => value.deserialize_any(visitor),
        }
    }

    fn deserialize_bool<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        let meant = self.0.as_str().and_then(truth);
        meant.map_or(self.0, Value::Bool).deserialize_bool(visitor)
    }

    whole_numbers! {
        deserialize_i8 deserialize_i16 deserialize_i32 deserialize_i64
        deserialize_u8 deserialize_u16 deserialize_u32 deserialize_u64
    }

    fn deserialize_option<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        match self.0 {
            Value::Null => visitor.visit_none(),
            _ => visitor.visit_some(self),
        }
    }

    fn deserialize_newtype_struct<V: Visitor<'de>>(
        self,
        name: &'static str,
        visitor: V,
    ) -> Result<V::Value, Error> {
        let meant = match &self.0 {
            Value::String(text) if name == "Size" => parse_size(text),
            _ => None,
        };
        visitor.visit_newtype_struct(Self(meant.map_or(self.0, Value::from)))
    }

    fn deserialize_enum<V: Visitor<'de>>(
        self,
        name: &'static str,
        variants: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Error> {
        self.0.deserialize_enum(name, variants, visitor)
    }

    forward_to_deserialize_any! {
        i128 u128 f32 f64 char str string bytes byte_buf unit unit_struct seq tuple tuple_struct map struct
        identifier ignored_any
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[derive(Debug, PartialEq, Deserialize)]
    #[serde(deny_unknown_fields, rename_all = "kebab-case")]
    struct Wanted {
        is_on: Option<bool>,
        count: Option<u32>,
        level: Option<i64>,
        size: Option<Size>,
        text: Option<String>,
        inner: Option<Box<Wanted>>,
    }

    fn read(value: Value) -> Result<Wanted, Error> {
        Wanted::deserialize(Confused(value))
    }

    #[test]
    fn texts_stand_for_what_is_wanted() {
        let typed = json!({
            "is-on": true, "count": 3, "level": -2, "size": 1_048_576, "text": "5", "inner": {"is-on": false}
        });
        let texts = json!({
            "is-on": "on", "count": "3", "level": "-2", "size": "1M", "text": "5", "inner": {"is-on": "no"}
        });
        assert_eq!(read(typed).unwrap(), read(texts).unwrap());
    }

    #[test]
    fn texts_that_stand_for_nothing_are_refused() {
        for value in [
            json!({"is-on": "maybe"}),
            json!({"count": "x"}),
            json!({"size": "1Y"}),
            json!({"colour": "red"}),
        ] {
            assert!(read(value.clone()).is_err(), "{value}");
        }
    }
}
