//! The name in a certificate as text, in the form by which QEMU's users write rules: GnuTLS's.
//!
//! The parts stand in the certificate's own order (`C=US,O=t,CN=client`), where RFC 4514 has the last one first. What could
//! be taken for the end of a part is escaped, so that no name can be made to look like another.

use std::fmt::Write;

use der::asn1::ObjectIdentifier;
use der::{Encode, Tag, Tagged};
use x509_cert::attr::AttributeTypeAndValue;
use x509_cert::name::RdnSequence;

/// What attributes are called. Others are shown by their numbers.
const NAMES: &[(&str, &str)] = &[
    ("2.5.4.3", "CN"),
    ("2.5.4.4", "surName"),
    ("2.5.4.5", "serialNumber"),
    ("2.5.4.6", "C"),
    ("2.5.4.7", "L"),
    ("2.5.4.8", "ST"),
    ("2.5.4.9", "street"),
    ("2.5.4.10", "O"),
    ("2.5.4.11", "OU"),
    ("2.5.4.12", "title"),
    ("2.5.4.13", "description"),
    ("2.5.4.15", "businessCategory"),
    ("2.5.4.17", "postalCode"),
    ("2.5.4.41", "name"),
    ("2.5.4.42", "givenName"),
    ("2.5.4.43", "initials"),
    ("2.5.4.44", "generationQualifier"),
    ("2.5.4.46", "dnQualifier"),
    ("2.5.4.65", "pseudonym"),
    ("0.9.2342.19200300.100.1.1", "UID"),
    ("0.9.2342.19200300.100.1.25", "DC"),
    ("1.2.840.113549.1.9.1", "EMAIL"),
];

/// The name as text; `None` if there is nothing in it, or something that is no name.
pub(super) fn distinguished_name(name: &RdnSequence) -> Option<String> {
    let mut text = String::new();
    for (at, part) in name.0.iter().enumerate() {
        for (within, attribute) in part.0.iter().enumerate() {
            match (at, within) {
                (0, 0) => {}
                (_, 0) => text.push(','),
                _ => text.push('+'),
            }
            write_attribute(&mut text, attribute)?;
        }
    }
    (!text.is_empty()).then_some(text)
}

fn write_attribute(text: &mut String, attribute: &AttributeTypeAndValue) -> Option<()> {
    match known(&attribute.oid) {
        Some(name) => {
            text.push_str(name);
            text.push('=');
            escape(text, &value(attribute)?);
        }
        None => {
            // Writing to a string does not fail.
            let _ = write!(text, "{}=#", attribute.oid);
            for byte in attribute.value.to_der().ok()? {
                let _ = write!(text, "{byte:02x}");
            }
        }
    }
    Some(())
}

fn known(oid: &ObjectIdentifier) -> Option<&'static str> {
    let oid = oid.to_string();
    let found = NAMES.iter().find(|(number, _)| *number == oid);
    found.map(|(_, name)| *name)
}

/// The text that an attribute has.
fn value(attribute: &AttributeTypeAndValue) -> Option<String> {
    let bytes = attribute.value.value();
    match attribute.value.tag() {
        Tag::Utf8String
        | Tag::PrintableString
        | Tag::Ia5String
        | Tag::NumericString
        | Tag::VisibleString
        | Tag::TeletexString => Some(std::str::from_utf8(bytes).ok()?.to_owned()),
        Tag::BmpString => {
            let (pairs, rest) = bytes.as_chunks::<2>();
            let units: Vec<u16> = pairs.iter().map(|pair| u16::from_be_bytes(*pair)).collect();
            rest.is_empty().then(|| String::from_utf16(&units).ok())?
        }
        _ => None,
    }
}

fn escape(text: &mut String, value: &str) {
    let last = value.chars().count().saturating_sub(1);
    for (at, character) in value.chars().enumerate() {
        let special = match character {
            ',' | '+' | '"' | '\\' | '<' | '>' | ';' => true,
            '#' => at == 0,
            ' ' => at == 0 || at == last,
            _ => false,
        };
        if special {
            text.push('\\');
        }
        text.push(character);
    }
}

#[cfg(test)]
mod tests {
    use openssl::x509::{X509Name, X509NameBuilder};

    use super::*;
    use der::Decode;

    fn shown(parts: &[(&str, &str)]) -> Option<String> {
        let mut name: X509NameBuilder = X509Name::builder().unwrap();
        for (field, value) in parts {
            name.append_entry_by_text(field, value).unwrap();
        }
        let bytes = name.build().to_der().unwrap();
        distinguished_name(&RdnSequence::from_der(&bytes).unwrap())
    }

    #[test]
    fn names_are_in_the_certificates_order_and_no_part_looks_like_two() {
        for (parts, text) in [
            (
                &[("C", "US"), ("O", "t"), ("CN", "client")][..],
                "C=US,O=t,CN=client",
            ),
            (&[("O", "t,CN=client"), ("CN", "x")], "O=t\\,CN=client,CN=x"),
            (&[("CN", "a+b\\c\"d;e<f>g")], "CN=a\\+b\\\\c\\\"d\\;e\\<f\\>g"),
            (&[("CN", "#hash#"), ("O", " room ")], "CN=\\#hash#,O=\\ room\\ "),
            (&[("emailAddress", "a@b.c"), ("UID", "u")], "EMAIL=a@b.c,UID=u"),
            (&[("CN", "\u{e4}\u{4e2d}")], "CN=\u{e4}\u{4e2d}"),
        ] {
            assert_eq!(shown(parts).as_deref(), Some(text));
        }
        assert_eq!(shown(&[]), None);
    }
}
