//! Lists of options as QEMU's tools read them (`--image-opts`): flat, unlike what `--blockdev` takes, and never JSON.

use super::Failure;
use millpond_messages::qapi::{IDENTIFIER_HINT, check_identifier, take_pair};

/// Reads `name=value,...`. A first word alone is the value of `implied`, where there is one; any other turns something on, or
/// with `no` before it off, of which `warn` is told. A doubled comma is one of the value's own.
///
/// # Errors
/// An `id` is none.
pub fn read_pairs(
    text: &str,
    implied: Option<&str>,
    mut warn: impl FnMut(&str),
) -> Result<Vec<(String, String)>, Failure> {
    let mut pairs = Vec::new();
    let mut rest = text;
    let mut is_first = true;
    while !rest.is_empty() {
        let (name, value, tail) = take_pair(rest);
        rest = tail;
        let (name, value) = match (name, implied.filter(|_| is_first)) {
            (Some(name), _) => (name.to_owned(), value),
            (None, Some(implied)) => (implied.to_owned(), value),
            (None, None) => switch(&value, &mut warn),
        };
        is_first = false;
        if name == "id" {
            check_identifier(&value).map_err(|_| {
                Failure::new(format!("Parameter 'id' expects an identifier\n{IDENTIFIER_HINT}"))
            })?;
        } else {
            pairs.push((name, value));
        }
    }
    Ok(pairs)
}

fn switch(word: &str, warn: &mut impl FnMut(&str)) -> (String, String) {
    let (name, value) = match word.strip_prefix("no") {
        Some(rest) => (rest, "off"),
        None => (word, "on"),
    };
    warn(&format!(
        "short-form boolean option '{word}' deprecated\nPlease use {name}={value} instead"
    ));
    (name.to_owned(), value.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pairs_are_read_as_qemus_tools_read_them() {
        let mut warnings = Vec::new();
        let mut read = |text| {
            let pairs = read_pairs(text, Some("file"), |text| warnings.push(text.to_owned()));
            pairs.map(|pairs| {
                let pairs: Vec<_> = pairs
                    .into_iter()
                    .map(|(name, value)| format!("{name}={value}"))
                    .collect();
                pairs.join(" ")
            })
        };
        for (text, expected) in [
            (
                "driver=qcow2,file.filename=a,,b",
                "driver=qcow2 file.filename=a,b",
            ),
            ("a=b=c", "a=b=c"),
            ("disk,driver=raw", "file=disk driver=raw"),
            (",,", "file=,"),
            ("a=,id=x,b=2", "a= b=2"),
            ("a=1,read-only,nocache", "a=1 read-only=on cache=off"),
        ] {
            assert_eq!(read(text).expect(text), expected);
        }
        assert!(read("a=1,id=2").is_err());
        let nothing_implied = read_pairs("nodisk", None, |_| {}).expect("a switch");
        assert_eq!(nothing_implied, [("disk".to_owned(), "off".to_owned())]);
        assert_eq!(
            warnings,
            [
                "short-form boolean option 'read-only' deprecated\nPlease use read-only=on instead",
                "short-form boolean option 'nocache' deprecated\nPlease use cache=off instead",
            ]
        );
    }
}
