//! Checks arguments and options against the schema and gives them their types.
//!
//! The texts of refusals, the order of checks, and which of them show a member's whole path, are
//! QEMU's: programs match on them.

use super::define::{AlternateType, EnumType, Int, StructType, Structure, Type, parse};
use super::schema::BlockdevOptions;
use super::text::{Form, in_qdict_order, parse_size, signed, unsigned};
use super::{Object, QmpError};
use serde::de::DeserializeOwned;
use serde_json::{Number, Value};

/// Checks objects against the schema.
#[derive(Clone, Copy, Debug)]
pub struct Validator<'a> {
    form: Form,
    extra_drivers: &'a [String],
}

impl<'a> Validator<'a> {
    /// For values written in `form`. Nodes of `extra_drivers` may have options the schema does not know,
    /// which are let through as they are.
    pub fn new(form: Form, extra_drivers: &'a [String]) -> Self {
        Self { form, extra_drivers }
    }

    /// `input` with each member of its type, in the schema's order; members the schema does not know
    /// are refused.
    ///
    /// # Errors
    /// The text names the first member that is missing, unknown or wrong.
    pub fn check(&self, of: &StructType, input: Object) -> Result<Object, QmpError> {
        let mut path = Path {
            form: self.form,
            steps: Vec::new(),
        };
        self.structure(of, input, &mut path).map_err(QmpError::generic)
    }

    /// As [`check`](Self::check), and `input` becomes a value of the type that it is checked against.
    ///
    /// # Errors
    /// As those of [`check`](Self::check).
    pub fn check_as<T: Structure + DeserializeOwned>(&self, input: Object) -> Result<T, QmpError> {
        parse(self.check(T::schema(), input)?)
    }

    fn structure(&self, of: &StructType, mut input: Object, path: &mut Path) -> Result<Object, String> {
        let mut output = Object::new();
        self.members(of, &mut input, &mut output, path)?;
        if let Some(tag) = of.tag {
            let value = output.get(tag).and_then(Value::as_str).unwrap_or_default();
            match of.branch(value) {
                Some(branch) => self.members(branch, &mut input, &mut output, path)?,
                None if self.is_extra_driver(of, value) => output.append(&mut input),
                None => {}
            }
        }
        match in_qdict_order(&input).next() {
            None => Ok(output),
            Some((name, _)) => {
                path.steps.push(Step::Member((*name).clone()));
                Err(format!("Parameter '{}' is unexpected", path.full()))
            }
        }
    }

    fn is_extra_driver(&self, of: &StructType, value: &str) -> bool {
        std::ptr::eq(of, BlockdevOptions::schema()) && self.extra_drivers.iter().any(|name| name == value)
    }

    fn members(
        &self,
        of: &StructType,
        input: &mut Object,
        output: &mut Object,
        path: &mut Path,
    ) -> Result<(), String> {
        for member in of.members {
            path.steps.push(Step::Member(member.name.into()));
            match input.shift_remove(member.name) {
                Some(value) => {
                    let is_tag = of.tag == Some(member.name);
                    let known_to_embedder = is_tag
                        && value
                            .as_str()
                            .is_some_and(|value| self.is_extra_driver(of, value));
                    let value = if known_to_embedder {
                        value
                    } else {
                        self.value(member.of, value, path)?
                    };
                    output.insert(member.name.into(), value);
                }
                None if member.optional => {}
                None => return Err(format!("Parameter '{}' is missing", path.full())),
            }
            path.steps.pop();
        }
        Ok(())
    }

    fn value(&self, of: Type, value: Value, path: &mut Path) -> Result<Value, String> {
        match of {
            Type::Struct(find) => match value {
                Value::Object(object) => self.structure(find(), object, path).map(Value::Object),
                _ => Err(path.wrong_type("object")),
            },
            Type::List(item) => match value {
                Value::Array(items) => self.list(*item, items, path),
                _ => Err(path.wrong_type("array")),
            },
            Type::Alternate(find) => self.alternate(find(), value, path),
            Type::Any => Ok(value),
            Type::Null => match value {
                Value::Null => Ok(value),
                _ => Err(path.wrong_type("null")),
            },
            Type::Str | Type::Enum(_) | Type::Int(_) | Type::Bool | Type::Number => {
                self.scalar(of, value, path)
            }
        }
    }

    fn list(&self, item: Type, items: Vec<Value>, path: &mut Path) -> Result<Value, String> {
        let mut output = Vec::with_capacity(items.len());
        for (index, value) in items.into_iter().enumerate() {
            path.steps.push(Step::Item(index));
            output.push(self.value(item, value, path)?);
            path.steps.pop();
        }
        Ok(Value::Array(output))
    }

    /// The branch is chosen by the value's JSON type; text stands only for branches that are text.
    fn alternate(&self, of: &AlternateType, value: Value, path: &mut Path) -> Result<Value, String> {
        let branch = of.branches.iter().find(|branch| match branch {
            Type::Struct(_) => value.is_object(),
            Type::Str | Type::Enum(_) => value.is_string(),
            Type::Null => value.is_null(),
            Type::Bool => value.is_boolean(),
            Type::Int(_) | Type::Number => value.is_number(),
            Type::List(_) => value.is_array(),
            Type::Alternate(_) | Type::Any => false,
        });
        match branch {
            Some(branch) => self.value(*branch, value, path),
            None => Err(format!(
                "Invalid parameter type for '{}', expected: {}",
                path.last(),
                of.name
            )),
        }
    }

    fn scalar(&self, of: Type, value: Value, path: &Path) -> Result<Value, String> {
        if self.form == Form::KeyValue && (value.is_object() || value.is_array()) {
            return Err(format!("Parameters '{}.*' are unexpected", path.full()));
        }
        match (of, self.form) {
            (Type::Enum(find), _) => word(find(), value, path),
            (Type::Str, _) if value.is_string() => Ok(value),
            (Type::Str, _) => Err(path.wrong_type("string")),
            (Type::Bool, Form::Json) if value.is_boolean() => Ok(value),
            (Type::Bool, Form::Json) => Err(path.wrong_type("boolean")),
            (Type::Bool, Form::KeyValue) => boolean_text(&value, path),
            (Type::Int(of), Form::Json) => integer(of, &value, path),
            (Type::Int(of), Form::KeyValue) => integer_text(of, &value, path),
            (Type::Number, Form::Json) if value.is_number() => Ok(value),
            (Type::Number, Form::KeyValue) => number_text(&value, path),
            _ => Err(path.wrong_type("number")),
        }
    }
}

/// Where a value stands in what is checked.
struct Path {
    form: Form,
    steps: Vec<Step>,
}

enum Step {
    Member(String),
    Item(usize),
}

impl Path {
    /// `a.b[1].c` for JSON, `a.b.1.c` for options.
    fn full(&self) -> String {
        let mut text = String::new();
        for step in &self.steps {
            match (step, self.form) {
                (Step::Member(name), _) => {
                    if !text.is_empty() {
                        text.push('.');
                    }
                    text.push_str(name);
                }
                (Step::Item(index), Form::Json) => text.push_str(&format!("[{index}]")),
                (Step::Item(index), Form::KeyValue) => text.push_str(&format!(".{index}")),
            }
        }
        text
    }

    /// The member's own name; items of lists have none.
    fn last(&self) -> &str {
        match self.steps.last() {
            Some(Step::Member(name)) => name,
            _ => "null",
        }
    }

    fn wrong_type(&self, expected: &str) -> String {
        format!(
            "Invalid parameter type for '{}', expected: {expected}",
            self.full()
        )
    }

    fn expects(&self, expected: &str) -> String {
        format!("Parameter '{}' expects {expected}", self.full())
    }
}

fn word(of: &EnumType, value: Value, path: &Path) -> Result<Value, String> {
    match value.as_str() {
        None => Err(path.wrong_type("string")),
        Some(text) if of.values.contains(&text) => Ok(value),
        Some(text) => Err(format!(
            "Parameter '{}' does not accept value '{text}'",
            path.last()
        )),
    }
}

fn boolean_text(value: &Value, path: &Path) -> Result<Value, String> {
    match value.as_str() {
        Some("on" | "yes" | "true" | "y") => Ok(true.into()),
        Some("off" | "no" | "false" | "n") => Ok(false.into()),
        _ => Err(path.expects("'on' or 'off'")),
    }
}

fn integer(of: Int, value: &Value, path: &Path) -> Result<Value, String> {
    if matches!(of, Int::I64 | Int::I32) {
        let number = value.as_i64().ok_or_else(|| path.wrong_type("integer"))?;
        return in_signed_range(of, number, path);
    }
    // A negative number stands for the same bits, as it always did for QEMU's clients.
    let bits = value.as_u64().or_else(|| value.as_i64().map(i64::cast_unsigned));
    in_range(of, bits.ok_or_else(|| path.expects("uint64"))?, path)
}

fn integer_text(of: Int, value: &Value, path: &Path) -> Result<Value, String> {
    let text = value.as_str().unwrap_or_default();
    match of {
        Int::I64 | Int::I32 => {
            in_signed_range(of, signed(text).ok_or_else(|| path.expects("integer"))?, path)
        }
        Int::Size => parse_size(text)
            .map(Value::from)
            .ok_or_else(|| path.expects("size")),
        Int::U64 | Int::U32 | Int::U16 => {
            in_range(of, unsigned(text).ok_or_else(|| path.expects("integer"))?, path)
        }
    }
}

fn in_signed_range(of: Int, value: i64, path: &Path) -> Result<Value, String> {
    if of == Int::I32 && i32::try_from(value).is_err() {
        return Err(format!("Parameter '{}' expects int32_t", path.last()));
    }
    Ok(value.into())
}

fn in_range(of: Int, value: u64, path: &Path) -> Result<Value, String> {
    let (most, name) = match of {
        Int::U16 => (u64::from(u16::MAX), "uint16_t"),
        Int::U32 => (u64::from(u32::MAX), "uint32_t"),
        Int::I64 | Int::I32 | Int::U64 | Int::Size => return Ok(value.into()),
    };
    if value <= most {
        Ok(value.into())
    } else {
        Err(format!("Parameter '{}' expects {name}", path.last()))
    }
}

fn number_text(value: &Value, path: &Path) -> Result<Value, String> {
    let number = value
        .as_str()
        .and_then(|text| text.parse::<f64>().ok())
        .and_then(Number::from_f64);
    number.map(Value::Number).ok_or_else(|| path.wrong_type("number"))
}
