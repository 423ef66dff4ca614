//! Bytes as the text of a JSON string. As in QEMU, a zero is two bytes, and a zero byte ends a text.

use data_encoding::BASE64;

use millpond_messages::qapi::schema::DataFormat;

/// What a zero is among the bytes of a text.
const ZERO: [u8; 2] = [0xc0, 0x80];

/// The bytes that a text stands for.
///
/// # Errors
/// QEMU's text for what is no Base64.
pub fn bytes_of(text: &str, format: DataFormat) -> Result<Vec<u8>, String> {
    match format {
        DataFormat::Utf8 => {
            let byte = |byte: u8| match byte {
                0 => ZERO.to_vec(),
                byte => vec![byte],
            };
            Ok(text.bytes().flat_map(byte).collect())
        }
        DataFormat::Base64 => {
            let digits: Vec<u8> = text.bytes().filter(|byte| *byte != b'\n').collect();
            // What does not make up whole bytes at the end is left out.
            let whole = digits.len() / 4 * 4;
            let is_digit = |byte: &u8| byte.is_ascii_alphanumeric() || b"+/=".contains(byte);
            let decoded = match digits.iter().all(is_digit) {
                true => BASE64.decode(digits.get(..whole).unwrap_or_default()).ok(),
                false => None,
            };
            decoded.ok_or_else(|| "Base64 data contains invalid characters".to_owned())
        }
    }
}

/// The text that stands for bytes.
pub fn text_of(bytes: &[u8], format: DataFormat) -> String {
    match format {
        DataFormat::Base64 => BASE64.encode(bytes),
        DataFormat::Utf8 => {
            let end = bytes.iter().position(|byte| *byte == 0).unwrap_or(bytes.len());
            let mut rest = bytes.get(..end).unwrap_or_default();
            let mut text = String::new();
            while let Some((character, len)) = first_of(rest) {
                text.push(character);
                rest = rest.get(len..).unwrap_or_default();
            }
            text
        }
    }
}

/// The first character of some bytes, and of how many it is. What is none is shown as one that stands for such.
fn first_of(bytes: &[u8]) -> Option<(char, usize)> {
    let first = *bytes.first()?;
    let len = match first {
        0..0x80 => return Some((char::from(first), 1)),
        0xc0..0xe0 => 2,
        0xe0..0xf0 => 3,
        0xf0..0xf8 => 4,
        _ => return Some((char::REPLACEMENT_CHARACTER, 1)),
    };
    let follows = |byte: &&u8| (**byte & 0xc0) == 0x80;
    let len = 1 + bytes.iter().skip(1).take(len - 1).take_while(follows).count();
    let bytes = bytes.get(..len)?;
    let character = match bytes == ZERO {
        true => Some('\0'),
        false => std::str::from_utf8(bytes)
            .ok()
            .and_then(|text| text.chars().next()),
    };
    Some((character.unwrap_or(char::REPLACEMENT_CHARACTER), len))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_no_text_is_shown_as_such() {
        let shown = |bytes: &[u8]| text_of(bytes, DataFormat::Utf8);
        assert_eq!(
            shown("a\u{e4}\u{20ac}\u{1f980}".as_bytes()),
            "a\u{e4}\u{20ac}\u{1f980}"
        );
        assert_eq!(
            shown(b"a\xc3b\xa4\xff\xe2\x82"),
            "a\u{fffd}b\u{fffd}\u{fffd}\u{fffd}"
        );
        assert_eq!(shown(b"\xc0\x80b\0c"), "\0b");
        assert_eq!(shown(b"\xe0\x80\x80\xed\xa0\x80"), "\u{fffd}\u{fffd}");
    }

    #[test]
    fn base64_may_lack_its_end() {
        let bytes = |text| bytes_of(text, DataFormat::Base64);
        assert_eq!(bytes("YWJj\nZA=="), Ok(b"abcd".to_vec()));
        assert_eq!(bytes("YWJjZ"), Ok(b"abc".to_vec()));
        assert!(bytes("YW!j").is_err());
        assert_eq!(text_of(b"abcd", DataFormat::Base64), "YWJjZA==");
    }
}
