//! Makes a value of the tokens that form it.

use super::lexer::Kind;
use super::stream::Token;
use crate::qapi::Object;
use serde_json::{Number, Value};

/// The value that `tokens` of `bytes` form. The caller bounds how deep they nest.
pub(super) fn parse(bytes: &[u8], tokens: &[Token]) -> Result<Value, String> {
    let mut parser = Parser {
        bytes,
        tokens,
        next: 0,
    };
    parser.value()
}

struct Parser<'a> {
    bytes: &'a [u8],
    tokens: &'a [Token],
    next: usize,
}

impl<'a> Parser<'a> {
    fn peek(&self) -> Result<Kind, String> {
        self.tokens
            .get(self.next)
            .map(|token| token.kind)
            .ok_or_else(|| "premature EOI".into())
    }

    fn pop(&mut self) -> Result<(Kind, &'a [u8]), String> {
        let kind = self.peek()?;
        let start = match self.next.checked_sub(1) {
            Some(before) => self.tokens.get(before).map_or(0, |token| token.end),
            None => 0,
        };
        let end = self.tokens.get(self.next).map_or(start, |token| token.end);
        self.next += 1;
        Ok((kind, self.bytes.get(start..end).unwrap_or_default()))
    }

    fn value(&mut self) -> Result<Value, String> {
        let (kind, text) = self.pop()?;
        match kind {
            Kind::OpenObject => self.object(),
            Kind::OpenArray => self.array(),
            Kind::String => string(text).map(Value::String),
            Kind::Keyword => keyword(text),
            Kind::Integer => Ok(integer(text)),
            Kind::Float => Ok(float(text)),
            Kind::CloseObject | Kind::CloseArray | Kind::Colon | Kind::Comma | Kind::Error => {
                Err("expecting value".into())
            }
        }
    }

    fn object(&mut self) -> Result<Value, String> {
        let mut object = Object::new();
        if self.peek()? == Kind::CloseObject {
            self.pop()?;
            return Ok(Value::Object(object));
        }
        loop {
            self.member(&mut object)?;
            match self.pop()?.0 {
                Kind::CloseObject => return Ok(Value::Object(object)),
                Kind::Comma => {}
                _ => return Err("expected separator in dict".into()),
            }
        }
    }

    fn member(&mut self, object: &mut Object) -> Result<(), String> {
        self.peek()?;
        let Value::String(key) = self.value()? else {
            return Err("key is not a string in object".into());
        };
        if self.pop()?.0 != Kind::Colon {
            return Err("missing : in object pair".into());
        }
        let value = self.value()?;
        if object.contains_key(&key) {
            return Err("duplicate key".into());
        }
        object.insert(key, value);
        Ok(())
    }

    fn array(&mut self) -> Result<Value, String> {
        let mut items = Vec::new();
        if self.peek()? == Kind::CloseArray {
            self.pop()?;
            return Ok(Value::Array(items));
        }
        loop {
            items.push(self.value()?);
            match self.pop()?.0 {
                Kind::CloseArray => return Ok(Value::Array(items)),
                Kind::Comma => {}
                _ => return Err("expected separator in list".into()),
            }
        }
    }
}

fn keyword(text: &[u8]) -> Result<Value, String> {
    match text {
        b"true" => Ok(true.into()),
        b"false" => Ok(false.into()),
        b"null" => Ok(Value::Null),
        _ => Err(format!("invalid keyword '{}'", lossy(text))),
    }
}

fn integer(text: &[u8]) -> Value {
    let digits = str::from_utf8(text).unwrap_or_default();
    if let Ok(signed) = digits.parse::<i64>() {
        return signed.into();
    }
    digits.parse::<u64>().map_or_else(|_| float(text), Value::from)
}

/// A double; what is beyond the largest becomes the largest, since JSON has no infinity.
fn float(text: &[u8]) -> Value {
    let double = str::from_utf8(text)
        .ok()
        .and_then(|text| text.parse::<f64>().ok())
        .unwrap_or_default();
    Number::from_f64(double.clamp(f64::MIN, f64::MAX)).map_or(Value::Null, Value::Number)
}

/// The text of a string token, which has its quotes around it.
fn string(token: &[u8]) -> Result<String, String> {
    let mut rest = token.get(1..token.len().saturating_sub(1)).unwrap_or_default();
    let mut text = String::with_capacity(rest.len());
    while let Some(&first) = rest.first() {
        let used = if first == b'\\' {
            escape(rest, &mut text)?
        } else {
            plain(rest, &mut text)?
        };
        rest = rest.get(used..).unwrap_or_default();
    }
    Ok(text)
}

/// Takes one character from the start of `rest`; says how many bytes it had.
fn plain(rest: &[u8], text: &mut String) -> Result<usize, String> {
    let (character, used) = decode(rest);
    text.push(character.ok_or("invalid UTF-8 sequence in string")?);
    Ok(used)
}

fn escape(rest: &[u8], text: &mut String) -> Result<usize, String> {
    let character = match rest.get(1) {
        Some(&quote @ (b'"' | b'\'' | b'\\' | b'/')) => char::from(quote),
        Some(b'b') => '\u{8}',
        Some(b'f') => '\u{c}',
        Some(b'n') => '\n',
        Some(b'r') => '\r',
        Some(b't') => '\t',
        Some(b'u') => return unicode_escape(rest, text),
        _ => return Err("invalid escape sequence in string".into()),
    };
    text.push(character);
    Ok(2)
}

/// `\uXXXX`, or two of them that are a surrogate pair.
fn unicode_escape(rest: &[u8], text: &mut String) -> Result<usize, String> {
    let invalid = || {
        let digits = rest.get(2..rest.len().min(6)).unwrap_or_default();
        // A string that ends within the escape shows its closing quote there.
        let quote = if digits.len() < 4 { "\"" } else { "" };
        format!("\\u{}{quote} is not a valid Unicode character", lossy(digits))
    };
    let unit = hexadecimal(rest.get(2..6)).ok_or_else(invalid)?;
    let (code, used) = match (unit, rest.get(6..8)) {
        (0xd800..0xdc00, Some(b"\\u")) => match hexadecimal(rest.get(8..12)) {
            Some(low @ 0xdc00..0xe000) => (0x10000 + ((unit - 0xd800) << 10) + (low - 0xdc00), 12),
            _ => return Err(invalid()),
        },
        _ => (unit, 6),
    };
    text.push(
        char::from_u32(code)
            .filter(|c| is_character(*c))
            .ok_or_else(invalid)?,
    );
    Ok(used)
}

fn hexadecimal(digits: Option<&[u8]>) -> Option<u32> {
    let digits = digits.filter(|digits| digits.iter().all(u8::is_ascii_hexdigit))?;
    u32::from_str_radix(str::from_utf8(digits).ok()?, 16).ok()
}

/// Unicode reserves some codes that never are characters.
fn is_character(c: char) -> bool {
    let code = u32::from(c);
    !(0xfdd0..=0xfdef).contains(&code) && code & 0xfffe != 0xfffe
}

/// The character at the start of `bytes`, which is not empty, and its length; `None` if the bytes are none.
/// Zero may be written as two bytes.
fn decode(bytes: &[u8]) -> (Option<char>, usize) {
    if bytes.starts_with(&[0xc0, 0x80]) {
        return (Some('\0'), 2);
    }
    let length = match bytes.first() {
        Some(0xc0..=0xdf) => 2,
        Some(0xe0..=0xef) => 3,
        Some(0xf0..=0xf7) => 4,
        Some(0xf8..=0xfb) => 5,
        Some(0xfc..=0xfd) => 6,
        _ => 1,
    };
    let continued = bytes
        .iter()
        .skip(1)
        .take(length - 1)
        .take_while(|byte| **byte & 0xc0 == 0x80)
        .count();
    let used = continued + 1;
    let text = bytes.get(..used).and_then(|bytes| str::from_utf8(bytes).ok());
    (
        text.and_then(|text| text.chars().next())
            .filter(|c| is_character(*c)),
        used,
    )
}

/// Bytes for an error text: what is no character becomes one that says so; ends at a zero byte.
pub(super) fn lossy(bytes: &[u8]) -> String {
    let mut text = String::new();
    let mut rest = bytes.split(|byte| *byte == 0).next().unwrap_or_default();
    while !rest.is_empty() {
        let (character, used) = decode(rest);
        text.push(character.unwrap_or(char::REPLACEMENT_CHARACTER));
        rest = rest.get(used..).unwrap_or_default();
    }
    text
}
